"""Train CMU's MVQVAE on CEmbeds: masked ones in, the clean ones as target. `foleybox train mvqvae FOLDER -o RUN`.

The loop is that of the baseline's VQ-VAE, with masks, a scale for the rows, and separate errors of the two parts.
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
from foleybox.lab.baseline.systems import Schedule, VqTraining, learning_rate
from foleybox.lab.cmu.cembed import FRAMES, PARTS, CembedConfig, Cembeds, fill_rows, fill_value, load_cembeds
from foleybox.lab.cmu.masks import PartMasks, draw_part_masks
from foleybox.lab.cmu.mvqvae import SIZES, V2, Mvqvae, MvqvaeConfig, Rows, Stride
from foleybox.lab.cmu.systems import MVQ
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, split_by_recording, training_rows
from foleybox.lab.core.loop import (
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
from foleybox.lab.core.runs import PythonOnly, RunConfig, open_run, resume, save_state
from foleybox.labels import LABELS


@dataclass(frozen=True)
class TrainMvqvae:
    """Train the MVQVAE of CMU's track A on the CEmbeds of a folder of recordings. The same command resumes.

    Example: foleybox train mvqvae my_sounds/ --encoder stand-in -o runs/mvqvae-stand-in
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/mvqvae")
    "the run folder: checkpoint, log, sheets of reconstructions"
    size: Literal["tiny", "cmu-v1", "published"] = "published"
    "8.7 (cmu-v1) or 9.6 million parameters; tiny: for trying the commands"
    components: int = 0
    "principal components instead of the encoder's 1,023 rows; 0: the rows, as published"
    stride: Stride = 4
    "rows and frames per position of the grid; 8 with 31 components is a grid of 20 x 38 instead of 288 x 75"
    features: CembedConfig = field(default_factory=CembedConfig)
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    held_out: float = 0.05
    "share of the recordings never trained on, for the held-out numbers; 0: none"
    head: Literal["none", "pre", "post"] | None = None
    "classification head, if not `pre`: none, on the encoder's output (pre), on the quantised one (post)"
    batch: int | None = None
    "clips per step, over all processes, if not 16"
    schedule: Schedule | None = None
    "of the learning rate, if not constant; a period of the triangle is 20 epochs"
    lr: float | None = None
    "learning rate, or the highest of a cycle, if not 3e-4"
    steps: int = 218_000
    "in all, those of earlier runs of the command included: the report's 800 epochs"
    scale: PythonOnly[Literal["rows", "published"]] = "rows"
    "rows: each to mean 0 and deviation 1 over the training clips; published: one pair for the encoder, a raw mel"
    masks: PythonOnly[PartMasks] = field(default_factory=PartMasks)
    fill: PythonOnly[Literal["silence", "zero"]] = "silence"
    "value of masked entries: the mel's floor and the encoder's mean; or 0 on the published scale, a loud noise in a log-mel"
    model: PythonOnly[MvqvaeConfig | None] = None
    "another size than that of `size`, `components` and `stride`"
    head_weight: PythonOnly[float] = 0.01
    "weight of the head's cross-entropy"
    commitment: PythonOnly[float] = 0.25
    "weight of the commitment loss"
    period_epochs: PythonOnly[float] = 20.0
    "epochs of a period of the triangle"
    run: RunConfig = field(default_factory=lambda: RunConfig(sample_every=2000))

    @property
    def plan(self) -> VqTraining:
        """The system's training, with the settings that were given instead."""
        given = {name: getattr(self, name, None) for name in asdict(MVQ)} | {"precision": self.run.precision}
        return replace(MVQ, **{name: value for name, value in given.items() if value is not None})

    @property
    def settled(self) -> Self:
        """These settings with those of the system and the size filled in."""
        values = asdict(self.plan)
        run = replace(self.run, precision=values.pop("precision"))
        model = self.model or replace(SIZES[self.size], components=self.components, stride=self.stride)
        return replace(self, run=run, model=model, **values)


@dataclass(frozen=True)
class Settled(TrainMvqvae):
    """The settings of a run as its folder keeps them."""

    one_cycle: int | None = None
    "steps of a one-cycle schedule, which cannot be changed later"


def main(config: TrainMvqvae) -> int:
    """Find the clips and train; Ctrl-C stops at the last checkpoint."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train mvqvae sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips, config.out)
    return 0


def train(config: TrainMvqvae, clips: list[ClipFile], out: Path) -> Mvqvae:
    """Train on `clips` without those held out, writing to `out`; return the model in eval mode.

    Raises UserError for settings that do not go together, no training clips, an encoder that cannot be loaded, or a run
    folder of another configuration.
    """
    config = config.settled
    plan, network = config.plan, config.model or V2
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
    with accelerator.main_process_first():  # process 0 makes the folder and the cache, the others read them
        features = load_cembeds(kept, config.features)
        held_features = load_cembeds(held, config.features)
        cycle = config.steps if plan.schedule == "one-cycle" else None
        open_run(out, "mvqvae", Settled(**vars(config), one_cycle=cycle), clips=training_rows(kept))
    labels, held_labels = label_ids(kept), label_ids(held)
    if config.features.stand_in and accelerator.is_main_process:
        print("stand-in encoder: random weights instead of MERT's; the results say nothing about MERT")
    period = max(2, round(config.period_epochs * len(features) / plan.batch))

    torch.manual_seed(config.run.seed)
    mvqvae = Mvqvae(network, plan.head).to(device)
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
            mvqvae.codebook.initialise(mvqvae.encode(features[first].to(device)))
    broadcast_buffers(mvqvae.codebook, world)
    masked_value = fill_value(mvqvae.rows, config.fill)
    model, optimizer = accelerator.prepare(mvqvae, optimizer)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # autocast is applied where the loop asks for it

    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step)
            mvqvae.train()
            masked = draw_part_masks(plan.batch, PARTS, FRAMES, config.masks)
            masked = share(masked, rank, world).to(device)
            indices = share(batch_indices(step, plan.batch, len(features), config.run.seed), rank, world)
            real, label = features[indices].to(device), labels[indices].to(device)
            target = mvqvae.rows(real)
            with accelerator.autocast():
                made = model(torch.where(masked, masked_value, real))
            difference = commitment(made.latent, made.quantised)
            terms = {"mse": F.mse_loss(made.output, target), "commitment": config.commitment * difference}
            numbers = {"latent": difference, **errors_by_part(mvqvae.rows, made.output.detach(), target)}
            if made.logits is not None:
                cross_entropy = F.cross_entropy(made.logits, label)
                terms["foley"] = config.head_weight * cross_entropy
                numbers["cross_entropy"] = cross_entropy

            rate = learning_rate(plan.schedule, plan.lr, step, period, config.steps)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            accelerator.backward(sum(terms.values(), torch.zeros((), device=device)))
            accelerator.unscale_gradients(optimizer)  # before the norm: it is that of the true gradients
            norm = nn.utils.clip_grad_norm_(mvqvae.parameters(), torch.inf)
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:  # the scaler skips such a step itself, and lowers its scale
                optimizer.step()
            latent, codes = (gather_batch(part.detach(), accelerator) for part in (made.latent, made.codes))
            counts = codes.flatten().bincount(minlength=network.size)
            numbers |= {"perplexity": perplexity(counts), "used": (counts > 0).sum()}
            if finite:
                numbers["codes_replaced"] = torch.tensor(mvqvae.codebook.update(latent, codes, step))
                broadcast_buffers(mvqvae.codebook, world)

            done = step + 1
            log.add({**terms, **numbers, "norm": norm, "rate": rate, "skipped": float(not finite)})
            log.advance(done)
            extra = {"stand_in": 1.0} if config.features.stand_in else {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                some = evenly_spaced(len(features), max(len(held), plan.batch))
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


def check(config: TrainMvqvae, plan: VqTraining, network: MvqvaeConfig, kept: int, held: int) -> None:
    """Raise UserError for settings with which training would fail later."""
    at_least(config, steps=1, held_out=0, head_weight=0, period_epochs=0)
    at_least(plan, batch=1, lr=0)
    at_least(network, components=0)
    at_least(config.masks, mask_frames=0, mask_mel_rows=0, mask_encoder_rows=0)
    if not 2 <= network.size <= 65_536:
        raise UserError(f"a codebook of {network.size} codes: expected 2 to 65536, which a codes file can hold")
    if network.components > PARTS[0]:
        raise UserError(f"--components {network.components}: the encoder has {PARTS[0]} rows")
    if not kept:
        raise UserError(f"{held} clips, all of them held out: give more recordings or a lower --held-out")


def errors_by_part(rows: Rows, made: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the mean squared errors of the encoder's scaled rows, of the mel's, and of the mel in natural-log units."""
    split = rows.scaled_parts
    encoder, mel = ((a - b).square() for a, b in zip(made.split(split, 1), target.split(split, 1)))
    neper = rows.deviation[PARTS[0] :, None].square()
    return {"mse_encoder": encoder.mean(), "mse_mel": mel.mean(), "mse_mel_raw": (mel * neper).mean()}


@torch.no_grad()
def measure(
    mvqvae: Mvqvae, features: Cembeds | Tensor, some: Tensor, labels: Tensor, name: str, batch: int = 8
) -> dict[str, float]:
    """Return measures of the model in eval mode, without masks, on the CEmbeds `some` int64 [n] of [N, 1152, 300].

    Means over clips, whatever the batch: mse (of scaled rows), mse_encoder, mse_mel, mse_mel_raw (as `errors_by_part`),
    latent (the latent difference), cross_entropy and accuracy (of the head, if there is one), perplexity and used (of the
    codes of all clips together), clips. The report's Table 4 has mse, latent and cross_entropy.
    """
    if not len(some):
        return {}
    device = mvqvae.rows.mean.device
    mvqvae.eval()
    sums: dict[str, float] = {}
    counts = torch.zeros(mvqvae.config.size, dtype=torch.int64)
    for indices in some.split(batch):
        real, label = features[indices].to(device), labels[indices].to(device)
        made, target = mvqvae(real), mvqvae.rows(real)
        means = {"mse": F.mse_loss(made.output, target), "latent": commitment(made.latent, made.quantised)}
        means |= errors_by_part(mvqvae.rows, made.output, target)
        if made.logits is not None:
            means["cross_entropy"] = F.cross_entropy(made.logits, label)
            means["accuracy"] = (made.logits.argmax(1) == label).float().mean()
        for key, mean in means.items():
            sums[key] = sums.get(key, 0.0) + float(mean) * len(real)
        counts += made.codes.flatten().bincount(minlength=len(counts)).cpu()
    found = {key: total / len(some) for key, total in sums.items()}
    found |= {"perplexity": float(perplexity(counts)), "used": float((counts > 0).sum()), "clips": float(len(some))}
    return {f"{name}_{key}": value for key, value in found.items()}


@torch.no_grad()
def sheet(path: Path, mvqvae: Mvqvae, features: Cembeds | Tensor, labels: Tensor, config: TrainMvqvae) -> None:
    """Draw a clip of each label as in the report's Figure 2: its CEmbed, a masked one, the reconstruction without masks.

    Rows are scaled; row 0 is at the top, the mel at the bottom.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    shown = [int(torch.nonzero(labels == label.id)[0]) for label in LABELS if (labels == label.id).any()]
    rows = mvqvae.eval().rows
    real = features[torch.tensor(shown)].to(rows.mean.device)
    masks = draw_part_masks(len(real), PARTS, real.shape[2], replace(config.masks, mask_each=True)).to(real.device)
    masked = torch.where(masks, fill_value(rows, config.fill), real)
    made = rows.back(mvqvae(real).output)
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
