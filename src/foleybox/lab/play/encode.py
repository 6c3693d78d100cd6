"""`foleybox encode`: recordings -> a codes file, with a trained VQ-VAE or MVQVAE."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from foleybox.errors import UserError
from foleybox.lab.baseline.codes import Codes, encode_features, write_codes
from foleybox.lab.baseline.runs import Weights
from foleybox.lab.cmu.cembed import load_cembeds
from foleybox.lab.cmu.mvqvae import Mvqvae
from foleybox.lab.cmu.runs import load_quantiser
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips, label_ids, training_rows
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import fingerprint


@dataclass(frozen=True)
class Encode:
    """Turn recordings into codes with a trained VQ-VAE: the file that `train pixelsnail` reads.

    Example: foleybox encode runs/vqvae my_sounds/ -o runs/codes.npz
    """

    run: tyro.conf.Positional[Path]
    "a run of `foleybox train vqvae` or `train mvqvae`"
    data: tyro.conf.Positional[tuple[str, ...]]
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("codes.npz")
    "the codes file"
    weights: Weights | None = None
    "of a VQ-VAE: those with the best score (--reference while training), which is the default, or the last"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    force: bool = False
    "replace an existing file"
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 0
    "CPU threads; 0: chosen by torch"


def encode(config: Encode) -> int:
    """Encode the clips of all folders into one file, and report how many codes of the codebook are used."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox encode runs/vqvae sounds/`")
    if config.out.exists() and not config.force:
        raise UserError(f"{config.out} exists already: add --force to replace it, or name another file with -o")
    if config.threads:
        torch.set_num_threads(config.threads)
    model, cembed, step = load_quantiser(config.run, config.weights or "best")
    if isinstance(model, Mvqvae) and config.weights is not None:
        raise UserError(f"{config.run} is an MVQVAE, which has its last weights only: drop --weights")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    if config.device == "auto" and torch.cuda.is_available():
        model.cuda()
    features = load_mels(clips, DCASE) if cembed is None else load_cembeds(clips, cembed)
    codes = encode_features(model, features)
    names = [f"{clip.path.parent.name}/{clip.path.name}" for clip in clips]
    recordings = [clip.recording for clip in clips]
    made = Codes(
        codes, label_ids(clips), recordings, names, training_rows(clips), model.config.size, fingerprint(model), step
    )
    write_codes(config.out, made)
    print(
        f"{len(codes):,} clips, {codes.shape[1]} x {codes.shape[2]} codes each, {len(codes.unique())} of "
        f"{model.config.size} codes used, by the VQ-VAE {made.fingerprint[:12]} at step {step} -> {config.out}"
        + (" (CEmbeds of the stand-in encoder: random weights, not MERT)" if cembed and cembed.stand_in else "")
    )
    return 0
