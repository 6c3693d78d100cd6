"""Train HiFi-GAN as published: least-squares discriminators, feature matching, L1 of the log-mel; one visible loop.

`foleybox train hifigan FOLDER -o RUN` (Kong et al. 2020, section 2.3; settings of the official code).

Fine-tuning (section 4.4 of the paper): `--start-from` a trained vocoder and `--mels-from` a VQ-VAE. The vocoder then
reads the VQ-VAE's reconstructions of the clips' mels, which are smoother than real ones; the target stays the real wave.

CMU's MHiFiGAN is trained by the same loop: `foleybox train mhifigan FOLDER`. It reads masked CEmbeds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
import tyro
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.core.loop import Log, accelerator_for, at_least, batch_indices, due, seed_step, share
from foleybox.lab.core.losses import feature_matching, mel_distance, squares_discriminator, squares_generator
from foleybox.lab.core.mel import MELS, LogMel, MelConfig
from foleybox.lab.core.runs import PythonOnly, RunConfig, merge_rows, open_run, read_clips, resume, save_state
from foleybox.lab.vocoders.hifigan import (
    Hifigan,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    PeriodConfig,
    ScaleConfig,
)
from foleybox.lab.vocoders.runs import hifigan_config, load_initial_weights, read_official_hifigan
from foleybox.lab.vocoders.waves import Decoded, cut_frames, measure, rows_of_start, vocoder_sheet


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """Settings of the loop that HiFi-GAN and MHiFiGAN share; the defaults are HiFi-GAN's official ones."""

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/vocoder")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    held_out: float = 0.04
    "share of the recordings that is not trained on, for the held-out measurements"
    segment: int = 32
    "frames of a segment"
    batch: int = 16
    steps: int = 2_500_000
    "in total, including those of earlier sittings"
    lr: float = 2e-4
    "of generator and discriminators"
    lr_decay: PythonOnly[float] = 0.999
    "factor of the learning rate after each epoch"
    mel_weight: PythonOnly[float] = 45.0
    "of the L1 distance of log-mels"
    matching_weight: PythonOnly[float] = 2.0
    "of the feature matching"
    period_width: int = 32
    "channels of the multi-period discriminator's first layer: 4 on a CPU"
    scale_width: int = 128
    "channels of the multi-scale discriminator's first layer: 16 on a CPU"
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class TrainHifigan(AdversarialTraining):
    """Train a HiFi-GAN vocoder on any recordings: mel in, wave out. The same command resumes.

    Example: foleybox train hifigan my_sounds/ --vocoder hifigan-v1 -o runs/hifigan
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; with or without labels"
    vocoder: Literal["hifigan-v1", "hifigan-v2", "hifigan-v3"] = "hifigan-v1"
    "13.9, 0.93 or 1.46 million weights, as published"
    width: int | None = None
    "channels before the first upsampling, if not the published 512, 128 or 256; 64 is affordable on a CPU"
    mel: Literal["dcase", "wide"] = "dcase"
    "the mel that the vocoder reads: 80 bands up to 8 kHz, or 100 up to 11 kHz"
    seconds: PythonOnly[float] = 4.0
    "clips are cut or zero-padded to this length"
    mels_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train vqvae` or `train autoencoder`: read its reconstructions of the mels; the target stays the real waves"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE")] = None
    "initial weights: a run of `train hifigan` of the same sizes, or an official checkpoint (g_02500000)"
    peak: PythonOnly[float] = 0.95
    "each clip is scaled to this peak before its segment is cut; not with 0 or --mels-from"


class Segments:
    """Random segments of clips, int16 [N, L], with the mels that the vocoder reads.

    As published, clips are scaled to one peak, and the mel is computed of the segment alone. With `mels` [N, M, T] it is
    cut from those, a segment begins with a frame, and clips keep their level.
    """

    def __init__(self, waves: Tensor, mel: MelConfig, frames: int, peak: float, mels: Tensor | None) -> None:
        have = mel.frames(waves.shape[1])
        if have < frames:
            raise UserError(f"clips of {have} frames, segments of {frames}: expected a segment no longer than a clip")
        self.waves, self.frames, self.hop, self.mels = waves, frames, mel.hop, mels
        self.front_end = LogMel(mel)
        self.factors = torch.ones(len(waves))
        if peak and mels is None:
            loudest = waves.float().abs().amax(1) / 32768
            self.factors = torch.where(loudest > 0, peak / loudest.clamp(min=1 / 32768), 1.0)

    def draw(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return (waves [B, frames hop], mels [B, M, frames]) from random positions of clips int64 [B]."""
        length = self.frames * self.hop
        if self.mels is None:
            wave = self._cut(clips, torch.randint(self.waves.shape[1] - length + 1, (len(clips),)), length)
            return wave, self.front_end(wave)
        first = torch.randint(self.mels.shape[2] - self.frames + 1, (len(clips),))
        return self._cut(clips, first * self.hop, length), cut_frames(self.mels, clips, first, self.frames)

    def _cut(self, clips: Tensor, starts: Tensor, length: int) -> Tensor:
        wave = self.waves[clips[:, None], starts[:, None] + torch.arange(length)].float() / 32768
        return wave * self.factors[clips, None]


def learning_rate(config: AdversarialTraining, step: int, count: int) -> float:
    """Return the learning rate of a step; an epoch is `count` clips. `steps` does not matter: it may be raised."""
    return config.lr * config.lr_decay ** (step * config.batch // count)


class Source(Protocol):
    """Draws the training pairs of a vocoder."""

    def draw(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return (real waves [B, frames hop], features [B, M, frames]) from random positions of clips int64 [B]."""
        ...


def train(
    config: TrainHifigan, waves: Tensor, held: Tensor, clips: list[dict[str, str]], decoded: Decoded | None = None
) -> Hifigan:
    """Train on `waves`, measure on `held`, both int16 [N, L] at the mel's rate; return the generator.

    `clips` are `clips.training_rows` of the waves; `decoded` are mels to read instead of the waves' own. Raises UserError
    for clips shorter than a segment, a run folder of another configuration, or initial weights that do not fit.
    """
    at_least(config, peak=0)
    mel = MELS[config.mel]
    torch.manual_seed(config.run.seed)
    generator = Hifigan(hifigan_config(mel, config.vocoder, config.width))
    segments = Segments(waves, mel, config.segment, config.peak, decoded.mels if decoded else None)
    record = replace(config, mels_from=Path(decoded.fingerprint)) if decoded else config
    rows = merge_rows(clips, rows_of_start(config.start_from))
    if config.mels_from:  # the clips of the model that made the mels are in the vocoder's weights too
        rows = merge_rows(rows, read_clips(config.mels_from))

    def start(critics: nn.ModuleList) -> None:
        if config.start_from is None:
            return
        if config.start_from.is_dir():
            load_initial_weights(config.start_from, [("generator", generator), ("critics", critics)])
        else:
            read_official_hifigan(config.start_from, generator)

    started = config.start_from if config.start_from and config.start_from.is_dir() else None
    train_adversarially(
        config, generator, segments, len(waves), held, decoded.held if decoded else None, mel,
        open_folder=lambda: open_run(config.out, "vocoder", record, rows, started), start=start,
    )  # fmt: skip
    return generator.eval()


def train_adversarially(
    config: AdversarialTraining,
    generator: nn.Module,
    source: Source,
    count: int,
    held: Tensor,
    held_features: Tensor | None,
    mel: MelConfig,
    *,
    open_folder: Callable[[], None],
    start: Callable[[nn.ModuleList], None] = lambda critics: None,
    tag: str = "",
) -> None:
    """Train a generator of waves against HiFi-GAN's discriminators: the loop of HiFi-GAN and of CMU's MHiFiGAN.

    `count` is the number of training clips (an epoch); `held` int16 [N, L] and `held_features` are for the held-out
    measurements; `open_folder` writes the run's settings; `start` loads initial weights; `tag` goes into file names.
    """
    positive = dict.fromkeys(("segment", "batch", "steps"), 1)
    at_least(config, **positive, period_width=1, scale_width=1, lr=0, lr_decay=0)
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.run, "no", config.out, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    loss_mel = LogMel(replace(mel, low=0.0, high=mel.rate / 2)).to(device)  # up to half the rate, whatever is read
    critics = nn.ModuleList(
        [
            MultiPeriodDiscriminator(PeriodConfig(config.period_width)),
            MultiScaleDiscriminator(ScaleConfig(config.scale_width)),
        ]
    )
    optimizer = torch.optim.AdamW(generator.parameters(), config.lr, (0.8, 0.99))
    critics_optimizer = torch.optim.AdamW(critics.parameters(), config.lr, (0.8, 0.99))
    parts = {
        "generator": generator,
        "critics": critics,
        "optimizer": optimizer,
        "critics_optimizer": critics_optimizer,
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state of a resumed run
    if not (config.out / "state.pt").is_file():
        start(critics)
    with accelerator.main_process_first():
        open_folder()
    first = resume(config.out / "state.pt", parts)
    vocode, optimizer = accelerator.prepare(generator, optimizer)
    *discriminators, critics_optimizer = accelerator.prepare(*critics, critics_optimizer)
    for network in (vocode, *discriminators):
        accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # autocast is set in the loop

    with Log(config.out, accelerator, first, config.steps) as log:
        for step in range(first, config.steps):
            seed_step(config.run.seed, step, rank)
            rate = learning_rate(config, step, count)
            for chosen in (optimizer, critics_optimizer):
                chosen.param_groups[0]["lr"] = rate
            indices = share(batch_indices(step, config.batch, count, config.run.seed), rank, world)
            real, read = (part.to(device) for part in source.draw(indices))
            with accelerator.autocast():
                fake = vocode(read)  # [B, segment hop]
            fake = fake.float()

            critics.requires_grad_(True)
            with accelerator.autocast():
                real_scores, _ = discriminate(discriminators, real)
                fake_scores, _ = discriminate(discriminators, fake.detach())
            critics_loss = squares_discriminator(real_scores, fake_scores)
            critics_optimizer.zero_grad()
            accelerator.backward(critics_loss)
            accelerator.unscale_gradients(critics_optimizer)
            critics_norm = nn.utils.clip_grad_norm_(critics.parameters(), torch.inf)
            if torch.isfinite(critics_norm) or accelerator.scaler is not None:  # the scaler skips such a step itself
                critics_optimizer.step()

            critics.requires_grad_(False)
            with accelerator.autocast():
                with torch.no_grad():
                    _, target = discriminate(critics, real)
                fake_scores, activations = discriminate(critics, fake)
            terms = {
                "adversarial": squares_generator(fake_scores),
                "matching": config.matching_weight * feature_matching(target, activations),
                "mel": config.mel_weight * mel_distance(loss_mel(real), loss_mel(fake)),
            }
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.clip_grad_norm_(generator.parameters(), torch.inf)
            if torch.isfinite(norm) or accelerator.scaler is not None:
                optimizer.step()

            finite = torch.isfinite(norm) & torch.isfinite(critics_norm)
            numbers = {"discriminator": critics_loss, "norm": norm, "discriminator_norm": critics_norm}
            log.add({"loss": loss, **terms, **numbers, "skipped": (~finite).float()})
            done = step + 1
            extra: dict[str, float] = {}
            if done % config.run.sample_every == 0 and accelerator.is_main_process:
                extra = measure(generator, held, mel, held_features)
                sheet = config.out / "samples" / f"step_{done:07d}{tag}.png"
                vocoder_sheet(sheet, generator, held[:8], mel, None if held_features is None else held_features[:8])
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, {**extra, "lr": rate, **({"stand_in": 1.0} if tag else {})})
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
            log.advance(done)


def discriminate(critics: nn.ModuleList | list[nn.Module], wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return (the scores of all discriminators, the activations of each that are matched), float32.

    As in the official code the last of the matched activations are the scores themselves.
    """
    scores, activations = [], []
    for critic in critics:
        found, layers = critic(wave)
        scores += [score.float() for score in found]
        activations += [[layer.float() for layer in (*each, score)] for each, score in zip(layers, found, strict=True)]
    return scores, activations
