"""An embedding without weights, and folders of sounds made by code, for the tests of evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foleybox.audio import write_wave
from foleybox.lab.evaluation.embeddings import Embedded, frame
from foleybox.labels import LABELS

RATE = 8_000


class ToyEmbedding:
    """Log-energies in eight octave-wide bands of each half second; its tagger chooses the loudest band."""

    name, rate, width = "toy", RATE, 8
    rule, weights = "0.5 s every 0.25 s at 8 kHz", "none"

    def __init__(self) -> None:
        self.calls = 0

    def windows(self, samples: int) -> int:
        return (samples - 4_000) // 2_000 + 1

    def embed(self, waves: Tensor) -> Embedded:
        self.calls += 1
        power = torch.fft.rfft(frame(waves, 4_000, 2_000)).abs().square()[..., 1:2001]  # [N, W, 2000]
        bands = torch.stack([part.mean(-1) for part in power.split(250, dim=-1)], -1)
        return Embedded((bands + 1e-9).log(), bands.sum(1)[:, : len(LABELS)])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ToyEmbedding:
    """Let `foleybox evaluate` use the toy embedding, with a cache of this test's own."""
    made = ToyEmbedding()
    monkeypatch.setattr("foleybox.lab.evaluation.evaluate.load_embedding", lambda *_: made)
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    return made


def burst(label: int, generator: np.random.Generator, samples: int = RATE) -> np.ndarray:
    """Return a decaying band of noise [L] round the label's own pitch."""
    t = np.arange(samples) / RATE
    phase = 2 * np.pi * (250 + 500 * label) * t + np.cumsum(generator.normal(0, 0.3, samples))
    return (0.5 * np.sin(phase) * np.exp(-t * generator.uniform(1, 6))).astype(np.float32)


def sounds(folder: Path, count: int = 8, seed: int = 0, labels: int = 7, samples: int = RATE) -> Path:
    """Write `count` clips of each of the first labels; return the folder."""
    generator = np.random.default_rng(seed)
    for label in LABELS[:labels]:
        (folder / label.name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write_wave(folder / label.name / f"{index:03d}.wav", burst(label.id, generator, samples), RATE)
    return folder
