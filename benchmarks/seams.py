"""Write results/seams.md and seams.png: backgrounds of long sounds, seams of loops, and stereo, measured.

python benchmarks/seams.py results

Long sounds of labels with events, loops of noise, with clicks and of every label, and sounds of two channels.
"""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure as Plot

from foleybox.audio import Wave
from foleybox.files import write_text
from foleybox.lab.evaluation.tables import table
from foleybox.labels import LABELS
from foleybox.studio.extend import extend, finished
from foleybox.studio.loop import find_wraps, loop_clips, loop_source, looped, measure_seam, wrapped
from foleybox.studio.remake import remake
from foleybox.studio.shape import Shape, levels
from foleybox.studio.spectra import band_levels
from foleybox.studio.synth import Clip, Synth
from foleybox.version import commit

RATE = 22_050  # Hz, of noise
BEFORE = 1.5  # seconds on either side of a join whose backgrounds are compared
RANGE_DB = 60.0  # below the loudest band of the sound, levels are not compared
SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # amplitude falls with this power of the frequency
CLICKS = (4, 6, 8, 10)  # times the standard deviation of white noise


def change(wave: Wave, rate: int, sample: int) -> float:
    """Return by how many dB the background after a sample differs from that before, averaged over 24 bands.

    The background of a band is its 10th percentile over 1.5 s, in frames of 10 ms.
    """
    part = wave[max(0, sample - round(BEFORE * rate)) : sample + round(BEFORE * rate)]
    bands, at = band_levels(part, rate), round(100 * min(BEFORE, sample / rate))
    floor = band_levels(wave, rate).max() - RANGE_DB
    before, after = (np.maximum(np.percentile(each, 10, axis=0), floor) for each in (bands[:at], bands[at:]))
    return float(np.abs(before - after).mean())


def joins(clip: Clip, wave: Wave) -> Iterator[float]:
    """Yield `change` at the joins of a long sound that have 1 s before and after them."""
    for *_, position, _ in clip.recipe.make["parts"][1:]:
        if clip.rate <= position <= len(wave) - clip.rate:
            yield change(wave, clip.rate, position)


def background_rows(synth: Synth, seeds: int) -> list[list[str]]:
    """Return a row for each label with events: changes of background at joins, with one background and with many."""
    rows = []
    for label in (each.name for each in LABELS if not each.steady):
        inside, many, one = [], [], []
        for seed in range(seeds):
            clip = synth.render(label, seed)
            inside += [change(clip.wave, clip.rate, len(clip.wave) // 2)]
            long = extend(synth, clip, 20 * clip.rate)
            one += joins(long, long.wave)
            if "background" in long.recipe.make:  # otherwise the clip is steady
                own = {key: value for key, value in long.recipe.make.items() if key != "background"}
                many += joins(long, remake(own, synth))
        cells = [f"{np.median(each):.1f} / {np.percentile(each, 95):.1f}" for each in (inside, many, one)]
        rows.append([label, str(len(one)), *cells])
        print(rows[-1], flush=True)
    return rows


def noises(loops: int, slope: float, seconds: float) -> Iterator[tuple[Wave, int]]:
    """Yield loops of stationary noise, and the samples of their crossfade."""
    for seed in range(loops):
        samples = round(seconds * RATE)
        white = np.random.default_rng(seed).standard_normal(samples + RATE)
        spectrum = np.fft.rfft(white) * (1.0 + np.arange(len(white) // 2 + 1)) ** -slope
        wave = np.fft.irfft(spectrum, len(white)).astype(np.float32)
        fade = min(round(0.25 * RATE), samples // 4)
        wrap, _ = find_wraps(wave, RATE, samples, fade)[0]
        yield wrapped(wave, wrap), fade


def noise_rows(loops: int) -> list[list[str]]:
    """Return rows of how many loops of noise are said to have an audible seam, without and with a click at the wrap."""
    rows = []
    for name, slope in SLOPES.items():
        for seconds in (1.0, 4.0):
            count = loops // 2
            alarms = sum(not measure_seam(loop, RATE, fade).inaudible for loop, fade in noises(count, slope, seconds))
            rows.append([f"{count:,} loops of {name} noise of {seconds:g} s", f"{alarms / count:.1%}", "1 % at most"])
            print(rows[-1], flush=True)
    made = list(noises(max(1, loops // 10), 0.0, 2.0))
    for height in CLICKS:
        found = 0
        for loop, fade in made:
            clicking = loop.copy()
            clicking[0] += height * loop.std()
            found += not measure_seam(clicking, RATE, fade).inaudible
        what = f"{len(made)} loops of white noise of 2 s, a click of {height} standard deviations on the first sample"
        rows.append([what, f"{found / len(made):.1%}", "all" if height >= 10 else ""])
    return rows


def loop_rows(synth: Synth, seeds: int) -> list[list[str]]:
    """Return a row for each label: seams of its loops, and whether they keep the loudest moment."""
    rows = []
    for label in LABELS:
        clips, good, kept = loop_clips(synth, label.name, 0), 0, 0
        for _ in range(seeds):
            source = loop_source(synth, next(clips), 4.0)
            loop, wrap = looped(source, 4.0)
            good += measure_seam(loop.wave, loop.rate, wrap.fade).inaudible
            kept += levels(loop.wave, loop.rate).max() > levels(source.wave, loop.rate).max() - 3.5
        rows.append([label.name, f"{good} of {seeds}", f"{kept} of {seeds}"])
        print(rows[-1], flush=True)
    return rows


def stereo_rows(synth: Synth, seeds: int) -> list[list[str]]:
    """Return a row for each steady label: what is lost in mono, the correlation, and the balance of the channels."""
    rows = []
    for label in (each.name for each in LABELS if each.steady):
        lost, alike, balance = [], [], []
        for seed in range(seeds):
            wave = finished(synth, synth.render(label, seed), Shape(), width=1).wave
            power = np.mean(np.square(wave, dtype=np.float64))
            lost.append(10 * np.log10(power / np.mean(np.square(wave.mean(axis=1, dtype=np.float64)))))
            alike.append(np.asarray(np.corrcoef(wave.T))[0, 1])
            means = [np.mean(10 ** (band_levels(each.copy(), synth.instrument.rate) / 10), axis=0) for each in wave.T]
            left, right = 10 * np.log10(means)
            loud = np.maximum(left, right) > max(left.max(), right.max()) - 40
            balance.append(np.abs(left - right)[loud].max())
        rows.append(
            [
                label,
                f"{max(lost):.2f} dB",
                f"{min(alike):.2f} to {max(alike):.2f}",
                f"{np.median(balance):.1f} / {max(balance):.1f} dB",
            ]
        )
        print(rows[-1], flush=True)
    return rows


def draw(path: Path, synth: Synth) -> None:
    """Draw spectrograms of long sounds, with many backgrounds and with one."""
    figure = Plot(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(4, 1)
    for index, (label, seed) in enumerate((("Keyboard", 1), ("DogBark", 1))):
        clip = extend(synth, synth.render(label, seed), 20 * synth.instrument.rate)
        own = {key: value for key, value in clip.recipe.make.items() if key != "background"}
        for axis, wave, what in zip(
            axes[2 * index :], (remake(own, synth), clip.wave), ("each part with its own background", "one background")
        ):
            axis.specgram(wave + 1e-9, NFFT=512, Fs=clip.rate, noverlap=256, vmin=-150, vmax=-50, cmap="magma")
            for *_, position, _ in clip.recipe.make["parts"][1:]:
                axis.axvline(position / clip.rate, color="white", lw=0.8, ls=":")
            axis.set_title(f"{label}, seed {seed}: {what} (dotted: joins)", fontsize=9)
            axis.set_yticks([0, 5_000, 10_000], ["0", "5", "10 kHz"])
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=80)


@dataclass(frozen=True)
class Seams:
    """Measure long sounds, loops and stereo, and write the page."""

    out: tyro.conf.Positional[Path] = Path("results")
    "the folder of the page and its picture"
    seeds: int = 10
    "sounds of each label"
    loops: int = 1_000
    "loops of each kind of noise"


def main(config: Seams) -> int:
    """Write the page and its picture."""
    synth = Synth.load()
    made = synth.instrument
    command = shlex.join(["python", "benchmarks/seams.py", *sys.argv[1:]])
    backgrounds = table(["label", "joins", "within clips", "each its own", "one"], background_rows(synth, config.seeds))
    noise_table = table(["what", "said to be audible", "target"], noise_rows(config.loops))
    loop_table = table(["label", "inaudible", "with the loudest moment"], loop_rows(synth, config.seeds))
    stereo = table(["label", "lost in mono, at most", "correlation", "balance"], stereo_rows(synth, 2 * config.seeds))
    draw(config.out / "seams.png", synth)
    page = f"""# Long sounds, loops and stereo: seams and balance

Written by `{command}` at commit {commit() or "unknown"}: instrument `{made.name}` {made.version}, seeds from 0.

## The background of long sounds

Sounds of 20 s ({config.seeds} of each label), built from variations. At each join, the background of the {BEFORE:g} s before
it is compared with that of the {BEFORE:g} s after it: the 10th percentile of the level in 24 bands, the mean difference in dB
(median / 95th percentile over the joins), down to {RANGE_DB:g} dB below the loudest band. "Within clips" is the same at the
middle of clips as they are rendered; "each its own": the same parts with their own backgrounds; "one": the background of the
first clip for the whole length. Where events follow one another without a gap, their tails count as background.

{backgrounds}

![spectrograms of long sounds, with many backgrounds and with one](seams.png)

## The measurement of seams, calibrated

Loops of stationary noise have no audible seam; a click has one.

{noise_table}

## Loops of 4 s, {config.seeds} of each label

{loop_table}

## Two channels

`--channels 2 --width 1`, {2 * config.seeds} seeds: the power that is lost in the mean of the channels; the correlation of the
channels; the largest difference of their levels in one of 24 bands (median / largest over the seeds; bands within 40 dB of
the loudest).

{stereo}
"""
    write_text(config.out / "seams.md", page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Seams)))
