"""Train KT's GAN: hinge, 2C and C-SupCon losses, one visible loop. `foleybox train sagan FOLDER --system NAME -o RUN`."""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foleybox.errors import UserError
from foleybox.lab.core.augment import Changes, MelAugment, augment_mel, draw_changes
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, training_rows
from foleybox.lab.core.loop import (
    STEADY,
    Log,
    accelerator_for,
    all_finite,
    at_least,
    balanced_indices,
    due,
    seed_step,
    share,
    update_average,
)
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import RunConfig, merge_rows, open_run, read_clips, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.kt.encoder import embed_mels
from foleybox.lab.kt.losses import conditional_contrastive, hinge_discriminator, hinge_generator, lecam, r1
from foleybox.lab.kt.runs import load_encoder, load_gan
from foleybox.lab.kt.sagan import (
    FLOOR,
    BatchNorm,
    Discriminator,
    Generator,
    Judgement,
    SaganConfig,
    SumOverProcesses,
    refresh_batch_norm,
    set_conditioning,
    to_mel,
    to_network,
)
from foleybox.lab.kt.systems import KT, Contrast, KtSystem
from foleybox.labels import LABELS

PATIENCE = 100
"steps without a finite loss after which training gives up"


@dataclass(frozen=True)
class Regularisers:
    """What keeps a GAN on little data from falling over; all off in the report's systems."""

    lecam: float = 0.0
    "weight of the LeCam regulariser; .01 to .3 in its paper"
    lecam_from: int = 1000
    "step from which it counts: its moving averages must have settled"
    r1: float = 0.0
    "gamma of the gradient penalty on reals; about .1 at batch 64 by StyleGAN2's rule"
    r1_every: int = 16
    "steps between two penalties, each so many times as strong"
    transition: tuple[int, int] = (0, 0)
    "steps between which the label is faded in (cBN tables, projection logit, contrastive loss)"


@dataclass(frozen=True)
class TrainSagan:
    """Train a system of KT's report on a folder of recordings. The same command resumes.

    Example: foleybox train sagan my_sounds/ --system kt-2c -o runs/gan --steps 2000
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/sagan")
    "the run folder: checkpoint, log, sample sheets"
    system: KtSystem = "kt-2c"
    "which contrastive loss at which temperatures (lab/systems.py); the kt-csupcon systems need --encoder"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    encoder: Path | None = None
    "run folder of `foleybox train encoder`: the frozen E of the kt-csupcon systems"
    source: Literal["paired", "self", "class-mean"] = "paired"
    "f(d) of a fake: E of the real clip in its slot, E of the fake itself (with gradient), E's mean of the label"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "run whose generator to begin with: of `train sagan`, with its discriminator, or of `restore`, which has none"
    generator_from: int = 0
    "step from which the generator learns: with a discriminator that knows nothing yet it would lose what it knows"
    model: SaganConfig = field(default_factory=SaganConfig)
    augment: MelAugment = field(default_factory=MelAugment)
    regularisers: Regularisers = field(default_factory=Regularisers)
    steps: int = 100_000
    "generator steps in all, those of earlier sittings included"
    batch: int = 64
    "clips a step, over all processes; every label equally often"
    d_steps: int = 1
    "discriminator steps a generator step; StudioGAN's presets have 5, or 2"
    lr_generator: float = 1e-4
    lr_discriminator: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    "Adam's, as in the report"
    tau_data: float | None = None
    "another temperature of data-to-data pairs (tau_d) than the system's"
    tau_class: float | None = None
    "another temperature of data-to-label and data-to-source pairs (tau_c) than the system's"
    contrastive: float = 1.0
    "weight of the contrastive loss"
    average: float = 0.0
    "decay of the generator's moving average, which is what `export` takes; .999 forgets in 700 steps; 0: no average"
    run: RunConfig = field(default_factory=lambda: RunConfig(log_every=20, save_every=100, sample_every=500))
    compile: bool = False
    "torch.compile both networks: a fifth faster on a processor after two minutes of compiling"

    @property
    def loss(self) -> Contrast:
        """The system's contrastive loss, with the temperatures that were asked for."""
        loss = KT[self.system]
        return replace(
            loss,
            tau_data=loss.tau_data if self.tau_data is None else self.tau_data,
            tau_class=loss.tau_class if self.tau_class is None else self.tau_class,
        )


def main(config: TrainSagan) -> int:
    """Find the clips and train; Ctrl-C stops at the last checkpoint."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train sagan sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips, config.out)
    return 0


class Turn(NamedTuple):
    """What the generator's step needs of the discriminator's."""

    indices: Tensor
    "[B / processes] the clips"
    label: Tensor
    fake: Tensor
    "[B / processes, 1, M, T]"
    fake_seen: Tensor
    "the same after augmentation"
    terms: dict[str, Tensor]
    fine: bool
    "whether the loss was finite"


def train(config: TrainSagan, clips: list[ClipFile], out: Path) -> Generator:
    """Train on `clips`, writing to `out`; return the averaged generator.

    Raises UserError for fewer than two clips of a label, a batch under seven, a missing encoder, a run folder of
    another configuration, and a loss that stays infinite or NaN.
    """
    check(config, clips)
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.run, "bf16", out, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch % world:
        raise UserError(f"--batch {config.batch} over {world} processes: expected a multiple of {world}")
    with accelerator.main_process_first():  # one writes the folder and the cache, the others read them
        makers = (config.start_from, config.encoder)  # the encoder's gradients are in the weights too
        before = [read_clips(run) for run in makers if run]
        open_run(out, "sagan", config, merge_rows(training_rows(clips), *before), config.start_from)
        mels = load_mels(clips, DCASE)  # [N, 80, 344]
    reals, labels = to_network(mels, config.model), label_ids(clips)  # [N, 1, 80, 344], [N]
    neper = -2 * FLOOR / (config.model.mel_high - config.model.mel_low)
    encoder = load_encoder(config.encoder)[0].to(device).requires_grad_(False) if config.encoder else None
    table = embed_mels(encoder, mels) if encoder else torch.zeros(len(mels), 0)  # [N, 128], E of every real
    if config.source == "class-mean":
        means = torch.stack([table[labels == label].mean(0) for label in range(len(LABELS))])
        table_fake = F.normalize(means, dim=1)[labels]
    else:
        table_fake = table

    torch.manual_seed(config.run.seed)
    generator, discriminator = begin(config)
    for network in (generator, discriminator):  # twice as fast in bf16 on a processor
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    average = deepcopy(generator).to(device).requires_grad_(False).eval()
    anchors = Anchors().to(device)
    for part in generator.modules():
        if isinstance(part, BatchNorm):
            part.over_processes = world > 1
    optimizer_g = torch.optim.Adam(generator.parameters(), config.lr_generator, config.betas)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), config.lr_discriminator, config.betas)
    generator, discriminator, optimizer_g, optimizer_d = accelerator.prepare(
        generator, discriminator, optimizer_g, optimizer_d
    )
    plain_generator, plain_discriminator = (  # without accelerate's autocast in `forward`: the loop says where it is
        accelerator.unwrap_model(network, keep_fp32_wrapper=False) for network in (generator, discriminator)
    )
    if config.compile:
        plain_generator.compile(dynamic=False)
        plain_discriminator.compile(dynamic=False)
    parts = {
        "generator": plain_generator,
        "discriminator": plain_discriminator,
        "average": average,
        "anchors": anchors,
        "optimizer_g": optimizer_g,
        "optimizer_d": optimizer_d,
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    if accelerator.is_main_process and not start:
        first_of_each = [int(i) for label in range(len(LABELS)) for i in torch.nonzero(labels == label).flatten()[:6]]
        mel_sheet(out / "samples" / "real.png", mels[first_of_each], labels[first_of_each])

    def mine(batch: Tensor) -> Tensor:
        """This process's part of what was drawn for the global batch."""
        return share(batch, rank, world).to(device)

    def seen(image: Tensor, steady: Tensor) -> Tensor:
        """What the discriminator sees of reals and fakes: the same policy, other draws."""
        if config.augment.probability == 0:
            return image
        changes = draw_changes(config.batch, image.shape[2], image.shape[3], config.augment)
        return augment_mel(image, Changes(*map(mine, changes)), steady, FLOOR, neper)

    def contrast(judged: Judgement, label: Tensor, source: Tensor, step: int) -> Tensor:
        """The system's contrastive loss over the global batch, with `source` [B, 128] = E of the clips."""
        loss = conditional_contrastive(
            gather(judged.embedding, rank, world),
            gather(judged.proxy, rank, world),
            gather(source, rank, world) if config.loss.source else None,
            gather(label, rank, world) if config.loss.labels else None,
            tau_data=config.loss.tau_data,
            tau_class=config.loss.tau_class,
        )
        return config.contrastive * faded_in(step, config.regularisers.transition) * loss

    def train_discriminator(turn: int, step: int, last: bool) -> Turn:
        """Tell real from fake, spread the real embeddings, hold each near its label's; `last` keeps the fakes' graph."""
        indices = share(balanced_indices(turn, config.batch, labels, config.run.seed), rank, world)
        label, real = labels[indices].to(device), reals[indices].to(device)
        steady = STEADY.to(device)[label]
        z = mine(torch.randn(config.batch, config.model.latent))
        penalised = config.regularisers.r1 > 0 and turn % config.regularisers.r1_every == 0
        # A penalty is differentiated twice: in full precision, by the attention that can be.
        with sdpa_kernel(SDPBackend.MATH) if penalised else accelerator.autocast():
            with torch.set_grad_enabled(last):
                fake = (generator if last else plain_generator)(z, label).float()
            fake_seen = seen(fake, steady)
            real = seen(real, steady).requires_grad_(penalised)
            judged = discriminator(torch.cat([real, fake_seen.detach()]), torch.cat([label, label]))
            on_real, on_fake = (Judgement(*(part.chunk(2)[half] for part in judged)) for half in (0, 1))
            logit_real, logit_fake = on_real.logit.float(), on_fake.logit.float()
            terms = {
                "d_hinge": hinge_discriminator(logit_real, logit_fake),
                "d_contrast": contrast(on_real, label, table[indices].to(device), step),
            }
            if penalised:
                terms["d_r1"] = config.regularisers.r1 * config.regularisers.r1_every * r1(logit_real, real)
        if config.regularisers.lecam and step >= config.regularisers.lecam_from:
            terms["d_lecam"] = config.regularisers.lecam * lecam(logit_real, logit_fake, *anchors())
        optimizer_d.zero_grad()
        loss = sum(terms.values(), torch.zeros((), device=device))
        fine = all_finite(loss, world)
        if fine:
            accelerator.backward(loss)
            optimizer_d.step()
            anchors.follow(gather(logit_real.detach(), rank, world), gather(logit_fake.detach(), rank, world))
        logits = {"logit_real": logit_real.mean(), "logit_fake": logit_fake.mean()}
        return Turn(indices, label, fake, fake_seen, terms | logits, fine)

    def train_generator(turn: Turn, step: int) -> tuple[dict[str, Tensor], bool]:
        """Convince the updated discriminator, with the same fakes; its weights stay as they are."""
        plain_discriminator.requires_grad_(False)
        with accelerator.autocast():
            judged = plain_discriminator(turn.fake_seen, turn.label)
            if encoder and config.source == "self":
                source = encoder(to_mel(turn.fake, config.model)).embedding
            else:
                source = table_fake[turn.indices].to(device)
            terms = {
                "g_hinge": hinge_generator(judged.logit.float()),
                "g_contrast": contrast(judged, turn.label, source, step),
            }
        optimizer_g.zero_grad()
        loss = sum(terms.values(), torch.zeros((), device=device))
        fine = all_finite(loss, world) and turn.fine
        if fine:
            accelerator.backward(loss)
            optimizer_g.step()
            update_average(average, plain_generator, config.average, step)
        plain_discriminator.requires_grad_(True)
        return terms, fine

    buffers = [*plain_generator.buffers(), *plain_discriminator.buffers()]  # batch statistics, norms
    skipped_in_a_row = 0
    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step)
            for network in (plain_generator, plain_discriminator):
                set_conditioning(network, faded_in(step, config.regularisers.transition))
            before = [buffer.clone() for buffer in buffers]

            first = step * config.d_steps
            for turn in range(first, first + config.d_steps - 1):
                train_discriminator(turn, step, last=False)
            learns = step >= config.generator_from
            judged = train_discriminator(first + config.d_steps - 1, step, last=learns)
            terms_g, fine = train_generator(judged, step) if learns else ({}, judged.fine)

            if not fine:  # what the step has left in the batch statistics goes too
                for buffer, value in zip(buffers, before):
                    buffer.copy_(value)
            skipped_in_a_row = 0 if fine else skipped_in_a_row + 1
            if skipped_in_a_row == PATIENCE:
                raise UserError(
                    f"the loss has been NaN or infinite for {PATIENCE} steps up to {step + 1}: lower the learning rates, "
                    f"or try --precision no; {out} holds the last checkpoint before that"
                )
            done = step + 1
            log.add({**judged.terms, **terms_g, "skipped": float(not fine)})
            log.advance(done)
            if due(done, config.steps, config.run.log_every):
                log.write(done)
            if accelerator.is_main_process:
                if due(done, config.steps, config.run.save_every):
                    save_state(out / "state.pt", done, parts)
                if due(done, config.steps, config.run.sample_every):
                    sample_sheet(out / "samples" / f"step-{done:06d}.png", average)
    return average


def check(config: TrainSagan, clips: list[ClipFile]) -> None:
    """Raise UserError for what training would stumble over later."""
    for label in LABELS:
        count = sum(clip.label == label for clip in clips)
        if count < 2:  # a label without clips would be played untrained
            raise UserError(f"{label.name} has {count} clip(s): expected at least 2 of each of the seven labels")
    positive = dict.fromkeys(("steps", "d_steps"), 1)
    at_least(config, batch=len(LABELS), **positive, generator_from=0, threads=0, seed=0)
    first, last = config.regularisers.transition
    if not 0 <= first <= last or first == last > 0:
        raise UserError(f"--transition {first} {last}: expected a first step and a later last one, or 0 0 for none")
    at_least(config.regularisers, lecam=0, lecam_from=0, r1=0, r1_every=1)
    if config.loss.source and config.encoder is None:
        raise UserError(
            f"--system {config.system} needs the frozen encoder: train one with `foleybox train encoder`, and name its run "
            "folder with --encoder"
        )
    if not config.loss.source and (config.encoder is not None or config.source != "paired"):
        raise UserError(f"--system {config.system} has no encoder in its loss: leave out --encoder and --source")
    if config.loss.source and config.model.embedding != 128:
        raise UserError(f"--embedding {config.model.embedding}: expected 128, the width of the encoder's embeddings")


def begin(config: TrainSagan) -> tuple[Generator, Discriminator]:
    """Return the networks to begin with: of random weights, or with those of `start_from`, its averaged generator's.

    Raises UserError for a bad run and for networks of another size or shape.
    """
    generator, discriminator = Generator(config.model), Discriminator(config.model)
    if config.start_from is not None:
        theirs, state = load_gan(config.start_from)
        if theirs.config != config.model:
            raise UserError(
                f"--start-from {config.start_from} has {theirs.config}: expected {config.model}; the flags are --plan, "
                "--width and so on"
            )
        generator.load_state_dict(theirs.state_dict())
        if state is not None:
            discriminator.load_state_dict(state)
    return generator, discriminator


def gather(part: Tensor, rank: int, world: int) -> Tensor:
    """Return the shares [B / world, ...] of all processes as the global batch [B, ...], through which gradients flow back.

    A mean over the gathered batch, which every process computes, gives after DistributedDataParallel's averaging the
    gradient that one process would have: each process receives the gradients of all `world` copies for its part.
    """
    if world == 1:
        return part
    whole = part.new_zeros(len(part) * world, *part.shape[1:])
    whole[rank::world] = part
    return SumOverProcesses.apply(whole)


def faded_in(step: int, transition: tuple[int, int]) -> float:
    """Return how much of the label is used at a step: 0 before the transition, 1 after it, a line between."""
    first, last = transition
    return 1.0 if step >= last else max(0.0, (step - first) / (last - first))


class Anchors(nn.Module):
    """LeCam's moving averages of the discriminator's logits; part of the checkpoint."""

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.real, self.fake

    def follow(self, real: Tensor, fake: Tensor) -> None:
        """Take in the logits [B] of a step."""
        self.real.lerp_(real.mean(), 1 - self.decay)
        self.fake.lerp_(fake.mean(), 1 - self.decay)


def sample_sheet(path: Path, average: Generator, columns: int = 6) -> None:
    """Draw `columns` sounds of each label with the averaged generator, as a picture of mels, fixed noise."""
    generator = deepcopy(average)
    device = next(generator.parameters()).device
    torch.manual_seed(0)
    refresh_batch_norm(generator, batches=1)  # enough for a picture; `export` takes 50
    label = torch.arange(len(LABELS), device=device).repeat_interleave(columns)
    z = torch.randn(columns, generator.config.latent, device=device).repeat(len(LABELS), 1)
    with torch.no_grad():
        mel = to_mel(generator.eval()(z, label), generator.config)
    mel_sheet(path, mel, label)
