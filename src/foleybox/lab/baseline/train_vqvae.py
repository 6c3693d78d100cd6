"""Train the VQ-VAE of the baseline and of CMU's track B: squared error, commitment, classification head.

`foleybox train vqvae FOLDER --system baseline|cmu-b -o RUN`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
import tyro
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.baseline.losses import commitment, perplexity
from foleybox.lab.baseline.systems import VQ, Schedule, VqSystem, VqTraining, learning_rate
from foleybox.lab.baseline.vqvae import PUBLISHED, SIZES, Vqvae, VqvaeConfig
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, split_by_recording, training_rows
from foleybox.lab.core.loop import (
    Best,
    Log,
    accelerator_for,
    at_least,
    batch_indices,
    broadcast_buffers,
    due,
    evenly_spaced,
    gather_batch,
    seed_step,
    share,
)
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import PythonOnly, RunConfig, open_run, read_best, resume, save_state
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
    "cmu-b adds the classification head, and trains in mixed precision"
    size: Literal["tiny", "published"] = "published"
    "2.2 million parameters as published; tiny: for trying the commands"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    held_out: float = 0.05
    "share of the recordings never trained on, for the held-out numbers; 0: none"
    head: Literal["none", "pre", "post"] | None = None
    "classification head, if not the system's: none, on the encoder's output (pre), on the quantised one (post)"
    batch: int | None = None
    "clips per step, over all processes, if not the system's"
    schedule: Schedule | None = None
    "of the learning rate, if not the system's; a period of the triangle is 20 epochs"
    lr: float | None = None
    "learning rate, or the highest of a cycle, if not the system's 3e-4"
    steps: int = 218_000
    "in all, those of earlier runs of the command included: the report's 800 epochs"
    model: PythonOnly[VqvaeConfig | None] = None
    "another size than that of `size`"
    head_weight: PythonOnly[float] = 0.01
    "weight of the head's cross-entropy"
    commitment: PythonOnly[float] = 0.25
    "weight of the commitment loss"
    period_epochs: PythonOnly[float] = 20.0
    "epochs of a period of the triangle"
    run: RunConfig = field(default_factory=lambda: RunConfig(sample_every=2000))
    score_every: int = 0
    "steps between scores of reconstructed sounds, with --reference; 0: at every sheet"

    REMOVED: ClassVar[dict[str, Any]] = {"lr_low": 3e-4, "period": 5450, "clip_norm": 0.0}

    @property
    def plan(self) -> VqTraining:
        """The system's training, with the settings that were given instead."""
        system = VQ[self.system]
        given = {name: getattr(self, name, None) for name in asdict(system)} | {"precision": self.run.precision}
        return replace(system, **{name: value for name, value in given.items() if value is not None})

    @property
    def settled(self) -> Self:
        """These settings with those of the system and the size filled in."""
        values = asdict(self.plan)
        run = replace(self.run, precision=values.pop("precision"))
        return replace(self, run=run, model=self.model or SIZES[self.size], **values)


@dataclass(frozen=True)
class Settled(TrainVqvae):
    """The settings of a run as its folder keeps them."""

    scored: str | None = None
    "the score by which the best weights are kept; None: no score, the last weights are used"
    one_cycle: int | None = None
    "steps of a one-cycle schedule, which cannot be changed later"


Score = Callable[[Vqvae], float]


def main(config: TrainVqvae, score: Score | None = None, scored: str = "a score") -> int:
    """Find the clips and train; Ctrl-C stops at the last checkpoint."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train vqvae sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips, config.out, score, scored)
    return 0


def train(
    config: TrainVqvae, clips: list[ClipFile], out: Path, score: Score | None = None, scored: str = "a score"
) -> Vqvae:
    """Train on `clips` without those held out, writing to `out`; return the model in eval mode.

    With a `score` (for instance a distance of reconstructed sounds; `scored` is its name), computed every `score_every`
    steps, the weights with the lowest score so far are kept in the checkpoint.

    Raises UserError for settings that do not go together, no training clips, or a run folder of another configuration.
    """
    config = config.settled
    plan, network = config.plan, config.model or PUBLISHED
    kept, held = split_by_recording(clips, config.held_out)
    check(config, plan, network, len(kept), len(held))
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.run, plan.precision, out, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if plan.batch % world:
        raise UserError(f"--batch {plan.batch} over {world} processes: expected a multiple of {world}")
    if network.norm and world > 1:
        raise UserError(
            f"batch norm over {world} processes: its statistics would be those of a part; start it without torchrun"
        )
    with accelerator.main_process_first():  # process 0 writes the folder and the cache, the others read them
        cycle = config.steps if plan.schedule == "one-cycle" else None
        settled = Settled(**vars(config), scored=None if score is None else scored, one_cycle=cycle)
        open_run(out, "vqvae", settled, clips=training_rows(kept))
        mels = load_mels(kept, DCASE)  # [N, 80, 344]
        held_mels = load_mels(held, DCASE) if held else mels[:0]
    labels, held_labels = label_ids(kept), label_ids(held)
    period = max(2, round(config.period_epochs * len(mels) / plan.batch))

    torch.manual_seed(config.run.seed)
    vqvae = Vqvae(network, plan.head).to(device)
    vqvae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    optimizer = torch.optim.Adam(vqvae.parameters(), plan.lr)
    best = Best()
    parts = {"vqvae": vqvae, "optimizer": optimizer}
    if score is not None:
        parts["best"] = best
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    if best.score < math.inf and not best.weights:  # of an earlier version
        best.weights, best.step = read_best(out, "vqvae")
    if not start:
        with torch.no_grad():
            first = batch_indices(0, plan.batch, len(mels), config.run.seed)
            vqvae.codebook.initialise(vqvae.encode(mels[first].to(device)))
    broadcast_buffers(vqvae.codebook, world)
    model, optimizer = accelerator.prepare(vqvae, optimizer)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # autocast is applied where the loop asks for it

    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step)
            vqvae.train()
            indices = share(batch_indices(step, plan.batch, len(mels), config.run.seed), rank, world)
            mel, label = mels[indices].to(device), labels[indices].to(device)
            with accelerator.autocast():
                made = model(mel)
            difference = commitment(made.latent, made.quantised)
            terms = {"mse": F.mse_loss(made.output, mel), "commitment": config.commitment * difference}
            numbers = {"latent": difference}
            if made.logits is not None:
                cross_entropy = F.cross_entropy(made.logits, label)
                terms["foley"] = config.head_weight * cross_entropy
                numbers["cross_entropy"] = cross_entropy

            rate = learning_rate(plan.schedule, plan.lr, step, period, config.steps)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            accelerator.backward(sum(terms.values(), torch.zeros((), device=device)))
            accelerator.unscale_gradients(optimizer)  # before the norm: it is that of the true gradients
            norm = nn.utils.clip_grad_norm_(vqvae.parameters(), torch.inf)
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:  # the scaler skips such a step itself, and lowers its scale
                optimizer.step()
            latent, codes = (gather_batch(part.detach(), accelerator) for part in (made.latent, made.codes))
            counts = codes.flatten().bincount(minlength=network.size)
            numbers |= {"perplexity": perplexity(counts), "used": (counts > 0).sum()}
            if finite:
                numbers["codes_replaced"] = torch.tensor(vqvae.codebook.update(latent, codes, step))
                broadcast_buffers(vqvae.codebook, world)

            done = step + 1
            log.add({**terms, **numbers, "norm": norm, "rate": rate, "skipped": float(not finite)})
            log.advance(done)
            extra = {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                some = evenly_spaced(len(mels), max(len(held), plan.batch))
                extra = measure(vqvae, mels[some], labels[some], "train")
                extra |= measure(vqvae, held_mels, held_labels, "held_out")
                shown = (held_mels, held_labels) if held else (mels, labels)
                sheet(out / "samples" / f"step-{done:06d}.png", vqvae, *shown)
            score_every = config.score_every or config.run.sample_every
            if score is not None and due(done, config.steps, score_every) and accelerator.is_main_process:
                now = score(vqvae.eval())
                extra |= {"score": now} if math.isfinite(now) else {}
                best.offer(now, done, vqvae)
            if due(done, config.steps, config.run.log_every, config.run.sample_every, score_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(out / "state.pt", done, parts)
    return vqvae.eval()


def check(config: TrainVqvae, plan: VqTraining, network: VqvaeConfig, kept: int, held: int) -> None:
    """Raise UserError for settings with which training would fail later."""
    at_least(config, steps=1, score_every=0, held_out=0, head_weight=0, period_epochs=0)
    at_least(plan, batch=1, lr=0)
    if not 2 <= network.size <= 65_536:
        raise UserError(f"a codebook of {network.size} codes: expected 2 to 65536, which a codes file can hold")
    if not kept:
        raise UserError(f"{held} clips, all of them held out: give more recordings or a lower --held-out")


@torch.no_grad()
def measure(vqvae: Vqvae, mels: Tensor, labels: Tensor, name: str, batch: int = 16) -> dict[str, float]:
    """Return measures of the model in eval mode on log-mels [N, M, T]: means over clips, whatever the batch.

    mse (of natural-log mels), latent (the latent difference), cross_entropy and accuracy (of the head, if there is one),
    perplexity and used (of the codes of all clips together), clips. The report's Table 3 has the first three.
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
        means = {"mse": F.mse_loss(made.output, mel), "latent": commitment(made.latent, made.quantised)}
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
    """Draw up to two clips of each label, each next to its reconstruction."""
    shown = [int(i) for label in LABELS for i in torch.nonzero(labels == label.id).flatten()[:2]]
    vqvae.eval()
    made = vqvae(mels[shown].to(vqvae.codebook.vectors.device)).output.cpu()
    pairs = torch.stack([mels[shown], made], 1).flatten(0, 1)
    mel_sheet(path, pairs, labels[shown].repeat_interleave(2), columns=4)
