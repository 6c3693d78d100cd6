"""What the vocoders' loops share: the clips they hear, decoded mels to read, held-out numbers and sample sheets."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from foleybox.doors import UserError, write_beside
from foleybox.lab import losses
from foleybox.lab.codes import decode_codes, encode_mels
from foleybox.lab.data import ClipFile, cached, find_clips, label_ids, load_mels, split_by_recording
from foleybox.lab.features import DCASE, WIDE, LogMel, MelConfig
from foleybox.lab.models.autoencoder import Autoencoder
from foleybox.lab.models.patches import GUIDANCE, GUIDED_FROM, TEMPERATURE, redraw
from foleybox.lab.models.vqvae import Vqvae
from foleybox.lab.runs import (
    fingerprint,
    load_autoencoder,
    load_patches_and_autoencoder,
    load_vqvae,
    read_clips,
    read_run_config,
)
from foleybox.labels import LABELS


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


def heard_before(start_from: Path | None) -> list[dict[str, str]]:
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


def decode_clips(
    run: Path, kept: list[ClipFile], held: list[ClipFile], mel: MelConfig, seconds: float, device: str
) -> Decoded:
    """Return the reconstructions of the clips by the VQ-VAE or autoencoder of `run`, from the cache when they are there.

    Raises UserError for a bad run, and for a mel or a length that it does not read.
    """
    ours = read_run_config(run).get("part") == "autoencoder"
    model, _ = load_autoencoder(run) if ours else load_vqvae(run)
    patch = model.config.patch if isinstance(model, Autoencoder) else 4
    frames, reads = mel.frames(round(seconds * mel.rate)), WIDE if ours else DCASE
    if mel != reads or frames % patch:
        raise UserError(
            f"--mels-from {run}: it reads the mel {reads} in multiples of {patch} frames, here are {frames} frames of "
            f"{mel}; give --mel {'wide' if ours else 'dcase'} and leave --seconds as it is"
        )
    name = fingerprint(model)
    if device == "auto" and torch.cuda.is_available():
        model.cuda()

    def back(mels: Tensor) -> Tensor:
        if isinstance(model, Vqvae):
            return decode_codes(model, encode_mels(model, mels))
        torch.manual_seed(0)  # of the grain
        return model.reconstruct(mels)

    def reconstruct(clips: list[ClipFile]) -> Tensor:
        return cached("decoded", clips, f"{name} {seconds}", lambda: back(load_mels(clips, mel, seconds)))

    return Decoded(reconstruct(kept), reconstruct(held), name)


@dataclass(frozen=True)
class Redrawing:
    """Which clips patches draw again for a vocoder to read, and how."""

    redrawn_by: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train patches` on the latents of --mels-from: read mels that it drew too, beside real clips, with its faults"
    redrawn_clips: int = 90
    "of each label, at most"
    redrawn_share: float = 0.35
    "of a batch"
    redrawn_since: tuple[float, float] = (0.1, 0.7)
    "times of the flow from which they are drawn, evenly: from 0 they would be other sounds, from 1 the clips themselves"
    guidance: tuple[float, ...] = GUIDANCE
    "of each label, as the instrument will have it"
    guided_from: float = GUIDED_FROM
    "the time of the flow from which latents are guided, as the instrument will have it"
    temperature: tuple[float, ...] = TEMPERATURE
    "of each label, as the instrument will have it"


def redraw_clips(config: Redrawing, decoded: Decoded, mels_from: Path, kept: list[ClipFile], seconds: float) -> Decoded:
    """Return `decoded` with the mels of some labelled clips drawn again by patches, from the cache when they are there.

    Raises UserError for patches of another autoencoder's latents, settings that make no sense, and clips without labels.
    """
    assert config.redrawn_by is not None
    low, high = config.redrawn_since
    if not (0 <= low <= high < 1 and 0 < config.redrawn_share < 1 and config.redrawn_clips > 0):
        raise UserError(
            f"--redrawn-since {low:g} {high:g}, --redrawn-share {config.redrawn_share:g}, --redrawn-clips "
            f"{config.redrawn_clips}: expected times from 0 to below 1, a share between 0 and 1, and 1 clip or more"
        )
    if {len(config.guidance), len(config.temperature)} != {len(LABELS)}:
        raise UserError(f"--guidance and --temperature: expected {len(LABELS)} numbers each, one a label")
    model, autoencoder, _ = load_patches_and_autoencoder(config.redrawn_by, mels_from)
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0)).tolist()
    mine = [[i for i in order if kept[i].label == label][: config.redrawn_clips] for label in LABELS]
    again = torch.tensor(sorted(itertools.chain(*mine)), dtype=torch.int64)
    if not len(again):
        raise UserError("--redrawn-by: none of the clips has one of the seven labels, which patches draw")
    clips = [kept[i] for i in again.tolist()]

    def compute() -> Tensor:
        mels, labels = load_mels(clips, WIDE, seconds), label_ids(clips)
        parts, console = [], Console(stderr=True)
        torch.manual_seed(0)
        batches = list(zip(mels.split(16), labels.split(16)))
        for mel, label in track(batches, "redrawn", console=console, disable=not console.is_terminal):
            since = torch.empty(len(mel)).uniform_(low, high)
            guidance, temperature = (torch.tensor(each)[label] for each in (config.guidance, config.temperature))
            latents = autoencoder.encode(mel)
            drawn = redraw(
                model, latents, label, since, guidance=guidance, guided_from=config.guided_from, temperature=temperature
            )
            parts.append(autoencoder.decode(drawn).detach())
        return torch.cat(parts)

    how = f"{low} {high} {config.guidance} {config.guided_from} {config.temperature} {seconds}"
    key = f"{fingerprint(model)} {decoded.fingerprint} {how}"
    mels = cached("redrawn", clips, key, compute)
    name = hashlib.sha256(key.encode()).hexdigest()
    return Decoded(torch.cat([decoded.mels, mels]), decoded.held, name, again)


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
            sums[name] += float(losses.mel_distance(front_end(real), front_end(fake))) * len(chunk) / len(waves)
        more = losses.repetition(fake) - losses.repetition(real)
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
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=70)
