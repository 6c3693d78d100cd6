"""Train the VQ-VAE of the baseline and of CMU: squared error, commitment, the foley head; one visible loop.

`foleybox train vqvae FOLDER --system baseline|cmu-b -o RUN`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
import tyro
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.baseline.losses import commitment, perplexity
from foleybox.lab.baseline.systems import VQ, VqSystem, VqTraining
from foleybox.lab.baseline.vqvae import Vqvae, VqvaeConfig
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, split_by_recording, training_rows
from foleybox.lab.core.loop import (
    Best,
    Log,
    accelerator_for,
    at_least,
    batch_indices,
    broadcast_buffers,
    cyclic_rate,
    due,
    evenly_spaced,
    gather_batch,
    seed_step,
    share,
)
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import RunConfig, open_run, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.labels import LABELS


@dataclass(frozen=True)
class TrainVqvae:
    """Train the VQ-VAE of a system on a folder of recordings. The same command resumes.

    Example: foleybox train vqvae my_sounds/ --system cmu-b -o runs/vqvae
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/vqvae")
    "the run folder: checkpoint, log, sheets of reconstructions"
    system: VqSystem = "baseline"
    "baseline: without labels, one rate. cmu-b: foley head, cyclic rate, mixed precision (lab/systems.py)"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    held_out: float = 0.05
    "share of the recordings never trained on, for the held-out numbers; 0: none"
    model: VqvaeConfig = field(default_factory=VqvaeConfig)
    head: Literal["none", "pre", "post"] | None = None
    "another foley head than the system's: none, reading what enters (pre) or what leaves (post) quantisation"
    head_weight: float | None = None
    "another weight of the head's cross-entropy than the system's"
    commitment: float = 0.25
    "weight of the latent difference"
    batch: int | None = None
    "clips a step, over all processes, if not the system's"
    schedule: Literal["constant", "triangle", "cosine"] | None = None
    "another course of the learning rate than the system's"
    lr: float | None = None
    "another learning rate of Adam, or highest of the cycle, than the system's; the report's 3e-3 is ten times the code's"
    lr_low: float | None = None
    "another lowest rate of the cycle than the system's"
    period: int = 5450
    "steps of a cycle: 20 epochs of the report's 4,360 clips"
    clip_norm: float | None = None
    "another longest gradient than the system's; 0: any length"
    steps: int = 218_000
    "in all, those of earlier sittings included: the report's 800 epochs"
    run: RunConfig = field(default_factory=lambda: RunConfig(sample_every=2000))
    score_every: int = 0
    "steps between scores of reconstructed sounds, where there are some (`--reference`); 0: at every sheet"

    @property
    def plan(self) -> VqTraining:
        """The system's training, with what was asked for otherwise."""
        named = {name: getattr(self, name, None) for name in asdict(VQ[self.system])}
        named["precision"] = self.run.precision
        return replace(VQ[self.system], **{name: value for name, value in named.items() if value is not None})

    @property
    def settled(self) -> Self:
        """The same settings with those of the system filled in."""
        values = asdict(self.plan)
        run = replace(self.run, precision=values.pop("precision"))
        return replace(self, run=run, **values)


@dataclass(frozen=True)
class Settled(TrainVqvae):
    """The settings of a run as its folder keeps them."""

    scored: str | None = None
    "what the score is, by which the best weights are kept; None: there is no score, the last are"


Score = Callable[[Vqvae], float]


def main(config: TrainVqvae, score: Score | None = None, scored: str = "a score") -> int:
    """Find the clips and train; Ctrl-C stops at the last checkpoint."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train vqvae sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips, config.out, score, scored)
    return 0


def learning_rate(config: TrainVqvae, step: int) -> float:
    """Return the rate of a step; it does not depend on `steps`, which may be raised later."""
    plan = config.plan
    if plan.schedule == "constant":
        return plan.lr
    return cyclic_rate(step, plan.lr_low, plan.lr, config.period, plan.schedule)


def train(
    config: TrainVqvae, clips: list[ClipFile], out: Path, score: Score | None = None, scored: str = "a score"
) -> Vqvae:
    """Train on `clips` without those held out, writing to `out`; return the model in eval mode.

    Given a `score` (the distance of reconstructed sounds, say; `scored` is its name), every `score_every` steps the model
    with the lowest so far is kept in `best.pt`, and is the one that is read from the run.

    Raises UserError for settings that do not go together, nothing to train on, or a run folder of another configuration.
    """
    plan = config.plan
    kept, held = split_by_recording(clips, config.held_out)
    check(config, plan, len(kept), len(held))
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.run, plan.precision, out, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if plan.batch % world:
        raise UserError(f"--batch {plan.batch} over {world} processes: expected a multiple of {world}")
    if config.model.norm and world > 1:
        raise UserError(
            f"--norm over {world} processes: its statistics would be those of a part; start it without torchrun"
        )
    with accelerator.main_process_first():  # one writes the folder and the cache, the others read them
        settled = Settled(**vars(config.settled), scored=None if score is None else scored)
        open_run(out, "vqvae", settled, clips=training_rows(kept))
        mels = load_mels(kept, DCASE)  # [N, 80, 344]
        held_mels = load_mels(held, DCASE) if held else mels[:0]
    labels, held_labels = label_ids(kept), label_ids(held)

    torch.manual_seed(config.run.seed)
    vqvae = Vqvae(config.model, plan.head).to(device)
    vqvae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    optimizer = torch.optim.Adam(vqvae.parameters(), plan.lr)
    best = Best()
    parts = {"vqvae": vqvae, "optimizer": optimizer}
    if score is not None:
        parts["best"] = best
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    if not start:
        with torch.no_grad():
            first = batch_indices(0, plan.batch, len(mels), config.run.seed)
            vqvae.codebook.start(vqvae.encode(mels[first].to(device)))
    broadcast_buffers(vqvae.codebook, world)
    model, optimizer = accelerator.prepare(vqvae, optimizer)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the loop says where autocast is

    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step)
            vqvae.train()
            indices = share(batch_indices(step, plan.batch, len(mels), config.run.seed), rank, world)
            mel, label = mels[indices].to(device), labels[indices].to(device)
            with accelerator.autocast():
                made = model(mel)
            difference = commitment(made.before, made.after)
            terms = {"mse": F.mse_loss(made.mel, mel), "commitment": config.commitment * difference}
            numbers = {"latent": difference}
            if made.logits is not None:
                cross_entropy = F.cross_entropy(made.logits, label)
                terms["foley"] = plan.head_weight * cross_entropy
                numbers["cross_entropy"] = cross_entropy

            rate = learning_rate(config, step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            accelerator.backward(sum(terms.values(), torch.zeros((), device=device)))
            accelerator.unscale_gradients(optimizer)  # the norm is that of the gradients, not of fp16's multiples
            norm = nn.utils.clip_grad_norm_(vqvae.parameters(), plan.clip_norm or torch.inf)
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:  # the scaler skips such a step itself, and lowers its scale
                optimizer.step()
            before, codes = (gather_batch(part.detach(), accelerator) for part in (made.before, made.codes))
            counts = codes.flatten().bincount(minlength=config.model.size)
            numbers |= {"perplexity": perplexity(counts), "used": (counts > 0).sum()}
            if finite:
                numbers["drawn_anew"] = torch.tensor(vqvae.codebook.follow(before, codes, step))
                broadcast_buffers(vqvae.codebook, world)

            done = step + 1
            log.add({**terms, **numbers, "norm": norm, "rate": rate, "skipped": float(not finite)})
            log.advance(done)
            last, extra = done == config.steps, {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                some = torch.arange(len(mels)) if last else evenly_spaced(len(mels), max(len(held), plan.batch))
                extra = measure(vqvae, mels[some], labels[some], "train")
                extra |= measure(vqvae, held_mels, held_labels, "held_out")
                shown = (held_mels, held_labels) if held else (mels, labels)
                sheet(out / "samples" / f"step-{done:06d}.png", vqvae, *shown)
            score_every = config.score_every or config.run.sample_every
            if score is not None and due(done, config.steps, score_every) and accelerator.is_main_process:
                now = score(vqvae.eval())
                extra |= {"score": now} if math.isfinite(now) else {}
                if now < best.score:
                    best.score.fill_(now)
                    save_state(out / "best.pt", done, {"vqvae": vqvae})
            if due(done, config.steps, config.run.log_every, config.run.sample_every, score_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(out / "state.pt", done, parts)
    return vqvae.eval()


def check(config: TrainVqvae, plan: VqTraining, kept: int, held: int) -> None:
    """Raise UserError for what training would stumble over later."""
    at_least(config, steps=1, period=2, score_every=0)
    at_least(config, held_out=0)
    at_least(plan, batch=1, lr=0, lr_low=0, clip_norm=0, head_weight=0)
    at_least(config.model, channels=2, blocks=0, residual=1, width=1, size=2)
    if config.model.size > 65_536:
        raise UserError(f"--size {config.model.size}: expected 65536 or fewer, which a codes file can hold")
    if plan.schedule != "constant" and plan.lr_low > plan.lr:
        raise UserError(
            f"--lr-low {plan.lr_low:g} above --lr {plan.lr:g}: expected the lowest of the cycle to be lower"
        )
    if not kept:
        raise UserError(f"{held} clips, all of them held out: give more recordings or a lower --held-out")


@torch.no_grad()
def measure(vqvae: Vqvae, mels: Tensor, labels: Tensor, name: str, batch: int = 16) -> dict[str, float]:
    """Return what the model in eval mode does to log-mels [N, M, T]: means over clips, whatever the batch.

    mse (of natural-log mels), latent (the latent difference), cross_entropy and accuracy (of the foley head, if there
    is one), perplexity and used (of all codes together), clips. The report's Table 3 is of the first three.
    """
    if not len(mels):
        return {}
    device = vqvae.codebook.vectors.device
    vqvae.eval()
    sums: dict[str, float] = {}
    counts = torch.zeros(vqvae.config.size, dtype=torch.int64)
    for mel, label in zip(mels.split(batch), labels.split(batch)):
        mel, label = mel.to(device), label.to(device)
        made = vqvae(mel)
        means = {"mse": F.mse_loss(made.mel, mel), "latent": commitment(made.before, made.after)}
        if made.logits is not None:
            means["cross_entropy"] = F.cross_entropy(made.logits, label)
            means["accuracy"] = (made.logits.argmax(1) == label).float().mean()
        for key, mean in means.items():
            sums[key] = sums.get(key, 0.0) + float(mean) * len(mel)
        counts += made.codes.flatten().bincount(minlength=len(counts)).cpu()
    found = {key: total / len(mels) for key, total in sums.items()}
    found |= {"perplexity": float(perplexity(counts)), "used": float((counts > 0).sum()), "clips": float(len(mels))}
    return {f"{name}_{key}": value for key, value in found.items()}


@torch.no_grad()
def sheet(path: Path, vqvae: Vqvae, mels: Tensor, labels: Tensor) -> None:
    """Draw up to two clips of each label, each beside its reconstruction."""
    shown = [int(i) for label in LABELS for i in torch.nonzero(labels == label.id).flatten()[:2]]
    vqvae.eval()
    made = vqvae(mels[shown].to(vqvae.codebook.vectors.device)).mel.cpu()
    pairs = torch.stack([mels[shown], made], 1).flatten(0, 1)
    mel_sheet(path, pairs, labels[shown].repeat_interleave(2), columns=4)
