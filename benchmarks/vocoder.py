"""How fast the vocoder renders, beside HiFi-GAN V1 of the same mel in the same run: seconds of sound a second.

Both as ONNX graphs in ONNX Runtime on the processor, 344 frames (4 s), batch 1 and 8, the median of several.
Weights do not change the time: without `--run` or `--graph` they are random.

Example: python benchmarks/vocoder.py --run runs/vocoder
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tyro
from torch import nn

from foleybox.lab.core.mel import DCASE
from foleybox.lab.vocoders.hifigan import V1, V2, Hifigan
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.lab.vocoders.vocos import SIZES, Vocos

FRAMES = 344


@dataclass(frozen=True)
class Benchmark:
    """Print real-time factors of vocoders."""

    run: Path | None = None
    "a run folder of `foleybox train vocoder`"
    graph: Path | None = None
    "vocoder.onnx of an instrument, input `mel`"
    sizes: tuple[str, ...] = ("medium",)
    "of random Vocos models to time as well: small, medium, base"
    threads: int = 2
    repeats: int = 7
    batches: tuple[int, ...] = (1, 8)


def export(model: nn.Module, path: Path) -> None:
    """Write a model of mel [B, M, T] as ONNX, for any B and T."""
    batch, frames = torch.export.Dim("batch", min=1, max=512), torch.export.Dim("frames", min=4, max=100_000)
    torch.onnx.export(
        model.eval(),
        (torch.randn(2, DCASE.bands, 64),),
        path,
        input_names=["mel"],
        output_names=["wave"],
        dynamic_shapes=({0: batch, 2: frames},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def measure(path: Path, config: Benchmark) -> list[float]:
    """Return the real-time factor for each batch: seconds of sound rendered in a second, the median."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    factors = []
    for batch in config.batches:
        mel = np.random.default_rng(0).normal(-6, 3, (batch, DCASE.bands, FRAMES)).astype(np.float32)
        session.run(None, {"mel": mel})  # the first run allocates
        times = []
        for _ in range(config.repeats):
            start = time.perf_counter()
            session.run(None, {"mel": mel})
            times.append(time.perf_counter() - start)
        factors.append(batch * FRAMES * DCASE.hop / DCASE.rate / statistics.median(times))
    return factors


def main(config: Benchmark) -> int:
    with tempfile.TemporaryDirectory() as folder:
        graphs: dict[str, Path] = {}
        models: dict[str, nn.Module] = {f"Vocos {size}, random": Vocos(SIZES[size]) for size in config.sizes}
        if config.run:
            model, _, step = load_vocoder(config.run)
            models[f"Vocos of {config.run}, step {step}"] = model
        for name, settings in (("HiFi-GAN V1", V1), ("HiFi-GAN V2", V2)):
            hifigan = Hifigan(settings)
            hifigan.remove_weight_norm()
            models[name] = hifigan
        for index, (name, model) in enumerate(models.items()):
            graphs[name] = Path(folder) / f"{index}.onnx"
            export(model, graphs[name])
        if config.graph:
            graphs[str(config.graph)] = config.graph

        print(f"ONNX Runtime {onnxruntime.__version__}, {config.threads} threads, {FRAMES} frames of the dcase mel")
        print(f"{'real-time factor':36}" + "".join(f"  batch {batch:<5}" for batch in config.batches) + "  file")
        for name, path in graphs.items():
            cells = "".join(f"  {factor:9.1f} x" for factor in measure(path, config))
            print(f"{name:36}{cells}  {path.stat().st_size / 1e6:.1f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Benchmark)))
