"""Train KT's GAN: hinge loss with the 2C or C-SupCon loss. `foleybox train sagan FOLDER --system NAME -o RUN`.

Letters: B batch of this process, N clips, Z latent width, M mel bands, T frames, E embedding width.
"""

from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from foleybox.errors import UserError
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
from foleybox.lab.core.runs import PythonOnly, RunConfig, merge_rows, open_run, read_clips, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.kt.augment import Changes, augment_mel, draw_changes
from foleybox.lab.kt.encoder import Encoder, embed_mels
from foleybox.lab.kt.losses import conditional_contrastive, hinge_discriminator, hinge_generator
from foleybox.lab.kt.runs import load_encoder, load_gan
from foleybox.lab.kt.sagan import (
    FLOOR,
    BatchNorm,
    Discriminator,
    DiscriminatorOutput,
    Generator,
    SaganConfig,
    SumOverProcesses,
    refresh_batch_norm,
    to_mel,
    to_network,
)
from foleybox.lab.kt.systems import KT, Contrast, KtSystem
from foleybox.labels import LABELS

DISCRIMINATOR_FIRST = 150
"steps in which only the discriminator is trained, if it is new and the generator is not (`restore`)"


@dataclass(frozen=True)
class Preset:
    """Networks, batch, Adam's learning rates and the length of a training."""

    model: SaganConfig
    batch: int
    lr_generator: float
    lr_discriminator: float
    steps: int


PRESETS = {
    "small": Preset(SaganConfig("S", 16), batch=16, lr_generator=2e-4, lr_discriminator=4e-4, steps=4_600),
    "report": Preset(SaganConfig("A", 64), batch=64, lr_generator=1e-4, lr_discriminator=1e-4, steps=100_000),
    "tiny": Preset(SaganConfig("S", 4), batch=7, lr_generator=2e-4, lr_discriminator=4e-4, steps=10),
}


@dataclass(frozen=True)
class TrainSagan:
    """Train a system of KT's report on a folder of recordings. The same command resumes.

    Example: foleybox train sagan my_sounds/ --system kt-2c -o runs/gan --steps 2000
    """

    REMOVED: ClassVar[dict[str, Any]] = {
        "source": "paired",
        "generator_from": 0,
        "augment": {
            "probability": 0.0, "gain": 6.0, "shift": 0.125, "bands": 2, "cut_time": 0.15, "cut_bands": 0.1,
        },
        "steadiers": {"lecam": 0.0, "lecam_from": 1000, "r1": 0.0, "r1_every": 16, "transition": [0, 0]},
        "d_steps": 1,
        "betas": [0.5, 0.999],
        "tau_data": None,
        "tau_class": None,
        "contrastive": 1.0,
    }  # fmt: skip

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/sagan")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    system: KtSystem = "kt-2c"
    "contrastive loss and its temperatures (docs/systems/kt.md); the kt-csupcon systems need --encoder"
    preset: Literal["small", "report", "tiny"] = "small"
    """small: for one CPU core (plan S, width 16, batch 16, 4,600 steps). report: for a GPU (plan A, width 64, batch 64,
    100,000 steps at the report's learning rates). tiny: to try the command"""
    logit: Literal["projection", "unconditional"] = "projection"
    "projection: the label enters the discriminator's logit (SAGAN). unconditional: only the contrastive loss (ContraGAN)"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    encoder: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `foleybox train encoder`: the frozen encoder of the kt-csupcon systems"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train sagan` whose weights are the initial ones, or of `restore`, which has no discriminator"
    steps: int | None = None
    "in total, including those of earlier sittings, if not the preset's"
    batch: int | None = None
    "clips per step over all processes, if not the preset's; every label equally often"
    lr_generator: float | None = None
    "Adam's learning rate, if not the preset's"
    lr_discriminator: float | None = None
    "Adam's learning rate, if not the preset's"
    augment_probability: float = 0.0
    "probability of each change of DiffAugment (gain, shifts, cut-outs) for each item; the report has none"
    average: float = 0.0
    "decay of the generator's moving average, which `export` uses; 0: no average, as in the report"
    snapshots: tuple[int, ...] = ()
    "steps after which the generator is also kept as snapshot_<step>.pt, for --weights of `export` and `sample`"
    compile: bool = False
    "use torch.compile"
    model: PythonOnly[SaganConfig | None] = None
    "networks, instead of the preset's"
    run: RunConfig = field(default_factory=lambda: RunConfig(log_every=20, save_every=100, sample_every=500))

    def resolved(self) -> Preset:
        """Return the preset with what was set otherwise."""
        preset = PRESETS[self.preset]
        model = self.model or replace(preset.model, conditional_logit=self.logit == "projection")
        others = {name: getattr(self, name) for name in ("batch", "lr_generator", "lr_discriminator", "steps")}
        return replace(preset, model=model, **{name: value for name, value in others.items() if value is not None})


def main(config: TrainSagan) -> int:
    """`foleybox train sagan`."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train sagan sounds/`")
    train(config, [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)])
    return 0


def train(config: TrainSagan, clips: list[ClipFile]) -> Generator:
    """Train on `clips`; return the averaged generator.

    Raises UserError for fewer than two clips of a label, a batch under seven, a missing encoder, a run folder of
    another configuration, and a loss that stays infinite or NaN.
    """
    preset, loss = config.resolved(), KT[config.system]
    check(config, preset, clips)
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.run, "bf16", config.out, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if preset.batch % world:
        raise UserError(f"--batch {preset.batch} over {world} processes: expected a multiple of {world}")
    torch.manual_seed(config.run.seed)
    generator, discriminator, new_discriminator = initial_networks(config, preset.model)
    discriminator_first = DISCRIMINATOR_FIRST if new_discriminator else 0
    encoder = None if config.encoder is None else frozen_encoder(config.encoder, preset.model.embedding)
    with accelerator.main_process_first():  # one writes the folder and the cache, the others read them
        others = [read_clips(run) for run in (config.start_from, config.encoder) if run]  # they shape the weights too
        rows = merge_rows(training_rows(clips), *others)
        record = replace(config, **{name: getattr(preset, name) for name in asdict(preset)})
        open_run(config.out, "sagan", record, rows, config.start_from)
        mels = load_mels(clips, DCASE)  # [N, M, T]
    reals, labels = to_network(mels, preset.model), label_ids(clips)  # [N, 1, M, T], [N]
    sources = torch.zeros(len(mels), 0) if encoder is None else embed_mels(encoder.to(device), mels)  # f(d), [N, E]

    for network in (generator, discriminator):  # channels-last convolutions are faster in bf16 on a CPU
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    average = deepcopy(generator).to(device).requires_grad_(False).eval()
    for module in generator.modules():
        if isinstance(module, BatchNorm):
            module.over_processes = world > 1
    optimizer_g = torch.optim.Adam(generator.parameters(), preset.lr_generator, (0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), preset.lr_discriminator, (0.5, 0.999))
    generate, discriminate, optimizer_g, optimizer_d = accelerator.prepare(
        generator, discriminator, optimizer_g, optimizer_d
    )
    for network in (generate, discriminate):  # the loop says where autocast begins and ends
        accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    if config.compile:
        generator.compile(dynamic=False)
        discriminator.compile(dynamic=False)
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "average": average,
        "optimizer_g": optimizer_g,
        "optimizer_d": optimizer_d,
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # of fp16
    start = resume(config.out / "state.pt", parts)
    if accelerator.is_main_process and not start:
        first = torch.cat([torch.nonzero(labels == label.id)[:6, 0] for label in LABELS])
        mel_sheet(config.out / "samples" / "real.png", mels[first], labels[first])

    buffers = [*generator.buffers(), *discriminator.buffers()]  # batch statistics, vectors of the spectral norms
    with Log(config.out, accelerator, start, preset.steps) as log:
        for step in range(start, preset.steps):
            seed_step(config.run.seed, step)
            buffers_before = [buffer.clone() for buffer in buffers]
            indices = share(balanced_indices(step, preset.batch, labels, config.run.seed), rank, world)
            real, label, source = (each[indices].to(device) for each in (reals, labels, sources))
            z = share(torch.randn(preset.batch, preset.model.latent), rank, world).to(device)
            train_generator = step >= discriminator_first
            with accelerator.autocast(), torch.set_grad_enabled(train_generator):
                fake = generate(z, label).float()  # [B, 1, M, T], used in both steps
            fake = augment(fake, label, config.augment_probability, preset, accelerator)
            real = augment(real, label, config.augment_probability, preset, accelerator)

            # Discriminator: hinge loss of reals and fakes, contrastive loss of the reals.
            with accelerator.autocast():
                output = discriminate(torch.cat([real, fake.detach()]), torch.cat([label, label]))
            of_real, of_fake = (DiscriminatorOutput(*(each.chunk(2)[half] for each in output)) for half in (0, 1))
            terms_d = {
                "d_hinge": hinge_discriminator(of_real.logit.float(), of_fake.logit.float()),
                "d_contrast": contrastive(loss, of_real, source, label, accelerator),
            }
            finite = optimize(terms_d, optimizer_d, accelerator)
            logits = {"logit_real": of_real.logit.mean(), "logit_fake": of_fake.logit.mean()}

            # Generator: hinge and contrastive loss of the same fakes. The discriminator's weights stay as they are.
            terms_g: dict[str, Tensor] = {}
            if train_generator:
                discriminator.requires_grad_(False)
                with accelerator.autocast():
                    of_fake = discriminator(fake, label)
                terms_g = {
                    "g_hinge": hinge_generator(of_fake.logit.float()),
                    "g_contrast": contrastive(loss, of_fake, source, label, accelerator),
                }
                finite = optimize(terms_g, optimizer_g, accelerator, allowed=finite)
                discriminator.requires_grad_(True)
                if finite:
                    update_average(average, generator, config.average, step)

            if not finite:  # a skipped step leaves no trace in the batch statistics
                for buffer, before in zip(buffers, buffers_before):
                    buffer.copy_(before)
            log.add({**terms_d, **logits, **terms_g, "skipped": float(not finite)})
            done = step + 1
            log.advance(done)
            if due(done, preset.steps, config.run.log_every):
                log.write(done)
            if accelerator.is_main_process:
                if due(done, preset.steps, config.run.save_every):
                    save_state(config.out / "state.pt", done, parts)
                if done in config.snapshots:
                    save_state(config.out / f"snapshot_{done}.pt", done, {"average": average})
                if due(done, preset.steps, config.run.sample_every):
                    sample_sheet(config.out / "samples" / f"step-{done:06d}.png", average)
    return average


# --- parts of a step ----------------------------------------------------------------------------------------------


def contrastive(
    loss: Contrast, output: DiscriminatorOutput, source: Tensor, label: Tensor, accelerator: Accelerator
) -> Tensor:
    """Return the system's contrastive loss over the batch of all processes.

    `output` are the discriminator's embeddings of real or of fake mels; `source` [B, E] are the frozen encoder's
    embeddings of the real clips in the same slots, `label` int64 [B] their labels.
    """
    return conditional_contrastive(
        gather(output.embedding, accelerator),
        gather(output.proxy, accelerator),
        gather(source, accelerator) if loss.source else None,
        gather(label, accelerator) if loss.labels else None,
        tau_data=loss.tau_data,
        tau_class=loss.tau_class,
    )


def optimize(
    terms: dict[str, Tensor], optimizer: torch.optim.Optimizer, accelerator: Accelerator, allowed: bool = True
) -> bool:
    """Make an optimiser step for the sum of `terms` if it is finite in all processes, and return whether it was made."""
    optimizer.zero_grad()
    total = torch.stack(list(terms.values())).sum()
    finite = all_finite(total, accelerator.num_processes) and allowed
    if finite:
        accelerator.backward(total)
        optimizer.step()
    return finite


def augment(image: Tensor, label: Tensor, probability: float, preset: Preset, accelerator: Accelerator) -> Tensor:
    """Return images [B, 1, M, T] after DiffAugment: the same policy for reals and fakes, drawn separately."""
    if probability == 0:
        return image
    rank, world = accelerator.process_index, accelerator.num_processes
    changes = draw_changes(preset.batch, image.shape[2], image.shape[3], probability)  # for all processes
    changes = Changes(*(share(each, rank, world).to(image.device) for each in changes))
    neper = -2 * FLOOR / (preset.model.mel_high - preset.model.mel_low)
    return augment_mel(image, changes, STEADY.to(image.device)[label], FLOOR, neper)


def gather(part: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the global batch from all processes' shares [B, ...]; gradients flow back to the shares.

    Every process computes the same loss of the gathered batch. Its gradient after DistributedDataParallel's averaging is
    that of one process, since the backward pass of `SumOverProcesses` adds up the copies.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    if world == 1:
        return part
    whole = part.new_zeros(len(part) * world, *part.shape[1:])
    whole[rank::world] = part
    return SumOverProcesses.apply(whole)


# --- before the loop ----------------------------------------------------------------------------------------------


def check(config: TrainSagan, preset: Preset, clips: list[ClipFile]) -> None:
    """Raise UserError for settings and data that cannot be trained with."""
    for label in LABELS:
        count = sum(clip.label == label for clip in clips)
        if count < 2:  # `generate` would play an untrained label
            raise UserError(f"{label.name} has {count} clip(s): expected at least 2 of each of the seven labels")
    at_least(preset, batch=len(LABELS), steps=1)
    at_least(config, augment_probability=0, average=0)
    if wrong := [step for step in config.snapshots if step < 1]:
        raise UserError(f"--snapshots {wrong[0]}: expected 1 or more")
    if KT[config.system].source and config.encoder is None:
        raise UserError(
            f"--system {config.system} needs a frozen encoder: train one with `foleybox train encoder`, and name its run "
            "folder with --encoder"
        )
    if not KT[config.system].source and config.encoder is not None:
        raise UserError(f"--system {config.system} has no encoder in its loss: leave out --encoder")


def frozen_encoder(run: Path, width: int) -> Encoder:
    """Return the encoder of a run. Raises UserError for a bad run, and for embeddings of another width than `width`."""
    encoder, _ = load_encoder(run)
    if encoder.config.embedding != width:
        raise UserError(f"--encoder {run} has embeddings of width {encoder.config.embedding}: expected {width}")
    return encoder


def initial_networks(config: TrainSagan, model: SaganConfig) -> tuple[Generator, Discriminator, bool]:
    """Return (generator, discriminator, whether only the discriminator is new).

    Their weights are random, or those of `start_from`. Raises UserError for a bad run and for networks of another size.
    """
    generator, discriminator = Generator(model), Discriminator(model)
    if config.start_from is None:
        return generator, discriminator, False
    given, state = load_gan(config.start_from)
    if given.config != model:
        raise UserError(f"--start-from {config.start_from} has {given.config}: expected {model}; see --preset, --logit")
    generator.load_state_dict(given.state_dict())
    if state is not None:
        discriminator.load_state_dict(state)
    return generator, discriminator, state is None


def sample_sheet(path: Path, average: Generator, columns: int = 6) -> None:
    """Draw `columns` log-mels of each label with the averaged generator as a PNG; the noise is the same each time."""
    generator = deepcopy(average)
    device = next(generator.parameters()).device
    torch.manual_seed(0)
    refresh_batch_norm(generator, batches=1)  # enough for a picture; `export` uses 50
    label = torch.arange(len(LABELS), device=device).repeat_interleave(columns)
    z = torch.randn(columns, generator.config.latent, device=device).repeat(len(LABELS), 1)
    with torch.no_grad():
        mel = to_mel(generator.eval()(z, label), generator.config)
    mel_sheet(path, mel, label)
