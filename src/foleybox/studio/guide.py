"""A guide recording drives a scene: its onsets place events, its level is the intensity of steady sounds and of events."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave, peak_db, read_wave
from foleybox.errors import UserError
from foleybox.studio.events import Event
from foleybox.studio.shape import levels

SMOOTH = 5  # frames of 10 ms over which the level is averaged
LOUD, QUIET = 98.0, 10.0  # percentiles of the level: intensity 1, and the noise of the recording
RANGE_DB = 20.0  # the noise is removed if it is this far below intensity 1; otherwise it is part of the sound
TOLERANCE = 0.01  # of the intensity, by which the points of the curve may differ from it
SILENT_DB = -60.0  # dBFS
SOFTEST = 0.05  # velocity of an event


def read_guide(path: Path) -> list[tuple[float, float]]:
    """Return the intensity curve of a recording: points (seconds, 0 to 1). Raises UserError for silence, and as `read_wave`."""
    wave, rate = read_wave(path)
    if peak_db(wave) < SILENT_DB:
        raise UserError(f"{path} is silent: expected a recording whose level rises and falls")
    return level_curve(wave, rate)


def level_curve(wave: Wave, rate: int) -> list[tuple[float, float]]:
    """Return the level of a recording [L] as points (seconds, intensity from 0 to 1), from its start to its end.

    Intensity is amplitude (RMS over 50 ms) relative to the loud parts of the recording, less the noise between its sounds.
    """
    power = 10 ** (levels(wave, rate) / 10)
    power = np.convolve(np.pad(power, SMOOTH // 2, mode="edge"), np.full(SMOOTH, 1 / SMOOTH), "valid")
    loud, quiet = np.percentile(power, [LOUD, QUIET])
    loud = loud or power.max()
    noise = quiet if quiet < loud * 10 ** (-RANGE_DB / 10) else 0.0
    curve = np.sqrt(np.clip((power - 2 * noise) / max(loud - 2 * noise, 1e-20), 0, 1))
    seconds = np.append((np.arange(len(curve)) + 0.5) * len(wave) / rate / len(curve), len(wave) / rate)
    curve = np.append(curve, curve[-1])
    return [(round(float(seconds[i]), 4), round(float(curve[i]), 3)) for i in _corners(curve)]


def _corners(curve: NDArray[np.float64]) -> list[int]:
    """Return the points of a curve [T] between which lines differ from it by at most TOLERANCE (Douglas and Peucker 1973)."""
    kept, parts = {0, len(curve) - 1}, [(0, len(curve) - 1)]
    while parts:
        first, last = parts.pop()
        line = np.linspace(curve[first], curve[last], last - first + 1)
        away = np.abs(curve[first : last + 1] - line)
        if away.max() > TOLERANCE:
            corner = first + int(away.argmax())
            kept.add(corner)
            parts += [(first, corner), (corner, last)]
    return sorted(kept)


def guided(events: Sequence[Event], curve: Sequence[tuple[float, float]]) -> list[Event]:
    """Return events with velocities multiplied by the intensity of a curve, the highest within 50 ms of each time."""
    seconds, intensities = zip(*curve)
    found = []
    for event in events:
        near = np.interp(event.time + np.arange(-5, 6) / 100, seconds, intensities)
        found.append(replace(event, velocity=max(SOFTEST, round(event.velocity * float(near.max()), 4))))
    return found
