"""Try what else our own system could be, at equal compute, and print a table: what LOG.md says of shapes and settings.

python benchmarks/tries.py ../shared --autoencoder runs/restored/autoencoder --vocoder runs/restored/vocoder

Each try trains a small model (a fifth of the real one's work) on all of `train`, from nothing, for as many seconds of one
core's time as every other, then draws sounds, which are measured by their distance to `train`. Small and young models: the
table says which way a change leads, and by how much another seed does.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from kt import table
from torch import Tensor, nn

from foleybox.doors import UserError, write_text
from foleybox.lab.data import ClipFile, find_clips, label_ids, load_mels, split_by_recording
from foleybox.lab.evaluation.embeddings import load_embedding
from foleybox.lab.features import WIDE
from foleybox.lab.models.autoencoder import Autoencoder, AutoencoderConfig, Block
from foleybox.lab.models.patches import PatchesConfig, draw, leads, times
from foleybox.lab.runs import load_autoencoder, load_vocoder
from foleybox.lab.scored import Ruler
from foleybox.lab.training.autoencoder import TrainAutoencoder
from foleybox.lab.training.autoencoder import train as train_autoencoder
from foleybox.lab.training.common import STEADY, balanced_indices, seed_step, update_average
from foleybox.lab.training.patches import TrainPatches, changed, train
from foleybox.labels import LABELS

SMALL = PatchesConfig(width=128, layers=4, heads=4, head_width=192)
BASE = TrainPatches(
    model=SMALL, lr=1.2e-3, warm_up=100, half_life=2000, decay=0.99, threads=1, device="cpu", tracker="none",
    log_every=25, save_every=100_000, sample_every=100_000,
)  # fmt: skip


def shaped(**changes: Any) -> TrainPatches:
    return replace(BASE, model=replace(SMALL, **changes))


TRIES: dict[str, TrainPatches] = {
    "as it is": BASE,
    "another seed": replace(BASE, seed=1),
    "deeper and narrower: 8 layers of 96": shaped(layers=8, width=96),
    "shallower and wider: 2 layers of 176": shaped(layers=2, width=176),
    "wider head: 320": shaped(head_width=320),
    "narrower head: 96": shaped(head_width=96),
    "patches of 2 frames, 32 numbers": shaped(latent=32),
    "patches of 8 frames, 128 numbers": shaped(latent=128),
    "every clip equally often, not every label": replace(BASE, balanced=False),
    "no augmentation": replace(BASE, gain=0.0, shift_bands=0),
}
WHOLE = "the whole clip at once: flow matching, a U-Net in time"


@dataclass(frozen=True)
class Tries:
    """Train each try for the same time, draw, measure, print."""

    shared: tyro.conf.Positional[Path]
    autoencoder: Path
    "run of `train autoencoder` for patches of 4 frames"
    vocoder: Path
    seconds: float = 300.0
    "of one core's time for each training"
    clips: int = 30
    "sounds a label, measured"
    names: tuple[str, ...] = (*TRIES, WHOLE)
    work: Path = Path("runs/tries")


# --- the whole clip at once ---------------------------------------------------------------------------------------


class WholeClip(nn.Module):
    """The speed [B, N, D] of a flow over all latents of a clip, at points [B, N, D], times [B] and labels [B]."""

    def __init__(self, latent: int = 64, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Conv1d(latent, width, 3, padding=1)
        self.label, self.time = nn.Embedding(len(LABELS), width), nn.Linear(64, width)
        self.place = nn.Parameter(torch.zeros(width, 88))
        self.down = nn.ModuleList(nn.Sequential(*(Block(width, 4) for _ in range(3))) for _ in range(3))
        self.up = nn.ModuleList(nn.Sequential(*(Block(width, 4) for _ in range(3))) for _ in range(2))
        self.sink = nn.ModuleList(nn.Conv1d(width, width, 2, stride=2) for _ in range(2))
        self.rise = nn.ModuleList(nn.ConvTranspose1d(width, width, 2, stride=2) for _ in range(2))
        self.say = nn.ModuleList(nn.Linear(width, width) for _ in range(5))
        self.speed = nn.Conv1d(width, latent, 3, padding=1)

    def forward(self, point: Tensor, time: Tensor, label: Tensor) -> Tensor:
        waves = torch.exp(torch.arange(32) * (np.log(1000.0) / 31))
        angles = time[:, None] * waves
        told = F.silu(self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.label(label))
        said = [say(told)[:, :, None] for say in self.say]
        N = point.shape[1]
        x = self.embed(F.pad(point.transpose(1, 2), (0, 88 - N))) + self.place
        fine = self.down[0](x + said[0])
        middle = self.down[1](self.sink[0](fine) + said[1])
        coarse = self.down[2](self.sink[1](middle) + said[2])
        middle = self.up[0](middle + self.rise[0](coarse) + said[3])
        fine = self.up[1](fine + self.rise[1](middle) + said[4])
        return self.speed(fine).transpose(1, 2)[:, :N]

    @torch.no_grad()
    def draw(self, label: Tensor, noise: Tensor, steps: int = 24) -> Tensor:
        point, before = noise, torch.zeros_like(noise)
        for (lead, lead_of_last), now in zip(leads(steps), times(steps)):
            speed = self(point, torch.full((len(label),), now), label)
            point, before = point + lead * speed + lead_of_last * before, speed
        return point


def train_whole(autoencoder: Autoencoder, mels: Tensor, labels: Tensor, steps: int) -> WholeClip:
    """Train `WholeClip` on the batches that the patches would have."""
    torch.manual_seed(0)
    model = WholeClip()
    average = WholeClip()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), BASE.lr, (0.9, 0.98), weight_decay=0.02)
    for step in range(steps):
        seed_step(0, step)
        indices = balanced_indices(step, BASE.batch, labels, 0)
        label = labels[indices]
        latents = autoencoder.encode(changed(BASE, mels[indices], STEADY[label], 4))
        now, noise = torch.randn(len(label)).sigmoid(), torch.randn_like(latents)
        point = torch.lerp(noise, latents, now[:, None, None])
        loss = (model(point, now, label) - (latents - noise)).square().mean()
        optimizer.param_groups[0]["lr"] = BASE.lr * min(1.0, (step + 1) / BASE.warm_up)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_average(average, model, BASE.decay, step)
    return average.eval()


# --- one try ------------------------------------------------------------------------------------------------------


def with_patches_of(frames: int, latent: int, clips: list[ClipFile], config: Tries) -> Path:
    """Write a run of an autoencoder for patches of so many frames, with the given one's decoder."""
    run = TrainAutoencoder(
        model=AutoencoderConfig(patch=frames, latent=latent), decoder_from=config.autoencoder, steps=0,
        out=config.work / f"of-{frames}", threads=1, device="cpu", tracker="none",
    )  # fmt: skip
    train_autoencoder(run, clips)
    return run.out


def steps_for(seconds: float, run: Callable[[int], object]) -> int:
    """Return how many steps take so many seconds of a core's time, by 12 of them less 2."""
    run(1)  # reads all files, which is no part of a step
    spent = []
    for steps in (2, 12):
        start = time.process_time()
        run(steps)
        spent.append(time.process_time() - start)
    return max(1, round(seconds / ((spent[1] - spent[0]) / 10)))


def drawn(
    name: str, config: Tries, clips: list[ClipFile], mels: Tensor, four: Autoencoder
) -> tuple[Tensor, Tensor, int]:
    """Train a try and return (mels [n, M, T], labels [n], its steps)."""
    label = torch.arange(len(LABELS)).repeat_interleave(config.clips)
    kept, _ = split_by_recording(clips, BASE.held_out)
    if name == WHOLE:
        places = {clip.path: place for place, clip in enumerate(clips)}
        mine, labels = mels[[places[clip.path] for clip in kept]], label_ids(kept)
        steps = steps_for(config.seconds, lambda steps: train_whole(four, mine, labels, steps))
        whole = train_whole(four, mine, labels, steps)
        torch.manual_seed(0)
        return four.decode(whole.draw(label, torch.randn(len(label), 86, 64))), label, steps
    setting = TRIES[name]
    frames = {32: 2, 64: 4, 128: 8}[setting.model.latent]
    run = config.autoencoder if frames == 4 else with_patches_of(frames, setting.model.latent, clips, config)
    out = config.work / name.partition(":")[0].replace(" ", "-").replace(",", "")
    setting = replace(setting, autoencoder=run, out=out)

    def brief(steps: int) -> None:
        train(replace(setting, out=config.work / f"{out.name}-{steps}", steps=steps), clips)

    steps = steps_for(config.seconds, brief)
    model = train(replace(setting, steps=steps), clips).eval()
    torch.manual_seed(0)
    latents = draw(model, label, torch.randn(len(label), 344 // frames, setting.model.latent), steps=10)
    return load_autoencoder(run)[0].decode(latents), label, steps


@torch.no_grad()
def main(config: Tries) -> None:
    torch.set_num_threads(1)
    config.work.mkdir(parents=True, exist_ok=True)
    clips = find_clips(f"{config.shared}/data/foley:train")
    mels, four = load_mels(clips, WIDE), load_autoencoder(config.autoencoder)[0]
    vocoder, _, _ = load_vocoder(config.vocoder)
    ruler = Ruler(clips, load_embedding("mn04"))
    store = config.work / "tries.json"
    rows: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    for name in config.names:
        if name not in rows:
            with torch.enable_grad():
                made, label, steps = drawn(name, config, clips, mels, four)
            waves = torch.cat([vocoder(part) for part in made.detach().split(8)])
            rows[name] = {"steps": steps, "distances": list(ruler.by_label(waves, label.tolist()).values())}
            write_text(store, json.dumps(rows, indent=1) + "\n")
        print(name, rows[name], flush=True)
    head = ["try", "steps", "mean of 7", *(label.name for label in LABELS)]
    lines = [
        [name, str(row["steps"]), f"{np.mean(row['distances']):.2f}", *(f"{each:.1f}" for each in row["distances"])]
        for name, row in rows.items()
    ]
    print(table(head, lines))


if __name__ == "__main__":
    try:
        main(tyro.cli(Tries))
    except UserError as error:
        sys.exit(f"tries: {error}")
