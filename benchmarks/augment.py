"""Write results/augment.md: does a classifier that is also trained on generated sounds recognise real clips better?

    foleybox generate all -n 100 --seed 0 -o out/foley
    python benchmarks/augment.py ../shared/data/foley --sounds out/foley

The classifier starts from random weights and gets the same number of clips in every case; gain, a shift in time and masks
(SpecAugment) vary all clips in all cases.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from foleybox.lab.core.augment import cut, shift_time
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids
from foleybox.lab.core.loop import balanced_indices, seed_step
from foleybox.lab.core.mel import WIDE
from foleybox.lab.evaluation.report import write_keeping_notes
from foleybox.lab.evaluation.tables import table
from foleybox.labels import LABELS
from foleybox.version import commit


@dataclass(frozen=True)
class Benchmark:
    """Train and measure a classifier in every case, write the page."""

    data: tyro.conf.Positional[Path]
    "a folder with a manifest of splits `train` and `dev`"
    sounds: tuple[Path, ...] = ()
    "folders of generated clips, each a case of its own"
    tiers: tuple[str, ...] = ("open", "open-clip", "nc")
    "of the real training clips: those that the instruments were trained on"
    clips: tuple[int, ...] = (5, 20, 1000)
    "real clips of each label, at most"
    share: float = 0.5
    "of each batch that is generated, where there are both"
    steps: int = 400
    batch: int = 42
    seeds: int = 5
    "trainings of each case; each draws its real clips anew, the same for all cases"
    output: Path = Path("results/augment.md")


class Classifier(nn.Sequential):
    """Four convolutions over a log-mel [N, 1, 50, 86], mean and maximum over their output, seven logits."""

    def __init__(self) -> None:
        widths = (1, 16, 32, 64, 96)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, MeanAndMost(), nn.Dropout(0.3), nn.Linear(2 * widths[-1], len(LABELS)))


class MeanAndMost(nn.Module):
    """[N, C, H, W] -> [N, 2 C]."""

    def forward(self, found: Tensor) -> Tensor:
        return torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)


def training_rows(clips: Sequence[ClipFile]) -> tuple[Tensor, Tensor]:
    """Return log-mels at a quarter of the frames and half the bands, near unit scale, [N, 1, 50, 86], and label ids [N]."""
    return (F.avg_pool2d(load_mels(clips, WIDE)[:, None], (2, 4)) + 5) / 3, label_ids(clips)


def varied(image: Tensor) -> Tensor:
    """Return images [B, 1, 50, 86] louder or softer by up to 6 dB, later, and masked over 8 bands and 16 frames."""
    B, _, H, W = image.shape
    image = image + torch.empty(B, 1, 1, 1).uniform_(-0.69, 0.69) / 3
    image = shift_time(image, torch.randint(W, (B,)), torch.ones(B, dtype=torch.bool), 0.0)
    for size, width, dim in ((H, 8, 2), (W, 16, 3)):
        image = cut(image, torch.randint(size - width, (B,)), torch.full((B,), width), dim, 0.0)
    return image


def trained(
    config: Benchmark, seed: int, real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor] | None
) -> Classifier:
    """Return a classifier trained on images and labels, real ones, generated ones or both."""
    seed_step(seed, 0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, config.steps)
    sources = [(real, config.batch)] if made is None else [(made, config.batch)]
    if made is not None and len(real[1]):
        generated = round(config.share * config.batch)
        sources = [(real, config.batch - generated), (made, generated)]
    for step in range(config.steps):
        parts = [(images, labels, balanced_indices(step, many, labels, seed)) for (images, labels), many in sources]
        image = varied(torch.cat([images[indices] for images, _, indices in parts]))
        label = torch.cat([labels[indices] for _, labels, indices in parts])
        loss = F.cross_entropy(model(image), label, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, image: Tensor, label: Tensor) -> Tensor:
    """Return the accuracy of each label [7]."""
    right = (model(image).argmax(1) == label).float()
    return torch.stack([right[label == each.id].mean() for each in LABELS])


def some(labels: Tensor, most: int, seed: int) -> Tensor:
    """Return at most `most` places of each label, drawn at random."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == each.id][:most] for each in LABELS])


def spread(found: Sequence[Tensor]) -> str:
    """Write the mean over labels and its standard deviation over trainings."""
    means = np.array([float(each.mean()) for each in found])
    return f"{means.mean():.3f} +- {means.std(ddof=1):.3f}"


def main(config: Benchmark) -> int:
    """Train all cases and write the page."""
    clips, asked = find_clips(config.data, "train", tiers=config.tiers), find_clips(config.data, "dev")
    (mels, labels), (held, held_labels) = training_rows(clips), training_rows(asked)
    made: dict[str, tuple[Tensor, Tensor] | None] = {"none": None}
    made |= {folder.name: training_rows(find_clips(folder)) for folder in config.sounds}
    rows, by_label = [], []
    for most in (*config.clips, 0):
        for name, sounds in made.items():
            if not most and sounds is None:
                continue
            found, counts = [], 0
            for seed in range(config.seeds):
                chosen = some(labels, most, seed)
                counts = len(chosen)
                model = trained(config, seed, (mels[chosen], labels[chosen]), sounds)
                found.append(accuracy(model, held, held_labels))
            what = [f"{most} a label" if len(LABELS) * most == counts else f"all {counts:,}" if most else "none", name]
            rows.append([*what, spread(found)])
            by_label.append([*what, *(f"{float(each):.2f}" for each in torch.stack(found).mean(0))])
            print(*rows[-1], flush=True)
    weights = sum(each.numel() for each in Classifier().parameters())
    parts = [
        "# Do generated sounds help to train a classifier?",
        f"Written by `{shlex.join(['python', 'benchmarks/augment.py', *sys.argv[1:]])}` at commit {commit() or 'unknown'}. A "
        f"small classifier ({weights:,} weights, {config.steps} steps of {config.batch}, random initial weights) is trained on "
        f"real `train` clips of the tiers {', '.join(config.tiers)} and on generated ones ({config.share:.0%} of each batch "
        f"where there are both), and measured on the {len(asked)} clips of `dev`, other recordings. All clips are augmented "
        "alike (gain, time, masks). Mean over labels of the accuracy; +- is the standard deviation of "
        f"{config.seeds} trainings, seeds from 0, each with its own draw of real clips. The instruments were trained on all "
        f"{len(clips):,} of these real clips, so with 5 or 20 real clips a label the generated sounds carry information from "
        f"more. Chance is {1 / len(LABELS):.3f}.",
        table(["real clips", "generated", "accuracy"], rows),
        "## By label",
        table(["real clips", "generated", *(label.name for label in LABELS)], by_label),
    ]
    write_keeping_notes(config.output, "\n\n".join(parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Benchmark)))
