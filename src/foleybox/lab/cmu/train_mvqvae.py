"""Train CMU's MVQVAE on CEmbeds: parts of them hidden, and the whole asked back; one visible loop.

`foleybox train mvqvae FOLDER --system cmu-a -o RUN`. The loop is that of the VQ-VAE, with masks, a scale for the rows,
and errors of either part.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
import tyro
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.files import atomic_path
from foleybox.lab.baseline.losses import commitment, perplexity
from foleybox.lab.baseline.systems import VqTraining
from foleybox.lab.cmu.cembed import FRAMES, PARTS, CembedConfig, Cembeds, fill_rows, fill_value, load_cembeds
from foleybox.lab.cmu.masks import PartMasks, draw_part_masks
from foleybox.lab.cmu.mvqvae import Mvqvae, MvqvaeConfig, Rows
from foleybox.lab.cmu.systems import MVQ, MvqSystem
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, split_by_recording, training_rows
from foleybox.lab.core.loop import (
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
from foleybox.lab.core.runs import RunConfig, open_run, resume, save_state
from foleybox.labels import LABELS


@dataclass(frozen=True)
class TrainMvqvae:
    """Train the MVQVAE on the CEmbeds of a folder of recordings. The same command resumes.

    Example: foleybox train mvqvae my_sounds/ --encoder stand-in -o runs/mvqvae-stand-in
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/mvqvae")
    "the run folder: checkpoint, log, sheets of reconstructions"
    system: MvqSystem = "cmu-a"
    "cmu-a: foley head, cyclic rate, mixed precision (lab/systems.py)"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    held_out: float = 0.05
    "share of the recordings never trained on, for the held-out numbers; 0: none"
    features: CembedConfig = field(default_factory=CembedConfig)
    scale: Literal["rows", "published"] = "rows"
    "rows: each to mean 0 and deviation 1 over the training clips; published: one pair for the encoder, a raw mel"
    masks: PartMasks = field(default_factory=PartMasks)
    fill: Literal["silence", "zero"] = "silence"
    "what is hidden is: the mel's floor and the encoder's mean; or 0 on the published scale, in a log-mel a loud noise"
    model: MvqvaeConfig = field(default_factory=MvqvaeConfig)
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

    @property
    def plan(self) -> VqTraining:
        """The system's training, with what was asked for otherwise."""
        named = {name: getattr(self, name, None) for name in asdict(MVQ[self.system])}
        named["precision"] = self.run.precision
        return replace(MVQ[self.system], **{name: value for name, value in named.items() if value is not None})

    @property
    def settled(self) -> Self:
        """The same settings with those of the system filled in."""
        values = asdict(self.plan)
        run = replace(self.run, precision=values.pop("precision"))
        return replace(self, run=run, **values)


def main(config: TrainMvqvae) -> int:
    """Find the clips and train; Ctrl-C stops at the last checkpoint."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train mvqvae sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips, config.out)
    return 0


def learning_rate(config: TrainMvqvae, step: int) -> float:
    """Return the rate of a step; it does not depend on `steps`, which may be raised later."""
    plan = config.plan
    if plan.schedule == "constant":
        return plan.lr
    return cyclic_rate(step, plan.lr_low, plan.lr, config.period, plan.schedule)


def train(config: TrainMvqvae, clips: list[ClipFile], out: Path) -> Mvqvae:
    """Train on `clips` without those held out, writing to `out`; return the model in eval mode.

    Raises UserError for settings that do not go together, nothing to train on, an encoder that is not there, or a run
    folder of another configuration.
    """
    plan = config.plan
    kept, held = split_by_recording(clips, config.held_out)
    check(config, plan, len(kept), len(held))
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.run, plan.precision, out, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if plan.batch % world:
        raise UserError(f"--batch {plan.batch} over {world} processes: expected a multiple of {world}")
    if config.model.norm and not config.model.depth and world > 1:
        raise UserError(
            f"--norm over {world} processes: its statistics would be those of a part; start it without torchrun"
        )
    with accelerator.main_process_first():  # one makes the folder and the cache, the others read them
        features = load_cembeds(kept, config.features)
        held_features = load_cembeds(held, config.features)
        open_run(out, "mvqvae", config.settled, clips=training_rows(kept))
    labels, held_labels = label_ids(kept), label_ids(held)
    if config.features.stand_in and accelerator.is_main_process:
        print("stand-in encoder: random weights in MERT's place; nothing of this run tells anything about MERT")

    torch.manual_seed(config.run.seed)
    mvqvae = Mvqvae(config.model, plan.head).to(device)
    mvqvae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    optimizer = torch.optim.Adam(mvqvae.parameters(), plan.lr)
    parts = {"mvqvae": mvqvae, "optimizer": optimizer}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    if not start:
        fill_rows(mvqvae.rows, features, config.scale)
        with torch.no_grad():
            first = batch_indices(0, plan.batch, len(features), config.run.seed)
            mvqvae.codebook.start(mvqvae.encode(features[first].to(device)))
    broadcast_buffers(mvqvae.codebook, world)
    hidden_value = fill_value(mvqvae.rows, config.fill)
    model, optimizer = accelerator.prepare(mvqvae, optimizer)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the loop says where autocast is

    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step)
            mvqvae.train()
            hidden = draw_part_masks(plan.batch, PARTS, FRAMES, config.masks)
            hidden = share(hidden, rank, world).to(device)
            indices = share(batch_indices(step, plan.batch, len(features), config.run.seed), rank, world)
            real, label = features[indices].to(device), labels[indices].to(device)
            target = mvqvae.rows(real)
            with accelerator.autocast():
                made = model(torch.where(hidden, hidden_value, real))
            difference = commitment(made.before, made.after)
            terms = {"mse": F.mse_loss(made.mel, target), "commitment": config.commitment * difference}
            numbers = {"latent": difference, **errors_by_part(mvqvae.rows, made.mel.detach(), target)}
            if made.logits is not None:
                cross_entropy = F.cross_entropy(made.logits, label)
                terms["foley"] = plan.head_weight * cross_entropy
                numbers["cross_entropy"] = cross_entropy

            rate = learning_rate(config, step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            accelerator.backward(sum(terms.values(), torch.zeros((), device=device)))
            accelerator.unscale_gradients(optimizer)  # the norm is that of the gradients, not of fp16's multiples
            norm = nn.utils.clip_grad_norm_(mvqvae.parameters(), plan.clip_norm or torch.inf)
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:  # the scaler skips such a step itself, and lowers its scale
                optimizer.step()
            before, codes = (gather_batch(part.detach(), accelerator) for part in (made.before, made.codes))
            numbers |= use_of_codes(mvqvae.tally(codes))
            if finite:
                numbers["drawn_anew"] = torch.tensor(mvqvae.codebook.follow(before, codes, step))
                broadcast_buffers(mvqvae.codebook, world)

            done = step + 1
            log.add({**terms, **numbers, "norm": norm, "rate": rate, "skipped": float(not finite)})
            log.advance(done)
            last = done == config.steps
            extra = {"stand_in": 1.0} if config.features.stand_in else {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                some = torch.arange(len(features)) if last else evenly_spaced(len(features), max(len(held), plan.batch))
                extra |= measure(mvqvae, features, some, labels, "train")
                extra |= measure(mvqvae, held_features, torch.arange(len(held)), held_labels, "held_out")
                name = f"step-{done:06d}{'-stand-in' if config.features.stand_in else ''}.png"
                shown = (held_features, held_labels) if held else (features, labels)
                sheet(out / "samples" / name, mvqvae, *shown, config)
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(out / "state.pt", done, parts)
    return mvqvae.eval()


def check(config: TrainMvqvae, plan: VqTraining, kept: int, held: int) -> None:
    """Raise UserError for what training would stumble over later."""
    at_least(config, steps=1, period=2, held_out=0)
    at_least(plan, batch=1, lr=0, lr_low=0, clip_norm=0, head_weight=0)
    at_least(config.model, channels=2, blocks=0, residual=1, width=1, size=2, depth=0, components=0)
    at_least(config.masks, mask_frames=0, mask_mel_rows=0, mask_encoder_rows=0)
    if config.model.size > 65_536:
        raise UserError(f"--size {config.model.size}: expected 65536 or fewer, which a codes file can hold")
    if config.model.components > PARTS[0]:
        raise UserError(f"--components {config.model.components}: the encoder has {PARTS[0]} rows")
    if plan.schedule != "constant" and plan.lr_low > plan.lr:
        raise UserError(
            f"--lr-low {plan.lr_low:g} above --lr {plan.lr:g}: expected the lowest of the cycle to be lower"
        )
    if not kept:
        raise UserError(f"{held} clips, all of them held out: give more recordings or a lower --held-out")


def errors_by_part(rows: Rows, made: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the mean squared errors of the encoder's rows and of the mel's, scaled, and the mel's in natural-log units."""
    split = rows.scaled_parts
    encoder, mel = ((mine - theirs).square() for mine, theirs in zip(made.split(split, 1), target.split(split, 1)))
    neper = rows.deviation[PARTS[0] :, None].square()
    return {"mse_encoder": encoder.mean(), "mse_mel": mel.mean(), "mse_mel_raw": (mel * neper).mean()}


def use_of_codes(tally: Tensor) -> dict[str, Tensor]:
    """Return the perplexity and the used codes of a tally [Q, K]: the means over the codebooks, if there are several."""
    used = (tally > 0).sum(1).float().mean()
    return {"perplexity": torch.stack([perplexity(book) for book in tally.float()]).mean(), "used": used}


@torch.no_grad()
def measure(
    mvqvae: Mvqvae, features: Cembeds | Tensor, some: Tensor, labels: Tensor, name: str, batch: int = 8
) -> dict[str, float]:
    """Return what the model in eval mode, nothing hidden, does to the CEmbeds `some` int64 [n] of [N, 1152, 300].

    Means over clips, whatever the batch: mse (of scaled rows), mse_encoder, mse_mel, mse_mel_raw (as `errors_by_part`),
    latent (the latent difference), cross_entropy and accuracy (of the foley head, if there is one), perplexity and used
    (of all codes together), clips. The report's Table 4 has the first, the latent and the cross-entropy.
    """
    if not len(some):
        return {}
    device = mvqvae.rows.mean.device
    mvqvae.eval()
    sums: dict[str, float] = {}
    counts: Tensor | int = 0
    for indices in some.split(batch):
        real, label = features[indices].to(device), labels[indices].to(device)
        made, target = mvqvae(real), mvqvae.rows(real)
        means = {"mse": F.mse_loss(made.mel, target), "latent": commitment(made.before, made.after)}
        means |= errors_by_part(mvqvae.rows, made.mel, target)
        if made.logits is not None:
            means["cross_entropy"] = F.cross_entropy(made.logits, label)
            means["accuracy"] = (made.logits.argmax(1) == label).float().mean()
        for key, mean in means.items():
            sums[key] = sums.get(key, 0.0) + float(mean) * len(real)
        counts = counts + mvqvae.tally(made.codes)
    found = {key: total / len(some) for key, total in sums.items()}
    found |= {key: float(value) for key, value in use_of_codes(torch.as_tensor(counts)).items()}
    return {f"{name}_{key}": value for key, value in (found | {"clips": float(len(some))}).items()}


@torch.no_grad()
def sheet(path: Path, mvqvae: Mvqvae, features: Cembeds | Tensor, labels: Tensor, config: TrainMvqvae) -> None:
    """Draw a clip of each label as the report's Figure 2 does: the CEmbed, a masked one, the reconstruction of the whole.

    Rows are scaled; row 0 is at the top, the mel at the bottom.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    shown = [int(torch.nonzero(labels == label.id)[0]) for label in LABELS if (labels == label.id).any()]
    rows = mvqvae.eval().rows
    real = features[torch.tensor(shown)].to(rows.mean.device)
    hidden = draw_part_masks(len(real), PARTS, real.shape[2], replace(config.masks, mask_each=True)).to(real.device)
    masked = torch.where(hidden, fill_value(rows, config.fill), real)
    made = rows.back(mvqvae(real).mel)
    figure = Figure(figsize=(2.4 * len(shown), 6), layout="constrained")
    if config.features.stand_in:
        figure.suptitle("stand-in encoder (random weights, not MERT)", fontsize=7)
    axes = figure.subplots(3, len(shown), squeeze=False)
    for line, images in zip(axes, (real, masked, made)):
        for axis, image, which in zip(line, images, shown):
            scaled = (image - rows.mean[:, None]) / rows.deviation[:, None]
            axis.imshow(scaled.cpu().numpy(), aspect="auto", cmap="magma", vmin=-3, vmax=3)
            axis.set_title(LABELS[int(labels[which])].name, fontsize=6, pad=1)
            axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as beside:
        figure.savefig(beside, dpi=110)
