"""Trained parts -> an instrument: ONNX graphs, checked against torch on the spot, a manifest and a card.

foleybox export runs/gan runs/vocoder -o my-instrument --name my-instrument
"""

import json
import logging
import platform
import subprocess
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.nn.utils import parametrize

import foleybox
from foleybox.doors import UserError
from foleybox.instrument import MANIFEST, Heard, Instrument, check_place, read_instrument, roll_up, write_instrument
from foleybox.lab.features import DCASE, MelConfig
from foleybox.lab.models.sagan import Generator, refresh_batch_norm, to_mel
from foleybox.lab.models.vocos import Vocos
from foleybox.lab.runs import load_generator, load_vocoder, read_clips, read_run_config
from foleybox.lab.systems import KT
from foleybox.labels import LABELS

SECONDS = 4.0
TOLERANCE_MEL, TOLERANCE_WAVE = 1e-3, 1e-3
"largest difference to torch that an export may have: log-mel, and wave of full scale 1"


@dataclass(frozen=True)
class Export:
    """Make an instrument of a trained generator and a trained vocoder, checked against torch.

    Example: foleybox export runs/gan runs/vocoder -o my-instrument
    """

    generator: tyro.conf.Positional[Path]
    "run folder of `foleybox train sagan`"
    vocoder: tyro.conf.Positional[Path]
    "run folder of `foleybox train vocoder`"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    "the instrument's folder"
    name: str = ""
    "the instrument's name; the folder's name if not given"
    version: str = "1"
    measured: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "JSON of measured scores to put in the manifest and the card"
    notes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "Markdown to add to the card: known weaknesses, intended use"
    force: bool = False
    "replace an instrument that is there"
    weights: Literal["average", "last"] = "average"
    "the generator's moving average, or its last weights"
    draws: int = 50
    "batches of 64 sounds from which the generator's batch statistics are re-estimated; 0 keeps those of the training"
    seed: int = 0
    "of those draws"


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


BATCH, FRAMES = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("frames", min=4, max=1_000_000)


def to_onnx(module: nn.Module, inputs: dict[str, Tensor], output: str, dynamic: dict[int, Any]) -> bytes:
    """Return `module` as ONNX; the axes `dynamic` of every input may have any size (2 or more in `inputs`)."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "graph.onnx"
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple(dynamic for _ in inputs),
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)
        return path.read_bytes()


def largest_difference(graph: bytes, module: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Return max |onnxruntime - torch| of a graph on `inputs`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    theirs = np.asarray(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])
    with torch.no_grad():
        ours = module.eval()(*inputs.values()).numpy()
    assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
    return float(np.abs(theirs - ours).max())


def build(generator: Generator, vocoder: Vocos, mel: MelConfig, samples: int) -> dict[str, bytes]:
    """Return the two graphs of a "gan" instrument. Raises UserError if one differs from torch, or the mels do not fit.

    The check runs at batch 1 and 3, and at other lengths for the vocoder, which the export (at batch 2) has not seen.
    """
    if mel != DCASE:
        raise UserError(
            f"the vocoder reads the mel {mel}, the generator makes {DCASE}: train a vocoder with --mel dcase"
        )
    frames = -(-samples // mel.hop)
    make = GeneratorGraph(without_parametrizations(generator), frames)
    torch.manual_seed(0)
    latent, label = torch.randn(3, generator.config.latent), torch.tensor([0, 3, 6])
    mels = make(latent, label).detach()
    graphs = {
        "generator": to_onnx(make, {"latent": latent[:2], "label": label[:2]}, "mel", {0: BATCH}),
        "vocoder": to_onnx(vocoder, {"mel": mels[:2]}, "wave", {0: BATCH, 2: FRAMES}),
    }
    for n in (1, 3):
        checks = (
            ("generator", make, {"latent": latent[:n], "label": label[:n]}, TOLERANCE_MEL),
            ("vocoder", vocoder, {"mel": mels[:n, :, : 100 * n]}, TOLERANCE_WAVE),
        )
        for name, module, inputs, tolerance in checks:
            difference = largest_difference(graphs[name], module, inputs)
            if not difference <= tolerance:
                raise UserError(
                    f"the exported {name} differs from torch by {difference:.2g} at batch {n}, expected {tolerance:g} or "
                    "less: nothing was written; try another onnx or onnxruntime version"
                )
    return graphs


def commit() -> str:
    """Return the git commit of the source tree, "" outside one (an installed package is in none)."""
    if not (Path(__file__).parents[3] / "pyproject.toml").is_file():
        return ""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def heard_by(*runs: list[dict[str, str]]) -> tuple[Heard, ...]:
    """Count the clips that runs were trained on (`runs.read_clips`); a clip that two of them heard counts once."""
    clips = {row["clip"]: row for rows in runs for row in rows}
    counts = Counter((row["label"], row["tier"], row["licence"], row["source"]) for row in clips.values())
    return tuple(
        Heard(label, tier, licence, count, source) for (label, tier, licence, source), count in sorted(counts.items())
    )


def main(config: Export) -> int:
    """`foleybox export`: write the instrument, or nothing."""
    if config.draws < 0:
        raise UserError(f"--draws {config.draws}: expected 0 or more")
    check_place(config.out, "gan")
    if (config.out / MANIFEST).exists() and not config.force:
        raise UserError(f"{config.out} holds an instrument: name another folder, or replace it with --force")
    run, vocoder_run = read_run_config(config.generator), read_run_config(config.vocoder)
    generator, step = load_generator(config.generator, config.weights)
    vocoder, mel, vocoder_step = load_vocoder(config.vocoder)
    measured = _read_json(config.measured) if config.measured else {}
    notes = _read_notes(config.notes) if config.notes else ""
    torch.manual_seed(config.seed)
    if config.draws:
        refresh_batch_norm(generator, config.draws)
    samples = round(SECONDS * mel.rate)
    graphs = build(generator, vocoder, mel, samples)
    left_out = ("clips", "out", "data")  # counted in `heard`; paths are nobody's business
    made_with = {
        "foleybox": foleybox.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": config.seed,
        "weights": config.weights,
        "draws": config.draws,
        "generator": {**{key: run[key] for key in run if key not in left_out}, "steps": step},
        "vocoder": {**{key: vocoder_run[key] for key in vocoder_run if key not in left_out}, "steps": vocoder_step},
    }
    instrument = Instrument(
        name=config.name or config.out.name,
        version=config.version,
        labels=tuple(label.name for label in LABELS),
        rate=mel.rate,
        samples=samples,
        latent=(generator.config.latent,),
        mel=asdict(mel),
        heard=heard_by(read_clips(config.generator), read_clips(config.vocoder)),
        measured=measured,
        made_with=made_with,
    )
    written = write_instrument(config.out, instrument, graphs, card(instrument, notes))
    size = sum(graph.bytes for graph in written.graphs.values())
    print(f"{config.out}: instrument {written.name}, {size / 1e6:.1f} MB, {written.licence.terms}")
    return 0


def _read_notes(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): expected Markdown in UTF-8") from error


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"it holds {name}")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON that can be read ({error})") from error


# --- the card -----------------------------------------------------------------------------------------------------


def card(instrument: Instrument, notes: str) -> str:
    """Return CARD.md: what it is, what it heard, what follows for its sounds, how it was trained, what was measured."""
    made, licence = instrument.made_with, roll_up(instrument.heard)
    generator, vocoder = made["generator"], made["vocoder"]
    lines = [
        f"# {instrument.name} {instrument.version}",
        "",
        f"Makes {instrument.samples / instrument.rate:g} s of mono sound at {instrument.rate:,} Hz for "
        f"{len(instrument.labels)} labels: {', '.join(instrument.labels)}.",
        "",
        "## Licence",
        "",
        f"**{licence.terms}**, because of what it heard:",
        "",
        *[f"* {reason}" for reason in licence.why],
        "",
        "This is the rule of `foleybox.instrument` applied to the training list, not legal advice.",
        "",
        "## What it heard",
        "",
        "Generator and vocoder together; `(other)` are everyday sounds that only the vocoder heard. The source is the",
        "collection that the clips came in, and whom to credit: with thanks to everyone who recorded them.",
        "",
        "| label | tier | licence as its source states it | source | clips |",
        "|---|---|---|---|---|",
        *[f"| {row.label} | {row.tier} | {row.licence} | {row.source} | {row.clips} |" for row in instrument.heard],
        "",
        "## How it was trained",
        "",
        f"* Generator: {_trained(generator)}, {made.get('weights', 'average')} weights.",
        f"* Vocoder: Vocos {vocoder['size']}, {vocoder['steps']:,} steps of {vocoder['batch']} x {vocoder['segment']} "
        f"frames, discriminators from step {vocoder['adversarial_from']:,}, seed {vocoder['seed']}.",
        f"* Made with foleybox {made['foleybox']} (commit {made['commit'] or 'unknown'}), torch {made['torch']}.",
        "",
        *_measured_lines(instrument.measured),
    ]
    return "\n".join(lines) + (f"\n{notes.strip()}\n" if notes else "")


def _trained(run: dict[str, Any]) -> str:
    """Say in a line what a run of `train sagan` was."""
    loss, model = KT.get(run["system"], KT["kt-2c"]), run["model"]  # the first instrument's says `sagan`
    tau_data, tau_class = run["tau_data"] or loss.tau_data, run["tau_class"] or loss.tau_class
    steadiers = run.get("steadiers", {})
    also = [f"{name} {steadiers[name]:g}" for name in ("lecam", "r1") if steadiers.get(name)]
    if any(steadiers.get("transition", ())):
        also.append("label faded in over steps {} to {}".format(*steadiers["transition"]))
    if loss.source:
        also.append(f"source {run['source']}")
    return ", ".join(
        [
            f"{run['system']}, plan {model['plan']}, width {model['width']}, {run['steps']:,} steps of {run['batch']} clips",
            f"Adam {run['lr_generator']:g} / {run['lr_discriminator']:g}",
            f"hinge ({'projection logit' if model['conditional_logit'] else 'unconditional logit'}) + "
            f"{run['contrastive']:g} x {'C-SupCon' if loss.source else '2C'} {'with' if loss.labels else 'without'} label "
            f"(tau_d {tau_data:g}, tau_c {tau_class:g})",
            *also,
            f"augmentation probability {run['augment']['probability']:g}",
            f"average {run['average']:g}",
            f"seed {run['seed']}",
        ]
    )


def _measured_lines(measured: dict[str, Any]) -> list[str]:
    if not measured:
        return ["## Measured", "", "Nothing yet.", ""]
    body = json.dumps(measured, indent=1, ensure_ascii=False)
    return [
        "## Measured",
        "",
        *(str(measured["table"]).splitlines() if "table" in measured else ["```json", body, "```"]),
        "",
    ]


def rewrite_card(folder: Path, measured: dict[str, Any], notes: str) -> Instrument:
    """Add scores and notes to an instrument on disk, its graphs untouched."""
    instrument = replace(read_instrument(folder), measured=measured)
    files = {name: folder / graph.file for name, graph in instrument.graphs.items()}
    return write_instrument(folder, instrument, files, card(instrument, notes))
