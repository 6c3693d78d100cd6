"""What can be done for a GAN instrument without training: finish its mels before the vocoder, and choose among many.

python benchmarks/kt_finish.py try ../shared --instrument runs/x/sagan --label Rain --settings 1.1,yes,mean,-0.7,1,600
python benchmarks/kt_finish.py draw ../shared --instrument runs/x/sagan --out runs/finished

A GAN's mels have faults that are the same in all of them, and can be taken out without a network: a pattern that
transposed convolutions leave in the same places of every mel, levels that are a little off, and a grain that is smoother
or coarser than that of recordings. `try` measures settings for one label by the distance to `train`; CHOSEN is what was
nearest, and `draw` draws with it. Nothing here sees `dev`. Nothing here is KT's: results/kt_options.md says what it does.

Letters: N sounds, M mel bands, T frames.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from foleybox.audio import write_wave
from foleybox.errors import UserError
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.mel import DCASE, SILENCE
from foleybox.lab.evaluation.embeddings import load_embedding
from foleybox.lab.kt.selection import choose, plain_numbers, standardised
from foleybox.lab.play.scored import Ruler
from foleybox.labels import LABELS, parse_label
from foleybox.studio.seeds import noise
from foleybox.studio.synth import Synth, Wave, is_silent

Mels = NDArray[np.float32]
Levels = Literal["drawn", "mean", "all"]


class Finish(NamedTuple):
    """How the sounds of a label are drawn, their mels finished, and which of them are kept."""

    temperature: float = 1.0
    unpattern: bool = False
    "take out what all mels of the label have in the same place"
    levels: Levels = "drawn"
    "give each band the mean level of the recordings' mels, or all of their levels (quantiles), or leave it"
    sharpen: float = 0.0
    "move each frame away from the mean of three by this share of the distance; below 0 toward it"
    grain: float = 0.0
    "add noise until each band changes from frame to frame this many times as much as the recordings' mels; 0: none"
    candidates: int = 0
    "keep of so many those that are spread like the recordings; 0: as they come"


CHOSEN: dict[str, Finish] = {  # for sagan-small's generator with a tuned vocoder, by the distance to `train` (LOG.md)
    "DogBark": Finish(1.1, levels="mean", sharpen=-0.4, grain=1.0),
    "Footstep": Finish(1.0, unpattern=True, levels="all"),
    "GunShot": Finish(1.6, levels="all"),
    "Keyboard": Finish(1.1, sharpen=-0.2, candidates=600),
    "MovingMotorVehicle": Finish(1.5, unpattern=True, levels="mean", sharpen=-0.4, grain=1.0),
    "Rain": Finish(1.1, unpattern=True, levels="mean", sharpen=-0.7, grain=1.0, candidates=300),
    "Sneeze_Cough": Finish(1.1, unpattern=True, levels="mean", sharpen=-0.7, grain=1.0, candidates=300),
}
FITTED = range(1_000, 1_200)
"seeds of the mels that patterns and levels are read off: none of those that are measured"
QUANTILES = np.linspace(0, 1, 257)


# --- finishing ------------------------------------------------------------------------------------------------------


def pattern(mels: Mels, reach: tuple[float, float] = (3.0, 6.0)) -> Mels:
    """Return what mels [N, M, T] share from place to place, [M, T]: their mean, less its average over `reach` around."""
    mean = mels.mean(0)
    return mean - gaussian_filter(mean, reach)


def levelled(mels: Mels, drawn: Mels, real: Mels) -> Mels:
    """Return mels [N, M, T] with the levels of each band carried from those of `drawn` to those of `real`."""
    theirs, ours = (np.quantile(each, QUANTILES, (0, 2)) for each in (drawn, real))  # [quantiles, M]
    bands = [np.interp(mels[:, band], theirs[:, band], ours[:, band]) for band in range(mels.shape[1])]
    return np.stack(bands, 1).astype(np.float32)


def sharpened(mels: Mels, amount: float) -> Mels:
    """Return mels [N, M, T] whose frames are `amount` of the distance further from the mean of three; below 0 nearer."""
    wide = np.pad(mels, ((0, 0), (0, 0), (1, 1)), mode="edge")
    around = (wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]) / 3
    return np.maximum(mels + np.float32(amount) * (mels - around), np.float32(SILENCE))


def band_roughness(mels: Mels) -> NDArray[np.float32]:
    """Return the mean |difference| of neighbouring frames in each band of mels [N, M, T], [M]."""
    return np.abs(np.diff(mels, axis=2)).mean((0, 2))


def lacking_grain(drawn: Mels, real: Mels, share: float) -> NDArray[np.float32]:
    """Return the deviation of noise in each band, [M], with which `drawn` are `share` times as rough as `real`.

    The difference of two frames of white noise of deviation s has the mean magnitude 2 s / sqrt(pi); it and what is
    there add up as squares, nearly: exactly so were the differences that are there Gaussian too.
    """
    missing = (share * band_roughness(real)) ** 2 - band_roughness(drawn) ** 2
    return np.sqrt(np.maximum(missing, 0)) * np.float32(np.sqrt(np.pi) / 2)


class Finisher:
    """Draws and finishes the mels of one label."""

    def __init__(self, synth: Synth, label: str, setting: Finish, real: Mels) -> None:
        """Read patterns, levels and grain off 200 drawn mels and `real` [R, M, T]."""
        self.synth, self.label, self.setting = synth, label, setting
        fitted = self._drawn(FITTED)
        self.pattern = pattern(fitted) if setting.unpattern else np.zeros_like(fitted[0])
        self.fitted, self.real = fitted - self.pattern, real
        self.grain = np.zeros(real.shape[1], np.float32)
        if setting.grain:
            self.grain = lacking_grain(self._steady(self.fitted), real, setting.grain)

    def mels(self, seeds: range) -> Mels:
        """Return finished mels [N, M, T] of seeds; the noise of the grain follows from the seed too."""
        mels = self._steady(self._drawn(seeds) - self.pattern)
        white = [np.random.default_rng([seed, 1]).standard_normal(mels.shape[1:], np.float32) for seed in seeds]
        return np.maximum(mels + self.grain[:, None] * np.stack(white), np.float32(SILENCE))

    def _drawn(self, seeds: range) -> Mels:
        latent = np.stack([noise(seed, self.synth.instrument.latent, 0) for seed in seeds])
        latent *= np.float32(self.setting.temperature)
        parts = np.array_split(latent, max(1, len(latent) // 25))
        return np.concatenate([self.synth.mel([self.label] * len(part), part) for part in parts])

    def _steady(self, mels: Mels) -> Mels:
        """All that is done but the grain."""
        match self.setting.levels:
            case "mean":
                mels = mels + (self.real.mean((0, 2)) - self.fitted.mean((0, 2)))[:, None]
            case "all":
                mels = levelled(mels, self.fitted, self.real)
            case "drawn":
                pass
        return sharpened(mels, self.setting.sharpen)


def finished(finisher: Finisher, clips: int) -> Iterator[tuple[int, Wave]]:
    """Yield `clips` pairs of a seed and its sound; silence, which a synth would draw anew, is left out.

    With candidates the rule is that of `foleybox select` (kernel herding), on plain numbers of the finished mels.
    """
    seeds = range(finisher.setting.candidates or clips * 3 // 2)
    mels = finisher.mels(seeds)
    kept = list(seeds)
    if finisher.setting.candidates:
        numbers = [plain_numbers(torch.from_numpy(each)) for each in (finisher.real, mels)]
        reference, features = standardised(*numbers)
        kept = choose(features, torch.ones(len(mels)), reference, clips * 3 // 2, near=2.0).kept
    vocode = finisher.synth.vocode
    waves = (wave for first in range(0, len(kept), 10) for wave in vocode(mels[kept[first : first + 10]]))
    audible = (pair for pair in zip(kept, waves, strict=True) if not is_silent(pair[1]))
    yield from itertools.islice(audible, clips)


def training_mels(shared: Path) -> dict[str, Mels]:
    """Return the training clips' mels by label."""
    clips = find_clips(f"{shared}/data/foley:train")
    mels, ids = load_mels(clips, DCASE).numpy(), np.array([clip.label.id for clip in clips if clip.label])
    return {label.name: mels[ids == label.id] for label in LABELS}


# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Try:
    """Measure settings for one label by the distance of its sounds to the training clips."""

    shared: tyro.conf.Positional[Path]
    label: str
    settings: tuple[str, ...]
    "each `temperature,unpattern,levels,sharpen,grain,candidates`, such as `1.1,yes,mean,-0.7,1,600`; see Finish"
    instrument: str = "sagan-small"
    clips: int = 100


def setting_of(text: str) -> Finish:
    """Read a setting of the command line. Raises UserError."""
    parts = text.split(",")
    try:
        temperature, unpattern, levels, sharpen, grain, candidates = parts
        if unpattern not in ("yes", "no") or levels not in ("drawn", "mean", "all"):
            raise ValueError
        return Finish(float(temperature), unpattern == "yes", levels, float(sharpen), float(grain), int(candidates))
    except ValueError:
        raise UserError(
            f"--settings {text}: expected temperature,unpattern (yes or no),levels (drawn, mean or all),sharpen,grain,"
            "candidates, such as 1.1,yes,mean,-0.7,1,600"
        ) from None


def try_all(config: Try) -> None:
    label, settings = parse_label(config.label), [setting_of(text) for text in config.settings]
    synth, real = Synth.load(config.instrument, threads=1), training_mels(config.shared)[label.name]
    ruler = Ruler(find_clips(f"{config.shared}/data/foley:train"), load_embedding("mn04"))
    for text, setting in zip(config.settings, settings, strict=True):
        waves = np.stack([wave for _, wave in finished(Finisher(synth, label.name, setting, real), config.clips)])
        distance = ruler.by_label(torch.from_numpy(waves), [label.id] * len(waves))[label.id]
        print(f"{label.name} {text} {distance:.2f}", flush=True)


@dataclass(frozen=True)
class Draw:
    """Draw sounds with CHOSEN into class folders."""

    shared: tyro.conf.Positional[Path]
    out: Path
    instrument: str = "sagan-small"
    clips: int = 100
    "of each label"
    labels: tuple[str, ...] = tuple(label.name for label in LABELS)


def draw(config: Draw) -> None:
    synth, real = Synth.load(config.instrument, threads=1), training_mels(config.shared)
    for label in map(parse_label, config.labels):
        finisher = Finisher(synth, label.name, CHOSEN[label.name], real[label.name])
        for seed, wave in finished(finisher, config.clips):
            path = config.out / label.name / f"{label.name}_s{seed}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wave(path, wave, synth.instrument.rate)
        print(label.name, flush=True)


COMMANDS = {"try": (Try, try_all), "draw": (Draw, draw)}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        sys.exit(__doc__)
    kind, function = COMMANDS[name]
    try:
        function(tyro.cli(kind, args=sys.argv[2:]))
    except UserError as error:
        sys.exit(f"kt_finish: {error}")
