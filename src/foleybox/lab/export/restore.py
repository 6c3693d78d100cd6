"""Convert an instrument to run folders, from which training can go on: `foleybox restore INSTRUMENT -o RUNS`.

    RUNS/autoencoder    RUNS/patches    RUNS/vocoder    of an instrument of kind "patches"
    RUNS/sagan          RUNS/vocoder                    of one of kind "gan"

Weights are read from the graphs by their torch names (`graphs`), rounded to 8 bits as the instrument has them, and give the
same sounds. What the graphs do not contain is estimated or initialised, and learned again in a training:

* patches: the time embedding between the steps of the flow (a curve through the steps), and the start token of a random
  mid-clip start (equal to that of a clip's beginning);
* a GAN: the norms of the weights before spectral normalisation, which no sound depends on; and the discriminator, which
  starts with random weights.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foleybox.errors import UserError
from foleybox.files import atomic_folder, write_text
from foleybox.instrument import Instrument, check_trained, find_instrument, read_instrument
from foleybox.lab.core.compat import read_settings
from foleybox.lab.core.mel import MELS
from foleybox.lab.core.runs import CLIPS, NUMBERED, Stateful, fingerprint, save_state
from foleybox.lab.export.graphs import FLOAT16, INT8, SCALE, TRANSPOSED
from foleybox.lab.kt.sagan import Generator, GeneratorBlock, SaganConfig
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig
from foleybox.lab.patches.transformer import FlowHead, Patches, PatchesConfig, flow_times
from foleybox.lab.vocoders.runs import band_factor, vocos_config
from foleybox.lab.vocoders.vocos import Vocos

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Restore:
    """Make run folders of an instrument, to continue training from its weights.

    Example: foleybox restore foley -o runs/restored
    """

    instrument: tyro.conf.Positional[Path]
    "an instrument's folder, or the name of one that ships"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    "a new folder for the runs: autoencoder, patches and vocoder, or sagan and vocoder"


class Part(NamedTuple):
    """The content of one run folder."""

    module: nn.Module
    entries: tuple[str, ...]
    "the entries of the checkpoint that hold its weights"
    settings: dict[str, Any]
    "the content of config.json, and the number of steps"


def main(config: Restore) -> int:
    """`foleybox restore`: write all run folders, or nothing."""
    folder = find_instrument(config.instrument)
    instrument = read_instrument(folder)
    check_trained(instrument)
    out = config.out.resolve()
    if out.exists():
        raise UserError(f"{config.out} exists already: name a new folder with -o")
    graphs = {name: folder / graph.file for name, graph in instrument.graphs.items()}
    parts = gan_parts(instrument, graphs) if instrument.kind == "gan" else patches_parts(instrument, graphs)
    parts["vocoder"] = vocoder_part(instrument, graphs["vocoder"])
    clips = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of_instrument(instrument))
    with atomic_folder(out) as partial_folder:
        for name, (module, entries, settings) in parts.items():
            (partial_folder / name / "samples").mkdir(parents=True)
            weights: dict[str, Stateful] = dict.fromkeys(entries, module)
            save_state(partial_folder / name / "state.pt", settings["steps"], weights)
            write_text(partial_folder / name / CLIPS, clips)
            kept = {key: value for key, value in settings.items() if key != "steps"}
            write_text(partial_folder / name / "config.json", json.dumps(kept, indent=1) + "\n")
    *others, last = parts
    print(f"{config.out}: runs of {', '.join(others)} and {last} from {instrument.name} {instrument.version}")
    return 0


def patches_parts(instrument: Instrument, graphs: dict[str, Path]) -> dict[str, Part]:
    made = instrument.made_with
    form = read_settings(AutoencoderConfig, made["autoencoder"]["model"], instrument.name)
    autoencoder = restore_autoencoder(graphs["decoder"], form)
    config = read_settings(PatchesConfig, made["generator"]["model"], instrument.name)
    patches = restore_patches(graphs["next"], config, made["flow_steps"])
    changed = {"autoencoder": fingerprint(autoencoder.components), "model": asdict(config)}
    return {
        "autoencoder": Part(autoencoder, ("average",), made["autoencoder"]),
        "patches": Part(patches, ("patches", "average"), made["generator"] | changed),
    }


def gan_parts(instrument: Instrument, graphs: dict[str, Path]) -> dict[str, Part]:
    settings = instrument.made_with["generator"]
    generator = restore_generator(graphs["generator"], read_settings(SaganConfig, settings["model"], instrument.name))
    return {"sagan": Part(generator, ("generator", "average"), settings | {"part": "sagan"})}


def vocoder_part(instrument: Instrument, graph: Path) -> Part:
    settings = instrument.made_with["vocoder"]
    mel = next((mel for mel in MELS.values() if asdict(mel) == instrument.mel), None)
    if mel is None or settings.get("vocoder", "vocos") != "vocos":
        raise UserError(f"the vocoder of {instrument.name} is not a Vocos of foleybox: expected one to restore it")
    config = vocos_config(mel, settings["size"], band_factor(settings))
    return Part(restore_vocoder(graph, Vocos(config)), ("generator", "average"), settings)


def rows_of_instrument(instrument: Instrument) -> Iterator[dict[str, str]]:
    """Yield a row for each training clip. An instrument records how many there were of each source, not which."""
    for place, row in enumerate(instrument.training_clips):
        terms = {each.name: getattr(row, each.name) for each in fields(row) if each.name != "clips"}
        for number in range(row.clips):
            yield {"clip": f"{NUMBERED}{instrument.name} {instrument.version}, {place + 1}.{number + 1}", **terms}


# --- weights ------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> Weights:
    """Return the weights of a graph by their torch names, as float32 (see the head of `graphs`)."""
    import onnx
    from onnx import numpy_helper

    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(str(path)).graph.initializer}
    weights = {}
    for name, value in stored.items():
        scale = stored.get(name.removesuffix(INT8) + SCALE)
        if name.endswith(INT8) and scale is not None:
            name, value = name.removesuffix(INT8), value * scale
        elif name.endswith(FLOAT16):
            name, value = name.removesuffix(FLOAT16), value.astype(np.float32)
        if value.dtype == np.float32:
            weights[name] = value
    plain = {name.removesuffix(TRANSPOSED): value.T for name, value in weights.items() if name.endswith(TRANSPOSED)}
    return plain | {name: value for name, value in weights.items() if not name.endswith(TRANSPOSED)}


def fill(
    module: nn.Module,
    weights: Weights,
    prefix: str = "",
    skip: tuple[str, ...] = (),
    renamed: Callable[[str], str] = str,
) -> None:
    """Load the weights of a graph, whose names begin with `prefix`, into a module.

    Weights whose names contain one of `skip` are left as they are; `renamed` gives the name in the graph of a name in the
    module. Raises UserError for a weight that the graph lacks or has in another shape.
    """
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if any(part in name for part in skip):
            continue
        found = weights.get(prefix + renamed(name))
        if found is None or found.shape != value.shape:
            has = "no" if found is None else f"{list(found.shape)} as"
            raise UserError(
                f"the graph has {has} {prefix + renamed(name)}, expected {list(value.shape)}: only an instrument that this "
                "version of foleybox exported can be restored"
            )
        state[name] = torch.from_numpy(np.array(found, np.float32))
    module.load_state_dict(state, strict=False)


def restore_vocoder(path: Path, vocoder: Vocos) -> Vocos:
    fill(vocoder, read_weights(path))
    return vocoder


def restore_autoencoder(path: Path, config: AutoencoderConfig) -> Autoencoder:
    autoencoder = Autoencoder(config)
    fill(autoencoder, read_weights(path), "autoencoder.")
    return autoencoder


def restore_patches(path: Path, config: PatchesConfig, steps: int) -> Patches:
    weights = read_weights(path)
    model = Patches(config)
    fill(model, weights, "model.", skip=("start_token.", "head.modulation", "head.time_mlp."))
    if missing := [name for name in ("clip_start", "step_modulation") if name not in weights]:
        raise UserError(f"the graph {path} has no {missing[0]}: expected one that this version of foleybox exported")
    modulation = torch.tensor(weights["step_modulation"]).reshape(steps, config.head_layers + 1, 3 * config.head_width)
    modulation[..., config.head_width : 2 * config.head_width] -= 1  # the graph has 1 + the modulation of the scale
    with torch.no_grad():
        model.start_token.weight.copy_(torch.tensor(weights["clip_start"]).expand(2, -1))
        model.head.modulation.copy_((modulation - modulation[:, :1]).mean(0))
        fit_time_embedding(model.head, modulation[:, 0], steps)
    return model


def parametrizations(module: nn.Module) -> parametrize.ParametrizationList:
    """Return the parametrisation of a module's weight: here a spectral norm."""
    return getattr(module, "parametrizations").weight  # noqa: B009 (torch's types do not declare it)


@torch.no_grad()
def restore_generator(path: Path, config: SaganConfig) -> Generator:
    """Return a GAN's generator in eval mode, which gives the mels of the graph.

    The graph has weights after spectral normalisation; those of the generator are set to these and have norm 1. Export
    folded the batch statistics between the two convolutions of a block into the first one. They are set so that the
    batch norm undoes the division of that convolution's weight by its norm.
    """
    generator = Generator(config).eval()
    fill(
        generator,
        read_weights(path),
        "generator.",
        skip=("._u", "._v", ".num_batches_tracked", ".norm2.norm."),
        renamed=lambda name: name.replace(".parametrizations.weight.original", ".weight"),
    )
    for module in generator.modules():
        if parametrize.is_parametrized(module):
            spectral: Any = parametrizations(module)[
                0
            ]  # a forward makes one iteration; the norm is wanted exactly here
            spectral._power_method(parametrizations(module).original.flatten(1), 200)
    for block in generator.modules():
        if isinstance(block, GeneratorBlock):
            convolution, statistics = block.conv1, block.norm2.norm
            assert isinstance(convolution, nn.Conv2d)
            assert statistics.running_var is not None
            assert convolution.bias is not None
            norm = torch.linalg.matrix_norm(parametrizations(convolution).original.flatten(1), 2)
            convolution.bias.div_(norm)
            statistics.running_var.fill_(float(norm) ** -2 - statistics.eps)
    return generator


def fit_time_embedding(head: FlowHead, modulation: Tensor, steps: int) -> None:
    """Set the time embedding to `modulation` [steps, 3 E] at the times of the flow, with a smooth curve between them.

    The first layer keeps its random weights, with those of the fast sinusoids of the time made small: a smooth curve needs
    none. The second layer is the least-squares solution.
    """
    from scipy.interpolate import CubicSpline

    known, dense = np.array(flow_times(steps)[:-1]), np.linspace(0, 1, 257)
    torch.manual_seed(0)
    first, _, second = head.time_mlp
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    first.reset_parameters()
    frequencies = torch.exp(torch.arange(32) * (math.log(1000.0) / 31)).repeat(2)  # those of `time_embedding`
    first.weight.mul_(1 / (1 + (frequencies / 10) ** 2))
    curve = CubicSpline(known, modulation.double().numpy())(dense)
    hidden = []
    handle = second.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    head.time_embedding(torch.tensor(np.concatenate([known, dense]), dtype=torch.float32))
    handle.remove()
    weight = np.concatenate([np.full(len(known), 30.0), np.ones(len(dense))])[:, None]
    inputs = np.concatenate([hidden[0].double().numpy(), np.ones((len(weight), 1))], 1) * weight
    outputs = np.concatenate([modulation.double().numpy(), curve]) * weight
    ridge = 1e-6 * np.eye(inputs.shape[1])
    solution = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ outputs)
    second.weight.copy_(torch.from_numpy(solution[:-1].T))
    second.bias.copy_(torch.from_numpy(solution[-1]))
