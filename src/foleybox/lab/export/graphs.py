"""ONNX graphs of trained parts: how a module becomes bytes, is checked against torch, and is stored small.

`export` puts them into an instrument; what each graph takes and gives is said in `foleybox.instrument`.
"""

import logging
import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.nn.utils import parametrize

from foleybox.errors import UserError
from foleybox.lab.core.mel import DCASE, SILENCE, WIDE, MelConfig
from foleybox.lab.kt.sagan import Generator, to_mel
from foleybox.lab.patches.autoencoder import Autoencoder
from foleybox.lab.patches.transformer import GUIDANCE, GUIDED_FROM, TEMPERATURE, Layer, Patches, leads, times
from foleybox.lab.vocoders.hifigan import Hifigan
from foleybox.lab.vocoders.vocos import Vocos
from foleybox.labels import LABELS

TOLERANCE_MEL, TOLERANCE_WAVE, TOLERANCE_LATENT = 1e-3, 1e-3, 1e-3
"largest difference to torch that an export may have: log-mel, wave of full scale 1, latents"
BATCH, FRAMES = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("frames", min=4, max=1_000_000)


# --- a module as a graph --------------------------------------------------------------------------------------------


def to_onnx(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], dynamic: dict[str, dict[int, Any]], rest: int = 0
) -> bytes:
    """Return `module` as ONNX; `dynamic` says which axes of an input may have any size (2 or more in `inputs`).

    The last `rest` inputs are the module's *arguments.
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
        return path.read_bytes()


def largest_difference(graph: bytes, module: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Return max |onnxruntime - torch| over all that a graph gives for `inputs`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    theirs = [np.asarray(each) for each in session.run(None, {name: value.numpy() for name, value in inputs.items()})]
    with torch.no_grad():
        ours = module.eval()(*inputs.values())
    pairs = list(zip(theirs, ours if isinstance(ours, tuple) else (ours,), strict=True))
    assert all(a.shape == tuple(b.shape) for a, b in pairs), [(a.shape, b.shape) for a, b in pairs]
    return max(float(np.abs(a - b.numpy()).max()) for a, b in pairs)


def check(name: str, graph: bytes, module: nn.Module, inputs: dict[str, Tensor], tolerance: float) -> None:
    """Raise UserError if a graph differs from its module."""
    difference = largest_difference(graph, module, inputs)
    if not difference <= tolerance:
        batch = len(next(iter(inputs.values())))
        raise UserError(
            f"the exported {name} differs from torch by {difference:.2g} at batch {batch}, expected {tolerance:g} or "
            "less: nothing was written; try another onnx or onnxruntime version"
        )


def stored_small(graph: bytes) -> bytes:
    """Return a graph whose large weights are stored as 8-bit integers and a scale for each output: a quarter of the size.

    They become float32 again when the graph is loaded, so that it computes as before, with rounded weights. The basis of
    the inverse STFT and what the times of a flow say are no weights: they are stored in 16 bits.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(graph)
    kept, nodes = [], []
    for each in model.graph.initializer:
        value = numpy_helper.to_array(each)
        if value.dtype != np.float32 or value.size < 2048:
            kept.append(each)
            continue
        name = each.name
        if name.startswith("inverse.") or name == "said":
            kept.append(numpy_helper.from_array(value.astype(np.float16), f"{name}.half"))
            nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
            continue
        # One scale an output: a convolution has its outputs in axis 0, a matrix of MatMul in its last.
        along = tuple(range(1, value.ndim)) if value.ndim > 2 else (0,)
        scale = np.maximum(np.abs(value).max(along, keepdims=True), 1e-12) / 127
        kept.append(numpy_helper.from_array(np.round(value / scale).astype(np.int8), f"{name}.whole"))
        kept.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
        nodes.append(helper.make_node("Cast", [f"{name}.whole"], [f"{name}.cast"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name]))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    old = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *old])
    onnx.checker.check_model(model)
    return model.SerializeToString()


def stamped(graph: bytes, **lines: str) -> bytes:
    """Return a graph with lines of metadata: what its caller must know and its inputs do not say."""
    import onnx

    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(model, lines)
    return model.SerializeToString()


# --- a GAN --------------------------------------------------------------------------------------------------------


class GeneratorGraph(nn.Module):
    """(latent [N, Z], label [N]) -> mel [N, M, T]: the averaged generator, on the log-mel scale.

    Its last frame is repeated until T hop >= samples: 344 frames are 136 samples short of four seconds, and a rain that
    stops 6 ms early clicks in a loop.
    """

    def __init__(self, generator: Generator, frames: int) -> None:
        super().__init__()
        self.generator, self.frames = generator, frames

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        mel = to_mel(self.generator(latent, label), self.generator.config)
        return F.pad(mel, (0, max(0, self.frames - mel.shape[-1])), mode="replicate")


def without_parametrizations(generator: Generator) -> Generator:
    """Return a copy whose spectral norms are multiplied out: plain weights, as they are in eval mode.

    Built anew, not deep-copied: a copy shares its parametrised classes with the original, which removing would break.
    """
    plain = Generator(generator.config)
    plain.load_state_dict(generator.state_dict())
    for part in plain.eval().modules():
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return plain


def build_vocoder(vocoder: Vocos | Hifigan, mels: Tensor) -> bytes:
    """Return the vocoder's graph. Raises UserError if it differs from torch for some of `mels` [3, M, T].

    The check runs at batches and lengths that the export (at batch 2) has not seen.
    """
    graph = to_onnx(vocoder, {"mel": mels[:2]}, ["wave"], {"mel": {0: BATCH, 2: FRAMES}})
    for n in (1, 3):
        check("vocoder", graph, vocoder, {"mel": mels[:n, :, : 100 * n]}, TOLERANCE_WAVE)
    return graph


def build_gan(generator: Generator, vocoder: Vocos | Hifigan, mel: MelConfig, samples: int) -> dict[str, bytes]:
    """Return the two graphs of a "gan" instrument. Raises UserError if one differs from torch, or the mels do not fit.

    The check runs at batch 1 and 3; the export was at 2.
    """
    if mel != DCASE:
        raise UserError(
            f"the vocoder reads the mel {mel}, the generator makes {DCASE}: train a vocoder with --mel dcase"
        )
    make = GeneratorGraph(without_parametrizations(generator), -(-samples // mel.hop))
    torch.manual_seed(0)
    latent, label = torch.randn(3, generator.config.latent), torch.tensor([0, 3, 6])
    mels = make(latent, label).detach()
    inputs = {"latent": latent[:2], "label": label[:2]}
    graphs = {
        "generator": to_onnx(make, inputs, ["mel"], {name: {0: BATCH} for name in inputs}),
        "vocoder": build_vocoder(vocoder, mels),
    }
    for n in (1, 3):
        check("generator", graphs["generator"], make, {"latent": latent[:n], "label": label[:n]}, TOLERANCE_MEL)
    return graphs


# --- causal patches -----------------------------------------------------------------------------------------------


class NextGraph(nn.Module):
    """The next latent of R rows, and the keys and values of their place, for the caller to keep.

    (before [R, D], label [R] (-1: none), mix [R, R], place [], noise [R, D], then for each layer kept keys and values
    [R, H, W, C / H]) -> (latent [R, D], then for each layer new keys and values [R, H, C / H])

    A clip is a row, and where it is guided also a second one without a label: `mix` says how the speeds of the flow are
    added up, row by row, so that both rows draw the same. W is the window. Keys and values of place p belong into slot
    p mod W of what is kept, which the caller does: handing over and back all that is kept would cost more than the
    arithmetic. At place 0 `before` is not read.

    It is written for few and small steps, since each costs a microsecond or two, some hundred times a place. The steps of
    the flow are a scan, in which the weights of the head are there once and stay in the cache.
    """

    said: Tensor
    leads: Tensor
    guided: Tensor

    def __init__(self, model: Patches, steps: int, guided_from: float = 0.0) -> None:
        super().__init__()
        self.model = model
        head, width = model.head, model.config.head_width
        with torch.no_grad():
            said = (
                head.time_embedding(torch.tensor(times(steps)[:-1]))[:, None] + head.modulation
            )  # [steps, layers + 1, 3 E]
            said[..., width : 2 * width] += 1  # the scale is one plus what is said
        self.register_buffer("said", said.flatten(1)[:, None], persistent=False)
        self.register_buffer("leads", torch.tensor(leads(steps))[:, :, None], persistent=False)
        guided = torch.tensor(times(steps)[:-1])[:, None, None] >= guided_from  # [steps, 1, 1]
        self.register_buffer("guided", guided, persistent=False)

    def forward(self, before: Tensor, label: Tensor, mix: Tensor, place: Tensor, noise: Tensor, *kept: Tensor) -> Any:
        model, R = self.model, len(label)
        begins = (place == 0).to(before.dtype)
        x = begins * model.start_token.weight[0] + (1 - begins) * model.embed(before)
        x = (x + model.label(torch.where(label < 0, model.no_label, label)))[:, None]  # [R, 1, C]
        H, E = kept[0].shape[1], kept[0].shape[3]
        slots = torch.arange(kept[0].shape[2], device=place.device)
        # What is kept of place p lies in slot p mod W; the slot that this place will take is the one that is forgotten.
        hidden = torch.where((slots < place) & (slots != place % len(slots)), 0.0, -torch.inf)  # [W]
        turn = turns(place, E)
        turn = torch.stack([turn / math.sqrt(E), turn])[:, None]  # queries, keys: [2, 1, 2, 2, E / 2]
        new = []
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            keys, values = kept[2 * index : 2 * index + 2]
            parts = layer.query_key_value(layer.norm_attention(x)).reshape(R, 3, H, E)
            turned = (parts[:, :2].reshape(R, 2, H, 1, 2, E // 2) * turn).sum(4)
            query, key = (each.reshape(R, H, E) for each in turned.split(1, 1))
            value = parts[:, 2]
            scores = (keys @ query[..., None])[..., 0] + hidden  # [R, H, W]
            weights = torch.cat([scores, (query * key).sum(-1, keepdim=True)], -1).softmax(-1)
            past, own = weights.split([len(slots), 1], -1)
            x = layer.finish(x, past[:, :, None] @ values + (own * value)[:, :, None])
            new += [key, value]
        # Where the flow is not guided yet, both rows of a clip do what the one with a label says.
        labelled = ((mix != 0) & (label >= 0)).to(mix.dtype)
        return self.flow(noise, model.norm(x)[:, 0], torch.where(self.guided, mix, labelled)), *new

    def flow(self, noise: Tensor, context: Tensor, mixes: Tensor) -> Tensor:
        """Do what `models.patches.flow` does, all that does not depend on the point worked out at once before it.

        `mixes` [steps, R, R]: how the speeds of the rows are added up in each step.
        """
        head = self.model.head
        said = head.context_mlp(context).repeat(1, len(head.modulation)) + self.said  # [steps, R, (layers + 1) 3 E]
        told = said.chunk(3 * len(head.modulation), -1)[:-1]  # shift, scale, gate of each layer; no gate in the end

        def step(carry: tuple[Tensor, Tensor], of_step: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor], tuple[()]]:
            (point, last), (lead, lead_of_last, mix, *told) = carry, of_step
            x = head.embed(point)
            for index, (rise, fall) in enumerate(zip(head.fc1, head.fc2, strict=True)):
                shift, scale, gate = told[3 * index : 3 * index + 3]
                x = x + gate * fall(F.silu(rise(head.norm(x) * scale + shift)))
            shift, scale = told[-2:]
            speed = mix @ head.velocity(head.norm(x) * scale + shift)
            return (point + lead * speed + lead_of_last * last, speed), ()

        start = (noise, torch.zeros_like(noise))
        (point, _), _ = scan(step, start, (*self.leads.unbind(1), mixes, *told))  # pyright: ignore[reportGeneralTypeIssues]
        return point


def turns(place: Tensor, size: int) -> Tensor:
    """Return `models.patches.rotate` at `place` [] as matrices [2, 2, size / 2]: channel i of the result is the sum of
    turns[i, j] times channel j."""
    half = size // 2
    angles = place.float() * torch.exp(torch.arange(half, device=place.device) * (-math.log(1000.0) / half))
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([cosine, -sine, sine, cosine]).reshape(2, 2, half)


class DecoderGraph(nn.Module):
    """(latents [N, 87, D], grain [N, T, G]) -> mel [N, M, T], the grain at unit level whatever temperature scaled it.

    A vocoder that learned by distances of mels and a narrow discriminator smooths what it is given: the mel of a rain that
    it made had 0.7 to 0.8 of the roughness of the mel that it was to make. For such a one each frame is moved away from the
    mean of its neighbours and itself, by `sharpen` times the distance, before the vocoder has it.
    """

    def __init__(self, autoencoder: Autoencoder, sharpen: float) -> None:
        super().__init__()
        self.autoencoder, self.sharpen = autoencoder, sharpen

    def forward(self, latents: Tensor, grain: Tensor) -> Tensor:
        level = grain.square().mean((1, 2), keepdim=True).clamp(min=1e-12).sqrt()
        mel = self.autoencoder(latents, grain / level)
        around = F.avg_pool1d(F.pad(mel, (1, 1), mode="replicate"), 3, 1)
        return (mel + self.sharpen * (mel - around)).clamp(min=SILENCE)


@dataclass(frozen=True)
class Drawing:
    """How a patches instrument draws; baked into its graphs. The defaults were chosen by distance to `train` clips."""

    flow_steps: int = 10
    "steps in which a latent is drawn"
    guidance: tuple[float, ...] = GUIDANCE
    "of each label, in their order: above 1 more of what the label says; steady sounds lose their grain by it"
    guided_from: float = GUIDED_FROM
    "the time of the flow, 0 to 1, from which latents are guided; from 0 on, sounds are more alike"
    temperature: tuple[float, ...] = TEMPERATURE
    "of each label: what the noise of its latents is scaled by; some labels come out too much alike without"
    sharpen: float = 0.0
    "how much the mel's grain is raised before a vocoder that smooths it, as one does that no texture loss taught; 0.6 say"


def build_patches(
    model: Patches, autoencoder: Autoencoder, vocoder: Vocos | Hifigan, mel: MelConfig, samples: int, drawing: Drawing
) -> dict[str, bytes]:
    """Return the three graphs of a "patches" instrument, small. Raises UserError if one differs from torch."""
    if mel != WIDE:
        raise UserError(f"the vocoder reads the mel {mel}, the autoencoder makes {WIDE}: train one with --mel wide")
    config, form = model.config, autoencoder.config
    by_label = {"guidance": drawing.guidance, "temperature": drawing.temperature}
    if any(len(numbers) != len(LABELS) or min(numbers) <= 0 for numbers in by_label.values()):
        told = ", ".join(f"{len(numbers)} numbers of --{name}" for name, numbers in by_label.items())
        raise UserError(f"{told}: expected {len(LABELS)} of each, all above 0")
    if drawing.flow_steps < 1 or drawing.sharpen < 0 or not 0 <= drawing.guided_from <= 1:
        raise UserError(
            f"--flow-steps {drawing.flow_steps}, --sharpen {drawing.sharpen:g}, --guided-from {drawing.guided_from:g}: "
            "expected 1 or more, 0 or more, 0 to 1"
        )
    places = -(-samples // (mel.hop * form.patch))
    make, decode = NextGraph(model, drawing.flow_steps, drawing.guided_from), DecoderGraph(autoencoder, drawing.sharpen)
    torch.manual_seed(0)
    shape = (3, config.heads, places, config.width // config.heads)
    kept = {f"{kind}_{i}": 0.5 * torch.randn(shape) for i in range(config.layers) for kind in ("keys", "values")}
    inputs = {
        "before": torch.randn(3, config.latent),
        "label": torch.tensor([0, -1, 6]),
        "mix": torch.tensor([[1.5, -0.5, 0.0], [1.5, -0.5, 0.0], [0.0, 0.0, 1.0]]),
        "place": torch.tensor(5),
        "noise": torch.randn(3, config.latent),
        **kept,
    }

    def some(n: int, place: int) -> dict[str, Tensor]:
        values = {name: value[:n] if value.ndim else torch.tensor(place) for name, value in inputs.items()}
        return {**values, "mix": inputs["mix"][:n, :n]}

    dynamic = {name: {0: BATCH} for name in inputs if name != "place"} | {"mix": {0: BATCH, 1: BATCH}}
    latents, grain = torch.randn(3, places, config.latent), torch.randn(3, places * form.patch, form.noise)
    mels = decode(latents, grain).detach()
    decoder_inputs = {"latents": latents[:2], "grain": grain[:2]}
    graphs = {
        "next": to_onnx(make, some(3, 5), ["latent", *(f"new_{name}" for name in kept)], dynamic, rest=len(kept)),
        "decoder": to_onnx(decode, decoder_inputs, ["mel"], {name: {0: BATCH} for name in decoder_inputs}),
        "vocoder": build_vocoder(vocoder, mels),
    }
    for n, place in ((1, 0), (3, 5), (2, places + 7)):
        check("next", graphs["next"], make, some(n, place), TOLERANCE_LATENT)
        check("decoder", graphs["decoder"], decode, {"latents": latents[:n], "grain": grain[:n]}, TOLERANCE_MEL)
    small = {name: stored_small(graph) for name, graph in graphs.items()}
    lines = {name: " ".join(f"{each:g}" for each in numbers) for name, numbers in by_label.items()}
    return {**small, "next": stamped(small["next"], **lines)}
