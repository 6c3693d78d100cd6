"""Train HiFi-GAN as published: least squares of two discriminators, feature matching, L1 of the log-mel; one visible loop.

`foleybox train hifigan FOLDER -o RUN` (Kong et al. 2020, section 2.3; settings of the official code).

Fine-tuning, as the paper's section 4.4 has it: `--start-from` a trained vocoder and `--mels-from` a VQ-VAE. The vocoder
then reads the clips' mels as the VQ-VAE gives them back, smoother than real ones, and still has to make the real waves.

CMU's MHiFiGAN goes through the same loop: `foleybox train mhifigan FOLDER`. It reads CEmbeds, parts of them hidden.
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
from foleybox.lab.core.runs import RunConfig, merge_rows, open_run, read_clips, resume, save_state
from foleybox.lab.vocoders.hifigan import (
    Hifigan,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    PeriodConfig,
    ScaleConfig,
)
from foleybox.lab.vocoders.runs import hifigan_config, read_official_hifigan, start_vocoder
from foleybox.lab.vocoders.waves import Decoded, cut_frames, draw, measure, rows_of_start


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """What HiFi-GAN and MHiFiGAN have in common; the defaults are HiFi-GAN's official ones."""

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/vocoder")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    held_out: float = 0.04
    "share of the recordings never trained on; the logged held-out numbers are theirs"
    segment: int = 32
    "frames of a segment"
    batch: int = 16
    steps: int = 2_500_000
    "in all, those of earlier runs of the command included"
    lr: float = 2e-4
    "of generator and discriminators"
    lr_decay: float = 0.999
    "the rate is multiplied by this after each epoch"
    mel_weight: float = 45.0
    matching_weight: float = 2.0
    period_width: int = 32
    "channels of the multi-period discriminator's first layer: 4 on a CPU"
    scale_width: int = 128
    "channels of the multi-scale discriminator's first layer: 16 on a CPU"
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class TrainHifigan(AdversarialTraining):
    """Train a HiFi-GAN vocoder on any recordings: mel in, wave out. The same command again resumes.

    Example: foleybox train hifigan my_sounds/ --vocoder hifigan-v1 -o runs/hifigan
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; any sound helps, with a label or without"
    vocoder: Literal["hifigan-v1", "hifigan-v2", "hifigan-v3"] = "hifigan-v1"
    "13.9, 0.93 or 1.46 million weights, as published"
    width: int | None = None
    "channels before the first upsampling, if not the published 512, 128 or 256: 64 on a CPU"
    mel: Literal["dcase", "wide"] = "dcase"
    "the mel that the vocoder reads"
    seconds: float = 4.0
    "clips are cut or zero-padded to this length"
    mels_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train vqvae` or `train autoencoder`: read its reconstructions of the clips' mels, and make the real waves"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE")] = None
    "weights to start with: a run of `train hifigan` of the same sizes, or an official checkpoint (g_02500000)"
    peak: float = 0.95
    "peak that each clip is scaled to before its segment is cut; 0, and always with --mels-from: not scaled"


class Segments:
    """Segments of clips, int16 [N, L], drawn evenly, with the mels that the vocoder reads.

    As published: the mel is made of the segment alone, and each clip is brought to one peak first. With `mels`
    [N, M, T] it is cut from those, a segment begins with a frame, and clips stay as loud as their mels say.
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
        """Return (waves [B, frames hop], mels [B, M, frames]) from drawn places of clips int64 [B]."""
        long = self.frames * self.hop
        if self.mels is None:
            wave = self._cut(clips, torch.randint(self.waves.shape[1] - long + 1, (len(clips),)), long)
            return wave, self.front_end(wave)
        first = torch.randint(self.mels.shape[2] - self.frames + 1, (len(clips),))
        return self._cut(clips, first * self.hop, long), cut_frames(self.mels, clips, first, self.frames)

    def _cut(self, clips: Tensor, starts: Tensor, long: int) -> Tensor:
        wave = self.waves[clips[:, None], starts[:, None] + torch.arange(long)].float() / 32768
        return wave * self.factors[clips, None]


def learning_rate(config: AdversarialTraining, step: int, count: int) -> float:
    """Return the rate of a step when an epoch is `count` clips; it does not depend on `steps`, which may be raised later."""
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

    `clips` is `clips.heard` of the waves, for the run's record; `decoded` are mels to read instead of the waves' own.
    Raises UserError for clips shorter than a segment, a run folder of another configuration, or weights to start from
    that do not fit.
    """
    at_least(config, peak=0)
    mel = MELS[config.mel]
    torch.manual_seed(config.run.seed)
    generator = Hifigan(hifigan_config(mel, config.vocoder, config.width))
    segments = Segments(waves, mel, config.segment, config.peak, decoded.mels if decoded else None)
    record = replace(config, mels_from=Path(decoded.fingerprint)) if decoded else config
    known = merge_rows(clips, rows_of_start(config.start_from))
    if config.mels_from:  # the clips of the model that made the mels are in the vocoder's weights too
        known = merge_rows(known, read_clips(config.mels_from))

    def start(critics: nn.ModuleList) -> None:
        if config.start_from is None:
            return
        if config.start_from.is_dir():
            start_vocoder(config.start_from, [("generator", generator), ("critics", critics)])
        else:
            read_official_hifigan(config.start_from, generator)

    started = config.start_from if config.start_from and config.start_from.is_dir() else None
    train_adversarially(
        config, generator, segments, len(waves), held, decoded.held if decoded else None, mel,
        open_folder=lambda: open_run(config.out, "vocoder", record, known, started), start=start,
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
    numbers; `open_folder` writes the run's record; `start` gives weights to start from; `tag` goes into file names.
    """
    positive = dict.fromkeys(("segment", "batch", "steps"), 1)
    at_least(config, **positive, period_width=1, scale_width=1, lr=0, lr_decay=0)
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.run, "no", config.out, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    judge_mel = LogMel(replace(mel, low=0.0, high=mel.rate / 2)).to(device)  # the whole band, whatever is read
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
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    if not (config.out / "state.pt").is_file():
        start(critics)
    with accelerator.main_process_first():
        open_folder()
    first = resume(config.out / "state.pt", parts)
    vocode, optimizer = accelerator.prepare(generator, optimizer)
    *judges, critics_optimizer = accelerator.prepare(*critics, critics_optimizer)
    for network in (vocode, *judges):
        accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # the loop says where autocast is

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
                real_scores, _ = judge(judges, real)
                fake_scores, _ = judge(judges, fake.detach())
            judged = squares_discriminator(real_scores, fake_scores)
            critics_optimizer.zero_grad()
            accelerator.backward(judged)
            accelerator.unscale_gradients(critics_optimizer)
            critics_norm = nn.utils.clip_grad_norm_(critics.parameters(), torch.inf)
            if torch.isfinite(critics_norm) or accelerator.scaler is not None:  # the scaler skips such a step itself
                critics_optimizer.step()

            critics.requires_grad_(False)
            with accelerator.autocast():
                with torch.no_grad():
                    _, target = judge(critics, real)
                fake_scores, seen = judge(critics, fake)
            terms = {
                "adversarial": squares_generator(fake_scores),
                "matching": config.matching_weight * feature_matching(target, seen),
                "mel": config.mel_weight * mel_distance(judge_mel(real), judge_mel(fake)),
            }
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.clip_grad_norm_(generator.parameters(), torch.inf)
            if torch.isfinite(norm) or accelerator.scaler is not None:
                optimizer.step()

            finite = torch.isfinite(norm) & torch.isfinite(critics_norm)
            numbers = {"discriminator": judged, "norm": norm, "discriminator_norm": critics_norm}
            log.add({"loss": loss, **terms, **numbers, "skipped": (~finite).float()})
            done = step + 1
            extra: dict[str, float] = {}
            if done % config.run.sample_every == 0 and accelerator.is_main_process:
                extra = measure(generator, held, mel, held_features)
                sheet = config.out / "samples" / f"step_{done:07d}{tag}.png"
                draw(generator, held[:8], mel, sheet, None if held_features is None else held_features[:8])
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, {**extra, "lr": rate, **({"stand_in": 1.0} if tag else {})})
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
            log.advance(done)


def judge(critics: nn.ModuleList | list[nn.Module], wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return (the scores of all eight discriminators, the layers of each that are matched), float32.

    As in the official code the scores themselves are the last of the matched layers.
    """
    scores, seen = [], []
    for critic in critics:
        found, layers = critic(wave)
        scores += [score.float() for score in found]
        seen += [[layer.float() for layer in (*each, score)] for each, score in zip(layers, found, strict=True)]
    return scores, seen
