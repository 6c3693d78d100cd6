"""Turn an instrument's graphs back into run folders, from which training goes on: `foleybox restore INSTRUMENT -o RUNS`.

Whoever has recordings of their own need not begin with noise, where an instrument knows already how such sounds go.

    RUNS/autoencoder    RUNS/patches    RUNS/vocoder    of an instrument of kind "patches"
    RUNS/sagan          RUNS/vocoder                    of one of kind "gan"

Weights come back as the instrument has them, rounded to 8 bits, and draw the same sounds. What its graphs do not hold is
made anew. Of patches: what the head says of times between the flow's steps (a curve through the steps), and the token for
a sequence that begins amid a clip (that of a beginning). Of a GAN: how large the weights are under their spectral norms,
which no sound depends on, and the discriminator, which starts with random weights. All are learned again in a training.
"""

import json
import math
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.instrument import Instrument, check_training_clips, find_instrument, read_instrument
from foleybox.lab.core.compat import with_current_names
from foleybox.lab.core.mel import MELS
from foleybox.lab.core.runs import CLIPS, NUMBERED, Stateful, fingerprint, save_state
from foleybox.lab.kt.sagan import Generator, GeneratorBlock, SaganConfig
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig
from foleybox.lab.patches.transformer import FlowHead, Patches, PatchesConfig, times
from foleybox.lab.vocoders.runs import vocos_config
from foleybox.lab.vocoders.vocos import Vocos

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Restore:
    """Make run folders of an instrument, to train on from its weights.

    Example: foleybox restore foley-small -o runs/restored
    """

    instrument: tyro.conf.Positional[Path]
    "an instrument's folder, or the name of one that ships"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    "a new folder for the runs: autoencoder, patches and vocoder, or sagan and vocoder"


class Part(NamedTuple):
    """What becomes one run folder."""

    module: nn.Module
    under: tuple[str, ...]
    "the names in the checkpoint under which its weights are kept"
    settings: dict[str, Any]
    "as in config.json, with the steps that it had"


def main(config: Restore) -> int:
    """`foleybox restore`: write the runs, or nothing."""
    folder = find_instrument(config.instrument)
    instrument = read_instrument(folder)
    check_training_clips(instrument)
    if config.out.exists():
        raise UserError(f"{config.out} is there already: name a new folder with -o")
    graphs = {name: folder / graph.file for name, graph in instrument.graphs.items()}
    parts = gan_parts(instrument, graphs) if instrument.kind == "gan" else patches_parts(instrument, graphs)
    parts["vocoder"] = vocoder_part(instrument, graphs["vocoder"])
    clips = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of_instrument(instrument))
    beside = config.out.with_name(f".{config.out.name}.{secrets.token_hex(4)}.partial")
    try:
        for name, (module, under, settings) in parts.items():
            (beside / name / "samples").mkdir(parents=True)
            weights: dict[str, Stateful] = dict.fromkeys(under, module)
            steps = settings["steps"]
            save_state(beside / name / "state.pt", steps, weights)
            write_text(beside / name / CLIPS, clips)
            kept = {key: value for key, value in settings.items() if key != "steps"}
            write_text(beside / name / "config.json", json.dumps(kept, indent=1) + "\n")
        beside.replace(config.out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    *others, last = parts
    print(f"{config.out}: {', '.join(others)} and {last} of {instrument.name} {instrument.version}, to start from")
    return 0


def patches_parts(instrument: Instrument, graphs: dict[str, Path]) -> dict[str, Part]:
    made = instrument.made_with
    autoencoder = restore_autoencoder(graphs["decoder"], AutoencoderConfig(**made["autoencoder"]["model"]))
    # What a model was told of changes is not in its graph, which draws sounds without any.
    config = replace(PatchesConfig(**made["generator"]["model"]), told=False)
    patches = restore_patches(graphs["next"], config, made["flow_steps"])
    whose = {"autoencoder": fingerprint(autoencoder.components), "model": asdict(config)}
    return {
        "autoencoder": Part(autoencoder, ("average",), made["autoencoder"]),
        "patches": Part(patches, ("patches", "average"), made["generator"] | whose),
    }


def gan_parts(instrument: Instrument, graphs: dict[str, Path]) -> dict[str, Part]:
    settings = instrument.made_with["generator"]
    generator = restore_generator(graphs["generator"], SaganConfig(**settings["model"]))
    return {"sagan": Part(generator, ("generator", "average"), settings | {"part": "sagan"})}


def vocoder_part(instrument: Instrument, graph: Path) -> Part:
    settings = instrument.made_with["vocoder"]
    mel = next((mel for mel in MELS.values() if asdict(mel) == instrument.mel), None)
    if mel is None or settings.get("vocoder", "vocos") != "vocos":
        raise UserError(f"{instrument.name} has a vocoder that is no Vocos of ours: nothing to restore it to")
    return Part(restore_vocoder(graph, Vocos(vocos_config(mel, settings["size"]))), ("generator", "average"), settings)


def rows_of_instrument(instrument: Instrument) -> Iterator[dict[str, str]]:
    """Give a row for each clip that the instrument heard: how many they were is known, and of which collection, not which."""
    for place, row in enumerate(instrument.heard):
        told = {each.name: getattr(row, each.name) for each in fields(row) if each.name != "clips"}
        for number in range(row.clips):
            yield {"clip": f"{NUMBERED}{instrument.name} {instrument.version}, {place + 1}.{number + 1}", **told}


# --- weights ------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> tuple[Weights, list[NDArray[np.float32]]]:
    """Return (the weights that have a name, the matrices [in, out] that have none, in the order of use) of a graph.

    8-bit weights times their scales, 16-bit ones as they are (`graphs.stored_small`). The exporter turns a linear layer
    that reads more than two dimensions into a product with its transposed matrix, which loses its name.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = {}
    for name, value in stored.items():
        stem, _, kind = name.rpartition(".")
        if kind == "whole":
            weights[stem] = value * stored[f"{stem}.scale"]
        elif kind == "half":
            weights[stem] = value.astype(np.float32)
        elif value.dtype == np.float32:
            weights[name] = value
    used = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    return weights, [weights[name] for name in used if name in weights and weights[name].ndim == 2]


def fill(module: nn.Module, weights: Weights, matrices: Iterator[NDArray[np.float32]], lost: tuple[str, ...]) -> None:
    """Give a module the weights of a graph: by name, and those of linear layers without one in the order of the layers.

    `lost` are the beginnings of names that the graph cannot have. Raises UserError for a weight that is not there.
    """
    weights = with_current_names(module, weights)
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if name.startswith(lost):
            continue
        found = weights.get(name)
        if found is None and name.endswith(".weight") and value.ndim == 2:
            found = next(matrices, np.zeros((0, 0), np.float32)).T
        if found is None or found.shape != value.shape:
            has = "nothing" if found is None else list(found.shape)
            raise UserError(
                f"the graph has {has} for {name}, expected {list(value.shape)}: was it made by this foleybox?"
            )
        state[name] = torch.from_numpy(np.array(found, np.float32))
    module.load_state_dict(state, strict=False)


def unprefixed(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def restore_vocoder(path: Path, vocoder: Vocos) -> Vocos:
    weights, matrices = read_weights(path)
    fill(vocoder, weights, iter(matrices), ())
    return vocoder


def restore_autoencoder(path: Path, config: AutoencoderConfig) -> Autoencoder:
    weights, matrices = read_weights(path)
    autoencoder = Autoencoder(config)
    for name, sizes in (("components", config), ("read", config.read)):
        turned = (sizes.latent, sizes.bands * sizes.patch)  # as `decode` has them; `encode` has them as they are
        axes = [m for m in matrices if turned in (m.shape, m.shape[::-1])]
        if axes:
            weights[f"autoencoder.{name}.axes"] = next(m.T if m.shape == turned else m for m in axes)
            matrices = [m for m in matrices if all(m is not each for each in axes)]
    fill(autoencoder, unprefixed(weights, "autoencoder."), iter(matrices), ())
    return autoencoder


def restore_patches(path: Path, config: PatchesConfig, steps: int) -> Patches:
    weights, matrices = read_weights(path)
    model = Patches(config)
    weights["model.start_token.weight"] = np.stack([weights["select"]] * 2)  # of a beginning; AMID is not in the graph
    fill(model, unprefixed(weights, "model."), iter(matrices), ("head.modulation", "head.time_mlp"))
    said = torch.tensor(weights["said"]).reshape(steps, config.head_layers + 1, 3 * config.head_width)
    said[..., config.head_width : 2 * config.head_width] -= 1  # the graph has one plus the scale
    with torch.no_grad():
        model.head.modulation.copy_((said - said[:, :1]).mean(0))
        say(model.head, said[:, 0], steps)
    return model


def tables_by_label(path: Path) -> Iterator[NDArray[np.float32]]:
    """Give the tables [labels, C] of a graph in the order of use; the exporter leaves them without a name."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {each.name: each for each in graph.initializer}
    used = [node.input[0] for node in graph.node if node.op_type == "GatherND"]
    return (numpy_helper.to_array(stored[name]) for name in used if name in stored)


def parametrizations(module: nn.Module) -> parametrize.ParametrizationList:
    """Return what lies between a module's weight and what is learned of it: here a spectral norm."""
    return getattr(module, "parametrizations").weight  # noqa: B009 (no type knows it)


@torch.no_grad()
def restore_generator(path: Path, config: SaganConfig) -> Generator:
    """Return a GAN's generator in eval mode, which draws what the graph draws.

    The graph has effective weights, which were divided by their spectral norm: theirs is 1. The batch statistics of the
    norm between a block's two convolutions are in the first of these; what the spectral norm now takes from it, that norm
    is given back.
    """
    weights, tables = unprefixed(read_weights(path)[0], "generator."), tables_by_label(path)
    generator = Generator(config).eval()
    state: dict[str, Tensor] = {}
    for name, value in generator.state_dict().items():
        if name.endswith(("._u", "._v", ".num_batches_tracked")) or ".norm2.norm." in name:
            continue
        found = weights.get(name.replace(".parametrizations.weight.original", ".weight"))
        if found is None and ".norm" in name:
            found = next(tables, None)
        if found is None or found.shape != value.shape:
            raise UserError(f"the graph has no {name} of {list(value.shape)}: was it made by this foleybox?")
        state[name] = torch.from_numpy(np.array(found, np.float32))
    generator.load_state_dict(state, strict=False)
    for module in generator.modules():
        if parametrize.is_parametrized(module):
            spectral: Any = parametrizations(module)[0]  # whose norm is found here, and followed by one step a forward
            spectral._power_method(parametrizations(module).original.flatten(1), 200)
    for block in generator.modules():
        if isinstance(block, GeneratorBlock):
            convolution, statistics = block.conv1, block.norm2.norm
            assert isinstance(convolution, nn.Conv2d)
            assert statistics.running_var is not None
            assert convolution.bias is not None
            divided = torch.linalg.matrix_norm(parametrizations(convolution).original.flatten(1), 2)
            convolution.bias.div_(divided)
            statistics.running_var.fill_(float(divided) ** -2 - statistics.eps)
    return generator


def say(head: FlowHead, told: Tensor, steps: int) -> None:
    """Let the head say `told` [steps, 3 E] at the times of the flow, and a smooth curve through it between them.

    The first layer of its network is as it was drawn, but for the fast waves of the time, which are made soft: a smooth
    curve needs none. The second is the solution of least squares.
    """
    from scipy.interpolate import CubicSpline

    known, dense = np.array(times(steps)[:-1]), np.linspace(0, 1, 257)
    torch.manual_seed(0)
    first, _, second = head.time_mlp
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    first.reset_parameters()
    waves = torch.exp(torch.arange(32) * (math.log(1000.0) / 31)).repeat(2)  # as `time_embedding` has them
    first.weight.mul_(1 / (1 + (waves / 10) ** 2))
    curve = CubicSpline(known, told.double().numpy())(dense)
    seen = []
    handle = second.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    head.time_embedding(torch.tensor(np.concatenate([known, dense]), dtype=torch.float32))
    handle.remove()
    weight = np.concatenate([np.full(len(known), 30.0), np.ones(len(dense))])[:, None]
    inputs = np.concatenate([seen[0].double().numpy(), np.ones((len(weight), 1))], 1) * weight
    outputs = np.concatenate([told.double().numpy(), curve]) * weight
    ridge = 1e-6 * np.eye(inputs.shape[1])
    solution = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ outputs)
    second.weight.copy_(torch.from_numpy(solution[:-1].T))
    second.bias.copy_(torch.from_numpy(solution[-1]))
