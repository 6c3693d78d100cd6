"""Small real-looking sounds for the lab's tests, made by code."""

from pathlib import Path

import numpy as np
import soundfile

from foleybox.labels import LABELS


def toy_wave(label: int, take: int, seconds: float = 4.0, rate: int = 22_050) -> np.ndarray:
    """A decaying tone of the label's pitch in a little noise, then digital silence."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(label * 100 + take).standard_normal(len(time))
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * label) * time) * np.exp(-3 * time) + 0.02 * noise
    return np.where(time < 0.8 * seconds, wave, 0).astype(np.float32)


def toy_folder(folder: Path, per_label: int, seconds: float = 4.0) -> Path:
    """Write `per_label` sounds of every label in the DCASE layout and return the folder."""
    for label in LABELS:
        (folder / label.name).mkdir(parents=True)
        for take in range(per_label):
            path = folder / label.name / f"{take:03d}.wav"
            soundfile.write(path, toy_wave(label.id, take, seconds), 22_050, subtype="PCM_16")
    return folder
