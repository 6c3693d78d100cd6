"""Try what else our own system could be, at equal compute, and print a table: what LOG.md says of shapes and settings.

python benchmarks/tries.py ../shared --autoencoder runs/restored/autoencoder --vocoder runs/restored/vocoder

Each try trains a small model (a fifth of the real one's work) on all of `train`, from nothing, for as many seconds of one
core's time as every other, then draws sounds, which are measured by their distance to `train`. Small and young models: the
table says which way a change leads, and by how much another seed does.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from kt import table
from torch import Tensor
from tries_other import finish, train_banded, train_whole

from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, split_by_recording
from foleybox.lab.core.mel import WIDE
from foleybox.lab.evaluation.embeddings import load_embedding
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig
from foleybox.lab.patches.runs import load_autoencoder
from foleybox.lab.patches.train_autoencoder import TrainAutoencoder
from foleybox.lab.patches.train_autoencoder import train as train_autoencoder
from foleybox.lab.patches.train_patches import TrainPatches, train
from foleybox.lab.patches.transformer import Patches, PatchesConfig, draw
from foleybox.lab.play.scored import Ruler
from foleybox.lab.vocoders.runs import load_vocoder
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
OTHERS = {
    "the whole clip at once: flow matching, a U-Net in time": train_whole,
    "a head over bands: four groups, the lower first": train_banded,
}
FINISHED = "adversarial finish: half of the time with KT's discriminator"


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
    names: tuple[str, ...] = (*TRIES, *OTHERS, FINISHED)
    work: Path = Path("runs/tries")


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


def drawn(name: str, config: Tries, clips: list[ClipFile], four: Autoencoder) -> tuple[Tensor, Tensor, int]:
    """Train a try and return (mels [n, M, T], labels [n], its steps)."""
    label = torch.arange(len(LABELS)).repeat_interleave(config.clips)
    kept, _ = split_by_recording(clips, BASE.held_out)
    if name in OTHERS:
        mine, labels = load_mels(kept, WIDE), label_ids(kept)
        steps = steps_for(config.seconds, lambda steps: OTHERS[name](BASE, four, mine, labels, steps))
        drawn_by = OTHERS[name](BASE, four, mine, labels, steps)
        torch.manual_seed(0)
        return drawn_by(label), label, steps
    setting = TRIES.get(name, BASE)
    frames = {32: 2, 64: 4, 128: 8}[setting.model.latent]
    run = config.autoencoder if frames == 4 else with_patches_of(frames, setting.model.latent, clips, config)
    out = config.work / name.partition(":")[0].replace(" ", "-").replace(",", "")
    setting = replace(setting, autoencoder=run, out=out)

    def brief(steps: int) -> None:
        train(replace(setting, out=config.work / f"{out.name}-{steps}", steps=steps), clips)

    seconds = config.seconds / 2 if name == FINISHED else config.seconds
    steps = steps_for(seconds, brief)
    model = train(replace(setting, steps=steps), clips)
    if name == FINISHED:
        mine, labels = load_mels(kept, WIDE), label_ids(kept)

        def last(more: int) -> Patches:
            begun = copy.deepcopy(model).requires_grad_(True)
            return finish(replace(setting, batch=16), begun, four, mine, labels, more, after=steps)

        more = steps_for(seconds, last)
        print(f"{steps} steps, and {more} of 16 clips with the discriminator", flush=True)
        model = last(more)
        steps += more
    torch.manual_seed(0)
    noise = torch.randn(len(label), 344 // frames, setting.model.latent)
    return load_autoencoder(run)[0].decode(draw(model.eval(), label, noise, steps=10)), label, steps


@torch.no_grad()
def main(config: Tries) -> None:
    torch.set_num_threads(1)
    config.work.mkdir(parents=True, exist_ok=True)
    clips = find_clips(f"{config.shared}/data/foley:train")
    four = load_autoencoder(config.autoencoder)[0]
    vocoder, _, _ = load_vocoder(config.vocoder)
    ruler = Ruler(clips, load_embedding("mn04"))
    store = config.work / "tries.json"
    rows: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    for name in config.names:
        if name not in rows:
            with torch.enable_grad():
                made, label, steps = drawn(name, config, clips, four)
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
