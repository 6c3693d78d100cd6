"""Trained vocoders, read from their run folders, and initial weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foleybox.errors import UserError
from foleybox.lab.core.mel import MELS, MelConfig
from foleybox.lab.core.runs import Stateful, fill_part, load_part, read_choice, read_state, read_trained
from foleybox.lab.vocoders.hifigan import VERSIONS, Hifigan, HifiganConfig, official_names
from foleybox.lab.vocoders.vocos import SIZES, Vocos, VocosConfig, widened

FULL_BAND = 2  # rate of a full-band vocoder's waves over that of its mel


def load_vocoder(run: Path) -> tuple[Vocos | Hifigan, MelConfig, int]:
    """Return (the vocoder of a run in eval mode, the mel it reads, the step): mel [B, M, T] -> wave [B, T hop].

    A Vocos has its averaged weights; a HiFi-GAN, of which there is no average, the last ones, without weight norm.
    Raises UserError for a bad run or a partial checkpoint.
    """
    settings, state = read_trained(run, "vocoder")
    settings.setdefault("vocoder", "vocos")  # the first runs have no such setting
    mel, path = MELS[read_choice(settings, "mel", MELS, run)], run / "state.pt"
    kind = read_choice(settings, "vocoder", ("vocos", *VERSIONS), run)
    if kind == "vocos":
        size, factor = read_choice(settings, "size", SIZES, run), band_factor(settings)
        return (
            load_part(lambda: Vocos(vocos_config(mel, size, factor)), "average", state, path).eval(),
            mel,
            state["step"],
        )
    model = load_part(lambda: Hifigan(hifigan_config(mel, kind, settings["width"])), "generator", state, path)
    model.remove_weight_norm()
    return model.eval(), mel, state["step"]


def vocos_config(mel: MelConfig, size: str, factor: int = 1) -> VocosConfig:
    """Return the settings of a Vocos of a size (a key of `vocos.SIZES`) that makes waves at `factor` times the mel's rate."""
    output = mel.times(factor)
    return dataclasses.replace(SIZES[size], bands=mel.bands, n_fft=output.n_fft, hop=output.hop)


def band_factor(settings: Mapping[str, Any]) -> int:
    """Return the rate of a vocoder's waves over that of its mel, from the settings of its run: 2 for a full-band Vocos."""
    return FULL_BAND if settings.get("full_band") else 1


def hifigan_config(mel: MelConfig, version: str, width: int | None = None) -> HifiganConfig:
    """Return the settings of a HiFi-GAN for a mel. Raises UserError for a width that its upsamplers cannot halve."""
    config = dataclasses.replace(VERSIONS[version], bands=mel.bands)
    halved = 2 ** len(config.rates)
    if width is not None and (width < halved or width % halved):
        raise UserError(f"--width {width} of {version}: expected a multiple of {halved}, such as {config.width}")
    return config if width is None else dataclasses.replace(config, width=width)


# --- initial weights ----------------------------------------------------------------------------------------------


def load_initial_weights(run: Path, parts: Sequence[tuple[str, Stateful]]) -> None:
    """Load the weights that the checkpoint of a vocoder's run has under these names, strictly.

    A full-band Vocos may start from one of half its rate (`vocos.widened`).

    Discriminators ("critics") that it lacks, as a run restored from an instrument does, keep their random weights.
    """
    _, state = read_trained(run, "vocoder")
    for name, part in parts:
        if name == "critics" and name not in state:
            continue
        if isinstance(part, Vocos) and isinstance(state.get(name), Mapping):
            state = {**state, name: widened(state[name], part.config.n_fft)}
        fill_part(part, name, state, run / "state.pt")


def read_official_hifigan(path: Path, generator: Hifigan) -> None:
    """Load an official checkpoint (`g_...` of jik876/hifi-gan) into a generator with weight norm.

    Raises UserError for another file, and for a weight that is missing, unknown or of another shape.
    """
    content = read_state(path, "expected an official HiFi-GAN generator, such as g_02500000")
    theirs = content.get("generator") if isinstance(content, Mapping) else None
    if not isinstance(theirs, Mapping):
        raise UserError(f"{path} holds no 'generator': expected an official HiFi-GAN generator, such as g_02500000")
    names = official_names(generator.config)
    missing, surplus = sorted(set(names.values()) - set(theirs)), sorted(set(theirs) - set(names.values()))
    if missing or surplus:
        lacks = f"lacks {missing[0]} ({len(missing)} in all)" if missing else ""
        has = f"has {surplus[0]} ({len(surplus)} in all)" if surplus else ""
        raise UserError(
            f"{path} does not fit this generator: it {' and '.join(filter(None, (lacks, has)))}; "
            "expected the version and width that it was trained with, weight norms not removed"
        )
    fill_part(generator, "generator", {"generator": {mine: theirs[name] for mine, name in names.items()}}, path)
