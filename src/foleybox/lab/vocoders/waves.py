"""What the vocoders' loops share: the clips they hear, decoded mels to read, held-out numbers and sample sheets."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.files import atomic_path
from foleybox.lab.core.clips import ClipFile, find_clips, split_by_recording
from foleybox.lab.core.losses import mel_distance
from foleybox.lab.core.mel import LogMel, MelConfig
from foleybox.lab.core.runs import read_clips
from foleybox.lab.vocoders.losses import repetition


def find_sources(
    data: tuple[str, ...], tiers: tuple[str, ...], held_out: float
) -> tuple[list[ClipFile], list[ClipFile]]:
    """Return (clips to train on, clips held out by recording) of all folders; of the latter, one of each label first.

    Raises UserError if there are none.
    """
    if not data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train vocoder sounds/`")
    clips = [clip for source in data for clip in find_clips(source, tiers=tiers or None, any_label=True)]
    kept, held = split_by_recording(clips, held_out)
    if not kept or not held:
        raise UserError(
            f"{len(clips)} clips split into {len(kept)} and {len(held)} held out: expected some of each; "
            "give more recordings or another --held-out"
        )
    shown = {clip.label: index for index, clip in reversed(list(enumerate(held)))}
    order = sorted(shown.values())[:8]
    order += [index for index in range(len(held)) if index not in order]
    return kept, [held[index] for index in order]


def rows_of_start(start_from: Path | None) -> list[dict[str, str]]:
    """Return the rows of `data.heard` that weights to start from bring along; a file does not say what it heard."""
    if start_from is None:
        return []
    if start_from.is_dir():
        return read_clips(start_from)
    if not start_from.is_file():
        raise UserError(
            f"no {start_from}: expected a run folder of `foleybox train vocoder`, or an official checkpoint"
        )
    digest = hashlib.sha256(start_from.read_bytes()).hexdigest()
    row = {"clip": f"weights {digest[:12]}", "label": "(other)", "tier": "unclear", "licence": "not stated"}
    return [{**row, "source": f"what the weights in {start_from.name} heard"}]


# --- mels that a model made ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redrawing:
    """Which training clips the patches model draws again for a vocoder to read.

    The vocoder then learns from mels with the faults of drawn ones, next to those of real clips.
    """

    redrawn_by: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train patches` on the latents of --mels-from"
    redrawn_clips: int = 90
    "of each label, at most"
    redrawn_share: float = 0.35
    "of a batch"
    redrawn_since: tuple[float, float] = (0.1, 0.7)
    "range of flow times from which clips are drawn again: from 0 they would be other sounds, from 1 the clips themselves"


class Decoded(NamedTuple):
    """The clips' mels as a VQ-VAE or an autoencoder gives them back: what a vocoder reads when it renders what was drawn."""

    mels: Tensor
    "[N, M, T] of the clips to train on, then [K, M, T] that patches drew again"
    held: Tensor
    "[H, M, T] of those held out"
    fingerprint: str
    "of the weights"
    again: Tensor = torch.zeros(0, dtype=torch.int64)
    "[K]: which of the N clips each of the mels that were drawn again is of"


def cut_frames(mels: Tensor, clips: Tensor, starts: Tensor, count: int) -> Tensor:
    """Return `count` frames of mels [N, M, T] from each place: clips and first frames int64 [B] -> [B, M, count]."""
    return mels[clips[:, None], :, starts[:, None] + torch.arange(count)].transpose(1, 2)


# --- looking ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(model: nn.Module, waves: Tensor, mel: MelConfig, mels: Tensor | None = None) -> dict[str, float]:
    """Return what the vocoder does to whole clips, int16 [N, L]: distances of log-mels, and the ratio of roughness.

    It reads the clips' own mels, or `mels` [N, M, T] in their place.

    `held_mel` is the L1 of the kind of mel that it reads, `held_wide` of one to half the rate, `held_roughness` the mean
    change between frames of 12 ms (a mel much finer than the one given), fake over real: below 1 is too smooth.
    `held_repetition` is how much more the fakes repeat themselves than the real ones: above 0 noise buzzes.
    """
    device = next(model.parameters()).device
    fine = MelConfig(mel.rate, 256, 64, 40, 0, mel.rate / 2)
    front_ends = {
        "held_mel": LogMel(mel).to(device),
        "held_wide": LogMel(MelConfig(mel.rate, 1024, 256, 100, 0, mel.rate / 2)).to(device),
    }
    rough = LogMel(fine).to(device)
    sums = dict.fromkeys((*front_ends, "real", "fake", "repetition"), 0.0)
    for first, chunk in zip(range(0, len(waves), 8), waves.split(8)):
        real = chunk.to(device).float() / 32768
        real = real[:, : mel.frames(real.shape[1]) * mel.hop]
        fake = model(front_ends["held_mel"](real) if mels is None else mels[first : first + 8].to(device))
        for name, front_end in front_ends.items():
            sums[name] += float(mel_distance(front_end(real), front_end(fake))) * len(chunk) / len(waves)
        more = repetition(fake) - repetition(real)
        sums["repetition"] += float(more.sum()) / len(waves)
        for name, wave in (("real", real), ("fake", fake)):
            sums[name] += float(rough(wave).diff(dim=-1).abs().sum())
    found = {name: sums[name] for name in front_ends}
    return {**found, "held_roughness": sums["fake"] / sums["real"], "held_repetition": sums["repetition"]}


@torch.no_grad()
def draw(model: nn.Module, waves: Tensor, mel: MelConfig, path: Path, mels: Tensor | None = None) -> None:
    """Write a sample sheet: the mel to half the rate of each clip, int16 [N, L], beside that of its vocoded self.

    The vocoder reads the clips' own mels, or `mels` [N, M, T] in their place.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    device = next(model.parameters()).device
    wide = LogMel(MelConfig(mel.rate, 1024, 256, 100, 0, mel.rate / 2)).to(device)
    real = waves.to(device).float() / 32768
    fake = model(LogMel(mel).to(device)(real) if mels is None else mels.to(device))
    figure = Figure(figsize=(12, 1.7 * len(waves)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(waves), 2, squeeze=False, sharex=True, sharey=True)
    for row, pair in enumerate(zip(real, fake, strict=True)):
        for column, wave in enumerate(pair):
            axes[row, column].imshow(wide(wave).cpu().numpy(), origin="lower", aspect="auto", vmin=-11.5, vmax=2)
    axes[0, 0].set_title("real")
    axes[0, 1].set_title("mel -> vocoder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as beside:
        figure.savefig(beside, dpi=70)
