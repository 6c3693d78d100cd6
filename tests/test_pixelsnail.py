"""PixelSNAIL has the published weights, uses no later code, is sampled as by the naive sampler, and trains reproducibly."""

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from helpers_lab import changed, configured
from torch import Tensor, nn

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.baseline import pixelsnail, sampling
from foleybox.lab.baseline import train_pixelsnail as loop
from foleybox.lab.baseline.codes import Codes, split_codes, write_codes
from foleybox.lab.baseline.pixelsnail import (
    PUBLISHED,
    Attention,
    Block,
    Gate,
    NormedConv,
    PixelSnail,
    PixelSnailConfig,
    causal,
)
from foleybox.lab.baseline.runs import load_pixelsnail
from foleybox.lab.baseline.sampling import (
    PLAIN,
    Drawing,
    IncrementalPixelSnail,
    draw,
    memory_needed,
    require_memory,
    restricted,
    sample,
    sample_naive,
)
from foleybox.lab.baseline.systems import SMALL_LR
from foleybox.lab.baseline.train_pixelsnail import TrainPixelsnail, measure, train
from foleybox.lab.core.loop import accelerator_for
from foleybox.lab.core.runs import RunConfig, read_state

TINY = PixelSnailConfig(4, 6, 8, channels=16, inner=12, kernel=3, blocks=2, gates=1, heads=2, label_width=6)


def snail(
    config: PixelSnailConfig, dtype: torch.dtype = torch.float64, louder: float = 1.0, seed: int = 0
) -> PixelSnail:
    """A model in eval mode with strong attention and label path: untrained attention is nearly uniform, which hides a leak."""
    torch.manual_seed(seed)
    model = PixelSnail(config).to(dtype).eval()
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


# --- C1: the weights ----------------------------------------------------------------------------------------------


def count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def on_no_device(config: PixelSnailConfig) -> PixelSnail:
    with torch.device("meta"):
        return PixelSnail(config)


CMU = {"height": 288, "width": 75, "cond_resnet": True}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (PUBLISHED, 96_823_032),
        (dataclasses.replace(PUBLISHED, cond_resnet=True), 103_316_216),
        (PixelSnailConfig(codes=512, channels=128, gates=3, **CMU), 90_790_560),
        (PixelSnailConfig(codes=1024, **CMU), 147_459_232),
    ],
)
def test_c1_the_network_has_the_published_number_of_parameters(config: PixelSnailConfig, parameters: int) -> None:
    assert count(on_no_device(config)) == parameters


def test_c1_and_so_have_its_parts() -> None:
    model = on_no_device(dataclasses.replace(PUBLISHED, cond_resnet=True))
    block = cast(Block, model.blocks[0])
    assert count(block.gates[0]) == 4_917_760
    assert [count(part) for part in (block.key, block.query, block.attention, block.out)] == [
        397_320, 199_688, 165_376, 231_424,
    ]  # fmt: skip
    assert count(model.blocks) == 82_659_392
    assert [count(part) for part in (model.above, model.before, model.out)] == [1_311_232, 786_944, 132_096]
    assert count(model.plane) == 11_933_368
    assert count(model.cond_resnet) == 6_493_184


def test_the_published_network_reads_a_clip_of_20_by_86_codes() -> None:
    model = on_no_device(PUBLISHED)
    logits = model(
        torch.zeros(2, 20, 86, dtype=torch.int64, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    )
    assert logits.shape == (2, 512, 20, 86)


def test_the_dead_part_changes_nothing_and_is_not_trained() -> None:
    alive = snail(TINY)
    dead = snail(dataclasses.replace(TINY, cond_resnet=True), seed=1)
    dead.load_state_dict(alive.state_dict(), strict=False)
    codes, label = torch.randint(8, (2, 4, 6)), torch.tensor([0, 5])
    logits = dead(codes, label)
    assert torch.equal(logits, alive(codes, label))
    logits.sum().backward()
    without = {name.split(".")[0] for name, parameter in dead.named_parameters() if parameter.grad is None}
    assert without == {"cond_resnet"}


# --- the arithmetic -----------------------------------------------------------------------------------------------


def by_hand(model: PixelSnail, codes: Tensor, label: Tensor) -> Tensor:
    """The published forward pass written out: shifted streams, zeroed kernels, -1e4 and a first row times 0."""
    c = model.config
    n = c.height * c.width

    def conv(
        part: NormedConv, x: Tensor, pad: tuple[int, int, int, int] = (0, 0, 0, 0), zeroed: bool = False
    ) -> Tensor:
        v = part.direction.detach().clone()
        if zeroed:
            v[:, :, -1, c.kernel // 2 :] = 0
        weight = torch._weight_norm(v, part.gain, 0)  # what torch.nn.utils.weight_norm computes
        return F.conv2d(F.pad(x, pad), weight, part.bias)

    def gate(part: Gate, x: Tensor, aside: Tensor | None = None, plane: Tensor | None = None) -> Tensor:
        side = c.kernel // 2
        how: dict[str, Any] = {"pad": (side, side, c.kernel - 1, 0), "zeroed": True} if plane is not None else {}
        y = conv(part.conv1, F.elu(x), **how)
        if aside is not None:
            assert part.aside is not None
            y = y + conv(part.aside, F.elu(aside))
        y = conv(part.conv2, F.elu(y), **how)
        if plane is not None:
            assert part.plane is not None
            y = y + conv(part.plane, plane)
        value, gate = y.chunk(2, 1)
        return value * gate.sigmoid() + x

    def heads(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).reshape(len(x), n, c.heads, -1).transpose(1, 2)

    side = c.kernel // 2
    x = F.one_hot(codes, c.codes).permute(0, 3, 1, 2).double()
    down = conv(model.above, x, (side, side, side - 1, 0))
    right = conv(model.before, x, (side - 1, 0, side, 0))
    down = torch.cat([torch.zeros_like(down[:, :, :1]), down[:, :, :-1]], 2)
    right = torch.cat([torch.zeros_like(right[..., :1]), right[..., :-1]], 3)
    x = down + right
    rows = ((torch.arange(c.height) - c.height / 2) / c.height)[:, None].expand(-1, c.width)
    columns = ((torch.arange(c.width) - c.width / 2) / c.width).expand(c.height, -1)
    where = torch.stack([rows, columns]).double().expand(len(codes), -1, -1, -1)
    plane = F.one_hot(label, 7).double()
    for linear in cast(list[nn.Linear], list(model.plane.children())):
        plane = plane @ linear.weight.T + linear.bias
    plane = plane.view(len(codes), 1, c.height, c.width)
    for block in cast(list[Block], list(model.blocks)):
        y = x
        for part in cast(list[Gate], list(block.gates)):
            y = gate(part, y, plane=plane)
        query = gate(block.query, torch.cat([y, where], 1))
        key = gate(block.key, torch.cat([x, y, where], 1))
        attention = cast(Any, block.attention)  # plain or Zen
        q, k, v = (
            heads(conv(*each)) for each in ((attention.query, query), (attention.key, key), (attention.value, key))
        )
        weights = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        weights = weights.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(-1), -1e4).softmax(3)
        weights[:, :, 0] *= 0
        attended = (weights @ v).transpose(1, 2).reshape(len(codes), c.height, c.width, -1).permute(0, 3, 1, 2)
        x = gate(block.out, y, aside=attended)
    return conv(model.out, F.elu(x))


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_logits_are_those_of_the_published_arithmetic(kernel: int) -> None:
    model = snail(dataclasses.replace(TINY, kernel=kernel, gates=2), louder=1.5)
    codes, label = torch.randint(8, (3, 4, 6)), torch.tensor([6, 0, 2])
    torch.testing.assert_close(model(codes, label), by_hand(model, codes, label), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 6), (4, 1), (5, 7)])
def test_the_sum_of_table_rows_is_the_published_pair_of_one_hot_convolutions(
    height: int, width: int, kernel: int
) -> None:
    """In value and gradient, at the edges too, where the shifts bring in zeros and no bias."""
    model = snail(dataclasses.replace(TINY, height=height, width=width, kernel=kernel))
    codes = torch.randint(8, (3, height, width))
    one_hot = F.one_hot(codes, 8).permute(0, 3, 1, 2).double()
    published = F.pad(model.above(one_hot), (0, 0, 1, -1)) + F.pad(model.before(one_hot), (1, -1, 0, 0))
    summed = model.embed(codes, model.code_table())
    torch.testing.assert_close(summed, published, atol=1e-12, rtol=0)
    weights = [weight for conv in (model.above, model.before) for weight in conv.parameters()]
    probe = torch.randn_like(published)
    gradients = [torch.autograd.grad((made * probe).sum(), weights) for made in (summed, published)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


def test_dropout_drops_its_share_of_all_elements_scales_the_others_and_follows_the_seed() -> None:
    x = torch.ones(7, 5, 30, 40)
    for layout in (x, x.to(memory_format=torch.channels_last), x[:, 0], x.double(), x.bfloat16()):
        torch.manual_seed(0)
        dropped = pixelsnail.drop_out(layout, 0.1)
        torch.manual_seed(0)
        assert torch.equal(pixelsnail.drop_out(layout, 0.1), dropped)
        kept = dropped != 0
        assert float(kept.double().mean()) == pytest.approx(0.9, abs=0.015)
        assert float(dropped[kept].double().unique()) == pytest.approx(1 / 0.9, rel=1e-2)
    many = pixelsnail.drop_out(torch.ones(1_000_001), 0.1)
    assert float((many == 0).double().mean()) == pytest.approx(0.1, abs=0.0015)  # five standard deviations
    pairs = (many[:-1] == 0) & (many[1:] == 0)  # neighbours share a random word
    assert float(pairs.double().mean()) == pytest.approx(0.01, abs=0.0006)
    layer = pixelsnail.Dropout(0.1)
    assert torch.equal(layer.eval()(x), x)
    assert not torch.equal(layer.train()(x), x)


def test_small_sizes_train_with_fused_attention_and_the_published_one_with_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *parts, **rest: calls.append(rest) or fused(*parts, **rest)
    )
    codes, label = torch.randint(8, (2, 4, 6)), torch.tensor([1, 4])
    still = dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.0)
    model = snail(still)
    assert torch.equal(model.train()(codes, label), model.eval()(codes, label))
    assert calls == [{"is_causal": True, "dropout_p": 0.0}] * 4  # two blocks, twice
    model = snail(dataclasses.replace(still, attention_dropout=0.3)).train()
    assert not torch.equal(model(codes, label), model(codes, label))
    assert len(calls) == 4


def test_under_autocast_everything_between_the_convolutions_is_in_16_bits() -> None:
    model, codes, label = snail(TINY, torch.float32), torch.randint(8, (2, 4, 6)), torch.tensor([1, 4])
    seen = set()
    for block in cast(list[Block], list(model.blocks)):
        block.register_forward_hook(lambda _, inputs, output: seen.update(x.dtype for x in (*inputs, output)))
    with torch.no_grad():
        exact = model(codes, label)
        assert seen == {torch.float32}
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(codes, label)
    assert seen == {coarse.dtype} == {torch.bfloat16}
    torch.testing.assert_close(coarse.float(), exact, atol=0.1, rtol=0)


@pytest.mark.parametrize("positions", [1, 5, 6, 15])
def test_attention_in_parts_is_the_fused_one_but_for_dropout(positions: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, positions, 6, dtype=torch.float64)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(pixelsnail.attend_in_parts(q, k, v, 0.0, 5), fused, atol=1e-12, rtol=1e-12)
    dropped = torch.stack([pixelsnail.attend_in_parts(q, k, v, 0.3, 5) for _ in range(1000)])
    torch.testing.assert_close(dropped.mean(0), fused, atol=0.25, rtol=0)
    torch.testing.assert_close(
        (dropped[:, :, :, 0] == 0).all(3).double().mean(), torch.tensor(0.3).double(), atol=0.05, rtol=0
    )


def test_a_causal_convolution_uses_the_rows_above_and_earlier_columns_but_not_its_own_position() -> None:
    conv = causal(1, 1, 5).double()
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    conv(x)[0, 0, 5, 4].backward()
    assert x.grad is not None
    seen = [(row, column) for row, column in torch.nonzero(x.grad[0, 0]).tolist()]
    assert seen == [(row, column) for row in (1, 2, 3, 4) for column in (2, 3, 4, 5, 6)] + [(5, 2), (5, 3)]


def test_what_is_masked_counts_neither_in_the_weights_nor_in_their_norm_and_gets_no_gradient() -> None:
    conv = causal(3, 4, 5)
    conv.weight().square().sum().backward()
    assert conv.direction.grad is not None
    assert torch.equal(conv.direction.grad[:, :, -1, 2:], torch.zeros(4, 3, 3))
    before = conv.weight()
    with torch.no_grad():
        conv.direction[:, :, -1, 2:] = 1e3
    assert torch.equal(conv.weight(), before)
    torch.testing.assert_close(before.flatten(1).norm(dim=1), conv.gain.flatten())


# --- C2, C3: causality --------------------------------------------------------------------------------------------


@torch.no_grad()
def moved(model: PixelSnail) -> Tensor:
    """Return [N, N]: whether another code at position p changes the logits of position q at all."""
    c = model.config
    n = c.height * c.width
    torch.manual_seed(1)
    codes, label = torch.randint(c.codes, (1, n)).repeat(n, 1), torch.full((n,), 3)
    others = codes + torch.eye(n, dtype=torch.int64)
    logits = []
    for each in (codes, others):
        torch.manual_seed(2)  # in training, the same dropout
        logits.append(model(each.view(n, c.height, c.width) % c.codes, label).flatten(2))
    return torch.ne(*logits).any(1)


def later(model: PixelSnail) -> Tensor:
    n = model.config.height * model.config.width
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def reached(model: PixelSnail) -> Tensor:
    """Every later position, except for a row's last code: in the next row only from where a kernel reaches it on."""
    found, width = later(model), model.config.width
    for last in range(width - 1, len(found), width):
        found[last, last + 1 : last + 1 + max(0, width - 1 - model.config.kernel // 2)] = False
    return found


@pytest.mark.parametrize(("height", "width", "kernel"), [(4, 6, 3), (5, 7, 5), (3, 11, 5), (6, 1, 5), (1, 8, 3)])
def test_c2_a_code_changes_the_later_logits_and_not_one_earlier_by_a_bit(height: int, width: int, kernel: int) -> None:
    model = snail(dataclasses.replace(TINY, height=height, width=width, kernel=kernel))
    assert moved(model).tolist() == reached(model).tolist()


def test_c2_causality_survives_three_steps_of_training() -> None:
    model = snail(TINY).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(3):
        codes = torch.randint(8, (4, 4, 6))
        optimizer.zero_grad()
        F.cross_entropy(model(codes, torch.arange(4)), codes).backward()
        optimizer.step()
    assert moved(model.eval()).tolist() == reached(model).tolist()


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])  # fused, or in parts of 128 of the 132 positions
def test_c2_nothing_leaks_in_training_either(attention_dropout: float) -> None:
    model = snail(dataclasses.replace(TINY, height=7, width=19, attention_dropout=attention_dropout)).train()
    assert not (moved(model) & ~later(model)).any()


def leak_by_zeros_undone(model: PixelSnail) -> None:
    """The public copy of CMU's code zeroes weights in training only: what an optimiser's step left there then counts."""
    for part in model.modules():
        if isinstance(part, NormedConv) and part.mask is not None:
            side = part.direction.shape[3] // 2
            with torch.no_grad():
                part.direction[:, :, -1, side:] = 3e-4 * torch.randn_like(part.direction[:, :, -1, side:]).sign()
            part.mask = torch.ones_like(part.mask)


def leak_by_attention_without_mask(model: PixelSnail, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy's fast attention has no mask in evaluation mode."""
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *parts, is_causal, **rest: fused(*parts, **rest))


def leak_by_height_padding(model: PixelSnail) -> None:
    """A row too few above is a row from below, as in the copy's transposed convolutions."""
    for part in model.modules():
        if isinstance(part, NormedConv) and part.mask is not None:
            left, right, top, _ = part.pad
            part.pad = (left, right, top - 1, 1)


@pytest.mark.parametrize("leak", [leak_by_zeros_undone, leak_by_attention_without_mask, leak_by_height_padding])
def test_c2_a_planted_leak_is_caught(leak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = snail(TINY)
    leak(*([model, monkeypatch] if leak is leak_by_attention_without_mask else [model]))
    assert (moved(model) & ~later(model)).any()


@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 1)])
def test_c3_the_logits_of_a_row_need_no_row_below_it(height: int, width: int) -> None:
    model = snail(dataclasses.replace(TINY, height=height, width=width, kernel=5))
    codes, label = torch.randint(8, (2, height, width)), torch.tensor([1, 4])
    whole = model(codes, label)
    for row in range(height):
        prefix = model(codes[:, : row + 1], label)
        torch.testing.assert_close(prefix, whole[:, :, : row + 1], atol=1e-10, rtol=0)


# --- C3: the samplers ---------------------------------------------------------------------------------------------

SHAPES = [(4, 6, 5, 2, 2), (3, 7, 3, 1, 1), (5, 1, 5, 1, 2), (1, 9, 7, 2, 1), (2, 5, 7, 1, 1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("height", "width", "kernel", "blocks", "gates"), SHAPES)
def test_c3_the_incremental_sampler_draws_what_the_naive_one_draws(
    height: int, width: int, kernel: int, blocks: int, gates: int, dtype: torch.dtype
) -> None:
    config = PixelSnailConfig(height, width, 11, 16, 12, kernel, blocks, gates, 4, 8)
    model = snail(config, dtype, louder=1.5)
    labels, seeds = [0, 3, 5], [17, 2**62, 0]
    naive = sample_naive(model, labels, seeds, PLAIN)
    assert torch.equal(sample(model, labels, seeds), naive)
    assert len(naive.unique()) > 2


@pytest.mark.parametrize("drawing", [Drawing(0.7, 5, 0.9), Drawing(top_k=3), Drawing(top_p=0.5), Drawing(1.3)])
def test_c3_whatever_the_temperature_top_k_and_top_p(drawing: Drawing) -> None:
    model = snail(TINY, louder=2)
    assert torch.equal(sample(model, [2, 6], [5, 6], drawing), sample_naive(model, [2, 6], [5, 6], drawing))


def test_the_logits_position_by_position_are_those_of_the_whole() -> None:
    model = snail(dataclasses.replace(TINY, gates=3), louder=1.5)
    codes, label = torch.randint(8, (2, 4, 6)), torch.tensor([1, 4])
    incremental = IncrementalPixelSnail(model)
    with torch.no_grad():
        whole = model(codes, label)
        for _ in range(2):  # the second time after the first, as in the next batch
            incremental.reset(label)
            for row in range(4):
                incremental.start_row(row, codes)
                for column in range(6):
                    torch.testing.assert_close(
                        incremental.logits(row, column), whole[:, :, row, column], atol=1e-12, rtol=1e-12
                    )
                    incremental.append(column, codes[:, row, column])


def test_a_clips_codes_do_not_depend_on_the_rest_of_the_batch() -> None:
    model = snail(TINY, louder=2)
    labels, seeds = [0, 3, 5, 3, 1], [1, 2, 3, 4, 2]
    together = sample(model, labels, seeds)
    assert torch.equal(sample(model, labels, seeds, batch=2), together)
    alone = [sample(model, [label], [seed])[0] for label, seed in zip(labels, seeds)]
    assert torch.equal(torch.stack(alone), together)


def test_another_seed_or_label_is_another_clip_and_the_same_are_the_same() -> None:
    model = snail(TINY, louder=2)
    drawn = sample(model, [3, 3, 4, 3], [7, 8, 7, 7])
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[1], drawn[2])


def test_top_k_1_draws_the_likeliest_code_everywhere() -> None:
    model = snail(TINY, louder=2)
    drawn = sample(model, [1, 2], [5, 6], Drawing(top_k=1))
    assert torch.equal(model(drawn, torch.tensor([1, 2])).argmax(1), drawn)


def test_temperature_top_k_and_top_p_leave_what_they_say() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]]).log()

    def left(drawing: Drawing) -> list[list[float]]:
        return restricted(logits, drawing).softmax(1).tolist()

    assert left(PLAIN)[0] == pytest.approx([0.1, 0.5, 0.15, 0.25])
    assert left(Drawing(temperature=0.5))[0] == pytest.approx(
        [0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345]
    )
    assert left(Drawing(top_k=2))[0] == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert left(Drawing(top_p=0.5))[0] == pytest.approx([0, 1, 0, 0])  # the first reaches it
    assert left(Drawing(top_p=0.51))[0] == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert left(Drawing(top_p=1e-9))[0] == pytest.approx([0, 1, 0, 0])  # one is always left
    assert left(Drawing(top_k=9))[1] == pytest.approx([0.25] * 4)


def test_codes_are_drawn_as_often_as_the_softmax_says() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0]).expand(40_000, 4)
    noise = sampling.Noise([3], 40_000, 4).row()[:, 0]
    share = draw(logits, noise, PLAIN).bincount(minlength=4) / 40_000
    torch.testing.assert_close(share, logits[0].softmax(0), atol=0.01, rtol=0)  # four standard deviations


@pytest.mark.parametrize(
    ("drawing", "complaint"),
    [
        (Drawing(temperature=0), "--temperature 0: expected above 0; for the likeliest code --top-k 1"),
        (Drawing(temperature=math.nan), "--temperature nan: expected above 0"),
        (Drawing(top_k=-1), "--top-k -1: expected 1 or more"),
        (Drawing(top_p=0), "--top-p 0: expected above 0, up to 1"),
    ],
)
def test_drawing_that_makes_no_sense_is_refused(drawing: Drawing, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        sample(snail(TINY), [0], [0], drawing)


def test_a_batch_beyond_the_memory_is_refused_with_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_no_device(PUBLISHED)
    assert 0.4e9 < memory_needed(model, 1) < memory_needed(model, 32) < 8e9
    monkeypatch.setattr(sampling, "memory_free", lambda _: memory_needed(model, 3))
    require_memory(model, 3)
    with pytest.raises(UserError, match=r"drawing 4 clips at once takes about .* GB are free: lower --batch to 3"):
        require_memory(model, 4)
    monkeypatch.setattr(sampling, "memory_free", lambda _: 1)
    with pytest.raises(UserError, match="a smaller model is needed"):
        sample(snail(TINY), [0], [0])


def test_the_estimated_memory_covers_what_is_kept() -> None:
    model = snail(dataclasses.replace(TINY, height=8, width=40, channels=32, inner=32), torch.float32)
    for batch in (1, 7):
        incremental = IncrementalPixelSnail(model)
        incremental.reset(torch.zeros(batch, dtype=torch.int64))
        incremental.start_row(0, torch.zeros(batch, 8, 40, dtype=torch.int64))
        kept, owners = 0, (incremental, incremental.first, incremental.second, incremental.attention)
        for part in (value for owner in owners for value in vars(owner).values()):
            for tensor in part if isinstance(part, list) else [part]:
                kept += tensor.untyped_storage().nbytes() if isinstance(tensor, Tensor) else 0
        assert 0.3 * memory_needed(model, batch) < kept < memory_needed(model, batch)


# --- C6: learning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codes", "nats"), [(512, 6.2383), (1024, 6.9315)])
def test_c6_an_untrained_network_knows_nothing(codes: int, nats: float) -> None:
    torch.manual_seed(0)
    model = PixelSnail(dataclasses.replace(TINY, codes=codes)).eval()
    real = torch.randint(codes, (8, 4, 6))
    with torch.no_grad():
        logits = model(real, torch.arange(8) % 7)
    assert float(F.cross_entropy(logits, real)) == pytest.approx(nats, abs=0.1)


def test_c6_eight_clips_are_memorised() -> None:
    torch.manual_seed(0)
    model = PixelSnail(dataclasses.replace(TINY, label_width=16, dropout=0, attention_dropout=0))
    codes, label = torch.randint(8, (8, 4, 6)), torch.arange(8) % 7
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(codes, label), codes).backward()
        optimizer.step()
    assert float((model.eval()(codes, label).argmax(1) == codes).float().mean()) > 0.99


def test_c6_the_label_moves_the_logits_of_its_own_clip_from_the_first_code_on() -> None:
    model = snail(TINY)
    codes = torch.randint(8, (2, 4, 6))
    one, other = (model(codes, torch.tensor([label, 2])) for label in (0, 1))
    assert (one[0] != other[0]).any(0).all()
    assert torch.equal(one[1], other[1])


# --- the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny "small" size."""
    monkeypatch.setitem(pixelsnail.SIZES, "small", TINY)


def toy(count: int = 14, size: int = 8, fingerprint: str = "0" * 64) -> Codes:
    """Clips whose codes depend on their label."""
    torch.manual_seed(3)
    labels = torch.arange(count) % 7
    codes = (labels[:, None, None] + torch.arange(24).view(1, 4, 6) // 3 + torch.randint(2, (count, 4, 6))) % size
    names = [f"a/{take:03d}.wav" for take in range(count)]
    rows = [{"clip": name, "label": "DogBark", "tier": "", "licence": "", "source": ""} for name in names]
    return Codes(codes, labels, names, names, rows, size, fingerprint, 1)


def settings(out: Path, **changes: Any) -> TrainPixelsnail:
    base = configured(
        TrainPixelsnail,
        Path("codes.npz"), out, size="small", held_out=0.2, batch=4, lr=1e-2, steps=4, device="cpu", threads=1,
        tracker="none", log_every=1, save_every=2, sample_every=2,
    )  # fmt: skip
    return changed(base, **changes)


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("system", ["baseline", "cmu-b"])  # float32 and one rate; bfloat16, clipping and a cycle
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(system: Any, tmp_path: Path) -> None:
    for out, sittings in (("whole", [6]), ("halves", [3, 6])):
        for steps in sittings:
            config = settings(tmp_path / out, system=system, steps=steps, save_every=3, period_epochs=3.0)
            train(config, toy(), tmp_path / out)
    whole, halves = (read_state(tmp_path / out / "state.pt") for out in ("whole", "halves"))
    assert whole["best"]["weights"].keys() == whole["pixelsnail"].keys()
    assert_same(whole, halves)
    whole, halves = (
        [{key: value for key, value in line.items() if key != "steps_per_second"} for line in log(tmp_path / out)]
        for out in ("whole", "halves")
    )
    assert whole[3:] == halves[3:]  # all but those of the first sitting, whose last step is measured


def test_the_loop_learns_and_keeps_the_best_on_held_out_clips(tmp_path: Path) -> None:
    codes = toy(28)
    train(settings(tmp_path, steps=30, log_every=10, save_every=30, sample_every=5), codes, tmp_path)
    lines = [line for line in log(tmp_path) if "held_out_cross_entropy" in line]
    assert len(lines) == 6
    assert lines[-1]["train_cross_entropy"] < 0.7 * math.log(8)
    best = min(lines, key=lambda line: line["held_out_cross_entropy"])
    model, fingerprint, step = load_pixelsnail(tmp_path)
    assert step == best["step"]
    assert fingerprint == "0" * 64
    held = split_codes(codes, 0.2)[1]
    assert measure(model, held, "now")["now_cross_entropy"] == pytest.approx(best["held_out_cross_entropy"], abs=1e-5)
    assert load_pixelsnail(tmp_path, "last")[2] == 30


def test_the_best_follows_the_score_that_the_loop_is_handed(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0])
    train(settings(tmp_path, steps=6), toy(), tmp_path, score=lambda model: next(scores))
    assert load_pixelsnail(tmp_path)[2] == 4
    assert [line["score"] for line in log(tmp_path) if "score" in line] == [3.0, 1.0, 2.0]


@torch.no_grad()
def test_measured_means_are_over_clips_whatever_the_batch() -> None:
    model, codes = snail(TINY, torch.float32), toy(3)
    each = [measure(model, codes.pick(torch.tensor([clip])), "x") for clip in range(3)]
    for batch in (1, 2, 3):
        found = measure(model, codes, "x", batch)
        for key in ("x_cross_entropy", "x_accuracy"):
            assert found[key] == pytest.approx(sum(one[key] for one in each) / 3, abs=1e-6)
        assert found["x_clips"] == 3
    logits = model(codes.codes, codes.labels)
    assert float(F.cross_entropy(logits, codes.codes)) == pytest.approx(found["x_cross_entropy"], abs=1e-6)
    assert float((logits.argmax(1) == codes.codes).float().mean()) == pytest.approx(found["x_accuracy"], abs=1e-6)


def test_the_systems_rates_are_the_reports_at_published_sizes_and_the_budgets_at_small_ones() -> None:
    plans = {
        (system, size): configured(TrainPixelsnail, Path(), system=system, size=size).plan
        for system in ("baseline", "cmu-b")
        for size in ("small", "medium", "cmu-v1", "published")
    }
    for size in ("cmu-v1", "published"):
        assert (plans["baseline", size].schedule, plans["baseline", size].lr) == ("constant", 3e-4)
        assert (plans["cmu-b", size].schedule, plans["cmu-b", size].lr) == ("triangle", 2.5e-4)  # from 1e-5
    for size in ("small", "medium"):
        assert plans["baseline", size].lr == plans["cmu-b", size].lr == SMALL_LR[size]
        assert 1e-3 <= SMALL_LR[size] <= 2e-3
    assert (plans["baseline", "small"].precision, plans["cmu-b", "small"].precision) == ("no", "bf16")
    assert configured(TrainPixelsnail, Path(), size="small", lr=1e-4).plan.lr == 1e-4


def test_small_sizes_have_the_label_path_and_heads_of_the_published_structure() -> None:
    for name in ("small", "medium"):
        size = pixelsnail.SIZES[name] if name != "small" else pixelsnail.SMALL
        assert size.label_width == 256
        assert size.channels // 2 // size.heads == PUBLISHED.channels // 2 // PUBLISHED.heads == 16
        assert (size.dropout, size.attention_dropout) == (0.1, 0)
    assert (PUBLISHED.dropout, PUBLISHED.attention_dropout) == (0.1, 0.1)
    assert [layer.out_features for layer in on_no_device(pixelsnail.SMALL).plane] == [256, 256, 256, 1720]  # type: ignore[union-attr]


def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train as on a GPU in fp16, with a scale of 65,536; the arithmetic stays that of the processor."""

    def accelerator(*_: object) -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)
        made = accelerator_for(RunConfig(device="cpu", tracker="none"), "no", Path())
        made.state._mixed_precision = "fp16"
        made.native_amp = True
        made.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        return made

    monkeypatch.setattr(loop, "accelerator_for", accelerator)


def test_c7_gradients_are_clipped_after_unscaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest step of plain gradient descent is rate x clip norm; clipped before unscaling it would be 65,536th of it."""
    monkeypatch.setattr(torch.optim, "Adam", lambda weights, lr: torch.optim.SGD(weights, lr))
    still = dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.0)
    monkeypatch.setitem(pixelsnail.SIZES, "small", still)
    steps = {}
    for name in ("plain", "scaled"):
        out = tmp_path / name
        if name == "scaled":
            scaled(monkeypatch)
        torch.manual_seed(0)
        before = PixelSnail(still).state_dict()
        train(settings(out, steps=1, clip_norm=0.01, lr=1.0), toy(), out)
        after = read_state(out / "state.pt")["pixelsnail"]
        steps[name] = math.sqrt(sum(float((after[key] - before[key]).square().sum()) for key in after))
        assert log(out)[0]["norm"] > 0.1
    assert steps["plain"] == pytest.approx(0.01, rel=1e-3)
    assert steps["scaled"] == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("fp16", [False, True])
def test_c7_a_batch_of_nan_is_skipped_and_leaves_the_optimiser_as_it_was(
    fp16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fp16:
        scaled(monkeypatch)
    train(settings(tmp_path, steps=2, sample_every=100), toy(), tmp_path)
    before = read_state(tmp_path / "state.pt")
    forward = PixelSnail.forward
    monkeypatch.setattr(PixelSnail, "forward", lambda *parts: forward(*parts) * (math.nan if parts[0].training else 1))
    train(settings(tmp_path, steps=3, sample_every=100), toy(), tmp_path)
    after = read_state(tmp_path / "state.pt")
    assert after["step"] == 3
    assert log(tmp_path)[-1]["skipped"] == 1
    for part in ("pixelsnail", "optimizer"):
        assert_same(before[part], after[part])
    if fp16:
        assert after["scaler"]["scale"] == before["scaler"]["scale"] / 2 == 32768


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def test_training_gives_up_when_no_step_is_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PixelSnail.forward
    monkeypatch.setattr(PixelSnail, "forward", lambda *parts: forward(*parts) * math.nan)
    monkeypatch.setattr("foleybox.lab.core.loop.PATIENCE", 3)
    with pytest.raises(UserError, match="NaN or infinite for 3 steps up to 3: lower the learning rate"):
        train(settings(tmp_path, steps=9, sample_every=100), toy(), tmp_path)


# --- bad input and the command --------------------------------------------------------------------------------------


def test_codes_of_another_vqvae_are_refused_by_a_run(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=2), toy(), tmp_path)
    with pytest.raises(UserError, match=r"was started with vqvae = '0{64}', now '1{64}'"):
        train(settings(tmp_path), toy(fingerprint="1" * 64), tmp_path)
    with pytest.raises(UserError, match=r"was started with model = .*'codes': 8.*, now .*'codes': 9"):
        train(settings(tmp_path), toy(size=9), tmp_path)


@pytest.mark.parametrize("fault", ["a weight is missing", "a weight is surplus", "a part is missing", "cut off"])
def test_a_partial_checkpoint_is_refused(fault: str, tmp_path: Path) -> None:
    train(settings(tmp_path, steps=2), toy(), tmp_path)
    state = read_state(tmp_path / "state.pt")
    for weights in (state["pixelsnail"], state["best"]["weights"]):
        if fault == "a weight is missing":
            del weights["out.bias"]
        elif fault == "a weight is surplus":
            weights["more"] = torch.zeros(1)
    if fault == "a part is missing":
        del state["pixelsnail"], state["best"]
    torch.save(state, tmp_path / "state.pt")
    if fault == "cut off":
        (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:-100])
    for weights in ("best", "last"):
        with pytest.raises(UserError, match=r"state.pt"):
            load_pixelsnail(tmp_path, weights)
    with pytest.raises(UserError, match=r"state.pt"):
        train(settings(tmp_path), toy(), tmp_path)


def test_a_run_of_an_earlier_version_resumes_with_the_best_weights_of_its_other_file(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=2), toy(), tmp_path)
    state = read_state(tmp_path / "state.pt")
    best = {"step": 1, "pixelsnail": {name: value + 1 for name, value in state["pixelsnail"].items()}}
    torch.save(best, tmp_path / "best.pt")
    torch.save({**state, "best": {"score": torch.tensor(-1.0, dtype=torch.float64)}}, tmp_path / "state.pt")
    for steps in (2, 4):
        train(settings(tmp_path, steps=steps), toy(), tmp_path)
        assert load_pixelsnail(tmp_path)[2] == 1
        assert_same(load_pixelsnail(tmp_path)[0].state_dict(), best["pixelsnail"])
    (tmp_path / "best.pt").unlink()
    assert load_pixelsnail(tmp_path)[2] == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch": 0}, "--batch 0: expected 1 or more"),
        ({"clip_norm": -1.0}, "--clip-norm -1.0: expected 0 or more"),
        ({"period_epochs": -1.0}, "--period-epochs -1.0: expected 0 or more"),
        ({"held_out": 1.0}, "14 clips, all of them held out"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        train(settings(tmp_path / "run", **changes), toy(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_verb_trains_on_a_codes_file_and_sampling_reads_the_run(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes.npz", toy())
    flags = "--size small --steps 2 --batch 4 --device cpu --threads 1 --tracker none --system cmu-b"
    command = ["train", "pixelsnail", str(tmp_path / "codes.npz"), "-o", str(tmp_path / "run"), *flags.split()]
    assert cli.main(command) == 0
    model, fingerprint, step = load_pixelsnail(tmp_path / "run")
    assert (fingerprint, step) == ("0" * 64, 2)
    assert sample(model, [0, 6], [1, 2]).shape == (2, 4, 6)
    assert cli.main([*command[:3], str(tmp_path / "none.npz")]) == 2


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = loop.learning_rate

    def stop(schedule: Any, lr: float, step: int, *rest: int) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return rate(schedule, lr, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", stop)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3; the same command"):
            train(settings(tmp_path), toy(), tmp_path)
    assert read_state(tmp_path / "state.pt")["step"] == 2
    train(settings(tmp_path), toy(), tmp_path)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4]


def test_a_killed_training_resumes_with_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pixelsnail.SIZES, "small", pixelsnail.SMALL)  # as the other process has it
    write_codes(tmp_path / "codes.npz", toy())
    out = tmp_path / "run"
    flags = "--size small --steps 4 --batch 2 --device cpu --threads 1 --tracker none --save-every 1 --sample-every 1"
    command = ["train", "pixelsnail", str(tmp_path / "codes.npz"), "-o", str(out), *flags.split()]
    with subprocess.Popen([sys.executable, "-m", "foleybox", *command], stdout=subprocess.DEVNULL) as running:
        while not (out / "state.pt").exists() and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert read_state(out / "state.pt")["step"] < 4  # killed on its way
    assert cli.main(command) == 0
    assert [line["step"] for line in log(out)] == [1, 2, 3, 4]
    assert load_pixelsnail(out, "last")[2] == 4
    assert not list(out.glob(".*.partial*"))
