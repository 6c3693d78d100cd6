"""The MVQVAE has the report's shapes, masks its input only while it trains, and its training resumes.

A3, B1, B2, B4, B5 are the acceptance facts of design/systems-baseline-cmu.md, section 5; D1 stands in test_mhifigan.py.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers_lab import configured, toy_folder
from torch import Tensor, nn

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.baseline import vqvae as model_file
from foleybox.lab.baseline.codes import decode_codes, encode_features, read_codes
from foleybox.lab.baseline.losses import commitment
from foleybox.lab.baseline.vqvae import ParallelResidual, ResidualBlock, Vqvae, VqvaeConfig, nearest
from foleybox.lab.cmu import train_mvqvae as loop
from foleybox.lab.cmu.cembed import PARTS, CembedConfig, fill_value, published_scale
from foleybox.lab.cmu.masks import PartMasks, draw_part_masks
from foleybox.lab.cmu.mvqvae import SIZES, V1, V2, Mvqvae, MvqvaeConfig, Rows
from foleybox.lab.cmu.runs import load_mvqvae, load_quantiser
from foleybox.lab.cmu.systems import MVQ
from foleybox.lab.cmu.train_mvqvae import TrainMvqvae, errors_by_part, main, measure, train
from foleybox.lab.core.clips import ClipFile, find_clips, split_by_recording
from foleybox.lab.core.loop import evenly_spaced
from foleybox.lab.core.mel import CEMBED, DCASE, SILENCE, LogMel
from foleybox.lab.core.runs import fingerprint, read_run_config
from foleybox.lab.play import encode as encode_module

TINY = MvqvaeConfig(channels=4, residual=2, width=3, size=8)
FAST = replace(TINY, components=31, stride=16)
draw_sheet = loop.sheet


def weights(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def on_paper(config: MvqvaeConfig, head: Any = "pre") -> Mvqvae:
    """A model whose weights are counted and never made."""
    with torch.device("meta"):
        return Mvqvae(config, head)


# --- the network --------------------------------------------------------------------------------------------------


def test_every_row_of_the_reports_table_1() -> None:
    """Baseline and final shape; its "(20, 80)" for the baseline's latent is a misprint: 344 / 4 is 86."""
    waves = {"dcase": torch.zeros(4 * 22_050), "cembed": torch.zeros(4 * 24_000)}
    assert LogMel(DCASE)(waves["dcase"]).shape == (80, 344)
    assert LogMel(CEMBED)(waves["cembed"]).shape == (129, 300)
    assert PARTS[0] == 1023
    made = Mvqvae(TINY)(torch.randn(1, 1152, 300))
    assert sum(PARTS) == 1152
    assert made.codes.shape == (1, 288, 75)
    baseline = Vqvae(VqvaeConfig(channels=4, residual=2, width=3, size=8))
    assert baseline(torch.randn(1, 80, 344)).codes.shape == (1, 20, 86)


def test_b1_a_cembed_becomes_a_grid_and_comes_back() -> None:
    mvqvae = Mvqvae(TINY, "pre")
    made = mvqvae(torch.randn(2, 1152, 300))
    assert made.latent.shape == made.quantised.shape == (2, 3, 288, 75)
    assert made.output.shape == mvqvae.decode(made.quantised).shape == (2, 1152, 300)
    assert made.logits is not None
    assert made.logits.shape == (2, 7)


def test_b2_both_versions_have_the_measured_number_of_weights_parallel_path_or_serial_block() -> None:
    assert weights(on_paper(V1)) == 8_653_576
    assert weights(on_paper(V2)) == weights(on_paper(replace(V2, extra="serial"))) == 9_641_928
    assert weights(on_paper(V2).classifier) == 903
    assert (V1.size, V2.size) == (512, 1024)
    assert MvqvaeConfig() == V2


def test_the_additional_path_is_parallel_to_the_blocks_and_the_serial_block_follows_them() -> None:
    torch.manual_seed(0)
    config, x = replace(TINY, norm=False), torch.randn(1, 4, 5, 6)
    parallel = ParallelResidual(config)
    torch.testing.assert_close(parallel(x), parallel.blocks(x) + parallel.body(F.relu(x)))
    for parameter in parallel.body[-1].parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(parallel(x), parallel.blocks(x))
    for extra, blocks in (("none", 2), ("serial", 3)):
        branch = Mvqvae(replace(config, extra=extra)).branches[0]
        assert sum(isinstance(layer, ResidualBlock) for layer in branch.children()) == blocks
    parts = Mvqvae(config).modules()
    assert sum(isinstance(part, ParallelResidual) for part in parts) == 5  # four branches and the decoder


def test_the_coarse_grid_has_the_branches_the_parallel_path_and_batch_norm_of_the_published_size() -> None:
    config = replace(V2, components=31, stride=8)
    assert TrainMvqvae(components=31, stride=8).settled.model == config
    mvqvae = on_paper(config)
    assert mvqvae.grid == (20, 38)
    assert len(mvqvae.branches) == 4
    published = on_paper(V2)
    kinds = (ParallelResidual, ResidualBlock, nn.BatchNorm2d)
    count = {kind: sum(isinstance(part, kind) for part in mvqvae.modules()) for kind in kinds}
    assert count[ParallelResidual] == 5
    assert count[ResidualBlock] == sum(isinstance(part, ResidualBlock) for part in published.modules())
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in published.modules())
    assert count[nn.BatchNorm2d] == norms + 4  # one more convolution in each branch
    small = Mvqvae(replace(config, channels=8, residual=4, width=4, size=16))
    made = small(torch.randn(2, 1152, 300))
    assert made.codes.shape == (2, 20, 38)
    assert made.output.shape == (2, 160, 300)
    assert small.decode(made.quantised).shape == (2, 1152, 300)


@pytest.mark.parametrize(
    ("changes", "grid", "tokens"),
    [
        ({}, (288, 75), 21_600),
        ({"stride": 8}, (144, 38), 5_472),
        ({"stride": 16}, (72, 19), 1_368),
        ({"components": 127, "stride": 8}, (32, 38), 1_216),
        ({"components": 63, "stride": 4}, (48, 75), 3_600),
        ({"components": 31, "stride": 8}, (20, 38), 760),
        ({"components": 30, "stride": 16}, (10, 19), 190),  # 159 rows: padded to 160
    ],
)
def test_options_that_make_a_clip_fewer_tokens(changes: dict[str, Any], grid: tuple[int, int], tokens: int) -> None:
    mvqvae = Mvqvae(replace(TINY, **changes))
    made = mvqvae(torch.randn(1, 1152, 300))
    assert mvqvae.grid == made.codes.shape[1:] == grid
    assert made.codes.numel() == tokens
    rows = (changes.get("components") or 1023) + 129
    assert made.output.shape == (1, rows, 300)
    assert mvqvae.decode(made.quantised).shape == (1, 1152, 300)


def test_raw_rows_come_back_and_the_scale_is_part_of_the_weights() -> None:
    torch.manual_seed(0)
    mvqvae = Mvqvae(replace(TINY, stride=16))
    before = fingerprint(mvqvae)
    mvqvae.rows.fill(torch.randn(1152), torch.rand(1152) + 0.5)
    assert fingerprint(mvqvae) != before
    raw = torch.randn(2, 1152, 300)
    torch.testing.assert_close(mvqvae.rows.back(mvqvae.rows(raw)), raw, atol=1e-5, rtol=1e-5)
    made = mvqvae.eval()(raw)
    torch.testing.assert_close(mvqvae.rows.back(made.output), mvqvae.decode(made.quantised), atol=1e-5, rtol=1e-5)
    scaled = mvqvae.rows(raw)
    torch.testing.assert_close(scaled[0, 5], (raw[0, 5] - mvqvae.rows.mean[5]) / mvqvae.rows.deviation[5])


def test_components_keep_what_lies_in_their_directions_and_the_mel_as_it_is() -> None:
    torch.manual_seed(0)
    rows = Rows((6, 2), components=3)
    directions = torch.linalg.qr(torch.randn(6, 3))[0].T
    mean, deviation = torch.randn(8), torch.rand(8) + 0.5
    rows.fill(mean, deviation, 0.3 * directions)
    raw = torch.randn(2, 8, 5)
    scaled = (raw - mean[:, None]) / deviation[:, None]
    kept = torch.cat([directions.T @ (directions @ scaled[:, :6]), scaled[:, 6:]], 1)
    assert rows(raw).shape == (2, 5, 5)
    torch.testing.assert_close(rows(raw)[:, 3:], scaled[:, 6:])
    torch.testing.assert_close(rows.back(rows(raw)), kept * deviation[:, None] + mean[:, None], atol=1e-5, rtol=1e-5)


def test_points_are_compared_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    points, vectors = torch.randn(100, 4), torch.randn(9, 4)
    at_once = nearest(points, vectors)
    monkeypatch.setattr(model_file, "POINTS_AT_ONCE", 7)
    assert torch.equal(nearest(points, vectors), at_once)


# --- the masks ----------------------------------------------------------------------------------------------------


def draw(seed: int, count: int = 4, **changes: Any) -> Tensor:
    torch.manual_seed(seed)
    return draw_part_masks(count, PARTS, 300, PartMasks(**changes))


def spans(masked: Tensor) -> tuple[int, int]:
    """Return (frames masked in every row, rows masked in every frame) of [F, T], each one span without a gap."""
    found = []
    for whole in (masked.all(0), masked.all(1)):
        positions = whole.nonzero().flatten()
        assert len(positions) == 0 or int(positions[-1] - positions[0]) + 1 == len(positions)
        found.append(len(positions))
    return found[0], found[1]


def test_a3_masks_are_a_span_of_frames_and_one_of_rows_no_wider_than_stated() -> None:
    widest = {"encoder": [0, 0], "mel": [0, 0]}
    for seed in range(200):
        encoder, mel = draw(seed)[0].split(PARTS, 0)
        for name, part, rows in (("encoder", encoder, 250), ("mel", mel, 25)):
            frames, bands = spans(part)
            assert frames <= 25
            assert bands <= rows
            assert part.float().mean() <= 25 / 300 + rows / len(part)
            widest[name] = [max(a, b) for a, b in zip(widest[name], (frames, bands))]
    assert widest["encoder"][0] == widest["mel"][0] == widest["mel"][1] == 24
    assert widest["encoder"][1] > 230


def test_a3_the_two_parts_are_masked_independently_and_as_the_seed_says() -> None:
    starts = []
    for seed in range(150):
        masked = draw(seed)
        assert torch.equal(masked, draw(seed))
        parts = [part.all(0).nonzero().flatten() for part in masked[0].split(PARTS, 0)]
        if all(len(part) for part in parts):
            starts.append([float(part[0]) for part in parts])
    pairs = torch.tensor(starts).T
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.2  # synchronous masks have 1
    assert (pairs[0] == pairs[1]).float().mean() < 0.05


def test_a_batch_shares_its_masks_as_published_or_each_clip_has_its_own() -> None:
    assert torch.equal(draw(0), draw(0)[:1].expand(4, -1, -1))
    each = draw(0, mask_each=True)
    assert not torch.equal(each[0], each[1])
    assert not draw(0, mask_frames=0, mask_mel_rows=0, mask_encoder_rows=0).any()


def test_masked_entries_are_silent_and_not_the_loud_noise_that_0_is_in_a_log_mel() -> None:
    rows = Rows(PARTS)
    rows.fill(torch.arange(1152.0), torch.ones(1152))
    silence = fill_value(rows, "silence")
    assert silence[1023:].unique().tolist() == pytest.approx([SILENCE])
    assert torch.equal(silence[:1023, 0], torch.arange(1023.0))  # the encoder's rows have their mean
    rows.fill(*published_scale())
    zero = rows(fill_value(rows, "zero")[None])
    torch.testing.assert_close(zero, torch.zeros(1, 1152, 1))  # as in the public copy: 0 is what the network sees


# --- training -----------------------------------------------------------------------------------------------------


def made_up(clips: list[ClipFile], _: CembedConfig) -> Tensor:
    """CEmbeds of no encoder, the same for a clip whatever the set."""
    parts = [
        torch.randn(1152, 300, generator=torch.Generator().manual_seed(sum(map(ord, "/".join(clip.path.parts[-2:])))))
        for clip in clips
    ]
    return torch.stack(parts) * 2 + 1 if parts else torch.empty(0, 1152, 300)  # indexed and counted as they are


@pytest.fixture(autouse=True)
def _no_encoder_and_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_cembeds", made_up)
    monkeypatch.setattr(encode_module, "load_cembeds", made_up)
    monkeypatch.setattr(loop, "sheet", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("sounds"), per_label=2, seconds=0.1)


def tiny_run(out: Path, **changes: Any) -> TrainMvqvae:
    values: dict[str, Any] = {
        "out": out,
        "features": CembedConfig(encoder="stand-in"),
        "model": FAST,
        "held_out": 0.3,
        "batch": 2,
        "steps": 4,
        "precision": "no",
        "device": "cpu",
        "threads": 1,
        "tracker": "none",
        "log_every": 1,
        "save_every": 1,
        "sample_every": 100,
    }
    return configured(TrainMvqvae, **{**values, **changes})


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_cembeds", made_up)
        patch.setattr(loop, "sheet", lambda *_: None)
        train(tiny_run(out), find_clips(folder), out)
    return out


def test_a_stopped_run_resumes_bit_for_bit_masks_scale_and_codebook_too(
    finished: Path, folder: Path, tmp_path: Path
) -> None:
    really = loop.seed_step

    def seed_step(seed: int, now: int) -> None:
        if now == 2:
            raise KeyboardInterrupt
        really(seed, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "seed_step", seed_step)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
            train(tiny_run(tmp_path), find_clips(folder), tmp_path)
    train(tiny_run(tmp_path), find_clips(folder), tmp_path)
    mine, theirs = state(tmp_path), state(finished)
    assert mine["step"] == theirs["step"] == 4
    assert {"rows.mean", "rows.deviation", "rows.basis", "codebook.vectors"} < set(theirs["mvqvae"])
    assert all(torch.equal(value, mine["mvqvae"][name]) for name, value in theirs["mvqvae"].items())
    assert str(mine["optimizer"]["state"]) == str(theirs["optimizer"]["state"])
    alike = [{name: value for name, value in line.items() if name != "steps_per_second"} for line in lines(tmp_path)]
    assert alike == [{n: v for n, v in line.items() if n != "steps_per_second"} for line in lines(finished)]


def test_a3_the_input_is_masked_and_the_target_is_the_clean_cembed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, asked = [], []
    forward, distance = Mvqvae.forward, F.mse_loss

    def spy(self: Mvqvae, features: Tensor) -> Any:
        seen.append(features.clone())
        return forward(self, features)

    def mse_loss(made: Tensor, target: Tensor) -> Tensor:
        asked.append(target.clone())
        return distance(made, target)

    monkeypatch.setattr(Mvqvae, "forward", spy)
    monkeypatch.setattr(loop, "F", SimpleNamespace(mse_loss=mse_loss, cross_entropy=F.cross_entropy))
    monkeypatch.setattr(loop, "measure", lambda *_: {})
    train(tiny_run(tmp_path, steps=1), find_clips(folder), tmp_path)
    rows = load_mvqvae(tmp_path)[0].rows
    kept, _ = split_by_recording(find_clips(folder), 0.3)
    clean = made_up(kept, CembedConfig())[loop.batch_indices(0, 2, len(kept), 0)]
    torch.manual_seed(0)
    loop.seed_step(0, 0)
    masked = draw_part_masks(2, PARTS, 300, PartMasks())
    assert 0 < float(masked.float().mean()) < 0.4
    assert torch.equal(asked[0], rows(clean))  # bit for bit
    assert torch.equal(seen[0][~masked], clean[~masked])
    assert torch.equal(seen[0][masked], fill_value(rows, "silence").expand(2, -1, 300)[masked])


def test_a3_nothing_is_masked_in_measuring_and_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    mvqvae, features = Mvqvae(FAST, "pre").train(), torch.randn(3, 1152, 300)
    monkeypatch.setattr(loop, "draw_part_masks", lambda *_: pytest.fail("masks in eval"))
    found = measure(mvqvae, features, torch.arange(3), torch.tensor([0, 1, 2]), "x")
    expected = F.mse_loss(mvqvae(features).output, mvqvae.rows(features)).detach()
    assert found["x_mse"] == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(encode_features(mvqvae, features), mvqvae(features).codes)


def test_b4_what_is_optimised_is_squared_error_and_a_quarter_of_the_difference_and_a_hundredth_of_the_head(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimised = []
    backward = Accelerator.backward

    def spy(self: Accelerator, loss: Tensor, **rest: Any) -> None:
        optimised.append(float(loss.detach()))
        backward(self, loss, **rest)

    monkeypatch.setattr(Accelerator, "backward", spy)
    train(tiny_run(tmp_path, steps=2), find_clips(folder), tmp_path)
    for line, loss in zip(lines(tmp_path), optimised, strict=True):
        assert loss == pytest.approx(line["mse"] + 0.25 * line["latent"] + 0.01 * line["cross_entropy"], rel=1e-6)
        assert line["mse"] == pytest.approx((31 * line["mse_encoder"] + 129 * line["mse_mel"]) / 160, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_b5_the_means_of_three_clips_do_not_depend_on_the_batch(batch: int) -> None:
    """The public copy of the code divides sums of batch means by clips: two columns of Table 4 are 16 times small."""
    torch.manual_seed(0)
    mvqvae = Mvqvae(FAST, "pre")
    features = torch.randn(3, 1152, 300) * torch.tensor([1.0, 3.0, 9.0])[:, None, None]
    labels, some = torch.tensor([0, 1, 2]), torch.arange(3)
    whole = measure(mvqvae, features, some, labels, "x", batch=3)
    assert measure(mvqvae, features, some, labels, "x", batch=batch) == pytest.approx(whole, rel=1e-5)
    made = mvqvae(features)
    by_clip = [float(F.mse_loss(a, b).detach()) for a, b in zip(made.output, mvqvae.rows(features))]
    assert whole["x_mse"] == pytest.approx(sum(by_clip) / 3, rel=1e-5)
    assert whole["x_latent"] == pytest.approx(float(commitment(made.latent, made.quantised).detach()), rel=1e-4)
    assert measure(mvqvae, features, some[:0], labels, "x") == {}


def test_errors_are_of_either_part_and_the_mels_in_its_own_units_too() -> None:
    rows = Rows(PARTS)
    rows.fill(torch.zeros(1152), torch.cat([torch.full((1023,), 7.0), torch.full((129,), 3.0)]))
    target, made = torch.zeros(1, 1152, 4), torch.zeros(1, 1152, 4)
    made[:, :1023], made[:, 1023:] = 2, 0.5
    found = errors_by_part(rows, made, target)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"mse_encoder": 4, "mse_mel": 0.25, "mse_mel_raw": 0.25 * 9}
    )


def test_training_starts_on_the_scale_of_its_own_clips_and_lowers_the_error(folder: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, lr=1e-2, steps=12, save_every=12, batch=4)
    train(config, find_clips(folder), tmp_path)
    curve = [line["mse"] for line in lines(tmp_path)]
    assert curve[-1] < curve[0]
    kept, _ = split_by_recording(find_clips(folder), 0.3)
    flat = made_up(kept, CembedConfig()).transpose(0, 1).flatten(1)
    rows = load_mvqvae(tmp_path)[0].rows
    torch.testing.assert_close(rows.mean, flat.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows.deviation, flat.std(1, correction=0), atol=1e-4, rtol=1e-4)


def test_components_and_the_published_scale_are_found_and_kept(folder: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=1, scale="published", fill="zero", model=replace(TINY, stride=16, components=5))
    train(config, find_clips(folder), tmp_path)
    mvqvae, features, step = load_mvqvae(tmp_path)
    assert torch.equal(mvqvae.rows.mean, published_scale()[0])
    assert mvqvae.rows.basis.shape == (5, 1023)
    lengths = mvqvae.rows.basis.square().sum(1)
    assert float(lengths.min()) > 0
    assert (features, step) == (CembedConfig(encoder="stand-in"), 1)


def test_a_run_on_a_stand_in_says_so_in_its_log_its_settings_its_sheets_and_on_the_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "sheet", draw_sheet)
    few = find_clips(folder)[:3]  # of two labels, for a small picture
    train(tiny_run(tmp_path / "a", steps=1, held_out=0.0), few, tmp_path / "a")
    assert "stand-in encoder: random weights instead of MERT's" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "a" / "samples").iterdir()] == ["step-000001-stand-in.png"]
    assert lines(tmp_path / "a")[0]["stand_in"] == 1
    assert read_run_config(tmp_path / "a")["features"]["encoder"] == "stand-in"
    monkeypatch.setattr(loop, "sheet", lambda *_: None)
    train(tiny_run(tmp_path / "b", steps=1, held_out=0.0, features=CembedConfig()), few, tmp_path / "b")
    assert "stand-in" not in capsys.readouterr().out
    assert "stand_in" not in lines(tmp_path / "b")[0]


def test_the_last_line_has_table_4_of_training_and_held_out_clips(finished: Path, folder: Path) -> None:
    kept, held = split_by_recording(find_clips(folder), 0.3)
    measured = [kept[i] for i in evenly_spaced(len(kept), len(held)).tolist()]  # as many as are held out, at every step
    line = lines(finished)[-1]
    assert (line["train_clips"], line["held_out_clips"]) == (len(measured), len(held))
    assert len(measured) < len(kept)
    mvqvae, _, step = load_mvqvae(finished)
    assert step == 4
    for side, chosen in (("train", measured), ("held_out", held)):
        features = made_up(chosen, CembedConfig())
        made = mvqvae(features)
        target = mvqvae.rows(features)
        assert line[f"{side}_mse"] == pytest.approx(float(F.mse_loss(made.output, target)), rel=1e-4)
        assert line[f"{side}_latent"] == pytest.approx(float(commitment(made.latent, made.quantised)), rel=1e-3)
        assert {f"{side}_{name}" for name in ("mse_encoder", "mse_mel", "mse_mel_raw", "accuracy", "used")} <= set(line)


def test_the_system_is_the_reports_and_given_settings_replace_it() -> None:
    assert (MVQ.head, MVQ.batch, MVQ.lr, TrainMvqvae().head_weight) == ("pre", 16, 3e-4, 0.01)
    assert TrainMvqvae().plan == MVQ
    assert TrainMvqvae().settled.model == V2
    assert TrainMvqvae(size="cmu-v1").settled.model == V1 == SIZES["cmu-v1"]
    assert configured(TrainMvqvae, head="none", batch=3).plan == replace(MVQ, head="none", batch=3)
    assert asdict(PartMasks()) == {
        "mask_frames": 25,
        "mask_mel_rows": 25,
        "mask_encoder_rows": 250,
        "mask_each": False,
    }


def test_mistakes_are_reported_before_a_folder_is_made(folder: Path, tmp_path: Path) -> None:
    clips, out = find_clips(folder), tmp_path / "run"
    with pytest.raises(UserError, match="no data"):
        main(tiny_run(out, data=()))
    for changes, complaint in (
        ({"held_out": 1.0}, "14 clips, all of them held out"),
        ({"batch": 0}, "--batch 0: expected 1 or more"),
        ({"masks": PartMasks(mask_frames=-1)}, "--mask-frames -1: expected 0 or more"),
        ({"model": replace(TINY, components=1024)}, "--components 1024: the encoder has 1023 rows"),
        ({"model": replace(TINY, size=70_000)}, "a codebook of 70000 codes: expected 2 to 65536"),
        ({"model": replace(TINY, components=-1)}, "--components -1: expected 0 or more"),
    ):
        with pytest.raises(UserError, match=complaint):
            train(tiny_run(out, **changes), clips, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "changes",
    [{"features": CembedConfig()}, {"scale": "published"}, {"fill": "zero"}, {"model": replace(FAST, extra="serial")}],
)
def test_another_encoder_scale_or_mask_is_another_run(changes: dict[str, Any], finished: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="was started with"):
        train(tiny_run(finished, **changes), find_clips(folder), finished)


# --- to codes and back --------------------------------------------------------------------------------------------


def test_the_verb_encodes_a_run_of_it_and_the_codes_decode_to_cembeds(
    finished: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "codes.npz"
    assert cli.main(["encode", str(finished), str(folder), "-o", str(out), "--device", "cpu", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "14 clips, 10 x 19 codes each" in said
    assert "CEmbeds of the stand-in encoder: random weights, not MERT" in said
    found, (mvqvae, cembed, step) = read_codes(out), load_quantiser(finished)
    assert cembed == CembedConfig(encoder="stand-in")
    assert (found.fingerprint, found.step, found.size) == (fingerprint(mvqvae), step, 8)
    features = made_up(find_clips(folder), CembedConfig())
    made = mvqvae(features)
    assert (found.codes == made.codes).float().mean() > 0.99  # a tie may fall the other way
    back = decode_codes(mvqvae, made.codes, batch=3)
    assert back.shape == (14, 1152, 300)
    torch.testing.assert_close(back, mvqvae.rows.back(made.output), atol=1e-4, rtol=1e-4)  # type: ignore[union-attr]


def test_a_run_of_the_removed_residual_quantiser_is_refused_and_another_of_its_time_is_read(
    finished: Path, tmp_path: Path
) -> None:
    settings = read_run_config(finished)
    (tmp_path / "state.pt").write_bytes((finished / "state.pt").read_bytes())
    for depth, complaint in (
        (0, None),
        (8, "was trained with depth = 8, which this version of foleybox does not have"),
    ):
        changed = {**settings, "model": {**settings["model"], "depth": depth}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        if complaint is None:
            assert load_mvqvae(tmp_path)[2] == 4
        else:
            with pytest.raises(UserError, match=complaint):
                load_mvqvae(tmp_path)


def test_weights_of_an_mvqvae_cannot_be_chosen(finished: Path, folder: Path, tmp_path: Path) -> None:
    words = ["encode", str(finished), str(folder), "-o", str(tmp_path / "codes.npz"), "--device", "cpu"]
    assert cli.main([*words, "--weights", "last"]) == 2
    assert not (tmp_path / "codes.npz").exists()


def test_a_run_of_one_kind_is_refused_where_the_other_is_wanted(finished: Path) -> None:
    from foleybox.lab.baseline.runs import load_vqvae

    with pytest.raises(UserError, match="is a run of 'mvqvae': expected one of `foleybox train vqvae`"):
        load_vqvae(finished)
