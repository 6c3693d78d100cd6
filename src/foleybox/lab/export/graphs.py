"""Torch modules as ONNX graphs: export, comparison with torch, storage of weights in 8 bits.

The inputs and outputs of each graph are described in `foleybox.instrument`. Names of weights in a graph:

    <parameter>                        the torch parameter or buffer, as `state_dict` names it in the exported module
    <parameter>.transposed             the same, transposed: the exporter turns linear layers into x @ W.T
    ... .int8 and ... .scale           in 8 bits: the weight is int8 * scale
    ... .float16                       in 16 bits

so that `restore` reads weights by name.
"""

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.nn.utils import parametrize

from foleybox.errors import UserError
from foleybox.lab.core.mel import DCASE, SILENCE, WIDE, MelConfig
from foleybox.lab.kt.sagan import Generator, to_mel
from foleybox.lab.patches.autoencoder import Autoencoder
from foleybox.lab.patches.transformer import (
    GUIDANCE,
    GUIDED_FROM,
    START,
    TEMPERATURE,
    Layer,
    Patches,
    flow_times,
    step_coefficients,
)
from foleybox.lab.vocoders.hifigan import Hifigan
from foleybox.lab.vocoders.vocos import Vocos
from foleybox.labels import LABELS

if TYPE_CHECKING:
    from onnx import GraphProto

TOLERANCE_MEL, TOLERANCE_WAVE, TOLERANCE_LATENT = 1e-3, 1e-3, 1e-3
"largest difference from torch that an export may have: log-mel, wave of full scale 1, latents"
BATCH, FRAMES = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("frames", min=4, max=1_000_000)
TRANSPOSED, INT8, SCALE, FLOAT16 = ".transposed", ".int8", ".scale", ".float16"
IN_16_BITS = ("inverse.", "step_modulation")
"beginnings of the names that `stored_small` keeps in 16 bits: the basis of the inverse STFT, the modulation of flow steps"


# --- a module as a graph --------------------------------------------------------------------------------------------


def to_onnx(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], dynamic: dict[str, dict[int, Any]], rest: int = 0
) -> bytes:
    """Return `module` as ONNX, its weights named as in torch (head of this file).

    `dynamic` gives the axes of an input that may have any size (2 or more in `inputs`). The last `rest` inputs are the
    module's *arguments.
    """
    sizes: list[Any] = [dynamic.get(name, {}) for name in inputs]
    if rest:
        sizes = [*sizes[:-rest], tuple(sizes[-rest:])]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "graph.onnx"
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple(sizes),
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)
        return name_weights(path.read_bytes(), module)


def name_weights(graph: bytes, module: nn.Module) -> bytes:
    """Return a graph in which every weight of `module` has its name in torch, found by its values.

    The exporter keeps the names of most parameters. It renames those that it transposes, and tables that it computes
    from a parameter.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(graph)
    values = {
        name: value.detach().numpy() for name, value in (*module.named_parameters(), *module.named_buffers())
    }  # buffers that are not in the state dict, too
    used = {each.name for each in model.graph.initializer}
    free = {name: value for name, value in values.items() if value.size > 1 and value.dtype == np.float32}
    renamed = {}
    for each in model.graph.initializer:
        value = numpy_helper.to_array(each)
        if each.name not in values and value.dtype == np.float32 and value.size > 1:
            candidates = (name for name in names_of(value, free) if name not in used)
            renamed[each.name] = next(candidates, each.name)
            used.add(renamed[each.name])
    rename(model.graph, renamed)
    remove_traces(model.graph)
    return model.SerializeToString()


def names_of(value: NDArray[np.float32], values: Mapping[str, NDArray[np.float32]]) -> Iterator[str]:
    """Yield the names that a tensor of a graph may have: those of equal tensors, or of equal ones when transposed."""
    for name, other in values.items():
        if value.shape == other.shape and np.array_equal(value, other):
            yield name
        if value.ndim == 2 and value.shape == other.T.shape and np.array_equal(value, other.T):
            yield f"{name}{TRANSPOSED}"


def rename(graph: "GraphProto", names: Mapping[str, str]) -> None:
    """Rename tensors of a graph in place, also where the bodies of loops use them."""
    for each in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
        each.name = names.get(each.name, each.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, names)


def remove_traces(graph: "GraphProto") -> None:
    """Remove what the exporter notes about each node, in place: stack traces with local paths, 4 to 7 % of a graph."""
    for each in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                remove_traces(attribute.g)


def largest_difference(graph: bytes, module: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Return max |onnxruntime - torch| over all outputs of a graph for `inputs`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    feeds = dict(zip(names, (value.numpy() for value in inputs.values()), strict=True))
    theirs = [np.asarray(each) for each in session.run(None, feeds)]
    with torch.no_grad():
        ours = module.eval()(*inputs.values())
    pairs = list(zip(theirs, ours if isinstance(ours, tuple) else (ours,), strict=True))
    assert all(a.shape == tuple(b.shape) for a, b in pairs), [(a.shape, b.shape) for a, b in pairs]
    return max(float(np.abs(a - b.numpy()).max()) for a, b in pairs)


def check(name: str, graph: bytes, module: nn.Module, inputs: dict[str, Tensor], tolerance: float) -> None:
    """Raise UserError if the outputs of a graph differ from those of its module by more than `tolerance`."""
    difference = largest_difference(graph, module, inputs)
    if not difference <= tolerance:
        batch = len(next(iter(inputs.values())))
        raise UserError(
            f"the exported {name} differs from torch by {difference:.2g} at batch {batch}, expected {tolerance:g} or "
            "less: nothing was written; try another onnx or onnxruntime version"
        )


def stored_small(graph: bytes) -> bytes:
    """Return a graph whose large weights are stored as 8-bit integers with one scale per output: a quarter of the size.

    They are converted to float32 when the graph is loaded, so that only the rounding of the weights changes its outputs. Biases
    and other vectors, which would have one scale in all, stay as they are.
    The tensors of IN_16_BITS are stored in 16 bits.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(graph)
    kept, nodes = [], []
    for each in model.graph.initializer:
        value, name = numpy_helper.to_array(each), each.name
        if value.dtype != np.float32 or value.size < 2048 or (value.ndim < 2 and not name.startswith(IN_16_BITS)):
            kept.append(each)
            continue
        if name.startswith(IN_16_BITS):
            kept.append(numpy_helper.from_array(value.astype(np.float16), name + FLOAT16))
            nodes.append(helper.make_node("Cast", [name + FLOAT16], [name], to=onnx.TensorProto.FLOAT))
            continue
        # The outputs of a convolution are along axis 0, those of a matrix product along the last.
        axes = tuple(range(1, value.ndim)) if value.ndim > 2 else (0,)
        scale = np.maximum(np.abs(value).max(axes, keepdims=True), 1e-12) / 127
        kept.append(numpy_helper.from_array(np.round(value / scale).astype(np.int8), name + INT8))
        kept.append(numpy_helper.from_array(scale.astype(np.float32), name + SCALE))
        nodes.append(helper.make_node("Cast", [name + INT8], [f"{name}.cast"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}.cast", name + SCALE], [name]))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    old = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *old])
    onnx.checker.check_model(model)
    return model.SerializeToString()


def with_metadata(graph: bytes, **lines: str) -> bytes:
    """Return a graph with metadata: numbers that its caller needs and its inputs do not have."""
    import onnx

    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(model, lines)
    return model.SerializeToString()


# --- a GAN --------------------------------------------------------------------------------------------------------


class GeneratorGraph(nn.Module):
    """(latent [N, Z], label [N]) -> mel [N, M, T]: the averaged generator, on the log-mel scale.

    The last frame is repeated until T hop >= samples: 344 frames are 136 samples short of four seconds, and rain that
    stops 6 ms early clicks in a loop.
    """

    def __init__(self, generator: Generator, frames: int) -> None:
        super().__init__()
        self.generator, self.frames = generator, frames

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        mel = to_mel(self.generator(latent, label), self.generator.config)
        return F.pad(mel, (0, max(0, self.frames - mel.shape[-1])), mode="replicate")


def without_parametrizations(generator: Generator) -> Generator:
    """Return a copy with the spectral norms applied: plain weights, equal to those used in eval mode.

    It is a new module, not a deep copy: a deep copy shares the parametrised classes with the original, and removing the
    parametrisations would break it.
    """
    plain = Generator(generator.config)
    plain.load_state_dict(generator.state_dict())
    for part in plain.eval().modules():
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return plain


def build_vocoder(vocoder: Vocos | Hifigan, mels: Tensor) -> bytes:
    """Return the vocoder's graph. Raises UserError if it differs from torch for some of `mels` [3, M, T].

    The comparison is at batches and lengths other than that of the export (batch 2).
    """
    graph = to_onnx(vocoder, {"mel": mels[:2]}, ["wave"], {"mel": {0: BATCH, 2: FRAMES}})
    for n in (1, 3):
        check("vocoder", graph, vocoder, {"mel": mels[:n, :, : 100 * n]}, TOLERANCE_WAVE)
    return graph


def build_gan(generator: Generator, vocoder: Vocos | Hifigan, mel: MelConfig, frames: int) -> dict[str, bytes]:
    """Return the two graphs of a "gan" instrument whose mels have `frames` frames.

    Raises UserError if one differs from torch, or the mels do not match.

    The comparison is at batch 1 and 3; the export is at 2.
    """
    if mel != DCASE:
        raise UserError(
            f"the vocoder reads the mel {mel}, the generator makes {DCASE}: train a vocoder with --mel dcase"
        )
    module = GeneratorGraph(without_parametrizations(generator), frames)
    torch.manual_seed(0)
    latent, label = torch.randn(3, generator.config.latent), torch.tensor([0, 3, 6])
    mels = module(latent, label).detach()
    inputs = {"latent": latent[:2], "label": label[:2]}
    graphs = {
        "generator": to_onnx(module, inputs, ["mel"], {name: {0: BATCH} for name in inputs}),
        "vocoder": build_vocoder(vocoder, mels),
    }
    for n in (1, 3):
        check("generator", graphs["generator"], module, {"latent": latent[:n], "label": label[:n]}, TOLERANCE_MEL)
    return graphs


# --- causal patches -----------------------------------------------------------------------------------------------


class NextGraph(nn.Module):
    """The next latent of R rows, and the keys and values of its position, which the caller keeps in a cache.

    (previous [R, D], label [R] (-1: none), mix [R, R], position [], noise [R, D], then for each layer the cached keys and
    values [R, H, W, C / H]) -> (latent [R, D], then for each layer the new keys and values [R, H, C / H])

    A clip is one row, or two if it is guided, the second without a label. `mix` adds up the velocities of the rows of a
    clip, so that both have the same latent. W is the window. The caller writes the keys and values of position p into
    slot p mod W: to return the whole cache would cost more than the arithmetic. At position 0 `previous` is not read.

    The graph has few and small nodes, since each costs a microsecond or two, some hundred times a position. The steps of
    the flow are a scan, so that the weights of the head exist once and stay in the processor's cache.
    """

    clip_start: Tensor
    step_modulation: Tensor
    step_coefficients: Tensor
    guided: Tensor

    def __init__(self, model: Patches, steps: int, guided_from: float = 0.0) -> None:
        super().__init__()
        self.model = model
        head, width = model.head, model.config.head_width
        start = torch.tensor(flow_times(steps)[:-1])
        with torch.no_grad():
            modulation = head.time_embedding(start)[:, None] + head.modulation  # [steps, layers + 1, 3 E]
            modulation[..., width : 2 * width] += 1  # the scale is 1 + its modulation
            clip_start = model.start_token.weight[START].clone()
        self.register_buffer("clip_start", clip_start, persistent=False)
        self.register_buffer("step_modulation", modulation.flatten(1)[:, None], persistent=False)
        self.register_buffer("step_coefficients", torch.tensor(step_coefficients(steps))[:, :, None], persistent=False)
        self.register_buffer("guided", start[:, None, None] >= guided_from, persistent=False)  # [steps, 1, 1]

    def forward(
        self, previous: Tensor, label: Tensor, mix: Tensor, position: Tensor, noise: Tensor, *cache: Tensor
    ) -> Any:
        model, R = self.model, len(label)
        first = (position == 0).to(previous.dtype)
        x = first * self.clip_start + (1 - first) * model.embed(previous)
        x = (x + model.label(torch.where(label < 0, model.no_label, label)))[:, None]  # [R, 1, C]
        H, W, E = cache[0].shape[1:]
        slots = torch.arange(W, device=position.device)
        # Slots that are still empty, and the slot of the oldest position, which this position replaces.
        hidden = torch.where((slots < position) & (slots != position % W), 0.0, -torch.inf)  # [W]
        rotation = rotation_matrices(position, E)
        rotation = torch.stack([rotation / math.sqrt(E), rotation])[:, None]  # queries, keys: [2, 1, 2, 2, E / 2]
        new = []
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            keys, values = cache[2 * index : 2 * index + 2]
            parts = layer.query_key_value(layer.norm_attention(x)).reshape(R, 3, H, E)
            rotated = (parts[:, :2].reshape(R, 2, H, 1, 2, E // 2) * rotation).sum(4)
            query, key = (each.reshape(R, H, E) for each in rotated.split(1, 1))
            value = parts[:, 2]
            scores = (keys @ query[..., None])[..., 0] + hidden  # [R, H, W]
            weights = torch.cat([scores, (query * key).sum(-1, keepdim=True)], -1).softmax(-1)
            past, own = weights.split([W, 1], -1)
            x = layer.finish(x, past[:, :, None] @ values + (own * value)[:, :, None])
            new += [key, value]
        # Before guidance begins, both rows of a clip follow the row with the label.
        labelled = ((mix != 0) & (label >= 0)).to(mix.dtype)
        return self.flow(noise, model.norm(x)[:, 0], torch.where(self.guided, mix, labelled)), *new

    def flow(self, noise: Tensor, context: Tensor, mixes: Tensor) -> Tensor:
        """Return what `transformer.flow` returns; all that does not depend on the point is computed once, before the steps.

        `mixes` [steps, R, R]: the weights with which the velocities of the rows are added up in each step.
        """
        head = self.model.head
        layers = len(head.modulation)
        modulation = head.context_mlp(context).repeat(1, layers) + self.step_modulation  # [steps, R, (layers + 1) 3 E]
        modulations = modulation.chunk(3 * layers, -1)[:-1]  # shift, scale, gate of each layer; the last has no gate

        def step(carry: tuple[Tensor, Tensor], of_step: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor], tuple[()]]:
            (point, last), (coefficient, coefficient_of_last, mix, *modulations) = carry, of_step
            x = head.embed(point)
            for index, (fc1, fc2) in enumerate(zip(head.fc1, head.fc2, strict=True)):
                shift, scale, gate = modulations[3 * index : 3 * index + 3]
                x = x + gate * fc2(F.silu(fc1(head.norm(x) * scale + shift)))
            shift, scale = modulations[-2:]
            velocity = mix @ head.velocity(head.norm(x) * scale + shift)
            return (point + coefficient * velocity + coefficient_of_last * last, velocity), ()

        start = (noise, torch.zeros_like(noise))
        (point, _), _ = scan(step, start, (*self.step_coefficients.unbind(1), mixes, *modulations))  # pyright: ignore[reportGeneralTypeIssues]
        return point


def rotation_matrices(position: Tensor, size: int) -> Tensor:
    """Return `transformer.rotate` at `position` [] as matrices [2, 2, size / 2].

    Channel i of the rotated vector is the sum over j of matrix [i, j] times channel j.
    """
    half = size // 2
    angles = position.float() * torch.exp(torch.arange(half, device=position.device) * (-math.log(1000.0) / half))
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([cosine, -sine, sine, cosine]).reshape(2, 2, half)


class DecoderGraph(nn.Module):
    """(latents [N, P, D], noise [N, T, G]) -> mel [N, M, T].

    The noise is scaled to unit level, whatever temperature scaled it: the fine structure of the mel keeps its level.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        level = noise.square().mean((1, 2), keepdim=True).clamp(min=1e-12).sqrt()
        return self.autoencoder(latents, noise / level).clamp(min=SILENCE)


@dataclass(frozen=True)
class Sampling:
    """How an instrument of patches draws; stored in its graphs. The defaults were chosen by distance to `train` clips."""

    flow_steps: int = 10
    "steps of the flow for each latent"
    guidance: tuple[float, ...] = GUIDANCE
    "classifier-free guidance of each label, in their order: 1 is none; above 1 follows the label more closely"
    guided_from: float = GUIDED_FROM
    "time of the flow, 0 to 1, from which latents are guided; guidance from 0 on makes sounds more alike"
    temperature: tuple[float, ...] = TEMPERATURE
    "factor of the noise of each label, in their order: above 1 gives more variety"


def build_patches(
    model: Patches,
    autoencoder: Autoencoder,
    vocoder: Vocos | Hifigan,
    mel: MelConfig,
    positions: int,
    sampling: Sampling,
) -> dict[str, bytes]:
    """Return the three graphs, in 8 bits, of a "patches" instrument whose clips have `positions` latents.

    Raises UserError if one differs from torch.
    """
    if mel != WIDE:
        raise UserError(f"the vocoder reads the mel {mel}, the autoencoder makes {WIDE}: train one with --mel wide")
    config, form = model.config, autoencoder.config
    by_label = {"guidance": sampling.guidance, "temperature": sampling.temperature}
    if any(len(numbers) != len(LABELS) or min(numbers) <= 0 for numbers in by_label.values()):
        found = ", ".join(f"{len(numbers)} numbers of --{name}" for name, numbers in by_label.items())
        raise UserError(f"{found}: expected {len(LABELS)} of each, all above 0")
    if sampling.flow_steps < 1 or not 0 <= sampling.guided_from <= 1:
        raise UserError(
            f"--flow-steps {sampling.flow_steps}, --guided-from {sampling.guided_from:g}: expected 1 or more, 0 to 1"
        )
    next_module = NextGraph(model, sampling.flow_steps, sampling.guided_from)
    decoder = DecoderGraph(autoencoder)
    torch.manual_seed(0)
    shape = (3, config.heads, positions, config.width // config.heads)
    cache = {f"{kind}_{i}": 0.5 * torch.randn(shape) for i in range(config.layers) for kind in ("keys", "values")}
    inputs = {
        "previous": torch.randn(3, config.latent),
        "label": torch.tensor([0, -1, 6]),
        "mix": torch.tensor([[1.5, -0.5, 0.0], [1.5, -0.5, 0.0], [0.0, 0.0, 1.0]]),
        "position": torch.tensor(5),
        "noise": torch.randn(3, config.latent),
        **cache,
    }

    def some(n: int, position: int) -> dict[str, Tensor]:
        values = {name: value[:n] if value.ndim else torch.tensor(position) for name, value in inputs.items()}
        return {**values, "mix": inputs["mix"][:n, :n]}

    dynamic = {name: {0: BATCH} for name in inputs if name != "position"} | {"mix": {0: BATCH, 1: BATCH}}
    latents, noise = torch.randn(3, positions, config.latent), torch.randn(3, positions * form.patch, form.noise)
    mels = decoder(latents, noise).detach()
    decoder_inputs = {"latents": latents[:2], "noise": noise[:2]}
    graphs = {
        "next": to_onnx(next_module, some(3, 5), ["latent", *(f"new_{name}" for name in cache)], dynamic, len(cache)),
        "decoder": to_onnx(decoder, decoder_inputs, ["mel"], {name: {0: BATCH} for name in decoder_inputs}),
        "vocoder": build_vocoder(vocoder, mels),
    }
    for n, position in ((1, 0), (3, 5), (2, positions + 7)):
        check("next", graphs["next"], next_module, some(n, position), TOLERANCE_LATENT)
        check("decoder", graphs["decoder"], decoder, {"latents": latents[:n], "noise": noise[:n]}, TOLERANCE_MEL)
    small = {name: stored_small(graph) for name, graph in graphs.items()}
    lines = {name: " ".join(f"{each:g}" for each in numbers) for name, numbers in by_label.items()}
    return {**small, "next": with_metadata(small["next"], **lines)}
