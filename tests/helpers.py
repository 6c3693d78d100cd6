"""Fixtures made by code: tiny instruments of both kinds, and sounds with known properties."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foleybox.audio import Wave
from foleybox.instrument import Instrument, write_instrument
from foleybox.labels import LABELS
from foleybox.licences import TrainingClips
from foleybox.studio.synth import Synth

LATENT, BANDS, FRAMES, HOP = 8, 6, 12, 160
PATCH, NOISE = 4, 2  # frames of a patch, noise channels of a frame: clips of kind "patches" have FRAMES / PATCH patches
TRAINING_CLIPS = (
    TrainingClips("DogBark", "open", "Somewhere: CC0", 3),
    TrainingClips("Rain", "nc", "ESC-50: CC BY-NC 3.0", 2),
)

# Graphs in ONNX's own text syntax. N clips, R rows; the tensors that are not inputs are drawn by `toy_graphs`.
TEXTS = {
    "generator": """(float[N, 8] latent, int64[N] label) => (float[N, 6, 12] mel) {
        drawn = MatMul (latent, matrix)
        row = Gather (rows, label)
        flat = Add (drawn, row)
        mel = Reshape (flat, mel_shape)
    }""",
    "vocoder": """(float[N, 6, 12] mel) => (float[N, 1920] wave) {
        frames = Transpose <perm = [0, 2, 1]> (mel)
        pieces = MatMul (frames, basis)
        loud = Reshape (pieces, wave_shape)
        wave = Tanh (loud)
    }""",
    # Each patch depends on the noise, the label, the patch before, the position, and the last 2 keys and values.
    "next": """(float[R, 8] previous, int64[R] label, float[R, R] mix, int64 position, float[R, 8] noise,
            float[R, 1, 2, 8] keys_0, float[R, 1, 2, 8] values_0)
            => (float[R, 8] latent, float[R, 1, 8] new_keys_0, float[R, 1, 8] new_values_0) {
        number = Add (label, one)
        row = Gather (rows, number)
        count = Cast <to = 1> (position)
        shift = Mul (count, step)
        carried = MatMul (previous, from_previous)
        attended = Mul (keys_0, values_0)
        summed = ReduceSum <keepdims = 0> (attended, window_axes)
        past = Mul (summed, step)
        drawn = Sum (noise, row, shift, carried, past)
        latent = MatMul (mix, drawn)
        new_keys_0 = Unsqueeze (latent, one)
        new_values_0 = Unsqueeze (noise, one)
    }""",
    "decoder": """(float[N, 3, 8] latents, float[N, 12, 2] noise) => (float[N, 6, 12] mel) {
        coarse = MatMul (latents, patch_matrix)
        frames = Reshape (coarse, frames_shape)
        fine = MatMul (noise, noise_matrix)
        both = Add (frames, fine)
        mel = Transpose <perm = [0, 2, 1]> (both)
    }""",
}
KINDS = {"gan": ("generator", "vocoder"), "patches": ("next", "decoder", "vocoder")}


def toy_graphs(kind: str = "gan", seed: int = 0) -> dict[str, bytes]:
    """Return the graphs of a tiny instrument as ONNX: linear maps of random weights, and a vocoder that ends in tanh."""
    pytest.importorskip("onnx", reason="of the lab extra, builds the toy instruments")
    from onnx import checker, helper, numpy_helper, parser

    rng = np.random.default_rng(seed)
    rows = LATENT if kind == "patches" else BANDS * FRAMES
    tensors = {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape, scale in (
            ("matrix", (LATENT, BANDS * FRAMES), 0.3), ("rows", (len(LABELS) + 1, rows), 0.3),
            ("basis", (BANDS, HOP), 0.2), ("from_previous", (LATENT, LATENT), 0.1),
            ("patch_matrix", (LATENT, BANDS * PATCH), 0.3), ("noise_matrix", (NOISE, BANDS), 0.3),
        )
    }  # fmt: skip
    tensors |= {
        name: np.array(value, np.int64)
        for name, value in (
            ("mel_shape", [-1, BANDS, FRAMES]), ("wave_shape", [-1, FRAMES * HOP]), ("one", [1]),
            ("frames_shape", [0, FRAMES, BANDS]), ("window_axes", [1, 2]),
        )
    }  # fmt: skip
    tensors["step"] = np.array(0.1, np.float32)
    graphs = {}
    for name in KINDS[kind]:
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {name} {TEXTS[name]}')
        used = {each for node in model.graph.node for each in node.input}
        model.graph.initializer.extend(numpy_helper.from_array(tensors[each], each) for each in tensors if each in used)
        if name == "next":
            helper.set_model_props(model, {"guidance": "1 1 1 1 1.5 1 1", "temperature": "1 1 1 1 1 1 0.9"})
        checker.check_model(model, full_check=True)
        graphs[name] = model.SerializeToString()
    return graphs


def toy_manifest(kind: str = "gan", **changes) -> Instrument:
    values = {
        "name": "toy",
        "version": "1",
        "kind": kind,
        "labels": tuple(label.name for label in LABELS),
        "rate": 8_000,
        "samples": FRAMES * HOP - 120,  # the last frame is cut, as in real instruments
        "latent": (FRAMES // PATCH, LATENT + PATCH * NOISE) if kind == "patches" else (LATENT,),
        "mel": {"rate": 8_000, "n_fft": 512, "hop": HOP, "bands": BANDS, "low": 0, "high": 4_000.0},
        "training_clips": TRAINING_CLIPS,
        "measured": {"fad": {"mean": 7.5}},
        "made_with": {"command": "toy_instrument", "seed": 0},
    }
    return Instrument(**{**values, **changes})


def toy_instrument(folder: Path, kind: str = "patches", **changes) -> Path:
    """Write a tiny instrument of all seven labels (0.225 s at 8 kHz), of the default instrument's kind; return its folder."""
    write_instrument(folder, toy_manifest(kind, **changes), toy_graphs(kind), "# toy\n")
    return folder


def tone(hz: float, rate: int, seconds: float, level: float = 0.5) -> Wave:
    """Return a sine [L] of amplitude `level`."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def clicks(times: list[float], seconds: float, rate: int = 8_000, seed: int = 0, noise_db: float = -60) -> Wave:
    """Return clicks that begin with their highest sample and die away in 30 ms, over a little noise."""
    rng = np.random.default_rng(seed)
    wave = 10 ** (noise_db / 20) * rng.standard_normal(round(seconds * rate))
    for time in times:
        start = round(time * rate)
        length = min(round(0.05 * rate), len(wave) - start)
        click = np.clip(0.3 * rng.standard_normal(length), -0.4, 0.4) * np.exp(-np.arange(length) / (0.008 * rate))
        click[0] = rng.uniform(0.5, 0.9)
        wave[start : start + length] += click
    return wave.astype(np.float32)


class Drawn(Synth):
    """An instrument without graphs: `draw` makes the wave of a label's number and a latent [8]."""

    def draw(self, label: int, z: np.ndarray) -> Wave:
        raise NotImplementedError

    def mel(self, labels: list[str], latent: np.ndarray, followed: object = None, follow: object = None) -> np.ndarray:
        numbers = np.array([[self.labels.index(label)] for label in labels])
        return np.concatenate([latent, numbers], axis=1)[:, :, None].astype(np.float32)

    def vocode(self, mel: np.ndarray) -> Iterator[Wave]:
        for point in mel[:, :, 0]:
            yield self.draw(int(point[-1]), point[:-1])
