"""Train a Vocos vocoder: mel in, wave out; one visible loop. `foleybox train vocoder FOLDER ... -o RUN`.

Two kinds of losses teach the fine structure of noise, which cannot be known from its mel, so that a plain distance
smooths it and makes rain sound metallic:

* `adversarial`: after a first phase with distances of mels and of multi-resolution STFTs, multi-period and
  multi-resolution discriminators with feature matching replace the latter (HiFi-GAN, Vocos);
* `textures`: distances of local statistics, of repetition, of attacks and of the mean spectrum, without discriminators.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.core import augment
from foleybox.lab.core.loop import Log, accelerator_for, at_least, batch_indices, due, seed_step, share, update_average
from foleybox.lab.core.losses import feature_matching, mel_distance, squares_discriminator, squares_generator
from foleybox.lab.core.mel import MELS, SILENCE, LogMel, MelConfig
from foleybox.lab.core.runs import (
    PythonOnly,
    RunConfig,
    merge_rows,
    open_run,
    read_clips,
    read_run_config,
    resume,
    save_state,
)
from foleybox.lab.vocoders.hifigan import MultiPeriodDiscriminator, PeriodConfig
from foleybox.lab.vocoders.losses import (
    attack_distance,
    excess_repetition,
    mean_spectrum_distance,
    multi_resolution_stft,
    spectral_texture_distance,
    texture_distance,
)
from foleybox.lab.vocoders.runs import band_factor, load_initial_weights, vocos_config
from foleybox.lab.vocoders.vocos import MultiResolutionDiscriminator, ResolutionConfig, Vocos
from foleybox.lab.vocoders.waves import Decoded, Redrawing, cut_frames, measure, rows_of_start, vocoder_sheet

REPETITION_FRAMES = 12
"shortest crop for `losses.excess_repetition`: it has lags up to 91 ms"


@dataclass(frozen=True)
class VocosRecipe:
    """What a preset decides: the weights of the losses, the schedule and the discriminators."""

    mel: float = 45.0
    "weight of the L1 distance of log-mels"
    stft: float = 2.0
    "weight of the multi-resolution STFT distances; 0 once the discriminators have joined"
    texture: float = 0.0
    "weight of the texture distances, of mels and of spectra in long windows"
    repetition: float = 0.0
    "weight of the repetition in excess of the real crop's"
    attack: float = 0.0
    "weight of the distance of fine levels around attacks"
    mean_spectrum: float = 0.0
    "weight of the deviation of the spectrum that all crops of a batch have in common"
    lr: float = 1e-3
    half_life: int = 20_000
    "steps after which the learning rate has halved"
    warm_up: int = 200
    "steps of linear rise to the learning rate"
    decay: float = 0.999
    "of the moving average of the weights, which is what is exported"
    discriminators_from: int | None = 15_000
    "step at which the discriminators join; None: never, and the settings below have no effect"
    adversarial_mel: float = 12.0
    "weight `mel` from then on: with 45 its gradient is ten times that of narrow discriminators, and rain stays smooth"
    adversarial_lr: float = 3e-4
    "learning rate from then on, of generator and discriminators"
    matching: float = 2.0
    "weight of the feature matching"
    period_width: int = 32
    "channels of the multi-period discriminator's first layer"
    resolution_width: int = 32
    "channels of the multi-resolution discriminator"
    resolution_input: Literal["complex", "log"] = "complex"
    "input of the multi-resolution discriminator: complex spectra, or log magnitudes"
    discriminated: int = 32
    "frames of a crop that the discriminators are given, at a random position"


PRESETS = {
    "adversarial": VocosRecipe(),
    "adversarial-cpu": VocosRecipe(
        half_life=6_000,
        discriminators_from=5_000,
        period_width=4,
        resolution_width=16,
        resolution_input="log",
        discriminated=16,
    ),
    "textures": VocosRecipe(
        mel=4.0, stft=0.0, texture=10.0, repetition=7.0, attack=10.0, mean_spectrum=10.0,
        lr=4e-4, half_life=1_500, decay=0.995, discriminators_from=None,
    ),
    "textures-plain": VocosRecipe(
        mel=4.0, stft=0.0, texture=10.0, repetition=10.0,
        lr=3e-4, half_life=800, warm_up=50, decay=0.995, discriminators_from=None,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class TrainVocoder:
    """Train a Vocos vocoder on any recordings: mel in, wave out. The same command resumes.

    Example: foleybox train vocoder sounds/ more_sounds:train --out runs/vocoder
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; with or without labels"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/vocoder")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    preset: Literal["adversarial", "adversarial-cpu", "textures", "textures-plain"] = "adversarial"
    """losses and schedule. adversarial: discriminators join after 15,000 steps; -cpu: narrow ones after 5,000. textures: none,
    to train on with --start-from, foley's; -plain: without the losses of attacks and mean spectrum"""
    vocoder: PythonOnly[Literal["vocos"]] = "vocos"
    "recorded in the run, as `train hifigan` records its own"
    mel: Literal["dcase", "wide"] = "dcase"
    "the mel that the vocoder reads: 80 bands up to 8 kHz, or 100 up to 11 kHz (patches)"
    full_band: bool = False
    "make waves at twice the mel's rate, from recordings that have frequencies up to there"
    size: Literal["small", "medium", "base"] = "medium"
    "1.65, 2.0 or 13.5 million weights"
    held_out: float = 0.04
    "share of the recordings that is not trained on, for the held-out measurements"
    mels_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `train vqvae` or `train autoencoder`: read its reconstructions of the mels; the target stays the real waves"
    redrawing: Redrawing = field(default_factory=Redrawing)
    start_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of the same mel and size, whose averaged weights are the initial ones; discriminators join at once"
    batch: int = 16
    steps: int = 200_000
    "in total, including those of earlier sittings"
    lr: float | None = None
    "initial learning rate, if not the preset's"
    half_life: int | None = None
    "steps after which the learning rate has halved, if not the preset's"
    recipe: PythonOnly[VocosRecipe | None] = None
    "losses and schedule, instead of `preset`"
    segment: PythonOnly[int] = 64
    "frames of a crop"
    seconds: PythonOnly[float] = 4.0
    "clips are cut or zero-padded to this length"
    gain_db: PythonOnly[tuple[float, float]] = (-12.0, 6.0)
    "random gain of each crop, as far as full scale allows"
    silent_share: PythonOnly[float] = 0.1
    "share of the crops drawn from anywhere, digital silence included; the others contain sound"
    clip_norm: PythonOnly[float] = 10.0
    "largest norm of a gradient"
    run: RunConfig = field(default_factory=RunConfig)

    def resolved(self) -> VocosRecipe:
        """Return the recipe: `recipe` as it is, or that of the preset and the flags."""
        if self.recipe is not None:
            return self.recipe
        chosen = PRESETS[self.preset]
        if self.start_from and chosen.discriminators_from is not None:  # the first phase is for random weights
            chosen = replace(chosen, discriminators_from=0)
        if self.lr is not None:
            chosen = replace(chosen, **{"adversarial_lr" if chosen.discriminators_from == 0 else "lr": self.lr})
        return chosen if self.half_life is None else replace(chosen, half_life=self.half_life)


SOUND = 33  # of 32768, -60 dBFS: a frame with a larger sample contains sound
CONTEXT = 2  # frames on each side of a crop, so that its mel equals that part of the clip's mel


class Crops:
    """Random crops of clips, int16 [N, L], as waves with the mel frames that the whole clip has there.

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
        self.sounding[self.sounding.sum(1) == 0] = 1  # in a silent clip all positions are equal
        margin = CONTEXT * mel.hop
        self.padded = F.pad(waves.float(), (margin, margin), mode="reflect").to(torch.int16)
        self.front_end = LogMel(mel)

    def starts(self, clips: Tensor) -> Tensor:
        """Draw first frames, int64 [B], from torch's generator: most crops contain a frame with sound."""
        anywhere = torch.rand(len(clips)) < self.silent_share
        weights = torch.where(anywhere[:, None], torch.ones(()), self.sounding[clips])
        chosen = torch.multinomial(weights, 1)[:, 0]
        start = chosen - torch.randint(self.segment, (len(clips),))
        return start.clamp(0, self.frames - self.segment)

    def cut(self, clips: Tensor, starts: Tensor, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (wave [B, segment hop], its log-mel [B, M, segment]); `gain` [B] is a factor of the amplitude."""
        hop, length = self.mel.hop, self.segment + 2 * CONTEXT
        samples = starts[:, None] * hop + torch.arange(length * hop)
        wave = self.padded[clips[:, None], samples].float() / 32768
        factor = torch.ones(len(clips))
        if gain is not None:
            full_scale = 1 / wave.abs().amax(1).clamp(min=1e-4)
            factor = torch.minimum(gain, full_scale.clamp(min=1))
        wave = wave * factor[:, None]
        if self.mels is None:
            mel = self.front_end(wave)[:, :, CONTEXT:-CONTEXT]
        else:
            mel = cut_frames(self.mels, clips, starts, self.segment)
            mel = augment.gain(mel[:, None], factor.log(), SILENCE)[:, 0]
        return wave[:, CONTEXT * hop : -CONTEXT * hop], mel


def learning_rate(recipe: VocosRecipe, step: int) -> float:
    """Return the learning rate of a step: linear rise, then exponential decay, anew when the discriminators join."""
    start, peak = 0, recipe.lr
    if recipe.discriminators_from is not None and step >= recipe.discriminators_from:
        start, peak = recipe.discriminators_from, recipe.adversarial_lr
    return peak * min(1.0, (step - start + 1) / recipe.warm_up) * 0.5 ** ((step - start) / recipe.half_life)


def train(
    config: TrainVocoder, waves: Tensor, held: Tensor, clips: list[dict[str, str]], decoded: Decoded | None = None
) -> Vocos:
    """Train on `waves`, measure on `held`, both int16 [N, L]; return the averaged model.

    The waves are at the mel's rate, or, with `full_band`, at twice that: then `decoded` must be given. `clips` are
    `clips.training_rows` of the waves; `decoded` are mels to read instead of the waves' own. Raises UserError
    for settings out of range, clips shorter than a crop, a run folder of another configuration, or initial weights that
    do not fit.
    """
    recipe = config.resolved()
    at_least(config, segment=1, batch=1, steps=1)
    at_least(recipe, half_life=1, warm_up=1, discriminated=1)
    if recipe.repetition and config.segment < REPETITION_FRAMES:
        raise UserError(f"segment {config.segment} with a repetition loss: expected {REPETITION_FRAMES} frames or more")
    n_clips = len(waves)
    redrawn = decoded.redrawn if decoded else torch.zeros(0, dtype=torch.int64)
    n_redrawn = round(config.redrawing.redrawn_share * config.batch) if len(redrawn) else 0
    mels = decoded.mels if decoded else None
    mel_config, factor = MELS[config.mel], band_factor(vars(config))
    output = mel_config.times(factor)
    crops = Crops(torch.cat([waves, waves[redrawn]]), output, config.segment, config.silent_share, mels)
    rate, hop = output.rate, output.hop
    record = replace(config, recipe=recipe)
    if decoded and config.mels_from:  # the fingerprint of the weights instead of their path
        theirs = Path(decoded.fingerprint)
        redrawing = replace(config.redrawing, redrawn_by=theirs if config.redrawing.redrawn_by else None)
        record = replace(record, mels_from=theirs, redrawing=redrawing)
    makers = [run for run in (config.mels_from, config.redrawing.redrawn_by) if run]  # their clips are in their mels
    rows = merge_rows(clips, rows_of_start(config.start_from), *map(read_clips, makers))
    accelerator = accelerator_for(config.run, "no", config.out)
    device = accelerator.device
    sizes = ((1024, 256, 100), (512, 128, 80), (256, 64, 40))  # the roughness of noise shows at several resolutions
    spectra = [
        LogMel(MelConfig(rate, n_fft * factor, step * factor, bands, 0, rate / 2)).to(device)
        for n_fft, step, bands in sizes
    ]

    torch.manual_seed(config.run.seed)
    generator = Vocos(vocos_config(mel_config, config.size, factor))
    average = copy.deepcopy(generator).eval().requires_grad_(False).to(device)
    optimizer = torch.optim.AdamW(generator.parameters(), recipe.lr, (0.8, 0.99))
    parts: dict[str, Any] = {"generator": generator, "average": average, "optimizer": optimizer}
    critics, critics_optimizer = nn.ModuleList(), None
    if recipe.discriminators_from is not None:
        resolution = ResolutionConfig(recipe.resolution_width, input=recipe.resolution_input)
        critics.append(MultiPeriodDiscriminator(PeriodConfig(recipe.period_width)))
        critics.append(MultiResolutionDiscriminator(resolution))
        critics_optimizer = torch.optim.AdamW(critics.parameters(), recipe.adversarial_lr, (0.8, 0.99))
        parts |= {"critics": critics, "critics_optimizer": critics_optimizer}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state of a resumed run
    if config.start_from and not (config.out / "state.pt").is_file():
        weights: list[tuple[str, nn.Module]] = [("average", generator), ("average", average)]
        if len(critics) and discriminator_sizes(read_run_config(config.start_from)) == discriminator_sizes(
            vars(recipe)
        ):
            weights.append(("critics", critics))
        load_initial_weights(config.start_from, weights)
    with accelerator.main_process_first():
        open_run(config.out, "vocoder", record, rows, config.start_from)
    start = resume(config.out / "state.pt", parts)
    vocode, optimizer = accelerator.prepare(generator, optimizer)
    discriminators: list[nn.Module] = []
    if critics_optimizer is not None:
        *discriminators, critics_optimizer = accelerator.prepare(*critics, critics_optimizer)

    with Log(config.out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, accelerator.process_index)
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
            indices = batch_indices(step, config.batch - n_redrawn, n_clips, config.run.seed)
            if n_redrawn:
                indices = torch.cat([indices, n_clips + batch_indices(step, n_redrawn, len(redrawn), config.run.seed)])
            indices = share(indices, accelerator.process_index, accelerator.num_processes)
            low, high = config.gain_db
            gain = 10 ** ((low + (high - low) * torch.rand(len(indices))) / 20)
            real, mel = (part.to(device) for part in crops.cut(indices, crops.starts(indices), gain))
            fake = vocode(mel)  # [B, segment hop]
            terms: dict[str, Tensor] = {}
            numbers: dict[str, Tensor] = {}

            adversarial = recipe.discriminators_from is not None and step >= recipe.discriminators_from
            if adversarial:
                assert critics_optimizer is not None
                critics_optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
                # The discriminators get a part of each crop, all at one level: soft sounds count as much as loud ones.
                level = 0.1 / real.square().mean(1, keepdim=True).sqrt().clamp(min=1e-3)
                length = min(recipe.discriminated, config.segment)
                first = int(torch.randint(config.segment - length + 1, ())) * hop
                real_part, fake_part = ((level * wave)[:, first : first + length * hop] for wave in (real, fake))

                critics.requires_grad_(True)
                critics_loss = torch.zeros((), device=device)
                targets = []
                for discriminate in discriminators:
                    real_scores, activations = discriminate(real_part)
                    fake_scores, _ = discriminate(fake_part.detach())
                    critics_loss = critics_loss + squares_discriminator(real_scores, fake_scores)
                    targets.append([[layer.detach() for layer in part] for part in activations])
                critics_optimizer.zero_grad()
                accelerator.backward(critics_loss)
                accelerator.unscale_gradients(critics_optimizer)
                norm = nn.utils.clip_grad_norm_(critics.parameters(), config.clip_norm)
                if torch.isfinite(norm) or accelerator.scaler is not None:  # the scaler skips such a step itself
                    critics_optimizer.step()
                numbers |= {"discriminator": critics_loss, "discriminator_norm": norm}

                critics.requires_grad_(False)
                for discriminate, target, name in zip(discriminators, targets, ("periods", "resolutions"), strict=True):
                    fake_scores, activations = discriminate(fake_part)
                    terms[f"adversarial_{name}"] = squares_generator(fake_scores)
                    terms[f"matching_{name}"] = recipe.matching * feature_matching(target, activations)

            pairs = [(spectra[0](real), spectra[0](fake))]
            terms["mel"] = (recipe.adversarial_mel if adversarial else recipe.mel) * mel_distance(*pairs[0])
            if recipe.stft and not adversarial:
                convergence, distance = multi_resolution_stft(real, fake)
                terms |= {"stft_convergence": recipe.stft * convergence, "stft_distance": recipe.stft * distance}
            if recipe.texture:
                pairs += [(spectrum(real), spectrum(fake)) for spectrum in spectra[1:]]
                terms["texture"] = recipe.texture * torch.stack([texture_distance(*pair) for pair in pairs]).mean()
                terms["long_texture"] = recipe.texture * spectral_texture_distance(real, fake, factor)
            if recipe.repetition:
                terms["repetition"] = recipe.repetition * excess_repetition(real, fake, factor)
            if recipe.attack:
                n_real = int((indices < n_clips).sum())  # redrawn mels have their attacks at other times
                terms["attack"] = recipe.attack * attack_distance(real[:n_real], fake[:n_real], factor)
            if recipe.mean_spectrum:
                terms["mean_spectrum"] = recipe.mean_spectrum * mean_spectrum_distance(real, fake, factor)
            loss = torch.stack(list(terms.values())).sum()

            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.clip_grad_norm_(generator.parameters(), config.clip_norm)
            # A step that is not finite is skipped, by the scaler if there is one, and counted; no checkpoint has it.
            if torch.isfinite(norm) or accelerator.scaler is not None:
                optimizer.step()
                update_average(average, generator, recipe.decay, step)

            done = step + 1
            log.add({"loss": loss, **terms, **numbers, "norm": norm, "skipped": (~torch.isfinite(norm)).float()})
            extra: dict[str, float] = {}
            if done % config.run.sample_every == 0 and accelerator.is_main_process:
                held_mels = decoded.held if decoded else None
                extra = measure(average, held, mel_config, held_mels, factor)
                sheet = config.out / "samples" / f"step_{done:07d}.png"
                shown = None if held_mels is None else held_mels[:8]
                vocoder_sheet(sheet, average, held[:8], mel_config, shown, factor)
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, {**extra, "lr": learning_rate(recipe, step)})
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
            log.advance(done)
    return average


def discriminator_sizes(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what must agree for the weights of discriminators to be used: of a recipe, or of a run's settings.

    Runs of earlier versions have these settings at the top level, the input as `resolution_sees`.
    """
    values = settings.get("recipe") or settings
    seen = values.get("resolution_input", values.get("resolution_sees", "complex"))
    return values.get("period_width"), values.get("resolution_width"), seen
