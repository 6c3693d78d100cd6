"""Train the decoder of our own latents: mels through few numbers and back, with a grain that a critic believes.

`foleybox train autoencoder FOLDER ... -o RUN`. Any sound helps, with a label or without.

The distance of whole mels alone would smooth noise, since the best guess of an unknown grain is none. So the distance
of averaged mels holds level and colour, and the grain is the discriminator's business (squares and feature matching).
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

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
    seed_step,
    share,
    spread,
    update_average,
)
from foleybox.lab.core.losses import feature_matching, mel_distance, roughness, squares_discriminator, squares_generator
from foleybox.lab.core.mel import SILENCE, WIDE
from foleybox.lab.core.runs import RunConfig, merge_rows, open_run, read_clips, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig, MelDiscriminator, MelDiscriminatorConfig
from foleybox.lab.patches.losses import pooled_mel_distance
from foleybox.lab.patches.runs import load_autoencoder


@dataclass(frozen=True)
class TrainAutoencoder:
    """Train the autoencoder of our own system on any recordings. The same command resumes.

    Example: foleybox train autoencoder my_sounds/ more_sounds:train -o runs/autoencoder
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; any sound helps, with a label or without"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/autoencoder")
    "the run folder: checkpoint, log, sheets of reconstructions"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    held_out: float = 0.04
    "share of the recordings never trained on, for the held-out numbers"
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    decoder_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run whose decoder to start with, at its own sizes: for patches of other lengths; --steps 0 leaves it as it is"
    judge_width: int = MelDiscriminatorConfig.width
    "channels of the discriminator's first layer"
    segment: int = 128
    "frames of a crop"
    batch: int = 32
    "crops a step, over all processes"
    sigma: float = 0.1
    "each crop's latents get noise of a standard deviation drawn evenly from 0 to this; they have 1 on average"
    gain: float = 8.0
    "dB, up or down, drawn for each crop"
    mel_weight: float = 2.0
    "of the distance of mels"
    pooled_weight: float = 4.0
    "of the distance of averaged mels"
    matching_weight: float = 2.0
    "of the feature matching"
    adversarial_weight: float = 1.0
    adversarial_from: int = 500
    "step at which the discriminator joins"
    lr: float = 7e-4
    lr_judge: float = 5e-4
    warm_up: int = 100
    "steps of linear rise to the learning rates"
    half_life: int = 4000
    "steps after which both learning rates have halved"
    decay: float = 0.99
    "of the average of the weights, which is what is used"
    clip_norm: float = 5.0
    "gradients longer than this are shortened"
    steps: int = 20_000
    "in all, those of earlier sittings included"
    run: RunConfig = field(default_factory=RunConfig)


def main(config: TrainAutoencoder) -> int:
    """`foleybox train autoencoder`."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train autoencoder sounds/`")
    tiers = config.tiers or None
    train(config, [clip for source in config.data for clip in find_clips(source, tiers=tiers, any_label=True)])
    return 0


def learning_rate(config: TrainAutoencoder, peak: float, step: int) -> float:
    """Return the rate of a step: a rise, then a half-life; it does not depend on `steps`, which may be raised later."""
    return peak * min(1.0, (step + 1) / config.warm_up) * 0.5 ** (step / config.half_life)


def crop(mels: Tensor, segment: int) -> Tensor:
    """Return a crop [B, M, segment] of each mel [B, M, T]: the louder of two random places, as much of a clip is silence."""
    T = mels.shape[2]
    starts = torch.randint(T - segment + 1, (2, len(mels)))
    places = starts[..., None] + torch.arange(segment)  # [2, B, segment]
    both = torch.stack([mels.gather(2, each[:, None].expand(-1, mels.shape[1], -1)) for each in places])
    louder = both.mean((2, 3)).argmax(0)
    return both[louder, torch.arange(len(mels))]


def train(config: TrainAutoencoder, clips: list[ClipFile]) -> Autoencoder:
    """Train on `clips` without those held out; return the averaged model in eval mode.

    Raises UserError for settings that do not go together, too few clips, or a run folder of another configuration.
    """
    given = load_autoencoder(config.decoder_from)[0] if config.decoder_from else None
    if given is not None:
        config = replace(config, model=with_decoder_of(given, config.model))
    positive = dict.fromkeys(("warm_up", "half_life"), 1)
    at_least(config, segment=config.model.patch, batch=2, steps=0 if given else 1, **positive)
    at_least(config, adversarial_from=0, sigma=0, gain=0)
    kept, held = split_by_recording(clips, config.held_out)
    if not kept or not held:
        raise UserError(f"{len(kept)} clips to train on and {len(held)} held out: expected some of each")
    if config.model.bands != WIDE.bands or config.segment % config.model.patch or config.segment > WIDE.frames(88_200):
        raise UserError(
            f"--bands {config.model.bands}, --segment {config.segment}: expected {WIDE.bands} bands, and a segment of "
            f"at most {WIDE.frames(88_200)} frames that is a multiple of --patch {config.model.patch}"
        )
    accelerator = accelerator_for(config.run, "no", config.out)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    with accelerator.main_process_first():
        before = read_clips(config.decoder_from) if config.decoder_from else []
        open_run(config.out, "autoencoder", config, merge_rows(training_rows(kept), before))
        mels, held_mels = load_mels(kept, WIDE), load_mels(held, WIDE)

    torch.manual_seed(config.run.seed)
    model = Autoencoder(config.model).to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    critic = MelDiscriminator(MelDiscriminatorConfig(config.judge_width)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, (0.8, 0.99))
    critic_optimizer = torch.optim.AdamW(critic.parameters(), config.lr_judge, (0.8, 0.99))
    parts = {
        "autoencoder": model,
        "average": average,
        "critic": critic,
        "optimizer": optimizer,
        "critic_optimizer": critic_optimizer,
    }
    start = resume(config.out / "state.pt", parts)
    if not start:
        places = torch.randperm(len(mels))[:500]
        model.start(mels[places].to(device))
        if given is not None:
            model.decoder.load_state_dict(given.decoder.state_dict())
            (model.read or model.components).load_state_dict(given.components.state_dict())
        average.load_state_dict(model.state_dict())
    model, optimizer = accelerator.prepare(model, optimizer)
    judge, critic_optimizer = accelerator.prepare(critic, critic_optimizer)
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    with Log(config.out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, rank)
            bare.train()
            optimizer.param_groups[0]["lr"] = learning_rate(config, config.lr, step)
            critic_optimizer.param_groups[0]["lr"] = learning_rate(config, config.lr_judge, step)

            indices = share(batch_indices(step, config.batch, len(mels), config.run.seed), rank, world)
            real = crop(mels[indices], config.segment).to(device)
            louder = torch.empty(len(real), device=device).uniform_(-config.gain, config.gain) * NEPER_PER_DB
            real = gain(real[:, None], louder, SILENCE)[:, 0]
            latents = bare.encode(real)
            with accelerator.autocast():
                sigma = config.sigma * torch.rand(len(real), 1, 1, device=device)
                noise = torch.randn(len(real), config.segment, config.model.noise, device=device)
                fake = model(latents + sigma * torch.randn_like(latents), noise).float()

            terms = {
                "mel": config.mel_weight * mel_distance(real, fake),
                "pooled": config.pooled_weight * pooled_mel_distance(real, fake),
            }
            numbers = {"roughness": roughness(fake.detach()) / roughness(real)}
            if step >= config.adversarial_from:
                critic.requires_grad_(True)
                with accelerator.autocast():
                    real_score, seen = judge(real)
                    fake_score, _ = judge(fake.detach())
                judged = squares_discriminator([real_score.float()], [fake_score.float()])
                critic_optimizer.zero_grad()
                accelerator.backward(judged)
                critic_norm = nn.utils.clip_grad_norm_(critic.parameters(), config.clip_norm)
                if torch.isfinite(critic_norm):
                    critic_optimizer.step()
                numbers["critic"] = judged.detach()

                critic.requires_grad_(False)
                with accelerator.autocast():
                    fake_score, seen_fake = judge(fake)
                target = [layer.detach().float() for layer in seen]
                matching = feature_matching([target], [[layer.float() for layer in seen_fake]])
                terms["matching"] = config.matching_weight * matching
                terms["adversarial"] = config.adversarial_weight * squares_generator([fake_score.float()])

            optimizer.zero_grad()
            accelerator.backward(torch.stack(list(terms.values())).sum())
            norm = nn.utils.clip_grad_norm_(bare.parameters(), config.clip_norm)
            if torch.isfinite(norm):  # a step that is not finite is skipped and counted, and never reaches a checkpoint
                optimizer.step()
                update_average(average, bare, config.decay, step)
            numbers |= {"norm": norm, "skipped": (~torch.isfinite(norm)).float()}

            done = step + 1
            log.add({**terms, **numbers})
            log.advance(done)
            extra = {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                extra = measure(average, held_mels)
                sheet(config.out / "samples" / f"step-{done:06d}.png", average, held_mels[spread(len(held), 12)])
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
    if start == config.steps == 0 and accelerator.is_main_process:  # of a run that has gone on, nothing is said anew
        save_state(config.out / "state.pt", 0, parts)
    return average


def with_decoder_of(given: Autoencoder, wanted: AutoencoderConfig) -> AutoencoderConfig:
    """Return the sizes of an autoencoder of the `wanted` patches and latents, everything else as the `given` one has it.

    Raises UserError if the given one's decoder reads the components of another's already.
    """
    if given.read is not None:
        raise UserError("--decoder-from: this run has its decoder from another one: name that")
    theirs = given.config
    return replace(
        theirs, patch=wanted.patch, latent=wanted.latent, decoder_patch=theirs.patch, decoder_latent=theirs.latent
    )


@torch.no_grad()
def measure(model: Autoencoder, mels: Tensor, batch: int = 16) -> dict[str, float]:
    """Return means over held-out log-mels [N, M, T] and their reconstructions: distances, and roughness over the real one."""
    torch.manual_seed(0)
    made = model.reconstruct(mels, batch)
    return {
        "held_out_mel": float(mel_distance(mels, made)),
        "held_out_pooled": float(pooled_mel_distance(mels, made)),
        "held_out_roughness": float(roughness(made) / roughness(mels)),
    }


@torch.no_grad()
def sheet(path: Path, model: Autoencoder, mels: Tensor) -> None:
    """Draw mels, each beside its reconstruction."""
    made = model.reconstruct(mels)
    pairs = torch.stack([mels, made], 1).flatten(0, 1)
    mel_sheet(path, pairs, ["real", "made"] * len(mels), columns=4)
