"""Train a vocoder: real waves, their mels, and one loop that lowers the difference.

Phase A, up to `adversarial_from`: L1 of the log-mel (to 11 kHz, above what the vocoder is given) and multi-resolution
STFT. In phase B multi-period and multi-resolution discriminators with feature matching take the place of the latter:
the fine structure of noise cannot be known from its mel, so the best guess of any distance is its median, smooth and
metallic (rain reached 0.78 of its roughness); a discriminator asks that noise be rough, and not how.
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.core import augment
from foleybox.lab.core.loop import Log, accelerator_for, at_least, batch_indices, due, seed_step, share, update_average
from foleybox.lab.core.losses import feature_matching, mel_distance, squares_discriminator, squares_generator
from foleybox.lab.core.mel import MELS, SILENCE, LogMel, MelConfig
from foleybox.lab.core.runs import RunConfig, merge_rows, open_run, read_clips, read_run_config, resume, save_state
from foleybox.lab.vocoders.hifigan import MultiPeriodDiscriminator, PeriodConfig
from foleybox.lab.vocoders.losses import (
    attack_distance,
    more_repetition,
    multi_resolution_stft,
    own_colour,
    texture_distance,
    texture_of_waves,
)
from foleybox.lab.vocoders.runs import start_vocoder, vocos_config
from foleybox.lab.vocoders.vocos import MultiResolutionDiscriminator, ResolutionConfig, Vocos
from foleybox.lab.vocoders.waves import Decoded, Redrawing, cut_frames, draw, measure, rows_of_start

HEARS_REPETITION = 12
"frames, of which `losses.more_repetition` has lags of 91 ms left"


@dataclass(frozen=True)
class TrainVocoder:
    """Train a Vocos vocoder on any recordings: mel in, wave out. The same command again resumes.

    Example: foleybox train vocoder sounds/ more_sounds:train --out runs/vocoder
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; any sound helps, with a label or without"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/vocoder")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    vocoder: tyro.conf.Suppress[Literal["vocos"]] = "vocos"
    "recorded in the run; `train hifigan` records its own"
    mel: Literal["dcase", "wide"] = "dcase"
    "the mel that the vocoder reads"
    size: Literal["small", "medium", "base"] = "medium"
    "1.65, 2.0 or 13.5 million weights"
    seconds: float = 4.0
    "clips are cut or zero-padded to this length"
    held_out: float = 0.04
    "share of the recordings never trained on; the logged held-out numbers are theirs"
    mels_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train vqvae` or `train autoencoder`: read the clips' mels as it gives them back, and make the real waves of them"
    redrawing: Redrawing = field(default_factory=Redrawing)
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train vocoder` of the same sizes, whose weights to start with; --adversarial-from 0 goes on in phase B"
    segment: int = 64
    "frames of a crop"
    batch: int = 16
    steps: int = 200_000
    adversarial_from: int = 15_000
    "step at which the discriminators join"
    lr: float = 1e-3
    "in phase A"
    adversarial_lr: float = 3e-4
    "in phase B, of both sides"
    half_life: int = 20_000
    "steps after which the learning rate has halved"
    warm_up: int = 200
    "steps of linear rise to the learning rate"
    mel_weight: float = 45.0
    "in phase A"
    adversarial_mel_weight: float = 12.0
    "in phase B: with HiFi-GAN's 45 and narrow discriminators the mel's gradient was ten times theirs, and rain smooth"
    stft_weight: float = 2.0
    "in phase A only"
    texture_weight: float = 0.0
    "of the distance of local statistics, in both phases: noise as rough as it should be, without discriminators"
    repetition_weight: float = 0.0
    "of how much more than the real one a crop repeats itself, in both phases: noise that buzzes, which no mel shows"
    attack_weight: float = 0.0
    "of the distance of fine levels around attacks, in both phases: clicks and steps that begin when they sound, not before"
    colour_weight: float = 0.0
    "of the colour that all crops are given alike, in both phases: no ripples of the vocoder's own"
    matching_weight: float = 2.0
    period_width: int = 32
    "channels of the multi-period discriminator's first layer: 4 on a CPU"
    resolution_width: int = 32
    "channels of the multi-resolution discriminator: 16 on a CPU"
    resolution_sees: Literal["complex", "log"] = "complex"
    "what the multi-resolution discriminator is shown: complex spectra, or the logarithm of their magnitudes"
    judged: int = 32
    "frames of a crop that the discriminators hear, at a random place: they cost most of a step of phase B"
    gain_db: tuple[float, float] = (-12.0, 6.0)
    "each crop is made this much louder, drawn evenly, as far as full scale allows: a vocoder should know every level"
    silent_share: float = 0.1
    "share of the crops drawn from anywhere, digital silence included; the others hold sound"
    clip_norm: float = 10.0
    "gradients longer than this are shortened"
    decay: float = 0.999
    "of the average of the weights, which is what is exported"
    run: RunConfig = field(default_factory=RunConfig)


SOUND = 33  # of 32768, -60 dBFS: a frame with a larger sample holds sound
CONTEXT = 2  # frames on each side of a crop, so that its mel is cut from the clip's mel and not made anew


class Crops:
    """Random crops of clips, int16 [N, L], as waves with the very mel frames that the whole clip has there.

    With `mels` [N, M, T], the frames are cut from those.
    """

    def __init__(
        self, waves: Tensor, mel: MelConfig, segment: int, silent_share: float, mels: Tensor | None = None
    ) -> None:
        self.mel, self.segment, self.silent_share, self.mels = mel, segment, silent_share, mels
        self.frames = mel.frames(waves.shape[1])
        if self.frames < segment:
            raise UserError(f"clips of {self.frames} frames, crops of {segment}: expected a crop no longer than a clip")
        peaks = waves[:, : self.frames * mel.hop].reshape(len(waves), self.frames, mel.hop).abs().amax(2)
        self.sounding = (peaks >= SOUND).float()  # [N, T]
        self.sounding[self.sounding.sum(1) == 0] = 1  # a clip of silence has no better places
        margin = CONTEXT * mel.hop
        self.padded = F.pad(waves.float(), (margin, margin), mode="reflect").to(torch.int16)
        self.front_end = LogMel(mel)

    def starts(self, clips: Tensor) -> Tensor:
        """Draw first frames, int64 [B], from torch's generator: most crops hold a frame with sound."""
        anywhere = torch.rand(len(clips)) < self.silent_share
        weights = torch.where(anywhere[:, None], torch.ones(()), self.sounding[clips])
        chosen = torch.multinomial(weights, 1)[:, 0]
        start = chosen - torch.randint(self.segment, (len(clips),))
        return start.clamp(0, self.frames - self.segment)

    def cut(self, clips: Tensor, starts: Tensor, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (wave [B, segment hop], its log-mel [B, M, segment]); `gain` [B] is a factor of the amplitude."""
        hop, long = self.mel.hop, self.segment + 2 * CONTEXT
        places = starts[:, None] * hop + torch.arange(long * hop)
        wave = self.padded[clips[:, None], places].float() / 32768
        factor = torch.ones(len(clips))
        if gain is not None:
            room = 1 / wave.abs().amax(1).clamp(min=1e-4)
            factor = torch.minimum(gain, room.clamp(min=1))
        wave = wave * factor[:, None]
        if self.mels is None:
            mel = self.front_end(wave)[:, :, CONTEXT:-CONTEXT]
        else:
            mel = cut_frames(self.mels, clips, starts, self.segment)
            mel = augment.gain(mel[:, None], factor.log(), SILENCE)[:, 0]
        return wave[:, CONTEXT * hop : -CONTEXT * hop], mel


def learning_rate(config: TrainVocoder, step: int) -> float:
    """Return the rate of a step: a rise, then a half-life; it does not depend on `steps`, which may be raised later."""
    adversarial = step >= config.adversarial_from
    start, peak = (config.adversarial_from, config.adversarial_lr) if adversarial else (0, config.lr)
    return peak * min(1.0, (step - start + 1) / config.warm_up) * 0.5 ** ((step - start) / config.half_life)


def train(
    config: TrainVocoder, waves: Tensor, held: Tensor, clips: list[dict[str, str]], decoded: Decoded | None = None
) -> Vocos:
    """Train on `waves`, measure on `held`, both int16 [N, L] at the mel's rate; return the averaged model.

    `clips` is `data.heard` of what the waves are, for the run's record; `decoded` are mels to read in place of the
    waves' own. Raises UserError for clips shorter than a crop, a run folder of another configuration, or weights to
    start from that do not fit.
    """
    positive = dict.fromkeys(("segment", "batch", "steps", "judged"), 1)
    at_least(config, **positive, half_life=1, warm_up=1, adversarial_from=0)
    if config.repetition_weight and config.segment < HEARS_REPETITION:
        raise UserError(
            f"--segment {config.segment} with --repetition-weight: expected {HEARS_REPETITION} frames or more, which have room "
            "for a repetition"
        )
    count = len(waves)
    again = decoded.again if decoded else torch.zeros(0, dtype=torch.int64)
    beside = round(config.redrawing.redrawn_share * config.batch) if len(again) else 0
    mels = decoded.mels if decoded else None
    crops = Crops(torch.cat([waves, waves[again]]), MELS[config.mel], config.segment, config.silent_share, mels)
    record = config
    if decoded:  # what the weights were, not where they lay
        theirs = Path(decoded.fingerprint) if config.redrawing.redrawn_by else None
        record = replace(
            config, mels_from=Path(decoded.fingerprint), redrawing=replace(config.redrawing, redrawn_by=theirs)
        )
    makers = (config.mels_from, config.redrawing.redrawn_by)  # what they heard is in the mels that they make
    known = merge_rows(clips, rows_of_start(config.start_from), *(read_clips(run) for run in makers if run))
    accelerator = accelerator_for(config.run, "no", config.out)
    device = accelerator.device
    judge_mel = LogMel(MelConfig(crops.mel.rate, 1024, 256, 100, 0, crops.mel.rate / 2)).to(device)

    rate, sizes = crops.mel.rate, ((512, 80), (256, 40))  # noise is rough at these resolutions too
    finer_mels = [LogMel(MelConfig(rate, n_fft, n_fft // 4, bands, 0, rate / 2)).to(device) for n_fft, bands in sizes]

    torch.manual_seed(config.run.seed)
    generator = Vocos(vocos_config(MELS[config.mel], config.size))
    average = copy.deepcopy(generator).eval().requires_grad_(False).to(device)
    periods = MultiPeriodDiscriminator(PeriodConfig(config.period_width))
    resolutions = MultiResolutionDiscriminator(ResolutionConfig(config.resolution_width, sees=config.resolution_sees))
    critics = nn.ModuleList([periods, resolutions])
    optimizer = torch.optim.AdamW(generator.parameters(), config.lr, (0.8, 0.99))
    critics_optimizer = torch.optim.AdamW(critics.parameters(), config.adversarial_lr, (0.8, 0.99))
    parts = {
        "generator": generator,
        "average": average,
        "critics": critics,
        "optimizer": optimizer,
        "critics_optimizer": critics_optimizer,
    }
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    if config.start_from and not (config.out / "state.pt").is_file():
        weights: list[tuple[str, nn.Module]] = [("average", generator), ("average", average)]
        seen = read_run_config(config.start_from).get("resolution_sees", "complex")
        if seen == config.resolution_sees:  # critics of another sight have learned nothing that is of use
            weights.append(("critics", critics))
        start_vocoder(config.start_from, weights)
    with accelerator.main_process_first():
        open_run(config.out, "vocoder", record, known, config.start_from)
    start = resume(config.out / "state.pt", parts)
    vocode, optimizer = accelerator.prepare(generator, optimizer)
    *judges, critics_optimizer = accelerator.prepare(periods, resolutions, critics_optimizer)

    with Log(config.out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, accelerator.process_index)
            adversarial = step >= config.adversarial_from
            for chosen in (optimizer, critics_optimizer):
                chosen.param_groups[0]["lr"] = learning_rate(config, step)

            indices = batch_indices(step, config.batch - beside, count, config.run.seed)
            if beside:
                indices = torch.cat([indices, count + batch_indices(step, beside, len(again), config.run.seed)])
            indices = share(indices, accelerator.process_index, accelerator.num_processes)
            low, high = config.gain_db
            gain = 10 ** ((low + (high - low) * torch.rand(len(indices))) / 20)
            real, mel = (part.to(device) for part in crops.cut(indices, crops.starts(indices), gain))
            fake = vocode(mel)  # [B, segment hop]
            terms: dict[str, Tensor] = {}
            numbers: dict[str, Tensor] = {}

            if adversarial:
                # The critics hear a part of each pair, all at one level: soft sounds are judged as closely as loud.
                level = 0.1 / real.square().mean(1, keepdim=True).sqrt().clamp(min=1e-3)
                hop, long = crops.mel.hop, min(config.judged, config.segment)
                first = int(torch.randint(config.segment - long + 1, ())) * hop
                real_part, fake_part = ((level * wave)[:, first : first + long * hop] for wave in (real, fake))

                critics.requires_grad_(True)
                judged = torch.zeros((), device=device)
                seen_real = []
                for judge in judges:
                    real_scores, seen = judge(real_part)
                    fake_scores, _ = judge(fake_part.detach())
                    judged = judged + squares_discriminator(real_scores, fake_scores)
                    seen_real.append([[layer.detach() for layer in part] for part in seen])
                critics_optimizer.zero_grad()
                accelerator.backward(judged)
                numbers["discriminator"] = judged.detach()
                accelerator.unscale_gradients(critics_optimizer)
                norm = nn.utils.clip_grad_norm_(critics.parameters(), config.clip_norm)
                if torch.isfinite(norm) or accelerator.scaler is not None:  # the scaler skips such a step itself
                    critics_optimizer.step()
                numbers["discriminator_norm"] = norm

                critics.requires_grad_(False)
                for judge, target, name in zip(judges, seen_real, ("periods", "resolutions"), strict=True):
                    fake_scores, seen = judge(fake_part)
                    terms[f"adversarial_{name}"] = squares_generator(fake_scores)
                    terms[f"matching_{name}"] = config.matching_weight * feature_matching(target, seen)

            mel_weight = config.adversarial_mel_weight if adversarial else config.mel_weight
            pair = judge_mel(real), judge_mel(fake)
            terms["mel"] = mel_weight * mel_distance(*pair)
            if config.texture_weight:
                pairs = [pair, *((each(real), each(fake)) for each in finer_mels)]
                textures = [texture_distance(*each) for each in pairs]
                terms["texture"] = config.texture_weight * torch.stack(textures).mean()
                terms["long_texture"] = config.texture_weight * texture_of_waves(real, fake)
            if config.repetition_weight:
                terms["repetition"] = config.repetition_weight * more_repetition(real, fake)
            if config.attack_weight:
                own = int((indices < count).sum())  # what was drawn again has attacks of its own
                terms["attack"] = config.attack_weight * attack_distance(real[:own], fake[:own])
            if config.colour_weight:
                terms["colour"] = config.colour_weight * own_colour(real, fake)
            if config.stft_weight and not adversarial:
                convergence, distance = multi_resolution_stft(real, fake)
                terms["stft_convergence"] = config.stft_weight * convergence
                terms["stft_distance"] = config.stft_weight * distance
            loss = torch.stack(list(terms.values())).sum()

            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.clip_grad_norm_(generator.parameters(), config.clip_norm)
            # A step that is not finite is skipped, by the scaler where there is one, and counted; no checkpoint has it.
            if torch.isfinite(norm) or accelerator.scaler is not None:
                optimizer.step()
                update_average(average, generator, config.decay, step)
            numbers |= {"norm": norm, "skipped": (~torch.isfinite(norm)).float()}

            log.add({"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}, **numbers})
            done = step + 1
            extra: dict[str, float] = {}
            if done % config.run.sample_every == 0 and accelerator.is_main_process:
                held_mels = decoded.held if decoded else None
                extra = measure(average, held, crops.mel, held_mels)
                sheet = config.out / "samples" / f"step_{done:07d}.png"
                draw(average, held[:8], crops.mel, sheet, None if held_mels is None else held_mels[:8])
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, {**extra, "lr": learning_rate(config, step)})
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
            log.advance(done)
    return average
