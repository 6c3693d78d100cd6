"""The model card of an instrument: CARD.md."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from foleybox.instrument import Instrument, read_instrument, write_instrument
from foleybox.lab.kt.systems import KT
from foleybox.labels import LABELS
from foleybox.licences import roll_up

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
        "All parts together; `(other)` are everyday sounds, which it does not play. The source is the collection that the",
        "clips came in, and whom to credit: with thanks to everyone who recorded them.",
        "",
        "| label | tier | licence as its source states it | source | clips |",
        "|---|---|---|---|---|",
        *[f"| {row.label} | {row.tier} | {row.licence} | {row.source} | {row.clips} |" for row in instrument.heard],
        "",
        "## How it was trained",
        "",
        f"* Generator: {_trained(generator)}{_drawn(made)}.",
        f"* Vocoder: {_vocoded(vocoder)}.",
        f"* Made with foleybox {made['foleybox']} (commit {made['commit'] or 'unknown'}), torch {made['torch']}.",
        "",
        *_measured_lines(instrument.measured),
    ]
    return "\n".join(lines) + (f"\n{notes.strip()}\n" if notes else "")


def _vocoded(run: dict[str, Any]) -> str:
    """Say in a line what a run of `train vocoder` was."""
    steps = f"{run['steps']:,} steps of {run['batch']} x {run['segment']} frames"
    if run.get("vocoder", "vocos") == "vocos":
        what = f"Vocos {run['size']}, {steps}, discriminators from step {run['adversarial_from']:,}"
    else:
        width = f" of width {run['width']}" if run["width"] else ""
        what = f"{run['vocoder'].replace('hifigan-v', 'HiFi-GAN V')}{width}, {steps}"
    read = ", reading mels that a model made" if run.get("mels_from") else ""
    if run.get("redrawing", {}).get("redrawn_by"):
        read += f", {run['redrawing']['redrawn_share']:.0%} of them drawn again by patches"
    return f"{what}{read}, seed {run['seed']}"


def _drawn(made: dict[str, Any]) -> str:
    """Say what was made of the generator's run: which weights; or in how many steps, and with which autoencoder."""
    if "autoencoder" not in made:
        return f", {made.get('weights', 'average')} weights"
    run = made["autoencoder"]
    guidance, temperature = (", ".join(f"{each:g}" for each in made[name]) for name in ("guidance", "temperature"))
    since = f" from {made['guided_from']:g} of the flow on" if made.get("guided_from") else ""
    return (
        f"; {made['flow_steps']} steps a latent, by label guidance {guidance}{since} and temperature {temperature}, "
        f"sharpened by {made['sharpen']:g}; its latents from an autoencoder of {run['steps']:,} steps of "
        f"{run['batch']} x {run['segment']} frames, seed {run['seed']}"
    )


def _trained(run: dict[str, Any]) -> str:
    """Say in a line what a run of `train sagan` or `train patches` was."""
    before = f", from weights that had seen {run['seen_before']:,} clips" if run.get("seen_before") else ""
    if run.get("part") == "patches":
        model = run["model"]
        other = f", {run['others_share']:.0%} of them other sounds" if model["labels"] > len(LABELS) else ""
        without = f", without {', '.join(run['without'])}" if run.get("without") else ""
        most = run.get("most_of_recording")
        few = f", at most {most} of a recording in an epoch of its label" if most else ""
        return (
            f"causal patches, width {model['width']}, {model['layers']} layers, {run['steps']:,} steps of {run['batch']} "
            f"clips{other}{without}{few}{before}, AdamW {run['lr']:g}, average {run['decay']:g}, seed {run['seed']}"
        )
    loss, model = KT.get(run["system"], KT["kt-2c"]), run["model"]  # the first instrument's says `sagan`
    tau_data, tau_class = run["tau_data"] or loss.tau_data, run["tau_class"] or loss.tau_class
    regularisers = run.get("regularisers", {})
    also = [f"{name} {regularisers[name]:g}" for name in ("lecam", "r1") if regularisers.get(name)]
    if any(regularisers.get("transition", ())):
        also.append("label faded in over steps {} to {}".format(*regularisers["transition"]))
    if loss.source:
        also.append(f"source {run['source']}")
    return ", ".join(
        [
            f"{run['system']}, plan {model['plan']}, width {model['width']}",
            f"{run['steps']:,} steps of {run['batch']} clips{before}",
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
