"""Train PixelSNAIL on codes: cross-entropy of every code from those before it and the label; one visible loop.

`foleybox train pixelsnail CODES --system baseline|cmu-b|cmu-a -o RUN`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
import tyro
from torch import nn

from foleybox.errors import UserError
from foleybox.lab.baseline.codes import Codes, split_codes
from foleybox.lab.baseline.pixelsnail import PUBLISHED, SIZES, PixelSnail, PixelSnailConfig
from foleybox.lab.baseline.systems import SNAIL, SnailSystem, SnailTraining
from foleybox.lab.core.loop import (
    Best,
    Log,
    accelerator_for,
    at_least,
    batch_indices,
    cyclic_rate,
    due,
    evenly_spaced,
    seed_step,
    share,
)
from foleybox.lab.core.runs import RunConfig, open_run, resume, save_state

PATIENCE = 100
"steps without a finite gradient after which training gives up"


@dataclass(frozen=True)
class TrainPixelsnail:
    """Train the PixelSNAIL of a system on a codes file. The same command resumes.

    Example: foleybox train pixelsnail runs/codes.npz --size small -o runs/pixelsnail
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CODES")]
    "the codes file, of `foleybox encode`"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/pixelsnail")
    "the run folder: checkpoint, log"
    system: SnailSystem = "baseline"
    "baseline: one rate. cmu-b: cyclic rate, mixed precision, clipped gradients. cmu-a: Zen mode too (lab/systems.py)"
    size: Literal["small", "medium", "cmu-v1", "published"] = "published"
    "2.5, 13, 44 or 97 million parameters for 20 x 86 of 512 codes; a processor can train the small one"
    zen: Literal[0, 1, 2] | None = None
    "another number of halvings of the grid before its attention than the system's: 4 times fewer tokens each"
    cond_resnet: bool = False
    "also hold the 6.5 million parameters that the published code never uses"
    dropout: float = 0.1
    held_out: float = 0.05
    "share of the recordings never trained on, for the held-out numbers; 0: none"
    batch: int | None = None
    "clips a step, over all processes, if not the system's"
    schedule: Literal["constant", "triangle", "cosine"] | None = None
    "another course of the learning rate than the system's"
    lr: float | None = None
    "another learning rate of Adam, or highest of the cycle, than the system's"
    lr_low: float | None = None
    "another lowest rate of the cycle than the system's"
    period: int = 10_900
    "steps of a cycle: 20 epochs of the report's 4,360 clips"
    clip_norm: float | None = None
    "another longest gradient than the system's; 0: any length"
    steps: int = 144_000
    "in all, those of earlier sittings included: CMU's 265 epochs; the baseline's 1,500 are 909,000"
    run: RunConfig = field(default_factory=RunConfig)
    score_every: int = 0
    "steps between scores of drawn sounds, where there are some (`--reference`); 0: at every measurement"

    @property
    def plan(self) -> SnailTraining:
        """The system's training, with what was asked for otherwise."""
        named = {name: getattr(self, name, None) for name in asdict(SNAIL[self.system])}
        named["precision"] = self.run.precision
        return replace(SNAIL[self.system], **{name: value for name, value in named.items() if value is not None})

    @property
    def settled(self) -> Self:
        """The same settings with those of the system filled in."""
        values = asdict(self.plan)
        run = replace(self.run, precision=values.pop("precision"))
        return replace(self, run=run, **values)


@dataclass(frozen=True)
class Settled(TrainPixelsnail):
    """The settings of a run once its codes are known: what its folder keeps."""

    model: PixelSnailConfig = PUBLISHED
    vqvae: str = ""
    "fingerprint of the VQ-VAE whose codes these are: no other can decode what this model draws"
    scored: str | None = None
    "what the score is, by which the best weights are kept; None: cross-entropy on held-out clips"


Score = Callable[[PixelSnail], float]


def train(
    config: TrainPixelsnail, codes: Codes, out: Path, score: Score | None = None, scored: str = "a score"
) -> PixelSnail:
    """Train on `codes` without those held out, writing to `out`; return the model in eval mode.

    The model with the lowest score so far is kept in `best.pt`: the score is the held-out cross-entropy whenever it is
    measured, or what `score` (a quick Fréchet distance, say; `scored` is its name) returns for the model, every
    `score_every` steps.

    Raises UserError for settings that do not go together, nothing to train on, a run folder of another configuration
    or of another VQ-VAE's codes, and gradients that stay infinite or NaN.
    """
    plan = config.plan
    kept, held = split_codes(codes, config.held_out)
    check(config, plan, kept, held)
    accelerator = accelerator_for(config.run, plan.precision, out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if plan.batch % world:
        raise UserError(f"--batch {plan.batch} over {world} processes: expected a multiple of {world}")
    size = model_config(config, codes)
    with accelerator.main_process_first():  # one writes the folder, the others read it
        open_run(
            out, "pixelsnail",
            Settled(
                **vars(config.settled), model=size, vqvae=codes.fingerprint,
                scored=None if score is None else scored,
            ), clips=kept.heard,
        )  # fmt: skip

    torch.manual_seed(config.run.seed)
    snail = PixelSnail(size).to(device)
    snail.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    optimizer = torch.optim.Adam([weight for weight in snail.parameters() if weight.requires_grad], plan.lr)
    best = Best()
    parts = {"pixelsnail": snail, "optimizer": optimizer, "best": best}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    model, optimizer = accelerator.prepare(snail, optimizer)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the loop says where autocast is

    skipped_in_a_row = 0
    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, rank)  # each process drops out for itself
            snail.train()
            indices = share(batch_indices(step, plan.batch, len(kept.codes), config.run.seed), rank, world)
            real, label = kept.codes[indices].to(device), kept.labels[indices].to(device)
            with accelerator.autocast():
                logits = model(real, label)
            terms = {"cross_entropy": F.cross_entropy(logits.float(), real)}
            numbers = {"accuracy": (logits.argmax(1) == real).float().mean()}

            rate = learning_rate(config, step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            accelerator.backward(sum(terms.values(), torch.zeros((), device=device)))
            accelerator.unscale_gradients(optimizer)  # the norm is that of the gradients, not of fp16's multiples
            norm = nn.utils.clip_grad_norm_(snail.parameters(), plan.clip_norm or torch.inf)
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:  # the scaler skips such a step itself, and lowers its scale
                optimizer.step()
            skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
            if skipped_in_a_row == PATIENCE:
                raise UserError(
                    f"the gradients have been NaN or infinite for {PATIENCE} steps up to {step + 1}: lower --lr or "
                    f"--clip-norm, or try --precision no; {out} holds the last checkpoint"
                )

            done = step + 1
            log.add({**terms, **numbers, "norm": norm, "rate": rate, "skipped": float(not finite)})
            log.advance(done)
            last, extra = done == config.steps, {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                count = len(kept.codes)
                some = torch.arange(count) if last else evenly_spaced(count, max(len(held.codes), plan.batch))
                extra = measure(snail, kept.pick(some), "train") | measure(snail, held, "held_out")
            now = extra.get("held_out_cross_entropy", torch.inf)
            score_every = config.score_every or config.run.sample_every
            if score is not None:
                now = torch.inf
                if due(done, config.steps, score_every) and accelerator.is_main_process:
                    now = score(snail.eval())
                extra |= {"score": now} if math.isfinite(now) else {}
            if now < best.score:
                best.score.fill_(now)
                save_state(out / "best.pt", done, {"pixelsnail": snail})
            if due(done, config.steps, config.run.log_every, config.run.sample_every, score_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(out / "state.pt", done, parts)
    return snail.eval()


def check(config: TrainPixelsnail, plan: SnailTraining, kept: Codes, held: Codes) -> None:
    """Raise UserError for what training would stumble over later."""
    at_least(config, steps=1, period=2, score_every=0)
    at_least(config, held_out=0)
    at_least(plan, batch=1, lr=0, lr_low=0, clip_norm=0)
    if not 0 <= config.dropout < 1:
        raise UserError(f"--dropout {config.dropout}: expected 0 or more, below 1")
    if plan.schedule != "constant" and plan.lr_low > plan.lr:
        raise UserError(
            f"--lr-low {plan.lr_low:g} above --lr {plan.lr:g}: expected the lowest of the cycle to be lower"
        )
    if not len(kept.codes):
        raise UserError(f"{len(held.codes)} clips, all of them held out: encode more recordings, or lower --held-out")


def model_config(config: TrainPixelsnail, codes: Codes) -> PixelSnailConfig:
    """Return the size that was asked for, for the grid and the codebook of these codes, whatever they are."""
    _, height, width = codes.codes.shape
    return replace(
        SIZES[config.size], height=height, width=width, codes=codes.size, dropout=config.dropout,
        cond_resnet=config.cond_resnet, zen=config.plan.zen,
    )  # fmt: skip


def learning_rate(config: TrainPixelsnail, step: int) -> float:
    """Return the rate of a step; it does not depend on `steps`, which may be raised later."""
    plan = config.plan
    if plan.schedule == "constant":
        return plan.lr
    return cyclic_rate(step, plan.lr_low, plan.lr, config.period, plan.schedule)


@torch.no_grad()
def measure(snail: PixelSnail, codes: Codes, name: str, batch: int = 8) -> dict[str, float]:
    """Return what the model in eval mode gives the codes, clip by clip: means over clips, whatever the batch.

    cross_entropy (nats a code; ln K for knowing nothing), accuracy (share of codes that are the likeliest), clips.
    """
    if not len(codes.codes):
        return {}
    snail.eval()
    device = snail.where.device
    nats = hits = 0.0
    for real, label in zip(codes.codes.split(batch), codes.labels.split(batch)):
        logits, real = snail(real.to(device), label.to(device)), real.to(device)
        nats += float(F.cross_entropy(logits, real, reduction="none").mean((1, 2)).sum())
        hits += float((logits.argmax(1) == real).float().mean((1, 2)).sum())
    found = {"cross_entropy": nats / len(codes.codes), "accuracy": hits / len(codes.codes), "clips": len(codes.codes)}
    return {f"{name}_{key}": float(value) for key, value in found.items()}
