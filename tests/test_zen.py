"""Zen PixelSNAIL: the published weights, no later code used, sampled as by the naive sampler, trained as cmu-a."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from helpers_lab import changed, configured
from torch import Tensor, nn

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.baseline import pixelsnail, sampling
from foleybox.lab.baseline.codes import Codes, write_codes
from foleybox.lab.baseline.pixelsnail import (
    CMU_V1,
    PUBLISHED,
    Attention,
    NormedConv,
    PixelSnail,
    PixelSnailConfig,
    causal,
)
from foleybox.lab.baseline.sampling import (
    PLAIN,
    Drawing,
    IncrementalPixelSnail,
    memory_needed,
    require_memory,
    sample,
    sample_naive,
)
from foleybox.lab.baseline.systems import SNAIL
from foleybox.lab.baseline.train_pixelsnail import TrainPixelsnail, train
from foleybox.lab.cmu import zen as zen_module
from foleybox.lab.cmu.runs import load_pixelsnail
from foleybox.lab.cmu.zen import CausalTransposed, ZenAttention, ZenConfig, ZenPixelSnail, ZenState, make_pixelsnail
from foleybox.lab.core.runs import read_state

TINY = PixelSnailConfig(5, 7, 8, channels=16, inner=12, kernel=3, blocks=2, gates=1, heads=2, label_width=6)


def snail(config: PixelSnailConfig, zen: int, dtype: torch.dtype = torch.float64, louder: float = 1.0) -> PixelSnail:
    """A model in eval mode with strong attention and label path: untrained attention is nearly uniform, which hides a leak."""
    torch.manual_seed(0)
    model = make_pixelsnail(config, zen).to(dtype).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Attention):
                part.query.gain.mul_(4)
                part.key.gain.mul_(4)
            if isinstance(part, NormedConv):
                part.gain.mul_(louder)
        for parameter in cast(nn.Linear, model.plane[-1]).parameters():
            parameter.mul_(4)
    return model


# --- C1, C5: weights and sizes ------------------------------------------------------------------------------------


def on_no_device(config: PixelSnailConfig, zen: int) -> PixelSnail:
    with torch.device("meta"):
        return make_pixelsnail(config, zen)


@pytest.mark.parametrize(
    ("size", "codes", "zen", "parameters"),
    [
        (PUBLISHED, 1024, 1, 159_963_616),
        (PUBLISHED, 1024, 2, 172_468_000),
        (CMU_V1, 512, 2, 97_102_112),
    ],
)
def test_c1_the_network_has_the_published_number_of_parameters(
    size: PixelSnailConfig, codes: int, zen: int, parameters: int
) -> None:
    model = on_no_device(dataclasses.replace(size, height=288, width=75, codes=codes, cond_resnet=True), zen)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("zen", "grid"), [(0, (288, 75)), (1, (144, 38)), (2, (72, 19))])
def test_c5_attention_has_a_quarter_of_the_tokens_and_a_sixteenth_of_the_matrix(
    zen: int, grid: tuple[int, int]
) -> None:
    model = on_no_device(PixelSnailConfig(288, 75, 8, 16, 16, blocks=1, gates=1, label_width=4), zen)
    attention = cast(Attention, next(part for part in model.modules() if isinstance(part, Attention)))
    seen: list[tuple[int, ...]] = []
    attention.register_forward_pre_hook(lambda _, parts: seen.extend(tuple(part.shape[2:]) for part in parts))
    codes = torch.zeros(1, 288, 75, dtype=torch.int64, device="meta")
    assert model(codes, torch.zeros(1, dtype=torch.int64, device="meta")).shape == (1, 8, 288, 75)
    assert seen == [grid, grid]
    tokens = grid[0] * grid[1]
    assert 21_600 / tokens == pytest.approx({0: 1, 1: 3.95, 2: 15.79}[zen], abs=0.005)
    assert 8 * tokens**2 * 2 / 1e9 == pytest.approx({0: 7.46, 1: 0.479, 2: 0.030}[zen], abs=0.005)


def test_a_zen_pixelsnail_has_one_halving_or_more() -> None:
    for zen in (0, -1):
        with pytest.raises(ValueError, match=f"zen {zen}: expected 1 or more"):
            ZenConfig(zen=zen)
    assert type(make_pixelsnail(TINY, 0)) is PixelSnail
    made = make_pixelsnail(TINY, 2)
    assert isinstance(made, ZenPixelSnail)
    assert (made.config.zen, made.config.height) == (2, 5)


# --- C4: the convolutions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(4, 5), (6, 1), (1, 3)])  # two dimensions, and one
@torch.no_grad()
def test_c4_the_transposed_convolution_is_the_dense_matrix_without_entries_to_earlier_positions(
    height: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = CausalTransposed(1).double()
    assert conv.bias is not None
    conv.bias.zero_()
    n = height * width
    dense = conv(torch.eye(n, dtype=torch.float64).view(n, 1, height, width))
    assert dense.shape == (n, 1, 2 * height, 2 * width)
    weight, expected = conv.weight()[0, 0], torch.zeros(n, 2 * height, 2 * width, dtype=torch.float64)
    for place in range(n):
        top, left = 2 * (place // width), 2 * (place % width)
        for y in range(min(3, 2 * height - top)):
            for x in range(min(3, 2 * width - left)):
                expected[place, top + y, left + x] = weight[y, x]
    torch.testing.assert_close(dense[:, 0], expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (2, 3)])
def test_a_strided_convolution_uses_two_rows_above_and_one_column_before(row: int, column: int) -> None:
    conv = causal(1, 1, 3, 2).double()
    x = torch.zeros(1, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    assert y.shape == (1, 1, 3, 4)
    (seen,) = torch.autograd.grad(y[0, 0, row, column], x)
    top, left = 2 * row, 2 * column
    field = [(y, x) for y in (top - 2, top - 1) for x in (left - 1, left, left + 1)] + [(top, left - 1)]
    assert [tuple(place) for place in torch.nonzero(seen[0, 0]).tolist()] == [
        (y, x) for y, x in field if 0 <= y < 5 and 0 <= x < 7
    ]


@torch.no_grad()
def by_hand(zen: ZenAttention, query: Tensor, key: Tensor) -> Tensor:
    """Zen attention written out position by position; no convolution, no padding, no cropping."""

    def down(conv: NormedConv, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        weight, bias = conv.weight(), cast(Tensor, conv.bias)
        y = bias[:, None, None].repeat(B, 1, (H + 1) // 2, (W + 1) // 2)
        for row in range(y.shape[2]):
            for column in range(y.shape[3]):
                for up in range(-2, 1):
                    for side in range(-1, 2):
                        i, j = 2 * row + up, 2 * column + side
                        if (up, side) < (0, 0) and 0 <= i < H and 0 <= j < W:
                            y[:, :, row, column] += x[:, :, i, j] @ weight[:, :, up + 2, side + 1].T
        return y

    def back(conv: NormedConv, x: Tensor, size: torch.Size) -> Tensor:
        weight, bias = conv.weight(), cast(Tensor, conv.bias)
        y = bias[:, None, None].repeat(len(x), 1, *size)
        for row in range(size[0]):
            for column in range(size[1]):
                for i in range(row // 2 + 1):
                    for j in range(column // 2 + 1):
                        if row - 2 * i <= 2 and column - 2 * j <= 2:
                            y[:, :, row, column] += x[:, :, i, j] @ weight[:, :, row - 2 * i, column - 2 * j]
        return y

    sizes = [query.shape[2:]]
    for stage, (one, other) in enumerate(zip(zen.queries, zen.keys)):
        if stage:
            query, key = F.gelu(query), F.gelu(key)
        query, key = down(cast(NormedConv, one), query), down(cast(NormedConv, other), key)
        sizes.append(query.shape[2:])
    y = zen.attention(query, key)
    for stage, conv in enumerate(zen.back):
        y = back(cast(NormedConv, conv), F.gelu(y) if stage else y, sizes[-2 - stage])
    return y


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 6), (6, 1)])
def test_zen_is_what_its_equations_say(height: int, width: int, stages: int) -> None:
    torch.manual_seed(0)
    zen = ZenAttention(6, 10, 8, 2, 0.1, stages).double().eval()
    query, key = torch.randn(2, 6, height, width).double(), torch.randn(2, 10, height, width).double()
    torch.testing.assert_close(zen(query, key), by_hand(zen, query, key), atol=1e-12, rtol=0)


# --- C2, C3: causality --------------------------------------------------------------------------------------------


@torch.no_grad()
def moved(model: PixelSnail) -> Tensor:
    """Return [N, N]: the largest change of the logits of position q by another code at position p."""
    c = model.config
    n = c.height * c.width
    torch.manual_seed(1)
    codes, label = torch.randint(c.codes, (1, n)).repeat(n, 1), torch.full((n,), 3)
    logits = []
    for each in (codes, codes + torch.eye(n, dtype=torch.int64)):
        torch.manual_seed(2)  # in training, the same dropout
        logits.append(model(each.view(n, c.height, c.width) % c.codes, label).flatten(2))
    return (logits[1] - logits[0]).abs().amax(1)


def ahead(found: Tensor) -> float:
    """Return the largest effect of a code on a position that is not after it: exactly 0 in a causal model."""
    return float(found.tril().max())


def assert_causal(model: PixelSnail) -> None:
    """A code changes no position up to itself, changes some after it, and all from three coarse rows below on."""
    found, width, below = moved(model), model.config.width, 3 * 2 ** getattr(model.config, "zen", 0)
    assert ahead(found) == 0
    rows = torch.arange(len(found)) // width
    assert (found[:-1] > 0).any(1).all()
    assert (found > 0)[rows[None] - rows[:, None] >= below].all()


@pytest.mark.parametrize("zen", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(14, 6), (13, 7), (7, 5), (13, 1)])
def test_c2_a_code_changes_later_positions_and_not_one_before_it(height: int, width: int, zen: int) -> None:
    assert_causal(snail(dataclasses.replace(TINY, height=height, width=width, kernel=5), zen))


@pytest.mark.parametrize("zen", [1, 2])
def test_c2_causality_holds_in_training_and_after_three_steps_of_it(zen: int) -> None:
    model = snail(dataclasses.replace(TINY, height=9, kernel=5), zen).train()
    assert ahead(moved(model)) == 0
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(3):
        codes = torch.randint(8, (4, 9, 7))
        optimizer.zero_grad()
        F.cross_entropy(model(codes, torch.arange(4)), codes).backward()
        optimizer.step()
    assert_causal(model.eval())


class PublishedTransposed(CausalTransposed):
    """As in the public copy of CMU's code: a row of height padding, so that coarse row I affects fine row 2I - 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight(), self.bias, self.stride, padding=(1, 0), output_padding=(1, 0))


def as_published(model: PixelSnail) -> None:
    for part in model.modules():
        if isinstance(part, CausalTransposed):
            part.__class__ = PublishedTransposed


def seeing_ahead(model: PixelSnail) -> None:
    """Strided kernels that use their own position and later ones, as where zeros in the weights are undone."""
    for part in model.modules():
        if isinstance(part, NormedConv) and part.stride > 1 and part.mask is not None:
            part.mask = torch.ones_like(part.mask)


def moved_grid(model: PixelSnail) -> None:
    """Coarse positions one fine row late: the grid is aligned to the last row, not the first."""
    for part in model.modules():
        if isinstance(part, NormedConv) and part.stride > 1 and part.mask is not None:
            part.pad = (1, 1, 1, 1)


@pytest.mark.parametrize("zen", [1, 2])
@pytest.mark.parametrize("leak", [as_published, seeing_ahead, moved_grid])
def test_c2_a_planted_leak_is_caught(leak: Any, zen: int) -> None:
    model = snail(dataclasses.replace(TINY, height=9, kernel=5), zen)
    leak(model)
    assert ahead(moved(model)) > 0


@pytest.mark.parametrize(("row", "column", "positions", "rows"), [(4, 0, 48, 3), (8, 3, 36, 3)])
@torch.no_grad()
def test_c2_the_published_arrangement_leaks_as_was_measured_on_it_and_ours_does_not(
    row: int, column: int, positions: int, rows: int
) -> None:
    """32 x 20 codes, two stages, one block: a code changes this many earlier positions, up to this many rows above."""
    model = snail(PixelSnailConfig(32, 20, 8, 16, 12, 5, 1, 2, 2, label_width=6), 2)
    codes, label = torch.randint(8, (1, 32, 20)), torch.tensor([3])
    other = codes.clone()
    other[0, row, column] = (other[0, row, column] + 1) % 8

    def earlier() -> Tensor:
        before = (model(other, label) != model(codes, label)).any(1).flatten()[: row * 20 + column + 1]
        return torch.nonzero(before).flatten()

    assert len(earlier()) == 0
    as_published(model)
    assert len(earlier()) == positions
    assert row - int(earlier().min()) // 20 == rows


@pytest.mark.parametrize("zen", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(9, 7), (6, 4), (5, 1)])
@torch.no_grad()
def test_c3_the_logits_of_a_row_need_no_row_below_it(height: int, width: int, zen: int) -> None:
    model = snail(dataclasses.replace(TINY, height=height, width=width, kernel=5), zen)
    codes, label = torch.randint(8, (2, height, width)), torch.tensor([1, 4])
    whole = model(codes, label)
    for row in range(height):
        prefix = model(codes[:, : row + 1], label)
        torch.testing.assert_close(prefix, whole[:, :, : row + 1], atol=1e-10, rtol=0)


# --- C3: the samplers ---------------------------------------------------------------------------------------------

SHAPES = [(6, 4, 5, 2, 2), (5, 7, 3, 1, 1), (9, 5, 5, 3, 1), (6, 1, 5, 1, 2), (1, 9, 7, 2, 1), (1, 1, 3, 2, 1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("zen", [1, 2, 3])
@pytest.mark.parametrize(("height", "width", "kernel", "blocks", "gates"), SHAPES)
def test_c3_the_incremental_sampler_draws_what_the_naive_one_draws(
    height: int, width: int, kernel: int, blocks: int, gates: int, zen: int, dtype: torch.dtype
) -> None:
    model = snail(PixelSnailConfig(height, width, 11, 16, 12, kernel, blocks, gates, 4, 6), zen, dtype, louder=1.5)
    labels, seeds = [0, 3, 5], [17, 2**62, 0]
    naive = sample_naive(model, labels, seeds, PLAIN)
    assert torch.equal(sample(model, labels, seeds), naive)
    assert torch.equal(sample(model, labels, seeds, batch=2), naive)
    assert height * width == 1 or len(naive.unique()) > 2


def test_c3_whatever_the_temperature_top_k_and_top_p() -> None:
    model, drawing = snail(TINY, 2, louder=2), Drawing(0.7, 5, 0.9)
    assert torch.equal(sample(model, [2, 6], [5, 6], drawing), sample_naive(model, [2, 6], [5, 6], drawing))


@pytest.mark.parametrize("zen", [1, 2])
@torch.no_grad()
def test_the_logits_position_by_position_are_those_of_the_whole(zen: int) -> None:
    model = snail(dataclasses.replace(TINY, height=9), zen, louder=1.5)
    codes, label = torch.randint(8, (2, 9, 7)), torch.tensor([1, 4])
    incremental, whole = IncrementalPixelSnail(model), model(codes, label)
    for _ in range(2):  # the second time after the first, as in the next batch
        incremental.reset(label)
        for row in range(9):
            incremental.start_row(row, codes)
            for column in range(7):
                logits = incremental.logits(row, column)
                torch.testing.assert_close(logits, whole[:, :, row, column], atol=1e-12, rtol=1e-12)
                incremental.append(column, codes[:, row, column])


def kept(part: Any) -> int:
    """Return the bytes of the tensors that the sampler's objects hold."""
    if isinstance(part, Tensor):
        return part.untyped_storage().nbytes()
    if isinstance(part, list | tuple):
        return sum(map(kept, part))
    parts = (IncrementalPixelSnail, ZenState, sampling.CausalLayers, zen_module.PointwiseLayers, sampling.PointwiseGate)
    return sum(map(kept, vars(part).values())) if isinstance(part, (*parts, sampling.Pointwise)) else 0


@pytest.mark.parametrize("zen", [1, 2])
def test_the_estimated_memory_covers_what_is_kept(zen: int) -> None:
    model = snail(dataclasses.replace(TINY, height=8, width=41, channels=32, inner=32), zen, torch.float32)
    for batch in (1, 7):
        incremental = IncrementalPixelSnail(model)
        incremental.reset(torch.zeros(batch, dtype=torch.int64))
        incremental.start_row(0, torch.zeros(batch, 8, 41, dtype=torch.int64))
        assert 0.3 * memory_needed(model, batch) < kept(incremental) < memory_needed(model, batch)


def test_zen_needs_less_memory_at_the_reports_size_and_beyond_it_a_smaller_batch_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [on_no_device(dataclasses.replace(PUBLISHED, height=288, width=75, codes=1024), zen) for zen in (0, 1)]
    needed = [memory_needed(model, 32) - memory_needed(model, 16) for model in sizes]
    assert needed[1] < 0.7 * needed[0]
    monkeypatch.setattr(sampling, "memory_free", lambda _: memory_needed(sizes[1], 3))
    with pytest.raises(UserError, match=r"drawing 4 clips at once takes about .* lower --batch to 3"):
        require_memory(sizes[1], 4)


# --- the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny "small" size."""
    monkeypatch.setitem(pixelsnail.SIZES, "small", TINY)


def toy(height: int = 5, width: int = 7, count: int = 14) -> Codes:
    """Clips whose codes depend on their label."""
    torch.manual_seed(3)
    labels, n = torch.arange(count) % 7, height * width
    codes = (labels[:, None, None] + torch.arange(n).view(height, width) // 3) % 9
    names = [f"a/{take:03d}.wav" for take in range(count)]
    rows = [{"clip": name, "label": "DogBark", "tier": "", "licence": "", "source": ""} for name in names]
    return Codes(codes, labels, names, names, rows, 9, "0" * 64, 1)


def settings(out: Path, **changes: Any) -> TrainPixelsnail:
    base = configured(
        TrainPixelsnail,
        Path("codes.npz"), out, "cmu-a", size="small", held_out=0.2, batch=4, lr=1e-2, steps=4, device="cpu", threads=1,
        tracker="none", log_every=1, save_every=2, sample_every=2,
    )  # fmt: skip
    return changed(base, **changes)


def test_cmu_a_is_trained_as_the_report_says_with_one_halving() -> None:
    a, b = SNAIL["cmu-a"], SNAIL["cmu-b"]
    assert a == dataclasses.replace(b, zen=1)
    assert (a.batch, a.schedule, a.precision) == (8, "triangle", "bf16")
    assert a.lr / 25 == pytest.approx(1e-5)
    assert a.clip_norm > 0
    assert (b.zen, SNAIL["baseline"].zen) == (0, 0)


@pytest.mark.parametrize(("zen", "expected"), [(None, 1), (2, 2), (0, 0)])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (12, 3)])
def test_the_loop_trains_on_codes_of_any_grid_and_its_model_draws(
    height: int, width: int, zen: Any, expected: int, tmp_path: Path
) -> None:
    train(settings(tmp_path, zen=zen), toy(height, width), tmp_path, build=make_pixelsnail)
    model, _, step = load_pixelsnail(tmp_path, "last")
    assert getattr(model.config, "zen", 0) == expected
    assert isinstance(model, ZenPixelSnail) is bool(expected)
    assert (step, model.config.height, model.config.width, model.config.codes) == (4, height, width, 9)
    assert sample(model, [3], [1]).shape == (1, height, width)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    for out, sittings in (("whole", [6]), ("halves", [3, 6])):
        for steps in sittings:
            train(settings(tmp_path / out, steps=steps, save_every=3), toy(), tmp_path / out, build=make_pixelsnail)
    whole, halves = (read_state(tmp_path / out / "state.pt")["pixelsnail"] for out in ("whole", "halves"))
    for key, value in whole.items():
        assert torch.equal(value, halves[key]), key


def test_the_verb_trains_cmu_a_and_does_not_resume_it_with_another_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_codes(tmp_path / "codes.npz", toy())
    command = [
        "train", "pixelsnail", str(tmp_path / "codes.npz"), "-o", str(tmp_path / "run"), "--system", "cmu-a",
        "--size", "small", "--steps", "2", "--batch", "2", "--device", "cpu", "--tracker", "none",
    ]  # fmt: skip
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["zen"] == 1
    assert cli.main([*command, "--zen", "2"]) != 0
    assert "differ" in capsys.readouterr().err


def test_c6_eight_clips_are_memorised() -> None:
    torch.manual_seed(0)
    model = make_pixelsnail(dataclasses.replace(TINY, label_width=16, dropout=0, attention_dropout=0), 2)
    codes, label = torch.randint(8, (8, 5, 7)), torch.arange(8) % 7
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(codes, label), codes).backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in cast(nn.Module, model.blocks).parameters())
    assert float((model.eval()(codes, label).argmax(1) == codes).float().mean()) > 0.99
