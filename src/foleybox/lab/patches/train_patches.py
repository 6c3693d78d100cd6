"""Train causal patches, our own system, on the latents of a trained autoencoder; one visible loop.

`foleybox train patches FOLDER --autoencoder RUN -o RUN`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.core.augment import NEPER_PER_DB, colour, gain, shift_bands, shift_time
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, recording_ids, split_by_recording, training_rows
from foleybox.lab.core.loop import (
    STEADY,
    Log,
    accelerator_for,
    at_least,
    balanced_indices,
    batch_indices,
    due,
    seed_step,
    share,
    update_average,
)
from foleybox.lab.core.losses import roughness
from foleybox.lab.core.mel import SILENCE, WIDE
from foleybox.lab.core.runs import RunConfig, fingerprint, merge_rows, open_run, read_clips, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.patches.autoencoder import Autoencoder
from foleybox.lab.patches.losses import flow_matching
from foleybox.lab.patches.runs import load_autoencoder, load_patches
from foleybox.lab.patches.transformer import AMID, START, FlowHead, Patches, PatchesConfig, draw
from foleybox.labels import LABELS

OTHER = len(LABELS)  # the label of `--others`


@dataclass(frozen=True)
class TrainPatches:
    """Train causal patches on a folder of recordings. The same command resumes.

    Example: foleybox train patches my_sounds/ --autoencoder runs/autoencoder -o runs/patches
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/patches")
    "the run folder: checkpoint, log, sheets of sounds"
    autoencoder: Path = Path("runs/autoencoder")
    "run folder of `foleybox train autoencoder`, whose latents are learned"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train patches` of the same sizes and autoencoder, with or without others, whose averaged weights to start with"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    without: tuple[str, ...] = ()
    "recordings that are left out, by their names in the manifest: such as `foleybox audit` found again in what was drawn"
    held_out: float = 0.04
    "share of the recordings never trained on, for the held-out loss; 0: none"
    model: PatchesConfig = field(default_factory=PatchesConfig)
    others: tuple[str, ...] = ()
    "folders of sounds of any kind, heard under a label of their own: how sounds go on is learned from them too"
    others_share: float = 0.25
    "of a batch, if there are others"
    balanced: bool = True
    "every label equally often; else every clip"
    most_of_recording: int = 0
    "clips of one recording in an epoch of its label, others each time: what is cut from one is learned by heart; 0: all"
    gain: float = 4.0
    "dB, up or down, drawn for each clip"
    shift_bands: int = 1
    "mel bands, up or down"
    colour: float = 0.0
    "dB: deviation of a smooth curve over the bands, drawn for each clip, as other microphones and rooms have"
    shift: float = 0.0
    "of the clip, later, drawn for each; steady labels (rain, motor) wrap round by any amount"
    speeds: tuple[float, ...] = ()
    "each clip is also played at one of these, as a tape would be, 1.1 a tenth faster and higher; not those of steady labels"
    amid: float = 0.15
    "share of the sequences that begin amid a clip"
    no_label: float = 0.1
    "share of the sequences whose label is hidden, so that sounds can be guided"
    noise: float = 0.3
    "each sequence's inputs get noise of a standard deviation drawn evenly from 0 to this: what is drawn is never exact"
    draws: int = 2
    "times of the flow that are trained for each latent, at one reading of the transformer"
    batch: int = 32
    lr: float = 8e-4
    warm_up: int = 200
    "steps of linear rise to the learning rate"
    half_life: int = 4000
    "steps after which the learning rate has halved"
    decay: float = 0.999
    "of the average of the weights, which is what is used"
    clip_norm: float = 1.0
    "gradients longer than this are shortened"
    steps: int = 100_000
    "in all, those of earlier sittings included"
    run: RunConfig = field(default_factory=RunConfig)


def main(config: TrainPatches) -> int:
    """`foleybox train patches`."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train patches sounds/`")
    tiers = config.tiers or None
    clips = [clip for source in config.data for clip in find_clips(source, tiers=tiers)]
    others = [clip for source in config.others for clip in find_clips(source, tiers=tiers, any_label=True)]
    if unknown := sorted({*config.without} - {clip.recording for clip in clips}):
        raise UserError(
            f"--without {' '.join(unknown)}: no clip of such a recording; expected names as the manifest has them"
        )
    train(config, [clip for clip in clips if clip.recording not in config.without], others)
    return 0


def learning_rate(config: TrainPatches, step: int) -> float:
    """Return the rate of a step: a rise, then a half-life; it does not depend on `steps`, which may be raised later."""
    return config.lr * min(1.0, (step + 1) / config.warm_up) * 0.5 ** (step / config.half_life)


def some_speed(config: TrainPatches, played: list[Tensor], indices: Tensor, steady: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mels [B, M, T] of `indices`, each at its own speed or another one, the speeds [B]).

    `played` are all mels [N, M, T] as they are, and at each of `config.speeds`. What is faster ends sooner, and a steady
    sound does not end: it is played as it is. Torch's generator draws.
    """
    speed = torch.tensor([1.0, *config.speeds])
    if not config.speeds:
        return played[0][indices], speed.expand(len(indices))
    chosen = torch.where(steady, 0, torch.randint(len(speed), (len(indices),)))
    mels = torch.stack([played[version][index] for version, index in zip(chosen.tolist(), indices.tolist())])
    return mels, speed[chosen]


def changed(config: TrainPatches, mel: Tensor, steady: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return (mels [B, M, T] each at another level, a little higher or lower, a little later, what was done [B, 6]).

    What was done: bands up, then dB at five points of the colour, each over what is usual; levels and times are not
    told, since all of them occur. All start up to a patch later, so that the grid of patches falls differently on the
    same event. Torch's generator draws.
    """
    B, _, T = mel.shape
    image = gain(mel[:, None], torch.empty(B).uniform_(-config.gain, config.gain) * NEPER_PER_DB, SILENCE)
    points = torch.zeros(B, 5)  # dB
    if config.colour:
        points = torch.randn(B, 5) * config.colour
        image = colour(image, points * NEPER_PER_DB, SILENCE)
    later = torch.randint(int(config.shift * T) + patch, (B,))
    later = torch.where(steady, torch.randint(T, (B,)), later)
    image = shift_time(image, later, steady, SILENCE)
    bands = torch.randint(-config.shift_bands, config.shift_bands + 1, (B,))
    told = torch.cat([bands[:, None] / 2, points / 2], 1)
    return shift_bands(image, bands)[:, 0], told


def train(config: TrainPatches, clips: list[ClipFile], others: Sequence[ClipFile] = ()) -> Patches:
    """Train on `clips` and `others` without those held out; return the averaged model in eval mode.

    `others` are heard under one label more than the seven, which no instrument plays.

    Raises UserError for settings that do not go together, nothing to train on, or a run folder of another configuration.
    """
    at_least(config, batch=1, draws=1, steps=1, warm_up=1, half_life=1)
    at_least(config, gain=0, shift_bands=0, colour=0, shift=0, noise=0, most_of_recording=0)
    if config.most_of_recording and not config.balanced:
        raise UserError("--most-of-recording goes with --balanced: an epoch of --no-balanced is every clip once")
    if any(not 1 < speed <= 2 for speed in config.speeds):
        raise UserError(
            f"--speeds {' '.join(f'{speed:g}' for speed in config.speeds)}: expected each above 1, to 2; slower, a recording "
            "has nothing in the highest bands, and sounds without them would be drawn"
        )
    autoencoder, _ = load_autoencoder(config.autoencoder)
    if autoencoder.config.latent != config.model.latent:
        raise UserError(
            f"--latent {config.model.latent}, and {config.autoencoder} has {autoencoder.config.latent}: "
            f"give --latent {autoencoder.config.latent}"
        )
    if config.model.width % (2 * config.model.heads):
        raise UserError(f"--width {config.model.width}, --heads {config.model.heads}: expected a multiple of 2 heads")
    if not 0 <= config.others_share < 1:
        raise UserError(f"--others-share {config.others_share}: expected 0 to below 1")
    if others:
        config = replace(config, model=replace(config.model, labels=OTHER + 1))
    kept, held = split_by_recording(clips, config.held_out)
    others, _ = split_by_recording(others, config.held_out)
    if not kept:
        raise UserError(f"{len(held)} clips, all of them held out: give more recordings or a lower --held-out")
    accelerator = accelerator_for(config.run, "no", config.out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    torch.manual_seed(config.run.seed)
    model = started(config, latents_of := fingerprint(autoencoder.components)).to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    with accelerator.main_process_first():
        # The components' fingerprint, not the path: latents mean nothing to others; the decoder may go on learning.
        before = read_clips(config.start_from) if config.start_from else []
        told = merge_rows(training_rows([*kept, *others]), before)
        open_run(config.out, "patches", replace(config, autoencoder=latents_of), told, config.start_from)
        mels, labels = load_mels([*kept, *others], WIDE), label_ids(kept)
        played = [mels, *(load_mels([*kept, *others], WIDE, speed=speed) for speed in config.speeds)]
        held_mels, held_labels = (load_mels(held, WIDE), label_ids(held)) if held else (mels[:0], labels[:0])
    recordings = recording_ids(kept)
    all_labels, steady = F.pad(labels, (0, len(others)), value=OTHER), F.pad(STEADY, (0, 1))
    beside = round(config.others_share * config.batch) if others else 0
    autoencoder.to(device)

    optimizer = torch.optim.AdamW(model.parameters(), config.lr, (0.9, 0.98), weight_decay=0.02)
    parts = {"patches": model, "average": average, "optimizer": optimizer}
    start = resume(config.out / "state.pt", parts)
    model, optimizer = accelerator.prepare(model, optimizer)
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    with Log(config.out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, rank)
            bare.train()
            optimizer.param_groups[0]["lr"] = learning_rate(config, step)
            if config.balanced:
                most = config.most_of_recording
                indices = balanced_indices(step, config.batch - beside, labels, config.run.seed, recordings, most)
            else:
                indices = batch_indices(step, config.batch - beside, len(kept), config.run.seed)
            if beside:
                indices = torch.cat([indices, len(kept) + batch_indices(step, beside, len(others), config.run.seed)])
            indices = share(indices, rank, world)
            label = all_labels[indices]
            going_on = steady[label]
            mel, speed = some_speed(config, played, indices, going_on)
            mel, done_to_it = changed(config, mel, going_on, autoencoder.config.patch)
            changes = torch.cat([speed.log()[:, None] / 0.1, done_to_it], 1).to(device)  # [B, 7]
            with torch.no_grad(), accelerator.autocast():
                latents = autoencoder.encode(mel.to(device)).float()  # [B, N, D]
            latents, counted, first = some_amid(latents, config.amid)
            hidden = torch.rand(len(label)) < config.no_label
            label = torch.where(hidden, torch.full_like(label, bare.no_label), label).to(device)

            sigma = config.noise * torch.rand(len(latents), 1, 1, device=device)
            with accelerator.autocast():
                context = model(latents + sigma * torch.randn_like(latents), label, first, changes)  # [B, N, C]
                rows = as_many_rows(counted)
                loss = head_loss(bare.head, latents.flatten(0, 1)[rows], context.flatten(0, 1)[rows], config.draws)

            optimizer.zero_grad()
            accelerator.backward(loss)
            norm = nn.utils.clip_grad_norm_(bare.parameters(), config.clip_norm)
            if torch.isfinite(norm):  # a step that is not finite is skipped and counted, and never reaches a checkpoint
                optimizer.step()
                update_average(average, bare, config.decay, step)

            done = step + 1
            log.add({"flow": loss.detach(), "norm": norm, "skipped": (~torch.isfinite(norm)).float()})
            log.advance(done)
            extra = {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                extra = measure(average, autoencoder, held_mels, held_labels)
                extra |= look(
                    config.out / "samples" / f"step-{done:06d}.png", average, autoencoder, mels[: len(kept)], labels
                )
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
    return average


def started(config: TrainPatches, latents_of: str) -> Patches:
    """Return the model to begin with: of random weights, or with those of `start_from`.

    Where there are others and `start_from` had none, their label begins as the one that means none, which is what it
    comes nearest to; where it had some and there are none now, theirs is left out. A model that is told of changes begins
    by not minding them where `start_from` was not told.

    Raises UserError for a run of another size or of latents with another fingerprint than `latents_of`.
    """
    model = Patches(config.model)
    if config.start_from is not None:
        given, theirs, _ = load_patches(config.start_from)
        weights, size = given.state_dict(), replace(given.config, told=config.model.told)
        if model.told is None:
            weights.pop("told.weight", None)
        else:
            weights.setdefault("told.weight", model.told.weight)
        if (size.labels, config.model.labels) == (len(LABELS), OTHER + 1):
            known = weights["label.weight"]  # the seven and none: [8, C]
            weights["label.weight"], size = torch.cat([known, known[-1:]]), replace(size, labels=OTHER + 1)
        elif (size.labels, config.model.labels) == (OTHER + 1, len(LABELS)):
            known = weights["label.weight"]  # the seven, others, none: [9, C]
            weights["label.weight"] = torch.cat([known[:OTHER], known[OTHER + 1 :]])
            size = replace(size, labels=len(LABELS))
        if (size, theirs) != (config.model, latents_of):
            found = "latents of another autoencoder" if theirs != latents_of else f"{given.config}"
            raise UserError(
                f"--start-from {config.start_from} has {found}: expected those of --autoencoder, {config.model}"
            )
        model.load_state_dict(weights)
    return model


TIMES = 64  # of a step: what a time says is worked out once for all rows that have it


def head_loss(head: FlowHead, latents: Tensor, context: Tensor, draws: int) -> Tensor:
    """Return the flow's error for latents [R, D] in contexts [R, C], at `draws` times and noises for each.

    The times are logit-normal: those in the middle, where the paths part, are the hard ones (Esser et al. 2024, equation
    19). They are spread evenly over their distribution, one of TIMES parts each.
    """
    device = latents.device
    quantile = (torch.arange(TIMES, device=device) + torch.rand(TIMES, device=device)) / TIMES
    time = torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)).sigmoid()
    chosen = torch.randint(TIMES, (draws * len(latents),), device=device)
    said = head.context_mlp(context).repeat(draws, 1) + head.time_embedding(time)[chosen]
    target = latents.repeat(draws, 1)
    return flow_matching(head, target, said, time[chosen], torch.randn_like(target))


def some_amid(latents: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Let a share of the sequences [B, N, D] begin amid: (moved sequences, which places count [B, N], first [B]).

    What a moved sequence lacks at its end is filled with its own beginning and does not count.
    """
    B, N, _ = latents.shape
    amid = torch.rand(B) < share
    moved = torch.where(amid, torch.randint(1, N // 2 + 1, (B,)), 0)
    places = torch.arange(N) + moved[:, None]  # [B, N]
    first = torch.where(amid, AMID, START)
    moved_latents = latents[torch.arange(B)[:, None], places % N]
    return moved_latents, (places < N).to(latents.device), first.to(latents.device)


def as_many_rows(counted: Tensor) -> Tensor:
    """Return B N rows of the places that count, of [B, N]: each once in random order, and some again in place of the others.

    Tensors of another size each step would fragment the heap: after a thousand steps a step took twice as long.
    """
    rows = torch.nonzero(counted.flatten()).flatten()
    rows = rows[torch.randperm(len(rows)).to(rows.device)]
    return rows[torch.arange(counted.numel(), device=rows.device) % len(rows)]


@torch.no_grad()
def measure(average: Patches, autoencoder: Autoencoder, mels: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the flow's error on held-out clips as they are, the same noise each time."""
    if not len(mels):
        return {}
    device = next(average.parameters()).device
    torch.manual_seed(0)
    total, count = 0.0, 0
    for mel, label in zip(mels.split(32), labels.split(32)):
        latents, label = autoencoder.encode(mel.to(device)), label.to(device)
        context = average(latents, label, torch.zeros_like(label))
        error, rows = head_loss(average.head, latents.flatten(0, 1), context.flatten(0, 1), 4), len(mel)
        total, count = total + float(error) * rows, count + rows
    return {"held_out_flow": total / count}


@torch.no_grad()
def look(path: Path, average: Patches, autoencoder: Autoencoder, mels: Tensor, labels: Tensor) -> dict[str, float]:
    """Draw three sounds a label below three real ones; return the roughness of the drawn over that of the real."""
    device = next(average.parameters()).device
    torch.manual_seed(1)
    shown = torch.cat([torch.nonzero(labels == label).flatten()[:3] for label in labels.unique()])
    label = labels[shown].to(device)
    N = mels.shape[2] // autoencoder.config.patch
    latents = draw(average, label, torch.randn(len(label), N, autoencoder.config.latent, device=device))
    made, real = autoencoder.decode(latents).cpu(), mels[shown]
    mel_sheet(path, torch.stack([real, made], 1).flatten(0, 1), labels[shown].repeat_interleave(2))
    ratios = {}
    for number in labels.unique():
        mine = labels[shown] == number
        ratios[f"rough_{LABELS[int(number)].slug}"] = float(roughness(made[mine]) / roughness(real[mine]))
    return ratios
