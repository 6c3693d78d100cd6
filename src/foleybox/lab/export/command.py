"""Trained parts -> an instrument: ONNX graphs, checked against torch on the spot, a manifest and a card.

foleybox export runs/gan runs/vocoder -o my-instrument --name my-instrument
"""

import json
import platform
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from foleybox.errors import UserError
from foleybox.instrument import (
    MANIFEST,
    Instrument,
    check_place,
    check_training_clips,
    read_instrument,
    write_instrument,
)
from foleybox.lab.core.runs import NUMBERED, read_clips, read_run_config
from foleybox.lab.export.card import card
from foleybox.lab.export.graphs import Drawing, build_gan, build_patches, build_vocoder, stored_small
from foleybox.lab.kt.runs import load_generator
from foleybox.lab.kt.sagan import refresh_batch_norm
from foleybox.lab.patches.runs import load_patches_and_autoencoder
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.labels import LABELS
from foleybox.licences import TrainingClips
from foleybox.version import __version__

SECONDS = 4.0


@dataclass(frozen=True)
class Export:
    """Make an instrument of a trained generator and a trained vocoder, checked against torch.

    Example: foleybox export runs/gan runs/vocoder -o my-instrument
    """

    generator: tyro.conf.Positional[Path]
    "run folder of `foleybox train sagan` or `foleybox train patches`, or an instrument, to give it another vocoder"
    vocoder: tyro.conf.Positional[Path]
    "run folder of `foleybox train vocoder`"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    "the instrument's folder"
    autoencoder: Path | None = None
    "run folder of `foleybox train autoencoder`, whose latents the patches are"
    drawing: Drawing = field(default_factory=Drawing)
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
    "of a GAN: the generator's moving average, or its last weights"
    small: bool = False
    "store a GAN's weights in 8 bits, a quarter of the size; those of patches always are"
    draws: int = 50
    "of a GAN: batches of 64 sounds from which its batch statistics are re-estimated; 0 keeps those of the training"
    seed: int = 0
    "of those draws"


def commit() -> str:
    """Return the git commit of the source tree, "" outside one (an installed package is in none)."""
    if not (Path(__file__).parents[4] / "pyproject.toml").is_file():
        return ""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


FOLDERS = {"clips", "out", "data", "others", "start_from", "encoder", "decoder_from"}
"settings of a run that say where something lay"


def count_clips(*runs: list[dict[str, str]]) -> tuple[TrainingClips, ...]:
    """Count the clips that runs were trained on (`runs.read_clips`); a clip that two of them heard counts once.

    Two clips of one name and size under other terms are two: a term is never lost to another's.

    Of some only the number is known (`foleybox restore`). They may be among those that are known by name: of each kind the
    larger number counts.
    """
    clips = {(row["clip"], row["label"], row["tier"], row["licence"], row["source"]) for rows in runs for row in rows}
    named, numbered = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for clip, *terms in clips:
        (numbered if clip.startswith(NUMBERED) else named)[tuple(terms)] += 1
    return tuple(
        TrainingClips(label, tier, licence, count, source)
        for (label, tier, licence, source), count in sorted((named | numbered).items())
    )


def main(config: Export) -> int:
    """`foleybox export`: write the instrument, or nothing."""
    if config.draws < 0:
        raise UserError(f"--draws {config.draws}: expected 0 or more")
    if (config.generator / MANIFEST).is_file():
        return revoice(config)
    run, vocoder_run = read_run_config(config.generator), read_run_config(config.vocoder)
    kind = "patches" if run.get("part") == "patches" else "gan"
    check_free(config, kind)
    measured = _read_json(config.measured) if config.measured else {}
    notes = _read_notes(config.notes) if config.notes else ""
    made_with = tools()
    runs = [config.generator, config.vocoder]
    if kind == "patches":
        if config.autoencoder is None:
            raise UserError(f"{config.generator} draws the latents of an autoencoder: name its run with --autoencoder")
        model, autoencoder, (step, autoencoder_step) = load_patches_and_autoencoder(
            config.generator, config.autoencoder
        )
        vocoder, mel, vocoder_step = load_vocoder(config.vocoder)
        samples, form = round(SECONDS * mel.rate), autoencoder.config
        graphs = build_patches(model, autoencoder, vocoder, mel, samples, config.drawing)
        latent = (-(-samples // (mel.hop * form.patch)), form.latent + form.patch * form.noise)
        made_with |= asdict(config.drawing)
        made_with["autoencoder"] = run_settings(read_run_config(config.autoencoder), autoencoder_step)
        runs.append(config.autoencoder)
    else:
        generator, step = load_generator(config.generator, config.weights)
        vocoder, mel, vocoder_step = load_vocoder(config.vocoder)
        torch.manual_seed(config.seed)
        if config.draws and config.weights == "average":  # the last ones have the statistics of their training
            refresh_batch_norm(generator, config.draws)
        samples = round(SECONDS * mel.rate)
        graphs, latent = build_gan(generator, vocoder, mel, samples), (generator.config.latent,)
        if config.small:
            graphs = {name: stored_small(graph) for name, graph in graphs.items()}
        made_with |= {"seed": config.seed, "weights": config.weights, "draws": config.draws}
    made_with["vocoder"] = run_settings(vocoder_run, vocoder_step)
    made_with["generator"] = run_settings(run, step)
    instrument = Instrument(
        name=config.name or config.out.name,
        version=config.version,
        labels=tuple(label.name for label in LABELS),
        rate=mel.rate,
        samples=samples,
        latent=latent,
        mel=asdict(mel),
        heard=count_clips(*map(read_clips, runs)),
        kind=kind,
        measured=measured,
        made_with=made_with,
    )
    return write(config, instrument, graphs, notes)


def check_free(config: Export, kind: str) -> None:
    """Raise UserError if an instrument of that kind may not be put where it is to go."""
    check_place(config.out, kind)
    if (config.out / MANIFEST).exists() and not config.force:
        raise UserError(f"{config.out} holds an instrument: name another folder, or replace it with --force")


def write(config: Export, instrument: Instrument, graphs: dict[str, bytes], notes: str) -> int:
    """Write the instrument with its card, and say what was written."""
    written = write_instrument(config.out, instrument, graphs, card(instrument, notes))
    size = sum(graph.bytes for graph in written.graphs.values())
    print(f"{config.out}: instrument {written.name}, {size / 1e6:.1f} MB, {written.licence.terms}")
    return 0


def tools() -> dict[str, Any]:
    """Return what an instrument was made with, for its manifest."""
    return {
        "foleybox": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def revoice(config: Export) -> int:
    """Write an instrument that is there with another vocoder; its other graphs stay what they are."""
    old = read_instrument(config.generator)
    check_training_clips(old)
    check_free(config, old.kind)
    measured = _read_json(config.measured) if config.measured else {}
    notes = _read_notes(config.notes) if config.notes else ""
    vocoder, mel, step = load_vocoder(config.vocoder)
    if asdict(mel) != old.mel:
        raise UserError(f"the vocoder reads the mel {mel}, {old.name} makes {old.mel}: train a vocoder for that mel")
    torch.manual_seed(0)
    graphs = {name: (config.generator / graph.file).read_bytes() for name, graph in old.graphs.items()}
    graphs["vocoder"] = build_vocoder(vocoder, 2 * torch.randn(3, mel.bands, mel.frames(old.samples)) - 5)
    small = graphs if config.small else {"vocoder"} if old.kind == "patches" else ()
    graphs = {name: stored_small(graph) if name in small else graph for name, graph in graphs.items()}
    # What the instrument heard is known by numbers alone: of clips that both may have heard, the larger number counts.
    counts = {row: row.clips for row in old.heard}
    for row in count_clips(read_clips(config.vocoder)):
        same = next((each for each in counts if replace(each, clips=row.clips) == row), row)
        counts[same] = max(row.clips, counts.get(same, 0))
    heard = [replace(row, clips=count) for row, count in counts.items()]
    instrument = replace(
        old,
        name=config.name or config.out.name,
        version=config.version,
        heard=tuple(sorted(heard, key=lambda row: (row.label, row.tier, row.licence, row.source))),
        measured=measured,
        made_with={**old.made_with, **tools(), "vocoder": run_settings(read_run_config(config.vocoder), step)},
    )
    return write(config, instrument, graphs, notes)


def run_settings(run: dict[str, Any], step: int) -> dict[str, Any]:
    """Return a run's settings for the manifest: the clips are counted in `heard`, folders are nobody's business."""
    return {**{key: run[key] for key in run if key not in FOLDERS}, "steps": step}


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
