"""Train PixelSNAIL on codes: the cross-entropy of every code given the codes before it and the label.

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
from foleybox.lab.baseline.systems import SMALL_LR, SNAIL, Schedule, SnailSystem, SnailTraining, learning_rate
from foleybox.lab.core.loop import (
    Best,
    Log,
    accelerator_for,
    at_least,
    batch_indices,
    due,
    evenly_spaced,
    seed_step,
    share,
)
from foleybox.lab.core.runs import PythonOnly, RunConfig, open_run, read_best, resume, save_state


@dataclass(frozen=True)
class TrainPixelsnail:
    """Train the PixelSNAIL of a system on a codes file. The same command resumes.

    Example: foleybox train pixelsnail runs/codes.npz --size small -o runs/pixelsnail
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CODES")]
    "the codes file, of `foleybox encode`"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/pixelsnail")
    "the run folder: checkpoints, log"
    system: SnailSystem = "baseline"
    "baseline: constant rate. cmu-b: cyclic rate, mixed precision, clipped gradients. cmu-a: also Zen mode"
    size: Literal["tiny", "small", "medium", "cmu-v1", "published"] = "published"
    "0.1, 3.1, 14, 44 or 97 million parameters for a grid of 20 x 86 of 512 codes; a CPU trains small, tiny tries the commands"
    zen: Literal[0, 1, 2] | None = None
    "halvings of the grid before the attention (a quarter of the positions each), if not the system's"
    held_out: float = 0.05
    "share of the recordings never trained on, for the held-out numbers; 0: none"
    batch: int | None = None
    "clips per step, over all processes, if not the system's"
    schedule: Schedule | None = None
    "of the learning rate, if not the system's; a period of the triangle is 20 epochs"
    lr: float | None = None
    "learning rate, or the highest of a cycle, if not the system's (published sizes) or the size's (small, medium)"
    steps: int = 144_000
    "in all, those of earlier runs of the command included: CMU's 265 epochs; the baseline's 1,500 are 909,000"
    clip_norm: PythonOnly[float | None] = None
    "the norm that gradients are clipped to, if not the system's; 0: none"
    period_epochs: PythonOnly[float] = 20.0
    "epochs of a period of the triangle"
    run: RunConfig = field(default_factory=RunConfig)
    score_every: int = 0
    "steps between scores of drawn sounds, with --reference; 0: at every measurement"

    @property
    def plan(self) -> SnailTraining:
        """The system's training, with the settings that were given instead."""
        system = SNAIL[self.system]
        system = replace(system, lr=SMALL_LR.get(self.size, system.lr))
        given = {name: getattr(self, name, None) for name in asdict(system)} | {"precision": self.run.precision}
        return replace(system, **{name: value for name, value in given.items() if value is not None})

    @property
    def settled(self) -> Self:
        """These settings with those of the system filled in."""
        values = asdict(self.plan)
        run = replace(self.run, precision=values.pop("precision"))
        return replace(self, run=run, **values)


@dataclass(frozen=True)
class Settled(TrainPixelsnail):
    """The settings of a run once its codes are known, as its folder keeps them."""

    model: PixelSnailConfig = PUBLISHED
    vqvae: str = ""
    "fingerprint of the VQ-VAE whose codes these are: no other can decode what this model draws"
    scored: str | None = None
    "the score by which the best weights are kept; None: cross-entropy on held-out clips"
    one_cycle: int | None = None
    "steps of a one-cycle schedule, which cannot be changed later"


Score = Callable[[PixelSnail], float]
Build = Callable[[PixelSnailConfig, int], PixelSnail]
"""Makes the model of a size and of a number of halvings (`zen`)."""


def build_plain(config: PixelSnailConfig, zen: int) -> PixelSnail:
    """Return the baseline's PixelSNAIL."""
    if zen:
        raise ValueError(f"zen {zen}: the baseline's PixelSNAIL has no Zen mode, cmu.zen.make_pixelsnail builds it")
    return PixelSnail(config)


def train(
    config: TrainPixelsnail,
    codes: Codes,
    out: Path,
    score: Score | None = None,
    scored: str = "a score",
    build: Build = build_plain,
) -> PixelSnail:
    """Train on `codes` without those held out, writing to `out`; return the model in eval mode.

    The weights with the lowest score so far are kept in the checkpoint. The score is the held-out cross-entropy whenever it
    is measured, or what `score` (for instance a Fréchet distance of drawn sounds; `scored` is its name) returns for the
    model, every `score_every` steps. `build` makes the model.

    Raises UserError for settings that do not go together, no training clips, a run folder of another configuration or
    of another VQ-VAE's codes, and gradients that stay infinite or NaN.
    """
    config = config.settled
    plan = config.plan
    kept, held = split_codes(codes, config.held_out)
    check(config, plan, kept, held)
    accelerator = accelerator_for(config.run, plan.precision, out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if plan.batch % world:
        raise UserError(f"--batch {plan.batch} over {world} processes: expected a multiple of {world}")
    torch.manual_seed(config.run.seed)
    snail = build(model_config(config, codes), plan.zen)
    with accelerator.main_process_first():  # process 0 writes the folder, the others read it
        settled = Settled(
            **vars(config), model=snail.config, vqvae=codes.fingerprint, scored=None if score is None else scored,
            one_cycle=config.steps if plan.schedule == "one-cycle" else None,
        )  # fmt: skip
        open_run(out, "pixelsnail", settled, clips=kept.rows)
    period = max(2, round(config.period_epochs * len(kept.codes) / plan.batch))

    snail = snail.to(device)
    snail.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    optimizer = torch.optim.Adam([weight for weight in snail.parameters() if weight.requires_grad], plan.lr)
    best = Best()
    parts = {"pixelsnail": snail, "optimizer": optimizer, "best": best}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    if best.score < math.inf and not best.weights:  # of an earlier version
        best.weights, best.step = read_best(out, "pixelsnail")
    model, optimizer = accelerator.prepare(snail, optimizer)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # autocast is applied where the loop asks for it

    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, rank)  # every process has dropout of its own
            snail.train()
            indices = share(batch_indices(step, plan.batch, len(kept.codes), config.run.seed), rank, world)
            real, label = kept.codes[indices].to(device), kept.labels[indices].to(device)
            with accelerator.autocast():
                logits = model(real, label)
            terms = {"cross_entropy": F.cross_entropy(logits.float(), real)}
            numbers = {"accuracy": (logits.argmax(1) == real).float().mean()}

            rate = learning_rate(plan.schedule, plan.lr, step, period, config.steps)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            accelerator.backward(sum(terms.values(), torch.zeros((), device=device)))
            accelerator.unscale_gradients(optimizer)  # before the norm: it is that of the true gradients
            norm = nn.utils.clip_grad_norm_(snail.parameters(), plan.clip_norm or torch.inf)
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:  # the scaler skips such a step itself, and lowers its scale
                optimizer.step()

            done = step + 1
            log.add({**terms, **numbers, "norm": norm, "rate": rate, "skipped": float(not finite)})
            log.advance(done)
            extra = {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                some = evenly_spaced(len(kept.codes), max(len(held.codes), plan.batch))
                with accelerator.autocast():
                    extra = measure(snail, kept.pick(some), "train") | measure(snail, held, "held_out")
            now = extra.get("held_out_cross_entropy", torch.inf)
            score_every = config.score_every or config.run.sample_every
            if score is not None:
                now = torch.inf
                if due(done, config.steps, score_every) and accelerator.is_main_process:
                    now = score(snail.eval())
                extra |= {"score": now} if math.isfinite(now) else {}
            best.offer(now, done, snail)
            if due(done, config.steps, config.run.log_every, config.run.sample_every, score_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(out / "state.pt", done, parts)
    return snail.eval()


def check(config: TrainPixelsnail, plan: SnailTraining, kept: Codes, held: Codes) -> None:
    """Raise UserError for settings with which training would fail later."""
    at_least(config, steps=1, score_every=0, held_out=0, period_epochs=0)
    at_least(plan, batch=1, lr=0, clip_norm=0)
    if not len(kept.codes):
        raise UserError(f"{len(held.codes)} clips, all of them held out: encode more recordings, or lower --held-out")


def model_config(config: TrainPixelsnail, codes: Codes) -> PixelSnailConfig:
    """Return the chosen size for the grid and the codebook of these codes."""
    _, height, width = codes.codes.shape
    return replace(SIZES[config.size], height=height, width=width, codes=codes.size)


@torch.no_grad()
def measure(snail: PixelSnail, codes: Codes, name: str, batch: int = 8) -> dict[str, float]:
    """Return measures of the model in eval mode on codes: means over clips, whatever the batch.

    cross_entropy (nats per code; ln K for a uniform distribution), accuracy (share of codes that are the likeliest), clips.
    """
    if not len(codes.codes):
        return {}
    snail.eval()
    device = snail.where.device
    nats = hits = 0.0
    for real, label in zip(codes.codes.split(batch), codes.labels.split(batch)):
        logits, real = snail(real.to(device), label.to(device)), real.to(device)
        nats += float(F.cross_entropy(logits.float(), real, reduction="none").mean((1, 2)).sum())
        hits += float((logits.argmax(1) == real).float().mean((1, 2)).sum())
    found = {"cross_entropy": nats / len(codes.codes), "accuracy": hits / len(codes.codes), "clips": len(codes.codes)}
    return {f"{name}_{key}": float(value) for key, value in found.items()}
