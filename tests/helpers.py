"""Fixtures made by code: a tiny instrument, and sounds to look at."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from foleybox.audio import Wave
from foleybox.instrument import Instrument, write_instrument
from foleybox.labels import LABELS
from foleybox.licences import TrainingClips
from foleybox.studio.synth import Synth

LATENT, BANDS, FRAMES, HOP = 8, 6, 12, 160
HEARD = (TrainingClips("DogBark", "open", "Somewhere: CC0", 3), TrainingClips("Rain", "nc", "ESC-50: CC BY-NC 3.0", 2))


def toy_graphs(seed: int = 0) -> dict[str, bytes]:
    """Return a generator (latent @ matrix + a row per label) and a vocoder (tanh of frames @ matrix) as ONNX bytes."""
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(seed)

    def tensor(name: str, shape: tuple[int, ...], scale: float):
        return numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name)

    def model(nodes, inputs, output, constants) -> bytes:
        graph = helper.make_graph(nodes, "toy", inputs, [output], constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(made)
        return made.SerializeToString()

    def value(name: str, kind: int, shape: list[str | int]):
        return helper.make_tensor_value_info(name, kind, shape)

    to_mel = numpy_helper.from_array(np.array([-1, BANDS, FRAMES], np.int64), "to_mel")
    to_wave = numpy_helper.from_array(np.array([-1, FRAMES * HOP], np.int64), "to_wave")
    mel = value("mel", TensorProto.FLOAT, ["N", BANDS, FRAMES])
    generator = model(
        [
            helper.make_node("MatMul", ["latent", "matrix"], ["drawn"]),
            helper.make_node("Gather", ["rows", "label"], ["row"]),
            helper.make_node("Add", ["drawn", "row"], ["flat"]),
            helper.make_node("Reshape", ["flat", "to_mel"], ["mel"]),
        ],
        [value("latent", TensorProto.FLOAT, ["N", LATENT]), value("label", TensorProto.INT64, ["N"])],
        mel,
        [tensor("matrix", (LATENT, BANDS * FRAMES), 0.3), tensor("rows", (len(LABELS), BANDS * FRAMES), 0.3), to_mel],
    )
    vocoder = model(
        [
            helper.make_node("Transpose", ["mel"], ["frames"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["frames", "basis"], ["pieces"]),
            helper.make_node("Reshape", ["pieces", "to_wave"], ["loud"]),
            helper.make_node("Tanh", ["loud"], ["wave"]),
        ],
        [mel],
        value("wave", TensorProto.FLOAT, ["N", FRAMES * HOP]),
        [tensor("basis", (BANDS, HOP), 0.2), to_wave],
    )
    return {"generator": generator, "vocoder": vocoder}


def toy_manifest(**changes) -> Instrument:
    values = {
        "name": "toy",
        "version": "1",
        "labels": tuple(label.name for label in LABELS),
        "rate": 8_000,
        "samples": FRAMES * HOP - 120,  # the last frame is cut, as in real instruments
        "latent": (LATENT,),
        "mel": {"rate": 8_000, "n_fft": 512, "hop": HOP, "bands": BANDS, "low": 0, "high": 4_000.0},
        "heard": HEARD,
        "measured": {"fad": {"mean": 7.5}},
        "made_with": {"command": "toy_instrument", "seed": 0},
    }
    return Instrument(**{**values, **changes})


def toy_instrument(folder: Path, **changes) -> Path:
    """Write a tiny valid instrument of all seven labels (0.225 s at 8 kHz); return its folder."""
    write_instrument(folder, toy_manifest(**changes), toy_graphs(), "# toy\n")
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

    def mel(self, labels: list[str], latent: np.ndarray) -> np.ndarray:
        numbers = np.array([[self.labels.index(label)] for label in labels])
        return np.concatenate([latent, numbers], axis=1)[:, :, None].astype(np.float32)

    def vocode(self, mel: np.ndarray) -> Iterator[Wave]:
        for point in mel[:, :, 0]:
            yield self.draw(int(point[-1]), point[:-1])
