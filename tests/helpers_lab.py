"""Small real-looking sounds for the lab's tests, made by code."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile

from foleybox.lab.core.runs import RunConfig
from foleybox.labels import LABELS

C = TypeVar("C", bound=Any)


def toy_wave(label: int, take: int, seconds: float = 4.0, rate: int = 22_050) -> np.ndarray:
    """Bursts of a tone and noise: pitch, rhythm and end depend on the label, the noise on the take."""
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


RUN = {each.name for each in fields(RunConfig)}


def configured(kind: Callable[..., C], *arguments: Any, **values: Any) -> C:
    """Return a training's settings; those of its RunConfig (seed, device, save_every ...) may be among the others."""
    run = {name: values.pop(name) for name in RUN & set(values)}
    made = kind(*arguments, **values)
    return changed(made, **run) if run else made


def changed(settings: C, **values: Any) -> C:
    """Return settings with some changed; those of its RunConfig may be among the others."""
    run = {name: values.pop(name) for name in RUN & set(values)}
    return replace(settings, **values, run=replace(settings.run, **run)) if run else replace(settings, **values)
