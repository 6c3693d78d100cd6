"""Train KT's GAN: hinge and 2C losses, one visible loop. `foleybox train sagan FOLDER -o RUN`."""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from accelerate import DistributedDataParallelKwargs
from torch import Tensor

from foleybox.doors import UserError
from foleybox.lab.augment import MelAugment, augment_mel
from foleybox.lab.data import ClipFile, find_clips, heard, label_ids, load_mels
from foleybox.lab.features import DCASE
from foleybox.lab.losses import conditional_contrastive, hinge_discriminator, hinge_generator
from foleybox.lab.models.sagan import (
    FLOOR,
    Discriminator,
    Generator,
    Judgement,
    SaganConfig,
    refresh_batch_norm,
    to_mel,
    to_network,
)
from foleybox.lab.runs import open_run, resume, save_state
from foleybox.lab.training.common import (
    Log,
    accelerator_for,
    at_least,
    balanced_indices,
    mel_sheet,
    seed_step,
    share,
    update_average,
)
from foleybox.labels import LABELS

STEADY = torch.tensor([label.name in ("MovingMotorVehicle", "Rain") for label in LABELS])


@dataclass(frozen=True)
class TrainSagan:
    """Train KT's GAN (2C loss without label) on a folder of recordings. The same command resumes.

    Example: foleybox train sagan my_sounds/ -o runs/gan --steps 2000
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/sagan")
    "the run folder: checkpoint, log, sample sheets"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    model: SaganConfig = field(default_factory=SaganConfig)
    augment: MelAugment = field(default_factory=MelAugment)
    steps: int = 100_000
    "generator steps in all, those of earlier sittings included"
    batch: int = 64
    "clips a step, over all processes; every label equally often"
    lr_generator: float = 1e-4
    lr_discriminator: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    "Adam's, as in the report"
    tau_data: float = 0.1
    "temperature of data-to-data pairs (tau_d)"
    tau_class: float = 1.0
    "temperature of data-to-label pairs (tau_c)"
    contrastive: float = 1.0
    "weight of the 2C loss"
    average: float = 0.999
    "decay of the generator's moving average, which is what `export` takes: .999 forgets in 700 steps"
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    "bf16 is twice as fast on GPUs and on processors with avx512_bf16; fp16 needs a GPU"
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 0
    "CPU threads; 0 is torch's choice"
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    log_every: int = 20
    save_every: int = 100
    "a checkpoint is 70 MB at width 16"
    sample_every: int = 500


def main(config: TrainSagan) -> int:
    """Find the clips and train; Ctrl-C stops at the last checkpoint."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train sagan sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips, config.out)
    return 0


def train(config: TrainSagan, clips: list[ClipFile], out: Path) -> Generator:
    """Train on `clips`, writing to `out`; return the averaged generator.

    Raises UserError for fewer than two clips of a label, a batch under seven, or a run folder of another configuration.
    """
    for label in LABELS:
        count = sum(clip.label == label for clip in clips)
        if count < 2:  # a label without clips would be played untrained
            raise UserError(f"{label.name} has {count} clip(s): expected at least 2 of each of the seven labels")
    at_least(config, batch=len(LABELS), steps=1, log_every=1, save_every=1, sample_every=1, threads=0, seed=0)

    if config.threads:
        torch.set_num_threads(config.threads)
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.device, config.precision, out, config.tracker, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    with accelerator.main_process_first():  # one writes the folder and the cache, the others read them
        open_run(out, "sagan", config, clips=heard(clips))
        reals = to_network(load_mels(clips, DCASE), config.model)  # [N, 1, 80, 344]
    labels = label_ids(clips)
    neper = -2 * FLOOR / (config.model.mel_high - config.model.mel_low)
    per_process = config.batch // world

    torch.manual_seed(config.seed)
    generator, discriminator = Generator(config.model), Discriminator(config.model)
    for network in (generator, discriminator):  # twice as fast in bf16 on a processor
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    average = deepcopy(generator).to(device).requires_grad_(False).eval()
    optimizer_g = torch.optim.Adam(generator.parameters(), config.lr_generator, config.betas)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), config.lr_discriminator, config.betas)
    generator, discriminator, optimizer_g, optimizer_d = accelerator.prepare(
        generator, discriminator, optimizer_g, optimizer_d
    )
    plain_generator, plain_discriminator = map(accelerator.unwrap_model, (generator, discriminator))
    parts = {
        "generator": plain_generator,
        "discriminator": plain_discriminator,
        "average": average,
        "optimizer_g": optimizer_g,
        "optimizer_d": optimizer_d,
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    if accelerator.is_main_process and not start:
        first_of_each = [int(i) for label in range(len(LABELS)) for i in torch.nonzero(labels == label).flatten()[:6]]
        mel_sheet(out / "samples" / "real.png", to_mel(reals[first_of_each], config.model), labels[first_of_each])

    def contrast(judged: Judgement) -> Tensor:
        """The 2C loss without label of this process's batch."""
        return config.contrastive * conditional_contrastive(
            judged.embedding, judged.proxy, tau_data=config.tau_data, tau_class=config.tau_class
        )

    with Log(out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.seed, step, rank)
            indices = share(balanced_indices(step, per_process * world, labels, config.seed), rank, world)
            label = labels[indices].to(device)
            steady = STEADY.to(device)[label]
            real = reals[indices].to(device)
            z = torch.randn(len(indices), config.model.latent, device=device)

            # Discriminator: tell real from fake, spread the real embeddings, hold each near its label's.
            with accelerator.autocast():
                fake = generator(z, label)
                real = augment_mel(real, steady, config.augment, FLOOR, neper)
                fake_seen = augment_mel(fake, steady, config.augment, FLOOR, neper)
                judged = discriminator(torch.cat([real, fake_seen.detach()]), torch.cat([label, label]))
                on_real, on_fake = (Judgement(*(part.chunk(2)[half] for part in judged)) for half in (0, 1))
                terms_d = {
                    "d_hinge": hinge_discriminator(on_real.logit.float(), on_fake.logit.float()),
                    "d_2c": contrast(on_real),
                }
            optimizer_d.zero_grad()
            loss_d = sum(terms_d.values(), torch.zeros((), device=device))
            finite = bool(torch.isfinite(loss_d))
            if finite:
                accelerator.backward(loss_d)
                optimizer_d.step()

            # Generator: convince the updated discriminator, with the same fakes; its weights stay as they are.
            plain_discriminator.requires_grad_(False)
            with accelerator.autocast():
                judged = plain_discriminator(fake_seen, label)
                terms_g = {"g_hinge": hinge_generator(judged.logit.float()), "g_2c": contrast(judged)}
            optimizer_g.zero_grad()
            loss_g = sum(terms_g.values(), torch.zeros((), device=device))
            if finite and bool(torch.isfinite(loss_g)):
                accelerator.backward(loss_g)
                optimizer_g.step()
                update_average(average, plain_generator, config.average, step)
            plain_discriminator.requires_grad_(True)

            skipped = float(not (finite and bool(torch.isfinite(loss_g))))
            logits = {"logit_real": on_real.logit.mean(), "logit_fake": on_fake.logit.mean()}
            log.add({**terms_d, **terms_g, **logits, "skipped": skipped})
            done = step + 1
            log.advance(done)
            if done % config.log_every == 0 or done == config.steps:
                log.write(done)
            if accelerator.is_main_process:
                if done % config.save_every == 0 or done == config.steps:
                    save_state(out / "state.pt", done, parts)
                if done % config.sample_every == 0 or done == config.steps:
                    sample_sheet(out / "samples" / f"step-{done:06d}.png", average)
    return average


def sample_sheet(path: Path, average: Generator, columns: int = 6) -> None:
    """Draw `columns` sounds of each label with the averaged generator, as a picture of mels, fixed noise."""
    generator = deepcopy(average)
    device = next(generator.parameters()).device
    torch.manual_seed(0)
    refresh_batch_norm(generator, batches=4)
    label = torch.arange(len(LABELS), device=device).repeat_interleave(columns)
    z = torch.randn(columns, generator.config.latent, device=device).repeat(len(LABELS), 1)
    with torch.no_grad():
        mel = to_mel(generator.eval()(z, label), generator.config)
    mel_sheet(path, mel, label)
