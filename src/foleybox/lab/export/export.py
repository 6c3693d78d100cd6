"""`foleybox export`: make an instrument of trained parts. Its ONNX graphs are compared with torch before they are written.

foleybox export runs/gan runs/vocoder -o my-instrument --name my-instrument
"""

import hashlib
import json
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import tyro

from foleybox.errors import UserError
from foleybox.files import sweep
from foleybox.instrument import MANIFEST, Instrument, check_place, check_trained, read_instrument, write_instrument
from foleybox.lab.core.runs import NUMBERED, read_clips, read_run_config
from foleybox.lab.export.card import card
from foleybox.lab.export.graphs import Sampling, build_gan, build_patches, build_vocoder, stored_small
from foleybox.lab.kt.runs import load_generator
from foleybox.lab.kt.sagan import refresh_batch_norm
from foleybox.lab.patches.runs import load_patches_and_autoencoder
from foleybox.lab.vocoders.runs import band_factor, load_vocoder
from foleybox.labels import LABELS
from foleybox.licences import TrainingClips, tier_of
from foleybox.version import __version__, commit

SECONDS = 4.0


@dataclass(frozen=True)
class Export:
    """Make an instrument of a trained generator and a trained vocoder.

    Example: foleybox export runs/gan runs/vocoder -o my-instrument
    """

    generator: tyro.conf.Positional[Path]
    "run folder of `foleybox train sagan` or `foleybox train patches`; or an instrument, to give it another vocoder"
    vocoder: tyro.conf.Positional[Path]
    "run folder of `foleybox train vocoder`"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    "folder of the instrument"
    autoencoder: Annotated[
        Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(needed with a run of patches)")
    ] = None
    "run folder of `foleybox train autoencoder` that the patches were trained with"
    sampling: Sampling = field(default_factory=Sampling)
    name: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the folder's name)")] = ""
    "name of the instrument"
    version: str = "1"
    "version of the instrument"
    measured: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    "JSON of measured scores for the manifest and the card"
    notes: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    "Markdown to add to the card: lineage, known weaknesses, intended use"
    force: bool = False
    "replace an existing instrument"
    weights: Annotated[str, tyro.conf.arg(metavar="average|last|NAME")] = "average"
    "of a GAN: the moving average of the generator's weights, the last ones, or a snapshot, such as snapshot_2000"
    small: bool = False
    "store a GAN's weights in 8 bits, a quarter of the size; those of patches always are"
    draws: int = 50
    "of a GAN: batches of 64 sounds from which batch norm statistics are re-estimated; 0 keeps those of the training"
    seed: int = 0
    "of those batches"


PATHS = {"clips", "out", "data", "others", "start_from", "encoder", "decoder_from"}
"settings of a run that are not recorded in an instrument: paths, and the checksum of the clips"


def main(config: Export) -> int:
    """`foleybox export`: write the instrument, or nothing."""
    if config.draws < 0:
        raise UserError(f"--draws {config.draws}: expected 0 or more")
    if (config.generator / MANIFEST).is_file():
        return replace_vocoder(config)
    run, vocoder_run = read_run_config(config.generator), read_run_config(config.vocoder)
    kind = "patches" if run.get("part") == "patches" else "gan"
    check_free(config, kind)
    measured, notes = read_additions(config)
    made_with = versions()
    runs = [config.generator, config.vocoder]
    if kind == "patches":
        if config.autoencoder is None:
            raise UserError(f"{config.generator} draws the latents of an autoencoder: name its run with --autoencoder")
        model, autoencoder, (step, autoencoder_step) = load_patches_and_autoencoder(
            config.generator, config.autoencoder
        )
        vocoder, mel, vocoder_step = load_vocoder(config.vocoder)
        form = autoencoder.config
        positions = -(-round(SECONDS * mel.rate) // (mel.hop * form.patch))
        sampling = sampling_of(run, config.sampling)
        graphs = build_patches(model, autoencoder, vocoder, mel, positions, sampling)
        latent = (positions, form.latent + form.patch * form.noise)
        made_with |= asdict(sampling)
        made_with["autoencoder"] = run_settings(read_run_config(config.autoencoder), autoencoder_step)
        runs.append(config.autoencoder)
    else:
        generator, step = load_generator(config.generator, config.weights)
        vocoder, mel, vocoder_step = load_vocoder(config.vocoder)
        torch.manual_seed(config.seed)
        if config.draws and config.weights != "last":  # the last weights have the statistics of their training
            refresh_batch_norm(generator, config.draws)
        graphs = build_gan(generator, vocoder, mel, -(-round(SECONDS * mel.rate) // mel.hop))
        latent = (generator.config.latent,)
        if config.small:
            graphs = {name: stored_small(graph) for name, graph in graphs.items()}
        made_with |= {"seed": config.seed, "weights": config.weights, "draws": config.draws}
    made_with["vocoder"] = run_settings(vocoder_run, vocoder_step)
    made_with["generator"] = run_settings(run, step)
    instrument = Instrument(
        name=config.name or config.out.resolve().name,
        version=config.version,
        labels=tuple(label.name for label in LABELS),
        rate=mel.rate * band_factor(vocoder_run),
        samples=round(SECONDS * mel.rate * band_factor(vocoder_run)),
        latent=latent,
        mel=asdict(mel),
        training_clips=count_clips(*map(read_clips, runs)),
        kind=kind,
        measured=measured,
        made_with=made_with,
    )
    return write(config, instrument, graphs, notes)


def sampling_of(run: dict[str, Any], asked: Sampling) -> Sampling:
    """Return how an instrument draws: as asked, or as its patches were distilled to. Raises UserError if both are given."""
    if run.get("flow_steps") is None:
        return asked
    if asked != Sampling():
        raise UserError(
            "the run is distilled, which fixes steps, guidance and temperature: leave out the sampling flags"
        )
    unguided = (1.0,) * len(LABELS)
    return Sampling(run["flow_steps"], unguided, guided_from=0.0, temperature=tuple(run["temperature"]))


def replace_vocoder(config: Export) -> int:
    """Write an existing instrument with another vocoder; its other graphs are copied."""
    old = read_instrument(config.generator)
    check_trained(old)
    check_free(config, old.kind)
    measured, notes = read_additions(config)
    vocoder, mel, step = load_vocoder(config.vocoder)
    if asdict(mel) != old.mel:
        raise UserError(f"the vocoder reads the mel {mel}, {old.name} makes {old.mel}: train a vocoder for that mel")
    torch.manual_seed(0)
    graphs = {name: (config.generator / graph.file).read_bytes() for name, graph in old.graphs.items()}
    frames = -(-round(old.seconds * mel.rate) // mel.hop)
    graphs["vocoder"] = build_vocoder(vocoder, 2 * torch.randn(3, mel.bands, frames) - 5)
    vocoder_run = read_run_config(config.vocoder)
    rate = mel.rate * band_factor(vocoder_run)
    small = graphs if config.small else {"vocoder"} if old.kind == "patches" else ()
    graphs = {name: stored_small(graph) if name in small else graph for name, graph in graphs.items()}
    # Only the numbers of the instrument's clips are known. Both may have been trained on the same: the larger counts.
    counts = {replace(row, tier=tier_of(row.tier, row.licence)): row.clips for row in old.training_clips}
    for row in count_clips(read_clips(config.vocoder)):
        same = next((each for each in counts if replace(each, clips=row.clips) == row), row)
        counts[same] = max(row.clips, counts.get(same, 0))
    rows = [replace(row, clips=count) for row, count in counts.items()]
    instrument = replace(
        old,
        name=config.name or config.out.resolve().name,
        version=config.version,
        rate=rate,
        samples=round(old.seconds * rate),
        training_clips=tuple(sorted(rows, key=lambda row: (row.label, row.tier, row.licence, row.source))),
        measured=measured,
        made_with={**old.made_with, **versions(), "vocoder": run_settings(vocoder_run, step)},
        same_sounds_as=(),
    )
    return write(config, instrument, graphs, notes)


def check_free(config: Export, kind: str) -> None:
    """Raise UserError if an instrument of that kind may not be written to `config.out`.

    One of the same name and version may be there: `write` compares it with what it would write.
    """
    check_place(config.out, kind)
    if (config.out / MANIFEST).exists() and not config.force:
        try:
            found = read_instrument(config.out)
        except UserError:
            found = None
        if found is None or (found.name, found.version) != (config.name or config.out.resolve().name, config.version):
            refuse_existing(config.out)


def refuse_existing(out: Path) -> NoReturn:
    """Raise UserError for an instrument that is in the way."""
    raise UserError(f"{out} contains an instrument: name another folder, or replace it with --force")


def write(config: Export, instrument: Instrument, graphs: dict[str, bytes], notes: str) -> int:
    """Write the instrument with its card, and print a line about it.

    Without --force, the same instrument may be there: it was written by the same command, which was stopped at its end.
    """
    if (config.out / MANIFEST).exists() and not config.force:
        written = read_instrument(config.out)
        digests = {name: graph.sha256 for name, graph in written.graphs.items()}
        same = digests == {name: hashlib.sha256(graph).hexdigest() for name, graph in graphs.items()}
        here, there = (json.dumps(asdict(each)) for each in (replace(instrument, graphs=written.graphs), written))
        if not same or json.loads(here) != json.loads(there):
            refuse_existing(config.out)
    else:
        written = write_instrument(config.out, instrument, graphs, card(instrument, notes))
    sweep(config.out)
    size = sum(graph.bytes for graph in written.graphs.values())
    print(f"{config.out}: instrument {written.name}, {size / 1e6:.1f} MB, {written.licence.terms}")
    return 0


def count_clips(*runs: list[dict[str, str]]) -> tuple[TrainingClips, ...]:
    """Count the training clips of runs (`runs.read_clips`); a clip of two runs counts once.

    Two clips of one name and size under different terms are two, so that no term is lost. Clips of a restored instrument
    are known by number only (`foleybox restore`) and may be among those known by name: of each source the larger number
    counts.
    """
    clips = {
        (row["clip"], row["label"], tier_of(row["tier"], row["licence"]), row["licence"], row["source"])
        for rows in runs
        for row in rows
    }
    named, numbered = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for clip, *terms in clips:
        (numbered if clip.startswith(NUMBERED) else named)[tuple(terms)] += 1
    return tuple(
        TrainingClips(label, tier, licence, count, source)
        for (label, tier, licence, source), count in sorted((named | numbered).items())
    )


def versions() -> dict[str, Any]:
    """Return the versions that an instrument is made with, for its manifest."""
    return {
        "foleybox": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def run_settings(run: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the settings of a run for the manifest, without paths, with the step of its checkpoint."""
    return {**{key: run[key] for key in run if key not in PATHS}, "steps": step}


def read_additions(config: Export) -> tuple[dict[str, Any], str]:
    """Return (the measured scores, the notes for the card) of the files that were named. Raises UserError for bad ones."""

    def refuse(name: str) -> None:
        raise ValueError(f"it contains {name}")

    measured, notes = {}, ""
    try:
        if config.measured is not None:
            measured = json.loads(config.measured.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise UserError(f"{config.measured} cannot be read as JSON ({error}): expected an object of scores") from error
    try:
        if config.notes is not None:
            notes = config.notes.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{config.notes} cannot be read as text ({error}): expected Markdown in UTF-8") from error
    if not isinstance(measured, dict):
        raise UserError(f"{config.measured} is {type(measured).__name__}: expected an object of scores")
    return measured, notes
