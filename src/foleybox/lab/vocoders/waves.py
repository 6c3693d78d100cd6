"""What the vocoders' training loops share: their clips, the mels of other models, held-out measurements, sample sheets.

Letters: N clips, L samples, M mel bands, T frames.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.core.clips import ClipFile, find_clips, split_by_recording
from foleybox.lab.core.losses import mel_distance, repetition
from foleybox.lab.core.mel import LogMel, MelConfig
from foleybox.lab.core.runs import PythonOnly, read_clips
from foleybox.lab.core.sheets import mel_sheet


def find_sources(
    data: tuple[str, ...], tiers: tuple[str, ...], held_out: float
) -> tuple[list[ClipFile], list[ClipFile]]:
    """Return (clips to train on, clips held out by recording) of all folders; the latter begin with one of each label.

    Raises UserError if either is empty.
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
    """Return the rows of the training clips (`clips.training_rows`) of initial weights: a run, or an official checkpoint.

    What a checkpoint was trained on is not known: its one row has the tier `unclear`.
    """
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
    return [{**row, "source": f"training data of the weights in {start_from.name}"}]


# --- mels made by a model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redrawing:
    """Which training clips the patches model redraws (`transformer.redraw`) as further input of a vocoder.

    The vocoder is then also trained on mels with the errors of generated ones.
    """

    redrawn_by: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train patches` on the latents of --mels-from: also train on clips that it redraws, with its errors"
    redrawn_clips: PythonOnly[int] = 90
    "of each label, at most"
    redrawn_share: PythonOnly[float] = 0.35
    "of a batch"
    redrawn_since: PythonOnly[tuple[float, float]] = (0.1, 0.7)
    "range of the flow times from which clips are redrawn: 0 would give other sounds, 1 the clips themselves"


class Decoded(NamedTuple):
    """Mels that a vocoder reads in place of those of its target waves.

    They are those that a VQ-VAE or an autoencoder reconstructs, which a vocoder reads when sounds are generated; or those of
    the clips at the mel's rate, where the target waves have a higher one.
    """

    mels: Tensor
    "[N, M, T] of the training clips, then [K, M, T] that the patches redrew"
    held: Tensor
    "[H, M, T] of the held-out clips"
    fingerprint: str
    "of the weights; empty if the mels are the clips' own"
    redrawn: Tensor = torch.zeros(0, dtype=torch.int64)
    "[K]: the training clip of each redrawn mel"


def cut_frames(mels: Tensor, clips: Tensor, starts: Tensor, count: int) -> Tensor:
    """Return `count` frames of mels [N, M, T]: clips and first frames int64 [B] -> [B, M, count]."""
    return mels[clips[:, None], :, starts[:, None] + torch.arange(count)].transpose(1, 2)


# --- measurements and sample sheets -------------------------------------------------------------------------------


def _half_rate_mel(rate: int, factor: int) -> LogMel:
    """Return a front end of 100 bands up to half the rate of the waves, in windows of 1024 x `factor` samples."""
    return LogMel(MelConfig(rate, 1024 * factor, 256 * factor, 100, 0, rate / 2))


@torch.no_grad()
def measure(
    model: nn.Module, waves: Tensor, mel: MelConfig, mels: Tensor | None = None, factor: int = 1
) -> dict[str, float]:
    """Return measurements of vocoded clips, int16 [N, L], against the clips. The vocoder reads `mels` [N, M, T] or theirs.

    The waves have `factor` times the rate of the mel; with a factor above 1 `mels` must be given.

    `held_mel` is the L1 distance of the mels that it reads, `held_wide` of mels up to half the rate, `held_roughness` the
    ratio, fake over real, of the mean change between frames of 12 ms (below 1 is too smooth), `held_repetition` the
    difference of `losses.repetition` (above 0 buzzes).
    """
    device = next(model.parameters()).device
    output = mel.times(factor)
    fine = LogMel(MelConfig(output.rate, 256 * factor, 64 * factor, 40, 0, output.rate / 2)).to(device)
    front_ends = {"held_mel": LogMel(output).to(device), "held_wide": _half_rate_mel(output.rate, factor).to(device)}
    sums = dict.fromkeys((*front_ends, "real", "fake", "repetition"), 0.0)
    for first, chunk in zip(range(0, len(waves), 8), waves.split(8)):
        real = chunk.to(device).float() / 32768
        real = real[:, : output.frames(real.shape[1]) * output.hop]
        fake = model(front_ends["held_mel"](real) if mels is None else mels[first : first + 8].to(device))
        for name, front_end in front_ends.items():
            sums[name] += float(mel_distance(front_end(real), front_end(fake))) * len(chunk) / len(waves)
        lags = 200 * factor, 2000 * factor
        sums["repetition"] += float((repetition(fake, *lags) - repetition(real, *lags)).sum()) / len(waves)
        for name, wave in (("real", real), ("fake", fake)):
            sums[name] += float(fine(wave).diff(dim=-1).abs().sum())
    found = {name: sums[name] for name in front_ends}
    return {**found, "held_roughness": sums["fake"] / sums["real"], "held_repetition": sums["repetition"]}


@torch.no_grad()
def vocoder_sheet(
    path: Path, model: nn.Module, waves: Tensor, mel: MelConfig, mels: Tensor | None = None, factor: int = 1
) -> None:
    """Draw the mel up to half the rate of each clip, int16 [N, L], next to that of its vocoded version."""
    device = next(model.parameters()).device
    front_end = _half_rate_mel(mel.rate * factor, factor).to(device)
    real = waves.to(device).float() / 32768
    fake = model(LogMel(mel).to(device)(real) if mels is None else mels.to(device))
    pairs = torch.stack([front_end(real[:, : fake.shape[1]]), front_end(fake)], 1).flatten(0, 1)
    mel_sheet(path, pairs, ["real", "vocoded"] * len(waves), columns=4)
