"""KT's losses equal the report's equations: by hand, by loops over items, in closed form."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foleybox.lab.kt.losses import conditional_contrastive, hinge_discriminator, hinge_generator

# d, the label table and the labels of a small example: two items of label 0 on one axis, one of label 1 on the other.
DATA = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
TABLE = torch.eye(2, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0])
SOURCE = torch.tensor([[0.6, 0.8]] * 3, dtype=torch.float64)


def loss(data: Tensor, proxy: Tensor, tau_data: float, tau_class: float, **rest: Tensor | None) -> float:
    return float(conditional_contrastive(data, proxy, tau_data=tau_data, tau_class=tau_class, **rest))


def unit(*shape: int, seed: int = 0) -> Tensor:
    draws = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(draws, dim=-1)


def brute_force(
    data: Tensor, proxy: Tensor, source: Tensor | None, labels: Tensor | None, tau_data: float, tau_class: float
) -> float:
    """The equations item by item, with A, B, R and Q as in the docstring of `conditional_contrastive`."""
    total = 0.0
    for i in range(len(data)):
        a = math.exp(float(data[i] @ proxy[i]) / tau_class)
        b = math.exp(float(data[i] @ source[i]) / tau_class) if source is not None else 0.0
        others = {k: math.exp(float(data[i] @ data[k]) / tau_data) for k in range(len(data)) if k != i}
        q = sum(value for k, value in others.items() if labels is not None and labels[k] == labels[i])
        total += -math.log((a + b + q) / (a + b + sum(others.values())))
    return total / len(data)


@pytest.mark.parametrize(
    ("tau_data", "tau_class", "without", "with_label"),
    [
        (1.0, 1.0, 0.758478, 0.296380),
        (0.1, 1.0, 6.183927, 0.183845),
        (0.1, 0.1, 0.462144, (2 * math.log1p(math.exp(-10) / 2) + math.log1p(2 * math.exp(-10))) / 3),
    ],
)
def test_2c_of_three_items_is_what_is_computed_by_hand(
    tau_data: float, tau_class: float, without: float, with_label: float
) -> None:
    proxy = TABLE[LABELS]
    assert loss(DATA, proxy, tau_data, tau_class) == pytest.approx(without, abs=1e-6)
    assert loss(DATA, proxy, tau_data, tau_class, labels=LABELS) == pytest.approx(with_label, abs=1e-6)


def test_c_supcon_of_three_items_is_what_is_computed_by_hand() -> None:
    proxy = TABLE[LABELS]
    assert loss(DATA, proxy, 1.0, 1.0, source=SOURCE) == pytest.approx(0.512071, abs=1e-6)
    assert loss(DATA, proxy, 1.0, 1.0, source=SOURCE, labels=LABELS) == pytest.approx(0.199282, abs=1e-6)
    assert loss(DATA, proxy, 0.1, 1.0, source=SOURCE) == pytest.approx((2 * 8.487236 + 0.339714) / 3, abs=1e-6)


@pytest.mark.parametrize("with_source", [False, True])
@pytest.mark.parametrize("with_labels", [False, True])
def test_all_four_losses_equal_the_double_loop(with_source: bool, with_labels: bool) -> None:
    labels = torch.arange(12) % 5
    data, proxy, source = unit(12, 16), unit(5, 16, seed=1)[labels], unit(12, 16, seed=2)
    chosen = {"source": source if with_source else None, "labels": labels if with_labels else None}
    for tau_data, tau_class in ((1.0, 1.0), (0.1, 1.0), (0.1, 0.1)):
        expected = brute_force(data, proxy, chosen["source"], chosen["labels"], tau_data, tau_class)
        assert loss(data, proxy, tau_data, tau_class, **chosen) == pytest.approx(expected, abs=1e-10)


def test_without_labels_it_is_cross_entropy_with_the_proxy_as_target() -> None:
    data, proxy = unit(9, 8), unit(9, 8, seed=1)
    others = (data @ data.T / 0.1).masked_fill(torch.eye(9, dtype=torch.bool), -torch.inf)
    logits = torch.cat([(data * proxy).sum(1, keepdim=True) / 1.0, others], 1)
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(9, dtype=torch.long))
    assert loss(data, proxy, 0.1, 1.0) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "tau_data", "tau_class", "value"),
    [(64, 0.1, 1.0, 13.143137), (64, 0.1, 0.1, math.log(64)), (16, 0.1, 1.0, 11.708058)],
)
def test_total_collapse_costs_what_the_closed_form_says(
    n: int, tau_data: float, tau_class: float, value: float
) -> None:
    collapsed = unit(1, 8).expand(n, 8)
    closed = math.log1p((n - 1) * math.exp(1 / tau_data - 1 / tau_class))
    assert loss(collapsed, collapsed, tau_data, tau_class) == pytest.approx(closed, abs=1e-9)
    assert closed == pytest.approx(value, abs=1e-6)


def test_with_labels_total_collapse_is_cheap() -> None:
    """The report's reason to leave the labels out: seven labels of nine items, all equal, cost about 2 instead of 13."""
    collapsed = unit(1, 8).expand(64, 8)
    labels = torch.arange(63) // 9  # seven labels of nine
    nine = conditional_contrastive(collapsed[:63], collapsed[:63], labels=labels)
    expected = -math.log((math.e + 8 * math.exp(10)) / (math.e + 62 * math.exp(10)))
    assert float(nine) == pytest.approx(expected, abs=1e-6)
    assert expected < 2.07
    # Of 64 items in seven labels nine are of one label, but ten of the first.
    of_nine, of_ten = (-math.log((math.e + k * math.exp(10)) / (math.e + 63 * math.exp(10))) for k in (8, 9))
    assert of_nine == pytest.approx(2.063680, abs=1e-6)
    whole = loss(collapsed, collapsed, 0.1, 1.0, labels=torch.arange(64) % 7)
    assert whole == pytest.approx((54 * of_nine + 10 * of_ten) / 64, abs=1e-9)


def test_without_labels_it_never_falls_below_its_floor() -> None:
    n, tau_data, tau_class = 64, 0.1, 1.0
    floor = math.log1p((n - 1) * math.exp(-1 / ((n - 1) * tau_data) - 1 / tau_class))
    assert floor == pytest.approx(3.033737, abs=1e-6)
    simplex = torch.nn.functional.normalize(
        torch.eye(n, dtype=torch.float64) - 1 / n, dim=1
    )  # as far apart as possible
    assert loss(simplex, simplex, tau_data, tau_class) == pytest.approx(floor, abs=1e-9)
    for seed in range(5):
        data = unit(n, 128, seed=seed)
        assert loss(data, data, tau_data, tau_class) > floor


def test_a_batch_of_one_costs_nothing() -> None:
    assert loss(unit(1, 4), unit(1, 4, seed=1), 0.1, 1.0) == 0


def test_labels_never_raise_the_loss_and_a_source_lowers_it() -> None:
    data, proxy, source = unit(20, 8), unit(20, 8, seed=1), unit(20, 8, seed=2)
    repeated, different = torch.arange(20) % 3, torch.arange(20)
    plain = loss(data, proxy, 0.1, 1.0)
    assert 0 <= loss(data, proxy, 0.1, 1.0, labels=repeated) < plain
    assert loss(data, proxy, 0.1, 1.0, labels=different) == pytest.approx(plain, abs=1e-12)
    assert 0 <= loss(data, proxy, 0.1, 1.0, source=source) < plain


def test_the_gradient_is_softmax_minus_target() -> None:
    data, proxy = unit(6, 5).requires_grad_(), unit(6, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda d, p: conditional_contrastive(d, p), (data, proxy))
    conditional_contrastive(data, proxy).backward()
    others = (data @ data.T / 0.1).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    weights = torch.cat([(data * proxy).sum(1, keepdim=True), others], 1).softmax(1)
    assert proxy.grad is not None
    torch.testing.assert_close(proxy.grad, ((weights[:, :1] - 1) / 6 * data).detach())


def test_only_without_labels_are_items_of_one_label_pushed_apart() -> None:
    """The report's argument as a gradient: the first item's force along the second is repulsive or attractive."""
    force = {}
    for name, labels in (("without", None), ("with", torch.tensor([0, 0, 1, 1]))):
        data = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.3], [-1.0, -0.3]]), dim=1)
        data.requires_grad_()
        proxy = torch.tensor([[0.0, 1.0]] * 4)
        conditional_contrastive(data, proxy, labels=labels).backward()
        assert data.grad is not None
        force[name] = float(-data.grad[0] @ data[1].detach())
    assert force["without"] < 0 < force["with"]


def test_it_does_not_depend_on_the_order_of_the_batch_or_a_rotation() -> None:
    labels = torch.arange(10) % 3
    data, proxy, source = unit(10, 6), unit(10, 6, seed=1), unit(10, 6, seed=2)
    value = loss(data, proxy, 0.1, 1.0, source=source, labels=labels)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    assert loss(data[order], proxy[order], 0.1, 1.0, source=source[order], labels=labels[order]) == pytest.approx(value)
    rotation = torch.linalg.qr(unit(6, 6, seed=4))[0]
    rotated = loss(data @ rotation, proxy @ rotation, 0.1, 1.0, source=source @ rotation, labels=labels)
    assert rotated == pytest.approx(value)


def test_it_does_not_depend_on_the_names_of_the_labels() -> None:
    labels, table = torch.arange(10) % 3, unit(3, 6, seed=1)
    data, source = unit(10, 6), unit(10, 6, seed=2)
    name = torch.tensor([2, 0, 1])  # the new number of each label, with its embedding
    renamed = torch.empty_like(table)
    renamed[name] = table
    for rest in ({}, {"source": source}):
        without, value = (
            loss(data, table[labels], 0.1, 1.0, **rest),
            loss(data, table[labels], 0.1, 1.0, labels=labels, **rest),
        )
        assert loss(data, renamed[name[labels]], 0.1, 1.0, **rest) == without
        assert loss(data, renamed[name[labels]], 0.1, 1.0, labels=name[labels], **rest) == value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_at_a_temperature_of_a_tenth(dtype: torch.dtype) -> None:
    collapsed = unit(1, 8).expand(64, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = conditional_contrastive(collapsed, collapsed)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(13.143, abs=0.1)


def test_no_tensor_is_larger_than_a_few_n_by_n() -> None:
    """An [N, N, E] product would be 128 times that."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            largest = max([largest, *(each.numel() for each in tree_leaves(made) if isinstance(each, Tensor))])
            return made

    data, proxy = unit(64, 128), unit(64, 128, seed=1)
    with Watch():
        conditional_contrastive(data.requires_grad_(), proxy, labels=torch.arange(64) % 7).backward()
    assert largest <= 2 * 64 * 66


def test_hinge_is_what_is_computed_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.5])
    assert float(hinge_discriminator(real, fake)) == pytest.approx(0.833333 + 1.166667, abs=1e-6)
    assert float(hinge_generator(fake)) == pytest.approx(0.166667, abs=1e-6)
