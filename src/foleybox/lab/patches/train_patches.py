"""Train causal patches, our own system, on the latents of a trained autoencoder; one visible loop.

`foleybox train patches FOLDER --autoencoder RUN -o RUN`.

Letters: B batch, N latents of a sequence, D latent width, C width of the transformer, M mel bands, T frames, R rows.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

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
from foleybox.lab.core.runs import (
    PythonOnly,
    RunConfig,
    fingerprint,
    merge_rows,
    open_run,
    read_clips,
    resume,
    save_state,
)
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.patches.autoencoder import Autoencoder
from foleybox.lab.patches.losses import flow_matching
from foleybox.lab.patches.runs import load_autoencoder, load_patches
from foleybox.lab.patches.transformer import MID_CLIP, SIZES, START, FlowHead, Patches, PatchesConfig, draw
from foleybox.labels import LABELS

OTHER = len(LABELS)
"label id of the sounds of `--others`"


@dataclass(frozen=True)
class TrainPatches:
    """Train causal patches on a folder of recordings. The same command resumes.

    Example: foleybox train patches my_sounds/ --autoencoder runs/autoencoder -o runs/patches
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/patches")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    autoencoder: Annotated[Path, tyro.conf.arg(metavar="RUN")] = Path("runs/autoencoder")
    "a run of `train autoencoder`, whose latents are learned"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of the same size and autoencoder, with or without others: its averaged weights are the initial ones"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    held_out: float = 0.04
    "share of the recordings that is not trained on, for the held-out loss; 0: none"
    size: Literal["base", "tiny"] = "base"
    "base: that of the released instruments; tiny: to try the command"
    others: tuple[str, ...] = ()
    "folders of any sounds, a quarter of each batch, under a label of their own that no instrument plays"
    most_of_recording: int = 2
    "clips of one recording per epoch of its label, others in each epoch, against memorisation; 0: all"
    colour: float = 2.0
    "dB, standard deviation of a random smooth curve over the mel bands of each clip: other microphones and rooms"
    shift_bands: int = 2
    "random shift of each clip, mel bands up or down"
    batch: int = 32
    lr: float = 8e-4
    half_life: int = 4000
    "steps after which the learning rate has halved"
    steps: int = 100_000
    "in total, including those of earlier sittings"
    model: PythonOnly[PatchesConfig | None] = None
    "sizes, instead of `size`"
    others_share: PythonOnly[float] = 0.25
    "share of each batch, if there are others"
    balanced: PythonOnly[bool] = True
    "every label equally often; False: every clip"
    gain: PythonOnly[float] = 4.0
    "dB, random gain of each clip, up or down"
    mid_clip: PythonOnly[float] = 0.15
    "share of the sequences with a random mid-clip start"
    no_label: PythonOnly[float] = 0.1
    "share of the sequences without a label, which guidance needs"
    context_noise: PythonOnly[float] = 0.3
    "noise added to the latents that the transformer reads: standard deviation, uniform from 0 to this for each sequence"
    draws: PythonOnly[int] = 2
    "times and noises of the flow per latent, for one pass of the transformer"
    warm_up: PythonOnly[int] = 200
    "steps of linear rise to the learning rate"
    decay: PythonOnly[float] = 0.999
    "of the moving average of the weights, which is what is used"
    clip_norm: PythonOnly[float] = 1.0
    "largest norm of a gradient"
    run: RunConfig = field(default_factory=RunConfig)


def main(config: TrainPatches) -> int:
    """`foleybox train patches`."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train patches sounds/`")
    tiers = config.tiers or None
    clips = [clip for source in config.data for clip in find_clips(source, tiers=tiers)]
    others = [clip for source in config.others for clip in find_clips(source, tiers=tiers, any_label=True)]
    train(config, clips, others)
    return 0


def learning_rate(config: TrainPatches, step: int) -> float:
    """Return the learning rate of a step: linear rise, then exponential decay. `steps` does not matter: it may be raised."""
    return config.lr * min(1.0, (step + 1) / config.warm_up) * 0.5 ** (step / config.half_life)


def train(config: TrainPatches, clips: list[ClipFile], others: Sequence[ClipFile] = ()) -> Patches:
    """Train on `clips` and `others` without those held out; return the averaged model in eval mode.

    `others` have one label of their own, beyond the seven.

    Raises UserError for settings out of range, nothing to train on, or a run folder of another configuration.
    """
    at_least(config, batch=1, draws=1, steps=1, warm_up=1, half_life=1)
    at_least(config, gain=0, shift_bands=0, colour=0, context_noise=0, most_of_recording=0)
    if config.most_of_recording and not config.balanced:
        raise UserError("most_of_recording needs balanced: without it, an epoch has every clip once")
    if not 0 <= config.others_share < 1:
        raise UserError(f"others_share {config.others_share}: expected 0 to below 1")
    autoencoder, _ = load_autoencoder(config.autoencoder)
    size = config.model or SIZES[config.size]
    size = replace(size, latent=autoencoder.config.latent, labels=OTHER + 1 if others else OTHER)
    if size.width % (2 * size.heads):
        raise UserError(f"width {size.width} with {size.heads} heads: expected a multiple of 2 heads")
    kept, held = split_by_recording(clips, config.held_out)
    others, _ = split_by_recording(others, config.held_out)
    if not kept:
        raise UserError(f"{len(held)} clips, all of them held out: give more recordings or a lower --held-out")
    accelerator = accelerator_for(config.run, "no", config.out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    torch.manual_seed(config.run.seed)
    latents_of = fingerprint(autoencoder.components)
    model = initial_model(config.start_from, size, latents_of).to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    with accelerator.main_process_first():
        rows = merge_rows(training_rows([*kept, *others]), read_clips(config.start_from) if config.start_from else [])
        # The fingerprint of the components instead of a path: it identifies the latents. The decoder may be trained on.
        open_run(config.out, "patches", replace(config, model=size, autoencoder=latents_of), rows, config.start_from)
        mels, labels = load_mels([*kept, *others], WIDE), label_ids(kept)
        held_mels, held_labels = (load_mels(held, WIDE), label_ids(held)) if held else (mels[:0], labels[:0])
    recordings = recording_ids(kept)
    all_labels, all_steady = F.pad(labels, (0, len(others)), value=OTHER), F.pad(STEADY, (0, 1))
    n_others = round(config.others_share * config.batch) if others else 0
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

            seed, count = config.run.seed, config.batch - n_others
            if config.balanced:
                indices = balanced_indices(step, count, labels, seed, recordings, config.most_of_recording)
            else:
                indices = batch_indices(step, count, len(kept), seed)
            if n_others:
                indices = torch.cat([indices, len(kept) + batch_indices(step, n_others, len(others), seed)])
            indices = share(indices, rank, world)
            label = all_labels[indices]
            mel = augment(config, mels[indices], all_steady[label], autoencoder.config.patch)
            with torch.no_grad(), accelerator.autocast():
                latents = autoencoder.encode(mel.to(device)).float()  # [B, N, D]
            latents, valid, start_token = random_mid_clip_starts(latents, config.mid_clip)
            hidden = torch.rand(len(label)) < config.no_label
            label = torch.where(hidden, torch.full_like(label, bare.no_label), label).to(device)

            sigma = config.context_noise * torch.rand(len(latents), 1, 1, device=device)
            with accelerator.autocast():
                context = model(latents + sigma * torch.randn_like(latents), label, start_token)  # [B, N, C]
                rows = valid_rows(valid)
                target, context = latents.flatten(0, 1)[rows], context.flatten(0, 1)[rows]
                terms = {"flow": flow_loss(bare.head, target, context, config.draws)}

            optimizer.zero_grad()
            accelerator.backward(torch.stack(list(terms.values())).sum())
            norm = nn.utils.clip_grad_norm_(bare.parameters(), config.clip_norm)
            if torch.isfinite(norm):  # a step that is not finite is skipped and counted, and never reaches a checkpoint
                optimizer.step()
                update_average(average, bare, config.decay, step)

            done = step + 1
            log.add({**terms, "norm": norm, "skipped": (~torch.isfinite(norm)).float()})
            log.advance(done)
            extra = {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                extra = measure(average, autoencoder, held_mels, held_labels)
                sheet = config.out / "samples" / f"step-{done:06d}.png"
                extra |= sample_sheet(sheet, average, autoencoder, mels[: len(kept)], labels)
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
    return average


def initial_model(start_from: Path | None, size: PatchesConfig, latents_of: str) -> Patches:
    """Return a model of `size` with random weights, or with the averaged ones of the run `start_from`.

    A distilled run gives its transformer, and a head that has to learn the rest of the flow again. If only the new model has a
    label for others, that starts as the embedding of no label; if only the old one has it,
    it is dropped.

    Raises UserError for a run of another size, or of latents with another fingerprint than `latents_of`.
    """
    model = Patches(size)
    if start_from is None:
        return model
    given, theirs, _ = load_patches(start_from)
    if (replace(given.config, labels=size.labels), theirs) != (size, latents_of):
        found = "latents of another autoencoder" if theirs != latents_of else f"{given.config}"
        raise UserError(f"--start-from {start_from} has {found}: expected those of --autoencoder, {size}")
    weights = given.state_dict()
    known = weights["label.weight"]  # the seven labels, others if it had any, no label: [8 or 9, C]
    others = known[OTHER : OTHER + size.labels - len(LABELS)]  # [0 or 1, C]
    weights["label.weight"] = torch.cat([known[:OTHER], others, known[-1:]])
    model.load_state_dict(weights)
    return model


def augment(config: TrainPatches, mel: Tensor, steady: Tensor, patch: int) -> Tensor:
    """Return mels [B, M, T] with random gain, spectral colour, time shift and band shift.

    Events start up to a patch later, so that patch boundaries fall differently on the same event; `steady` [B] sounds
    are rotated by any amount. Random numbers come from torch's generator.
    """
    B, _, T = mel.shape
    image = gain(mel[:, None], torch.empty(B).uniform_(-config.gain, config.gain) * NEPER_PER_DB, SILENCE)
    if config.colour:
        image = colour(image, torch.randn(B, 5) * config.colour * NEPER_PER_DB, SILENCE)
    later = torch.where(steady, torch.randint(T, (B,)), torch.randint(patch, (B,)))
    image = shift_time(image, later, steady, SILENCE)
    bands = torch.randint(-config.shift_bands, config.shift_bands + 1, (B,))
    return shift_bands(image, bands)[:, 0]


def random_mid_clip_starts(latents: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Let a share of the sequences [B, N, D] start at a random position in the first half of the clip.

    Return (the sequences [B, N, D], which positions are valid [B, N], the ids of their start tokens [B]). A shifted
    sequence is filled up with its own beginning, which is not valid.
    """
    B, N, _ = latents.shape
    shifted = torch.rand(B) < share
    offset = torch.where(shifted, torch.randint(1, N // 2 + 1, (B,)), 0)
    positions = torch.arange(N) + offset[:, None]  # [B, N]
    start_token = torch.where(shifted, MID_CLIP, START)
    moved = latents[torch.arange(B)[:, None], positions % N]
    return moved, (positions < N).to(latents.device), start_token.to(latents.device)


def valid_rows(valid: Tensor) -> Tensor:
    """Return B N row indices of the valid positions of [B, N], in random order; some twice, so that the number is fixed.

    Tensors of another size in each step would fragment the heap: after a thousand steps a step took twice as long.
    """
    rows = torch.nonzero(valid.flatten()).flatten()
    rows = rows[torch.randperm(len(rows)).to(rows.device)]
    return rows[torch.arange(valid.numel(), device=rows.device) % len(rows)]


N_TIMES = 64
"times per step: the embedding of a time is computed once for all rows that use it"


def flow_loss(head: FlowHead, latents: Tensor, context: Tensor, draws: int) -> Tensor:
    """Return the flow-matching loss for latents [R, D] in contexts [R, C], with `draws` times and noises for each.

    Times are logit-normal (Esser et al. 2024, equation 19), which favours the middle of the flow. They are stratified:
    one in each of N_TIMES parts of equal probability.
    """
    device = latents.device
    quantile = (torch.arange(N_TIMES, device=device) + torch.rand(N_TIMES, device=device)) / N_TIMES
    time = torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)).sigmoid()
    chosen = torch.randint(N_TIMES, (draws * len(latents),), device=device)
    conditioning = head.context_mlp(context).repeat(draws, 1) + head.time_embedding(time)[chosen]
    target = latents.repeat(draws, 1)
    return flow_matching(head, target, conditioning, time[chosen], torch.randn_like(target))


@torch.no_grad()
def measure(average: Patches, autoencoder: Autoencoder, mels: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the flow-matching loss on held-out clips without augmentation, with the same noise each time."""
    if not len(mels):
        return {}
    device = next(average.parameters()).device
    torch.manual_seed(0)
    total, count = 0.0, 0
    for mel, label in zip(mels.split(32), labels.split(32)):
        latents, label = autoencoder.encode(mel.to(device)), label.to(device)
        context = average(latents, label, torch.full_like(label, START))
        error, rows = flow_loss(average.head, latents.flatten(0, 1), context.flatten(0, 1), 4), len(mel)
        total, count = total + float(error) * rows, count + rows
    return {"held_out_flow": total / count}


@torch.no_grad()
def sample_sheet(
    path: Path, average: Patches, autoencoder: Autoencoder, mels: Tensor, labels: Tensor
) -> dict[str, float]:
    """Draw three real and three generated sounds of each label; return the roughness of the generated over the real."""
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
