"""Write real clips that went through a model and a vocoder, to be measured with `foleybox evaluate`.

    python benchmarks/round_trip.py ../shared/data/foley:dev --vocoder runs/vocoder -o out/vocoder
    python benchmarks/round_trip.py ../shared/data/foley:dev --vocoder runs/vocoder --through runs/vqvae -o out/vqvae

`--through` is a run of `train vqvae`, `train mvqvae` or `train autoencoder`. Measured against the same clips, 0 is a perfect
reconstruction; against others, the result is what a model that generates perfect codes or latents would reach.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from foleybox.audio import fit, write_wave
from foleybox.errors import UserError
from foleybox.lab.baseline.codes import decode_codes, encode_features
from foleybox.lab.cmu.cembed import load_cembeds
from foleybox.lab.cmu.mhifigan import waves_of_cembeds
from foleybox.lab.cmu.runs import load_mhifigan, load_quantiser
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.runs import read_run_config
from foleybox.lab.patches.runs import load_autoencoder
from foleybox.lab.play.sample import SAMPLES, vocode
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.labels import LABELS

RATE = 22_050


@dataclass(frozen=True)
class RoundTrip:
    """Write real clips after a model and a vocoder."""

    data: tyro.conf.Positional[str]
    "folder, or folder:split"
    vocoder: Path
    "a run of `train vocoder`, `train hifigan` or, for CEmbeds, `train mhifigan`"
    through: Path | None = None
    "a run of `train vqvae`, `train mvqvae` or `train autoencoder`; none: features and vocoder only"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/round-trip")
    clips: int = 0
    "clips of each label, the first by name; 0: all"


@torch.no_grad()
def main(config: RoundTrip) -> None:
    found = find_clips(config.data)
    clips = [
        clip for label in LABELS for clip in [each for each in found if each.label is label][: config.clips or None]
    ]
    parts = {run: read_run_config(run)["part"] for run in (config.through, config.vocoder) if run}
    cembeds = parts[config.vocoder] == "mhifigan"
    vocoder, reads, _ = load_mhifigan(config.vocoder) if cembeds else load_vocoder(config.vocoder)
    quantiser, features, _ = (None, None, None)
    if config.through and parts[config.through] != "autoencoder":
        quantiser, features, _ = load_quantiser(config.through)
    autoencoder = load_autoencoder(config.through)[0] if config.through and quantiser is None else None
    if quantiser is not None and (features is not None) != cembeds:
        raise UserError(f"{config.vocoder} does not read what {config.through} makes: name another vocoder")
    torch.manual_seed(0)  # of the autoencoder's noise
    for index, clip in enumerate(clips):
        real: Tensor = load_cembeds([clip], reads)[torch.tensor([0])] if cembeds else load_mels([clip], reads)  # pyright: ignore
        if quantiser is not None:
            real = decode_codes(quantiser, encode_features(quantiser, real))
        elif autoencoder is not None:
            real = autoencoder.reconstruct(real)
        wave = waves_of_cembeds(vocoder, real)[0] if cembeds else vocode(vocoder, real)[0]  # pyright: ignore
        assert clip.label
        folder = config.out / clip.label.name
        folder.mkdir(parents=True, exist_ok=True)
        write_wave(folder / f"{index:05d}.wav", fit(wave.numpy(), SAMPLES), RATE)
    print(f"wrote {len(clips)} clips to {config.out}")


if __name__ == "__main__":
    try:
        main(tyro.cli(RoundTrip))
    except UserError as error:
        sys.exit(f"round_trip: {error}")
