"""Train the mel decoder of our own system; one visible loop.

`foleybox train autoencoder FOLDER ... -o RUN`. It learns from any sounds, with or without a label.

The L1 distance of mels alone would smooth noise, since its best estimate of unknown fine structure is none. A distance of
averaged mels therefore holds level and spectrum, and a discriminator teaches the fine structure (least squares and
feature matching).
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.core.augment import NEPER_PER_DB, gain
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, split_by_recording, training_rows
from foleybox.lab.core.loop import (
    Log,
    accelerator_for,
    at_least,
    batch_indices,
    due,
    evenly_spaced,
    seed_step,
    share,
    update_average,
)
from foleybox.lab.core.losses import feature_matching, mel_distance, roughness, squares_discriminator, squares_generator
from foleybox.lab.core.mel import SILENCE, WIDE
from foleybox.lab.core.runs import PythonOnly, RunConfig, merge_rows, open_run, read_clips, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.patches.autoencoder import (
    SIZES,
    Autoencoder,
    AutoencoderConfig,
    MelDiscriminator,
    MelDiscriminatorConfig,
)
from foleybox.lab.patches.losses import pooled_mel_distance
from foleybox.lab.patches.runs import load_autoencoder


@dataclass(frozen=True)
class AutoencoderWeights:
    """Weights of the losses."""

    mel: float = 2.0
    "L1 distance of mels"
    pooled: float = 4.0
    "L1 distance of averaged mels"
    matching: float = 2.0
    "feature matching"
    adversarial: float = 1.0


@dataclass(frozen=True)
class TrainAutoencoder:
    """Train the autoencoder of our own system on any recordings. The same command resumes.

    Example: foleybox train autoencoder my_sounds/ more_sounds:train -o runs/autoencoder
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; with or without labels"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/autoencoder")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    held_out: float = 0.04
    "share of the recordings that is not trained on, for the held-out measurements"
    size: Literal["base", "tiny"] = "base"
    "base: that of the released instruments; tiny: to try the command"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of the same size: its components are kept, its averaged decoder is trained on"
    segment: int = 128
    "frames of a crop"
    batch: int = 32
    "crops per step, over all processes"
    discriminator_from: int = 500
    "step at which the discriminator joins"
    lr: float = 7e-4
    half_life: int = 4000
    "steps after which the learning rates have halved"
    steps: int = 20_000
    "in total, including those of earlier sittings"
    model: PythonOnly[AutoencoderConfig | None] = None
    "sizes, instead of `size`"
    weights: PythonOnly[AutoencoderWeights] = field(default_factory=AutoencoderWeights)
    discriminator: PythonOnly[MelDiscriminatorConfig] = field(default_factory=MelDiscriminatorConfig)
    latent_noise: PythonOnly[float] = 0.1
    "noise added to a crop's latents: standard deviation, uniform from 0 to this"
    gain: PythonOnly[float] = 8.0
    "dB, random gain of each crop, up or down"
    lr_discriminator: PythonOnly[float] = 5e-4
    warm_up: PythonOnly[int] = 100
    "steps of linear rise to the learning rates"
    decay: PythonOnly[float] = 0.99
    "of the moving average of the weights, which is what is used"
    clip_norm: PythonOnly[float] = 5.0
    "largest norm of a gradient"
    run: RunConfig = field(default_factory=RunConfig)


def main(config: TrainAutoencoder) -> int:
    """`foleybox train autoencoder`."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train autoencoder sounds/`")
    tiers = config.tiers or None
    train(config, [clip for source in config.data for clip in find_clips(source, tiers=tiers, any_label=True)])
    return 0


def learning_rate(config: TrainAutoencoder, peak: float, step: int) -> float:
    """Return the learning rate of a step: linear rise, then exponential decay. `steps` does not matter: it may be raised."""
    return peak * min(1.0, (step + 1) / config.warm_up) * 0.5 ** (step / config.half_life)


def crop(mels: Tensor, segment: int) -> Tensor:
    """Return a random crop [B, M, segment] of each mel [B, M, T]: the louder of two, as clips contain much silence."""
    T = mels.shape[2]
    starts = torch.randint(T - segment + 1, (2, len(mels)))
    frames = starts[..., None] + torch.arange(segment)  # [2, B, segment]
    both = torch.stack([mels.gather(2, each[:, None].expand(-1, mels.shape[1], -1)) for each in frames])
    louder = both.mean((2, 3)).argmax(0)
    return both[louder, torch.arange(len(mels))]


def train(config: TrainAutoencoder, clips: list[ClipFile]) -> Autoencoder:
    """Train on `clips` without those held out; return the averaged model in eval mode.

    Raises UserError for settings out of range, too few clips, or a run folder of another configuration.
    """
    size = config.model or SIZES[config.size]
    at_least(config, segment=size.patch, batch=2, steps=1, warm_up=1, half_life=1)
    at_least(config, discriminator_from=0, latent_noise=0, gain=0)
    kept, held = split_by_recording(clips, config.held_out)
    if not kept or not held:
        raise UserError(f"{len(kept)} clips to train on and {len(held)} held out: expected some of each")
    if size.bands != WIDE.bands or config.segment % size.patch or config.segment > WIDE.frames(88_200):
        raise UserError(
            f"--segment {config.segment} with {size.bands} bands: expected {WIDE.bands} bands, and a multiple of "
            f"{size.patch} frames, at most {WIDE.frames(88_200)}"
        )
    accelerator = accelerator_for(config.run, "no", config.out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    torch.manual_seed(config.run.seed)
    model = Autoencoder(size).to(device)
    given = load_autoencoder(config.start_from)[0] if config.start_from else None
    if given is not None and given.config != size:
        raise UserError(f"--start-from {config.start_from} has {given.config}: expected {size}")
    with accelerator.main_process_first():
        rows = merge_rows(training_rows(kept), read_clips(config.start_from) if config.start_from else [])
        open_run(config.out, "autoencoder", replace(config, model=size), rows, config.start_from)
        mels, held_mels = load_mels(kept, WIDE), load_mels(held, WIDE)

    average = copy.deepcopy(model).eval().requires_grad_(False)
    critic = MelDiscriminator(config.discriminator).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, (0.8, 0.99))
    critic_optimizer = torch.optim.AdamW(critic.parameters(), config.lr_discriminator, (0.8, 0.99))
    parts = {
        "autoencoder": model,
        "average": average,
        "critic": critic,
        "optimizer": optimizer,
        "critic_optimizer": critic_optimizer,
    }
    start = resume(config.out / "state.pt", parts)
    if not start:
        if given is None:
            model.components.fit(mels[torch.randperm(len(mels))[:500]].to(device))
        else:
            model.load_state_dict(given.state_dict())
        average.load_state_dict(model.state_dict())
    model, optimizer = accelerator.prepare(model, optimizer)
    discriminate, critic_optimizer = accelerator.prepare(critic, critic_optimizer)
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    with Log(config.out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, rank)
            bare.train()
            optimizer.param_groups[0]["lr"] = learning_rate(config, config.lr, step)
            critic_optimizer.param_groups[0]["lr"] = learning_rate(config, config.lr_discriminator, step)

            indices = share(batch_indices(step, config.batch, len(mels), config.run.seed), rank, world)
            real = crop(mels[indices], config.segment).to(device)
            gains = torch.empty(len(real), device=device).uniform_(-config.gain, config.gain) * NEPER_PER_DB
            real = gain(real[:, None], gains, SILENCE)[:, 0]
            latents = bare.encode(real)
            with accelerator.autocast():
                sigma = config.latent_noise * torch.rand(len(real), 1, 1, device=device)
                noise = torch.randn(len(real), config.segment, size.noise, device=device)
                fake = model(latents + sigma * torch.randn_like(latents), noise).float()

            terms = {
                "mel": config.weights.mel * mel_distance(real, fake),
                "pooled": config.weights.pooled * pooled_mel_distance(real, fake),
            }
            numbers = {"roughness": roughness(fake.detach()) / roughness(real)}
            if step >= config.discriminator_from:
                critic.requires_grad_(True)
                with accelerator.autocast():
                    real_score, target = discriminate(real)
                    fake_score, _ = discriminate(fake.detach())
                numbers["critic"] = squares_discriminator([real_score.float()], [fake_score.float()])
                critic_optimizer.zero_grad()
                accelerator.backward(numbers["critic"])
                critic_norm = nn.utils.clip_grad_norm_(critic.parameters(), config.clip_norm)
                if torch.isfinite(critic_norm):
                    critic_optimizer.step()

                critic.requires_grad_(False)
                with accelerator.autocast():
                    fake_score, activations = discriminate(fake)
                matching = feature_matching([[x.float() for x in target]], [[x.float() for x in activations]])
                terms["matching"] = config.weights.matching * matching
                terms["adversarial"] = config.weights.adversarial * squares_generator([fake_score.float()])

            optimizer.zero_grad()
            accelerator.backward(torch.stack(list(terms.values())).sum())
            norm = nn.utils.clip_grad_norm_(bare.parameters(), config.clip_norm)
            if torch.isfinite(norm):  # a step that is not finite is skipped and counted, and never reaches a checkpoint
                optimizer.step()
                update_average(average, bare, config.decay, step)

            done = step + 1
            log.add({**terms, **numbers, "norm": norm, "skipped": (~torch.isfinite(norm)).float()})
            log.advance(done)
            extra = {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                extra = measure(average, held_mels)
                sheet = config.out / "samples" / f"step-{done:06d}.png"
                reconstruction_sheet(sheet, average, held_mels[evenly_spaced(len(held), 12)])
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
    return average


@torch.no_grad()
def measure(model: Autoencoder, mels: Tensor, batch: int = 16) -> dict[str, float]:
    """Return distances of held-out log-mels [N, M, T] to their reconstructions, and their roughness over the real one's."""
    torch.manual_seed(0)
    made = model.reconstruct(mels, batch)
    return {
        "held_out_mel": float(mel_distance(mels, made)),
        "held_out_pooled": float(pooled_mel_distance(mels, made)),
        "held_out_roughness": float(roughness(made) / roughness(mels)),
    }


@torch.no_grad()
def reconstruction_sheet(path: Path, model: Autoencoder, mels: Tensor) -> None:
    """Draw mels [N, M, T], each next to its reconstruction."""
    pairs = torch.stack([mels, model.reconstruct(mels)], 1).flatten(0, 1)
    mel_sheet(path, pairs, ["real", "reconstructed"] * len(mels), columns=4)
