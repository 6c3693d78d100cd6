"""The MVQVAE has the report's shapes, hides parts of its input only while it trains, and its training resumes.

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
from foleybox.lab.baseline.codes import decode_codes, encode_mels, read_codes
from foleybox.lab.baseline.losses import commitment
from foleybox.lab.baseline.vqvae import Beside, Codebook, ResidualBlock, Vqvae, VqvaeConfig, nearest
from foleybox.lab.cmu import train_mvqvae as loop
from foleybox.lab.cmu.cembed import PARTS, CembedConfig, fill_value, published_scale
from foleybox.lab.cmu.masks import PartMasks, draw_part_masks
from foleybox.lab.cmu.mvqvae import V1, V2, Codebooks, Mvqvae, MvqvaeConfig, Rows
from foleybox.lab.cmu.runs import load_mvqvae, load_quantiser
from foleybox.lab.cmu.systems import MVQ
from foleybox.lab.cmu.train_mvqvae import TrainMvqvae, errors_by_part, main, measure, train
from foleybox.lab.core.clips import ClipFile, find_clips, split_by_recording
from foleybox.lab.core.mel import CEMBED, DCASE, SILENCE, LogMel
from foleybox.lab.core.runs import fingerprint, read_run_config
from foleybox.lab.play import encode as encode_module

TINY = MvqvaeConfig(channels=4, residual=2, width=3, size=8)
FAST = replace(TINY, depth=2, stride=16)  # over time alone: the loop is the same
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
    assert made.before.shape == made.after.shape == (2, 3, 288, 75)
    assert made.mel.shape == mvqvae.decode(made.after).shape == (2, 1152, 300)
    assert made.logits is not None
    assert made.logits.shape == (2, 7)


def test_b2_both_versions_have_the_measured_number_of_weights_parallel_path_or_serial_block() -> None:
    assert weights(on_paper(V1)) == 8_653_576
    assert weights(on_paper(V2)) == weights(on_paper(replace(V2, extra="serial"))) == 9_641_928
    assert weights(on_paper(V2).classifier) == 903
    assert (V1.size, V2.size) == (512, 1024)
    assert MvqvaeConfig() == V2


def test_the_path_more_lies_beside_the_blocks_and_the_serial_one_after_them() -> None:
    torch.manual_seed(0)
    config, x = replace(TINY, norm=False), torch.randn(1, 4, 5, 6)
    beside = Beside(config)
    torch.testing.assert_close(beside(x), beside.blocks(x) + beside.body(F.relu(x)))
    for parameter in beside.body[-1].parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(beside(x), beside.blocks(x))
    for extra, blocks in (("none", 2), ("serial", 3)):
        way = Mvqvae(replace(config, extra=extra)).branches[0]
        assert sum(isinstance(layer, ResidualBlock) for layer in way.children()) == blocks
    assert sum(isinstance(part, Beside) for part in Mvqvae(config).modules()) == 5  # four branches and the decoder


@pytest.mark.parametrize(
    ("changes", "grid", "tokens"),
    [
        ({}, (288, 75), 21_600),
        ({"stride": 8}, (144, 38), 5_472),
        ({"stride": 16}, (72, 19), 1_368),
        ({"components": 127, "stride": 8}, (32, 38), 1_216),
        ({"components": 63, "stride": 4}, (48, 75), 3_600),
        ({"depth": 16}, (16, 75), 1_200),
        ({"depth": 32, "stride": 4}, (32, 75), 2_400),
        ({"depth": 64, "stride": 8}, (64, 38), 2_432),
        ({"depth": 8, "stride": 16, "components": 100}, (8, 19), 152),
        ({"components": 30, "stride": 16}, (10, 19), 190),  # 159 rows: padded to 160
    ],
)
def test_options_that_make_a_clip_fewer_tokens(changes: dict[str, Any], grid: tuple[int, int], tokens: int) -> None:
    mvqvae = Mvqvae(replace(TINY, **changes))
    made = mvqvae(torch.randn(1, 1152, 300))
    assert mvqvae.grid == made.codes.shape[1:] == grid
    assert made.codes.numel() == tokens
    rows = (changes.get("components") or 1023) + 129
    assert made.mel.shape == (1, rows, 300)
    assert mvqvae.decode(made.after).shape == (1, 1152, 300)
    assert int(mvqvae.tally(made.codes).sum()) == tokens
    assert mvqvae.tally(made.codes).shape == (changes.get("depth") or 1, 8)


def test_raw_rows_come_back_and_the_scale_is_part_of_the_weights() -> None:
    torch.manual_seed(0)
    mvqvae = Mvqvae(FAST)
    before = fingerprint(mvqvae)
    mvqvae.rows.fill(torch.randn(1152), torch.rand(1152) + 0.5)
    assert fingerprint(mvqvae) != before
    raw = torch.randn(2, 1152, 300)
    torch.testing.assert_close(mvqvae.rows.back(mvqvae.rows(raw)), raw, atol=1e-5, rtol=1e-5)
    made = mvqvae.eval()(raw)
    torch.testing.assert_close(mvqvae.rows.back(made.mel), mvqvae.decode(made.after), atol=1e-5, rtol=1e-5)
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


# --- codebooks one after another ----------------------------------------------------------------------------------


def test_each_codebook_codes_what_those_before_it_left() -> None:
    torch.manual_seed(0)
    books, before = Codebooks(TINY, 3), torch.randn(2, 3, 1, 40)
    books.start(before)
    codes, left = books(before), before
    assert codes.shape == (2, 3, 40)
    errors = []
    for i, book in enumerate(books.books):
        assert isinstance(book, Codebook)
        assert torch.equal(codes[:, [i]], book(left))
        left = left - book.look_up(codes[:, [i]])
        errors.append(float(left.square().mean()))
    torch.testing.assert_close(books.look_up(codes), before - left)
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.5 * errors[0]


def test_following_moves_every_codebook_by_its_own_part() -> None:
    torch.manual_seed(0)
    books, before = Codebooks(replace(TINY, codebook="faithful"), 2), torch.randn(1, 3, 1, 30)
    first, second = (Codebook(replace(TINY, codebook="faithful")) for _ in range(2))
    for mine, theirs in zip((first, second), books.books):
        mine.load_state_dict(theirs.state_dict())
    codes = books(before)
    books.follow(before, codes, step=3)
    first_codes = first(before)
    left = before - first.look_up(first_codes)
    second.follow(left, second(left), step=3)
    first.follow(before, first_codes, step=3)
    for mine, theirs in zip((first, second), books.books):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())


def test_points_are_compared_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    points, vectors = torch.randn(100, 4), torch.randn(9, 4)
    at_once = nearest(points, vectors)
    monkeypatch.setattr(model_file, "MANY", 7)
    assert torch.equal(nearest(points, vectors), at_once)


# --- the masks ----------------------------------------------------------------------------------------------------


def draw(seed: int, count: int = 4, **changes: Any) -> Tensor:
    torch.manual_seed(seed)
    return draw_part_masks(count, PARTS, 300, PartMasks(**changes))


def spans(hidden: Tensor) -> tuple[int, int]:
    """Return (frames hidden in every row, rows hidden in every frame) of [F, T], each one span without a gap."""
    found = []
    for whole in (hidden.all(0), hidden.all(1)):
        places = whole.nonzero().flatten()
        assert len(places) == 0 or int(places[-1] - places[0]) + 1 == len(places)
        found.append(len(places))
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
        hidden = draw(seed)
        assert torch.equal(hidden, draw(seed))
        parts = [part.all(0).nonzero().flatten() for part in hidden[0].split(PARTS, 0)]
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


def test_what_is_hidden_is_silent_and_not_the_loud_noise_that_0_means_in_a_log_mel() -> None:
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
        "period": 4,
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


def test_a_stopped_run_resumes_bit_for_bit_masks_scale_and_codebooks_too(
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
    assert {"rows.mean", "rows.deviation", "codebook.books.1.vectors"} < set(theirs["mvqvae"])
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
    hidden = draw_part_masks(2, PARTS, 300, PartMasks())
    assert 0 < float(hidden.float().mean()) < 0.4
    assert torch.equal(asked[0], rows(clean))  # bit for bit
    assert torch.equal(seen[0][~hidden], clean[~hidden])
    assert torch.equal(seen[0][hidden], fill_value(rows, "silence").expand(2, -1, 300)[hidden])


def test_a3_nothing_is_hidden_in_measuring_and_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    mvqvae, features = Mvqvae(FAST, "pre").train(), torch.randn(3, 1152, 300)
    monkeypatch.setattr(loop, "draw_part_masks", lambda *_: pytest.fail("masks in eval"))
    found = measure(mvqvae, features, torch.arange(3), torch.tensor([0, 1, 2]), "x")
    assert found["x_mse"] == pytest.approx(float(F.mse_loss(mvqvae(features).mel, features).detach()), rel=1e-5)
    assert torch.equal(encode_mels(mvqvae, features), mvqvae(features).codes)


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
        assert line["mse"] == pytest.approx((1023 * line["mse_encoder"] + 129 * line["mse_mel"]) / 1152, rel=1e-5)


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
    by_clip = [float(F.mse_loss(mine, real).detach()) for mine, real in zip(made.mel, features)]
    assert whole["x_mse"] == pytest.approx(sum(by_clip) / 3, rel=1e-5)
    assert whole["x_latent"] == pytest.approx(float(commitment(made.before, made.after).detach()), rel=1e-4)
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
    config = tiny_run(tmp_path, lr=1e-2, lr_low=1e-2, steps=12, save_every=12, batch=4)
    train(config, find_clips(folder), tmp_path)
    curve = [line["mse"] for line in lines(tmp_path)]
    assert curve[-1] < curve[0]
    kept, _ = split_by_recording(find_clips(folder), 0.3)
    flat = made_up(kept, CembedConfig()).transpose(0, 1).flatten(1)
    rows = load_mvqvae(tmp_path)[0].rows
    torch.testing.assert_close(rows.mean, flat.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows.deviation, flat.std(1, correction=0), atol=1e-4, rtol=1e-4)


def test_components_and_the_published_scale_are_found_and_kept(folder: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=1, scale="published", fill="zero", model=replace(FAST, components=5))
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
    train(tiny_run(tmp_path / "a", steps=1), find_clips(folder), tmp_path / "a")
    assert "stand-in encoder: random weights in MERT's place" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "a" / "samples").iterdir()] == ["step-000001-stand-in.png"]
    assert lines(tmp_path / "a")[0]["stand_in"] == 1
    assert read_run_config(tmp_path / "a")["features"]["encoder"] == "stand-in"
    monkeypatch.setattr(loop, "sheet", lambda *_: None)
    train(tiny_run(tmp_path / "b", steps=1, features=CembedConfig()), find_clips(folder), tmp_path / "b")
    assert "stand-in" not in capsys.readouterr().out
    assert "stand_in" not in lines(tmp_path / "b")[0]


def test_the_last_line_has_table_4_of_training_and_held_out_clips(finished: Path, folder: Path) -> None:
    kept, held = split_by_recording(find_clips(folder), 0.3)
    line = lines(finished)[-1]
    assert (line["train_clips"], line["held_out_clips"]) == (len(kept), len(held))
    mvqvae, _, step = load_mvqvae(finished)
    assert step == 4
    for side, chosen in (("train", kept), ("held_out", held)):
        features = made_up(chosen, CembedConfig())
        made = mvqvae(features)
        target = mvqvae.rows(features)
        assert line[f"{side}_mse"] == pytest.approx(float(F.mse_loss(made.mel, target)), rel=1e-4)
        assert line[f"{side}_latent"] == pytest.approx(float(commitment(made.before, made.after)), rel=1e-3)
        assert {f"{side}_{name}" for name in ("mse_encoder", "mse_mel", "mse_mel_raw", "accuracy", "used")} <= set(line)


def test_the_system_is_the_reports_and_what_is_asked_for_goes_before_it() -> None:
    plan = MVQ["cmu-a"]
    assert (plan.head, plan.head_weight, plan.batch, plan.lr_low) == ("pre", 0.01, 16, 1e-5)
    assert TrainMvqvae().plan == plan
    assert configured(TrainMvqvae, head="none", batch=3).plan == replace(plan, head="none", batch=3)
    assert asdict(PartMasks()) == {
        "mask_frames": 25,
        "mask_mel_rows": 25,
        "mask_encoder_rows": 250,
        "mask_each": False,
    }


def test_mistakes_are_told_before_a_folder_is_made(folder: Path, tmp_path: Path) -> None:
    clips, out = find_clips(folder), tmp_path / "run"
    with pytest.raises(UserError, match="no data"):
        main(tiny_run(out, data=()))
    for changes, complaint in (
        ({"held_out": 1.0}, "14 clips, all of them held out"),
        ({"batch": 0}, "--batch 0: expected 1 or more"),
        ({"lr_low": 1.0}, "--lr-low 1 above --lr 0.00025"),
        ({"masks": PartMasks(mask_frames=-1)}, "--mask-frames -1: expected 0 or more"),
        ({"model": replace(TINY, components=1024)}, "--components 1024: the encoder has 1023 rows"),
        ({"model": replace(TINY, size=70_000)}, "--size 70000: expected 65536 or fewer"),
        ({"model": replace(TINY, depth=-1)}, "--depth -1: expected 0 or more"),
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
    assert "14 clips, 2 x 19 codes each" in said
    assert "CEmbeds of the stand-in encoder: random weights, not MERT" in said
    found, (mvqvae, cembed, step) = read_codes(out), load_quantiser(finished)
    assert cembed == CembedConfig(encoder="stand-in")
    assert (found.fingerprint, found.step, found.size) == (fingerprint(mvqvae), step, 8)
    features = made_up(find_clips(folder), CembedConfig())
    made = mvqvae(features)
    assert (found.codes == made.codes).float().mean() > 0.99  # a tie may fall the other way
    back = decode_codes(mvqvae, made.codes, batch=3)
    assert back.shape == (14, 1152, 300)
    torch.testing.assert_close(back, mvqvae.rows.back(made.mel), atol=1e-4, rtol=1e-4)  # type: ignore[union-attr]


def test_a_run_of_one_kind_is_refused_where_the_other_is_wanted(finished: Path) -> None:
    from foleybox.lab.baseline.runs import load_vqvae

    with pytest.raises(UserError, match="is a run of 'mvqvae': expected one of `foleybox train vqvae`"):
        load_vqvae(finished)
