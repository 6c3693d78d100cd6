"""Train HiFi-GAN as published: least squares of two discriminators, feature matching, L1 of the log-mel; one visible loop.

`foleybox train vocoder FOLDER --vocoder hifigan-v1 -o RUN` (Kong et al. 2020, section 2.3; settings of the official code).

Fine-tuning, as the paper's section 4.4 has it: `--start-from` a trained vocoder and `--mels-from` a VQ-VAE. The vocoder
then reads the clips' mels as the VQ-VAE gives them back, smoother than real ones, and still has to make the real waves.

CMU's MHiFiGAN goes through the same loop: `foleybox train mhifigan FOLDER`. It reads CEmbeds, parts of them hidden.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn

from foleybox.doors import UserError
from foleybox.lab import losses
from foleybox.lab.augment import PartMasks, draw_part_masks
from foleybox.lab.cembed import (
    FRAMES,
    PARTS,
    CembedConfig,
    Cembeds,
    Mhifigan,
    fill_rows,
    fill_value,
    load_cembeds,
)
from foleybox.lab.data import heard, load_wave_cache
from foleybox.lab.features import MELS, LogMel, MelConfig
from foleybox.lab.models.hifigan import (
    Hifigan,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    PeriodConfig,
    ScaleConfig,
)
from foleybox.lab.runs import (
    heard_with,
    hifigan_config,
    mhifigan_config,
    open_run,
    read_clips,
    read_official_hifigan,
    resume,
    save_state,
    start_vocoder,
)
from foleybox.lab.training.common import Log, accelerator_for, at_least, batch_indices, due, seed_step, share
from foleybox.lab.training.waves import Decoded, cut_frames, decode_clips, draw, find_sources, heard_before, measure


@dataclass(frozen=True)
class TrainHifigan:
    """Train a HiFi-GAN vocoder on any recordings: mel in, wave out. The same command again resumes.

    Example: foleybox train vocoder my_sounds/ --vocoder hifigan-v1 -o runs/hifigan
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; any sound helps, with a label or without"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/vocoder")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    vocoder: Literal["hifigan-v1", "hifigan-v2", "hifigan-v3"] = "hifigan-v1"
    "13.9, 0.93 or 1.46 million weights, as published; or vocos, with flags of its own"
    width: int | None = None
    "channels before the first upsampling, if not the published 512, 128 or 256: 64 on a CPU"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    mel: Literal["dcase", "wide"] = "dcase"
    "the mel that the vocoder reads"
    seconds: float = 4.0
    "clips are cut or zero-padded to this length"
    held_out: float = 0.04
    "share of the recordings never trained on; the logged held-out numbers are theirs"
    mels_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train vqvae` or `train autoencoder`: read the clips' mels as it gives them back, and make the real waves of them"
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE")] = None
    "weights to start with: a run of `train vocoder` of the same sizes, or an official checkpoint (g_02500000)"
    segment: int = 32
    "frames of a segment: 8,192 samples"
    peak: float = 0.95
    "each clip is made this loud before its segment is cut; 0, and always with --mels-from: as loud as it is"
    batch: int = 16
    steps: int = 2_500_000
    "in all, those of earlier sittings included: the paper's"
    lr: float = 2e-4
    "of both sides"
    lr_decay: float = 0.999
    "the rate is multiplied by this after each epoch"
    mel_weight: float = 45.0
    matching_weight: float = 2.0
    period_width: int = 32
    "channels of the multi-period discriminator's first layer: 4 on a CPU"
    scale_width: int = 128
    "channels of the multi-scale discriminator's first layer: 16 on a CPU"
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    "bf16 is twice as fast on processors with avx512_bf16 and on GPUs"
    threads: int = 0
    "CPU threads; 0: torch's choice"
    log_every: int = 50
    save_every: int = 500
    "steps between checkpoints"
    sample_every: int = 1000
    "steps between sample sheets and held-out measurements"
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


@dataclass(frozen=True)
class TrainMhifigan:
    """Train CMU's MHiFiGAN on any recordings: CEmbed in, wave at 24 kHz out. The same command again resumes.

    Example: foleybox train mhifigan my_sounds/ --encoder stand-in -o runs/mhifigan-stand-in
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; any sound helps, with a label or without"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/mhifigan")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    vocoder: Literal["mhifigan", "mhifigan-even"] = "mhifigan"
    "17.8 million weights; even: 18.3, with a first kernel of 20, which covers all samples alike at its rate of 10"
    width: int | None = None
    "channels before the first upsampling, if not the published 512: 64 on a CPU"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    held_out: float = 0.04
    "share of the recordings never trained on; the logged held-out numbers are theirs"
    features: CembedConfig = field(default_factory=CembedConfig)
    scale: Literal["rows", "published"] = "rows"
    "rows: each to mean 0 and deviation 1 over the training clips; published: one pair for the encoder, a raw mel"
    masks: PartMasks = field(default_factory=PartMasks)
    fill: Literal["silence", "zero"] = "silence"
    "what is hidden is: the mel's floor and the encoder's mean; or 0 on the published scale, in a log-mel a loud noise"
    segment: int = 32
    "frames of a segment: 10,240 samples; the report has no number"
    batch: int = 16
    steps: int = 49_050
    "in all, those of earlier sittings included: the report's 180 epochs of 4,360 clips"
    lr: float = 2e-4
    "of both sides"
    lr_decay: float = 0.99
    "the rate is multiplied by this after each epoch"
    mel_weight: float = 45.0
    matching_weight: float = 2.0
    period_width: int = 32
    "channels of the multi-period discriminator's first layer: 4 on a CPU"
    scale_width: int = 128
    "channels of the multi-scale discriminator's first layer: 16 on a CPU"
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    "bf16 is twice as fast on processors with avx512_bf16 and on GPUs"
    threads: int = 0
    "CPU threads; 0: torch's choice"
    log_every: int = 50
    save_every: int = 500
    "steps between checkpoints"
    sample_every: int = 1000
    "steps between sample sheets and held-out measurements"
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


class MaskedSegments:
    """Segments of clips, int16 [N, L] at 24 kHz, drawn evenly, with their frames of masked CEmbeds, as they are aligned."""

    def __init__(self, waves: Tensor, cembeds: Cembeds, config: TrainMhifigan, reader: Mhifigan) -> None:
        if config.segment > FRAMES:
            raise UserError(f"--segment {config.segment}: expected {FRAMES} or less, the frames of a clip")
        self.waves, self.cembeds, self.config, self.reader = waves, cembeds, config, reader

    def draw(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return (waves [B, frames 320], masked raw CEmbeds [B, 1152, frames]) from drawn places of clips int64 [B]."""
        frames, hop = self.config.segment, MELS["cembed"].hop
        hidden = draw_part_masks(len(clips), PARTS, FRAMES, self.config.masks)
        first = torch.randint(FRAMES - frames + 1, (len(clips),))
        fill = fill_value(self.reader.rows, self.config.fill)
        read = torch.where(hidden.to(fill.device), fill, self.cembeds[clips].to(fill.device))
        places = (first[:, None] + torch.arange(frames))[:, None].expand(-1, sum(PARTS), -1)
        wave = self.waves[clips[:, None], first[:, None] * hop + torch.arange(frames * hop)]
        return wave.to(fill.device).float() / 32768, read.gather(2, places.to(fill.device))


class Segments:
    """Segments of clips, int16 [N, L], drawn evenly, with the mels that the vocoder reads.

    As published: the mel is made of the segment alone, and each clip is brought to one peak first. With `mels`
    [N, M, T] it is cut from those, a segment begins with a frame, and clips stay as loud as their mels say.
    """

    def __init__(
        self, waves: Tensor, mel: MelConfig, frames: int, peak: float, mels: Tensor | None, device: torch.device
    ) -> None:
        have = mel.frames(waves.shape[1])
        if have < frames:
            raise UserError(f"clips of {have} frames, segments of {frames}: expected a segment no longer than a clip")
        self.waves, self.frames, self.hop, self.mels, self.device = waves, frames, mel.hop, mels, device
        self.front_end = LogMel(mel).to(device)
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
        return self._cut(clips, first * self.hop, long), cut_frames(self.mels, clips, first, self.frames).to(
            self.device
        )

    def _cut(self, clips: Tensor, starts: Tensor, long: int) -> Tensor:
        wave = self.waves[clips[:, None], starts[:, None] + torch.arange(long)].float() / 32768
        return (wave * self.factors[clips, None]).to(self.device)


def learning_rate(config: TrainHifigan | TrainMhifigan, step: int, count: int) -> float:
    """Return the rate of a step when an epoch is `count` clips; it does not depend on `steps`, which may be raised later."""
    return config.lr * config.lr_decay ** (step * config.batch // count)


def main(config: TrainHifigan) -> int:
    """`foleybox train vocoder --vocoder hifigan-v1`."""
    if config.threads:  # what is decoded before the first step counts too
        torch.set_num_threads(config.threads)
    kept, held = find_sources(config.data, config.tiers, config.held_out)
    mel = MELS[config.mel]
    print(f"{len(kept)} clips to train on, {len(held)} held out, into {config.out}")
    waves, held_waves = (load_wave_cache(clips, mel.rate, config.seconds) for clips in (kept, held))
    decoded = None
    if config.mels_from:
        decoded = decode_clips(config.mels_from, kept, held, mel, config.seconds, config.device)
    train(config, waves, held_waves, heard(kept), decoded)
    return 0


def main_mhifigan(config: TrainMhifigan) -> int:
    """`foleybox train mhifigan`."""
    kept, held = find_sources(config.data, config.tiers, config.held_out)
    print(f"{len(kept)} clips to train on, {len(held)} held out, into {config.out}")
    if config.features.stand_in:
        print("stand-in encoder: random weights in MERT's place; nothing of this run tells anything about MERT")
    rate = MELS["cembed"].rate
    waves, held_waves = (load_wave_cache(clips, rate, FRAMES * MELS["cembed"].hop / rate) for clips in (kept, held))
    cembeds, held_cembeds = (load_cembeds(clips, config.features) for clips in (kept, held))
    train(config, waves, held_waves, heard(kept), cembeds=(cembeds, held_cembeds))
    return 0


def train(
    config: TrainHifigan | TrainMhifigan,
    waves: Tensor,
    held: Tensor,
    clips: list[dict[str, str]],
    decoded: Decoded | None = None,
    cembeds: tuple[Cembeds, Cembeds] | None = None,
) -> Hifigan | Mhifigan:
    """Train on `waves`, measure on `held`, both int16 [N, L] at the mel's rate; return the generator.

    `clips` is `data.heard` of what the waves are, for the run's record; `decoded` are mels to read in place of the
    waves' own; `cembeds` are those of the waves and of the held, for an MHiFiGAN. Raises UserError for clips shorter than
    a segment, a run folder of another configuration, or weights to start from that do not fit.
    """
    positive = dict.fromkeys(("segment", "batch", "steps", "log_every", "save_every", "sample_every"), 1)
    at_least(config, **positive, period_width=1, scale_width=1, lr=0, lr_decay=0, threads=0, seed=0)
    if config.threads:
        torch.set_num_threads(config.threads)
    if isinstance(config, TrainMhifigan):
        at_least(config.masks, mask_frames=0, mask_mel_rows=0, mask_encoder_rows=0)
        part, mel, start_from = "mhifigan", MELS["cembed"], None
        model = mhifigan_config(config.vocoder, config.width)
    else:
        at_least(config, peak=0)
        part, mel, start_from = "vocoder", MELS[config.mel], config.start_from
        model = hifigan_config(mel, config.vocoder, config.width)
    unsynced = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerator_for(config.device, config.precision, config.out, config.tracker, handlers=[unsynced])
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    record = replace(config, mels_from=Path(decoded.fingerprint)) if decoded else config
    known = heard_with(clips, heard_before(start_from))
    if isinstance(config, TrainHifigan) and config.mels_from:  # what it heard is in the mels that it makes
        known = heard_with(known, read_clips(config.mels_from))
    stand_in = "-stand-in" if isinstance(config, TrainMhifigan) and config.features.stand_in else ""
    judge_mel = LogMel(replace(mel, low=0.0, high=mel.rate / 2)).to(device)  # the whole band, whatever is read

    torch.manual_seed(config.seed)
    if isinstance(config, TrainMhifigan):
        assert cembeds is not None
        generator = Mhifigan(model).to(device)
        segments = MaskedSegments(waves, cembeds[0], config, generator)
        held_read = cembeds[1][torch.arange(len(held))]
        fill_rows(generator.rows, cembeds[0], config.scale)
    else:
        generator = Hifigan(model)
        segments = Segments(waves, mel, config.segment, config.peak, decoded.mels if decoded else None, device)
        held_read = decoded.held if decoded else None
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
    if start_from and not (config.out / "state.pt").is_file():
        if start_from.is_dir():
            start_vocoder(start_from, [("generator", generator), ("critics", critics)])
        elif isinstance(generator, Hifigan):
            read_official_hifigan(start_from, generator)
    with accelerator.main_process_first():
        open_run(config.out, part, record, known, start_from if start_from and start_from.is_dir() else None)
    start = resume(config.out / "state.pt", parts)
    vocode, optimizer = accelerator.prepare(generator, optimizer)
    *judges, critics_optimizer = accelerator.prepare(*critics, critics_optimizer)
    for network in (vocode, *judges):
        accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # the loop says where autocast is

    with Log(config.out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.seed, step, rank)
            rate = learning_rate(config, step, len(waves))
            for chosen in (optimizer, critics_optimizer):
                chosen.param_groups[0]["lr"] = rate
            real, read = segments.draw(share(batch_indices(step, config.batch, len(waves), config.seed), rank, world))
            with accelerator.autocast():
                fake = vocode(read)  # [B, segment hop]
            fake = fake.float()

            critics.requires_grad_(True)
            with accelerator.autocast():
                real_scores, _ = judge(judges, real)
                fake_scores, _ = judge(judges, fake.detach())
            judged = losses.squares_discriminator(real_scores, fake_scores)
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
                "adversarial": losses.squares_generator(fake_scores),
                "matching": config.matching_weight * losses.feature_matching(target, seen),
                "mel": config.mel_weight * losses.mel_distance(judge_mel(real), judge_mel(fake)),
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
            if done % config.sample_every == 0 and accelerator.is_main_process:
                extra = measure(generator, held, mel, held_read)
                sheet = config.out / "samples" / f"step_{done:07d}{stand_in}.png"
                draw(generator, held[:8], mel, sheet, None if held_read is None else held_read[:8])
            if due(done, config.steps, config.log_every, config.sample_every):
                log.write(done, {**extra, "lr": rate, **({"stand_in": 1.0} if stand_in else {})})
            if accelerator.is_main_process and due(done, config.steps, config.save_every):
                save_state(config.out / "state.pt", done, parts)
            log.advance(done)
    return generator.eval()


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
