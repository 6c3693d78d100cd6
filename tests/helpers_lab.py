"""Small real-looking sounds for the lab's tests, made by code."""

from pathlib import Path

import numpy as np
import soundfile

from foleybox.labels import LABELS


def toy_wave(label: int, take: int, seconds: float = 4.0, rate: int = 22_050) -> np.ndarray:
    """Bursts of a tone and noise: pitch, rhythm and end are the label's, the noise is the take's."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(label * 100 + take).standard_normal(len(time))
    on = (time * (label + 1) % 2 < 1) & (time < (0.4 + 0.08 * label) * seconds)
    wave = 0.3 * np.sin(2 * np.pi * (200 + 700 * label) * time) + 0.01 * (label + 1) * noise
    return np.where(on, wave, 0).astype(np.float32)


def toy_folder(folder: Path, per_label: int, seconds: float = 4.0) -> Path:
    """Write `per_label` sounds of every label in the DCASE layout and return the folder."""
    for label in LABELS:
        (folder / label.name).mkdir(parents=True)
        for take in range(per_label):
            path = folder / label.name / f"{take:03d}.wav"
            soundfile.write(path, toy_wave(label.id, take, seconds), 22_050, subtype="PCM_16")
    return folder
