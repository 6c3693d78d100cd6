"""CARD.md, the model card of an instrument: licence, use, scores, training, training clips."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from foleybox.instrument import Instrument, read_instrument, write_instrument
from foleybox.lab.kt.systems import KT
from foleybox.labels import LABELS

METRICS = {
    "frechet": "Fréchet distance (lower is better)",
    "accuracy": "recognised as their label by a tagger",
    "coverage": "coverage of the real clips",
    "diversity": "diversity",
}
"names of metrics in the table of scores"


def card(instrument: Instrument, notes: str) -> str:
    """Return the text of CARD.md; `notes` is Markdown on intended use, weaknesses and lineage."""
    made, licence = instrument.made_with, instrument.licence
    full = instrument.made_with.get("vocoder", {}).get("full_band")
    highest = instrument.rate / 2 if full else instrument.mel.get("high")
    band = f", with frequencies up to {highest:,.0f} Hz" if highest else ""
    lines = [
        f"# {instrument.name} {instrument.version}",
        "",
        f"Generates {instrument.seconds:g} s of mono sound at {instrument.rate:,} Hz{band}, for {len(instrument.labels)} "
        f"labels: {', '.join(instrument.labels)}.",
        "",
        "## Licence",
        "",
        f"**{licence.terms}**. These terms follow from the training clips:",
        "",
        *[f"* {reason}" for reason in licence.reasons],
        "",
        "This is the result of a rule (`foleybox.licences`) applied to the list of training clips below, not legal advice.",
        "",
        *(line.rstrip() for line in [*notes.strip().splitlines(), ""] if notes),
        "## Scores",
        "",
        *score_lines(instrument.measured),
        "",
        "## Training",
        "",
        f"* Generator: {describe_generator(made['generator'])}{describe_weights(made)}.",
        *([f"* Autoencoder: {describe_autoencoder(made['autoencoder'])}."] if "autoencoder" in made else []),
        f"* Vocoder: {describe_vocoder(made['vocoder'])}.",
        f"* Exported with foleybox {made['foleybox']} (commit {made['commit'] or 'unknown'}), torch {made['torch']}.",
        "",
        *sampling_lines(instrument),
        "## Training clips",
        "",
        "The clips that all parts together were trained on. `(other)` are everyday sounds, which the instrument does not",
        "generate. The source is whom to credit: thanks to everyone who recorded and published these clips.",
        "",
        "| label | tier | licence as the source states it | source | clips |",
        "|---|---|---|---|---|",
        *[
            f"| {row.label} | {row.tier} | {row.licence} | {row.source} | {row.clips} |"
            for row in instrument.training_clips
        ],
    ]
    return "\n".join(lines) + "\n"


def rewrite_card(folder: Path, notes: str, measured: dict[str, Any] | None = None) -> Instrument:
    """Write the card of an existing instrument anew, with `measured` as its new scores; the graphs stay as they are."""
    instrument = read_instrument(folder)
    instrument = instrument if measured is None else replace(instrument, measured=measured)
    files = {name: folder / graph.file for name, graph in instrument.graphs.items()}
    return write_instrument(folder, instrument, files, card(instrument, notes))


# --- scores -------------------------------------------------------------------------------------------------------


def score_lines(measured: dict[str, Any]) -> list[str]:
    """Return scores as Markdown: a table of the numbers that have an interval, then all else as it is."""
    if not measured:
        return ["Not measured."]
    if "table" in measured:
        return str(measured["table"]).splitlines()
    rows, facts = [], []
    for key, value in measured.items():
        scores = value if isinstance(value, dict) else {}
        if scores and all(isinstance(each, dict) and "value" in each for each in scores.values()):
            metric, _, by = key.partition(" by ")
            rows += [
                f"| {METRICS.get(name, name) if not by else f'{METRICS.get(metric, metric)}: {name}'} | {score_cells(each)} |"
                for name, each in scores.items()
            ]
        elif isinstance(value, str) and "\n" in value:
            facts += ["", f"{key.capitalize()}:", "", "```", value, "```"]
        else:
            facts.append(f"* {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    header = ["| metric | generated | 95 % interval | real clips |", "|---|---|---|---|"]
    return [*(header if rows else []), *rows, *([""] if rows and facts else []), *facts]


def score_cells(score: dict[str, Any]) -> str:
    low, high = score.get("low"), score.get("high")
    interval = f"{low:.4g} to {high:.4g}" if low is not None and high is not None else ""
    floor = f"{score['floor']:.4g}" if score.get("floor") is not None else ""
    return f"{score['value']:.4g} | {interval} | {floor}"


# --- training -----------------------------------------------------------------------------------------------------


def describe_generator(run: dict[str, Any]) -> str:
    """Return the run of `train sagan` or `train patches` in a line."""
    before = f", started from weights trained on {run['seen_before']:,} clips" if run.get("seen_before") else ""
    model = run["model"]
    if run.get("flow_steps") is not None:
        return (
            f"causal patches, width {model['width']}, {model['layers']} layers, trained on {run['seen_before']:,} clips; "
            f"their flow head distilled from {run['teacher_steps']} steps with guidance to {run['flow_steps']} without, on "
            f"{run['steps']:,} batches of {run['rows']:,} latents, AdamW at {run['lr']:g}, moving average "
            f"{run['decay']:g}, seed {run['seed']}"
        )
    if run.get("part") == "patches":
        other = f", {run['others_share']:.0%} of them other sounds" if model["labels"] > len(LABELS) else ""
        without = f", without the recordings {', '.join(run['without'])}" if run.get("without") else ""
        most = run.get("most_of_recording")
        few = f", at most {most} clips of a recording per epoch of its label" if most else ""
        return (
            f"causal patches, width {model['width']}, {model['layers']} layers, {run['steps']:,} steps of {run['batch']} "
            f"clips{other}{without}{few}{before}, AdamW at {run['lr']:g}, moving average {run['decay']:g}, seed {run['seed']}"
        )
    loss = KT.get(run["system"], KT["kt-2c"])  # the first instruments have `sagan`
    tau_data, tau_class = run.get("tau_data") or loss.tau_data, run.get("tau_class") or loss.tau_class
    augment = run["augment"]["probability"] if "augment" in run else run["augment_probability"]  # format 1: the former
    regularisers = run.get("regularisers") or run.get("steadiers") or {}
    also = [f"{name} {regularisers[name]:g}" for name in ("lecam", "r1") if regularisers.get(name)]
    if any(regularisers.get("transition", ())):
        also.append("label faded in over steps {} to {}".format(*regularisers["transition"]))
    if loss.source:
        also.append(f"source {run.get('source', 'paired')}")
    parts = [
        f"{run['system']}, plan {model['plan']}, width {model['width']}",
        f"{run['steps']:,} steps of {run['batch']} clips{before}",
        f"Adam at {run['lr_generator']:g} / {run['lr_discriminator']:g}",
        f"hinge loss ({'projection logit' if model['conditional_logit'] else 'unconditional logit'}) + "
        f"{run.get('contrastive', 1.0):g} x {'C-SupCon' if loss.source else '2C'} {'with' if loss.labels else 'without'} label "
        f"(tau_d {tau_data:g}, tau_c {tau_class:g})",
        *also,
        f"augmentation probability {augment:g}",
        f"moving average {run['average']:g}",
        f"seed {run['seed']}",
    ]
    return ", ".join(parts)


def describe_weights(made: dict[str, Any]) -> str:
    """Return which weights of a GAN were exported."""
    return "" if "autoencoder" in made else f", {made.get('weights', 'average')} weights"


def describe_autoencoder(run: dict[str, Any]) -> str:
    """Return the run of `train autoencoder` in a line."""
    return (
        f"{run['model']['latent']} principal components of {run['model']['patch']} frames, {run['steps']:,} steps of "
        f"{run['batch']} x {run['segment']} frames, seed {run['seed']}"
    )


def describe_vocoder(run: dict[str, Any]) -> str:
    """Return the run of `train vocoder` or `train hifigan` in a line."""
    steps = f"{run['steps']:,} steps of {run['batch']} x {run['segment']} frames"
    if run.get("vocoder", "vocos") == "vocos":
        since = (run.get("recipe") or {}).get(
            "discriminators_from", run.get("adversarial_from")
        )  # format 1: the latter
        adversarial = (
            "no discriminators" if since is None or since >= run["steps"] else f"discriminators from step {since:,}"
        )
        what = f"Vocos {run['size']}, {steps}, {adversarial}"
    else:
        width = f" of width {run['width']}" if run["width"] else ""
        what = f"{run['vocoder'].replace('hifigan-v', 'HiFi-GAN V')}{width}, {steps}"
    read = ", on mels that a model reconstructed" if run.get("mels_from") else ""
    redrawing = run.get("redrawing") or {}
    if redrawing.get("redrawn_by"):
        read += f", {redrawing['redrawn_share']:.0%} of them partly drawn again by patches"
    return f"{what}{read}, seed {run['seed']}"


def sampling_lines(instrument: Instrument) -> list[str]:
    """Return how an instrument of patches draws, as Markdown."""
    made = instrument.made_with
    if instrument.kind != "patches":
        return []
    since = made.get("guided_from") or 0
    rows = zip(instrument.labels, made["guidance"], made["temperature"])
    return [
        f"A latent is drawn in {made['flow_steps']} steps of the flow, with guidance from time {since:g} on.",
        "",
        "| label | guidance | temperature |",
        "|---|---|---|",
        *[f"| {label} | {guidance:g} | {temperature:g} |" for label, guidance, temperature in rows],
        "",
    ]
