"""What a codes file is: recordings as grids of integers, which PixelSNAIL learns; `foleybox encode` writes it.

A codes file is an npz without pickles: codes uint16 [N, H, W], labels uint8 [N], recordings and names (text [N]), and
`about`, JSON with the number of codes K, the fingerprint of the VQ-VAE that made them, its step, and what was heard.
The fingerprint is that of all its weights: codes mean nothing to another VQ-VAE, nor to the same one trained on.
"""

import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.files import write_bytes
from foleybox.lab.core.clips import ClipFile, split_by_recording
from foleybox.lab.core.runs import fingerprint
from foleybox.labels import LABELS

FORMAT = "foleybox codes 1"


class Features(Protocol):
    """Features of N clips, read some at a time: a tensor [N, M, T], or the CEmbeds of CMU's track A on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, clips: Any, /) -> Tensor: ...


class Quantiser(Protocol):
    """A model with a codebook: the baseline's VQ-VAE or CMU's MVQVAE."""

    codebook: Any
    config: Any
    training: bool

    def encode(self, mel: Tensor, /) -> Tensor: ...

    def decode(self, latent: Tensor, /) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


@dataclass(frozen=True)
class Codes:
    """The codes of N clips, and what must be known to use them."""

    codes: Tensor
    "int64 [N, H, W], 0 to size - 1; row 0 holds the lowest mels: 20 x 86 for 80 x 344"
    labels: Tensor
    "int64 [N]"
    recordings: list[str]
    "[N] clips cut from one recording share it: the unit of splitting"
    names: list[str]
    "[N] folder/file"
    heard: list[dict[str, str]]
    "[N] the rows of `data.heard`, for the record of a run that learns from these codes"
    size: int
    "K, codes in the codebook"
    fingerprint: str
    "of the VQ-VAE's weights, `runs.fingerprint`"
    step: int
    "of the VQ-VAE"

    def pick(self, which: Tensor) -> "Codes":
        """Return the codes of some clips: `which` is a mask [N] or int64 [n]."""
        chosen = torch.arange(len(self.codes))[which]
        recordings, names, rows = (
            [column[i] for i in chosen.tolist()] for column in (self.recordings, self.names, self.heard)
        )
        codes, labels = self.codes[chosen], self.labels[chosen]
        return replace(self, codes=codes, labels=labels, recordings=recordings, names=names, heard=rows)


def split_codes(codes: Codes, held_out: float) -> tuple[Codes, Codes]:
    """Split into (kept, held out) by recording, on the sides that `data.split_by_recording` has for that share."""
    clips = [ClipFile(Path(name), None, recording) for name, recording in zip(codes.names, codes.recordings)]
    held = {clip.recording for clip in split_by_recording(clips, held_out)[1]}
    mask = torch.tensor([recording in held for recording in codes.recordings], dtype=torch.bool)
    return codes.pick(~mask), codes.pick(mask)


# --- the file -----------------------------------------------------------------------------------------------------


def write_codes(path: Path, codes: Codes) -> None:
    """Write a codes file, whole or not at all; the same codes are the same bytes."""
    about = {"format": FORMAT, "size": codes.size, "fingerprint": codes.fingerprint, "step": codes.step}
    content = io.BytesIO()
    np.savez_compressed(
        content,
        codes=codes.codes.numpy().astype(np.uint16),
        labels=codes.labels.numpy().astype(np.uint8),
        recordings=np.array(codes.recordings, dtype=np.str_),
        names=np.array(codes.names, dtype=np.str_),
        about=np.array(json.dumps(about | {"heard": codes.heard}, ensure_ascii=False)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getbuffer())


def read_codes(path: Path) -> Codes:
    """Read a codes file. Raises UserError for a file that is not there, damaged, or not a codes file."""
    if not path.is_file():
        raise UserError(f"no codes file {path}: `foleybox encode RUN DATA -o {path}` makes one")
    try:
        with np.load(path, allow_pickle=False) as file:
            about: dict[str, Any] = json.loads(str(file["about"]))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}, not {FORMAT!r}")
            found = Codes(
                torch.from_numpy(file["codes"].astype(np.int64)),
                torch.from_numpy(file["labels"].astype(np.int64)),
                file["recordings"].tolist(),
                file["names"].tolist(),
                about["heard"],
                int(about["size"]),
                str(about["fingerprint"]),
                int(about["step"]),
            )
        _check(found)
    except Exception as error:  # a zip or an npy that is damaged fails in many ways
        raise UserError(
            f"{path} is not a whole codes file ({type(error).__name__}: {error}): make it again with `foleybox encode`"
        ) from error
    return found


def _check(codes: Codes) -> None:
    """Raise ValueError for what does not hold together."""
    counts = {len(column) for column in (codes.codes, codes.labels, codes.recordings, codes.names, codes.heard)}
    if codes.codes.ndim != 3 or counts != {len(codes.codes)} or not len(codes.codes):
        raise ValueError(f"codes {list(codes.codes.shape)}, columns of {', '.join(map(str, sorted(counts)))} clips")
    if int(codes.codes.max()) >= codes.size:
        raise ValueError(f"code {int(codes.codes.max())} of a codebook of {codes.size}")
    if int(codes.labels.max()) >= len(LABELS):
        raise ValueError(f"label {int(codes.labels.max())} of {len(LABELS)}")


# --- to codes and back --------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_mels(vqvae: Quantiser, features: Features, batch: int = 16) -> Tensor:
    """Return the codes int64 [N, H, W] of features [N, M, T] (log-mels; CEmbeds for an MVQVAE), on the CPU.

    On a terminal a bar shows how far it is.

    Always float32 and in eval mode, whatever the training ran in; the model's mode is as before when it returns.
    """
    console = Console(file=sys.stderr)
    was_training = vqvae.training
    vqvae.eval()
    parts = torch.arange(len(features)).split(batch)
    shown = track(parts, "encoding", console=console, transient=True, disable=not console.is_terminal)
    codes = [vqvae.codebook(vqvae.encode(features[part].to(_device(vqvae)))).cpu() for part in shown]
    vqvae.train(was_training)
    return torch.cat(codes)


@torch.no_grad()
def decode_codes(vqvae: Quantiser, codes: Tensor, batch: int = 16) -> Tensor:
    """Return the log-mels float32 [N, M, T] (an MVQVAE's: CEmbeds) of codes int64 [N, H, W], on the CPU.

    Raises UserError for codes that the codebook does not have.
    """
    if codes.ndim != 3 or codes.is_floating_point():
        raise UserError(f"codes {codes.dtype} of shape {list(codes.shape)}: expected integers of shape [N, H, W]")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < vqvae.config.size:
        raise UserError(
            f"codes {int(codes.min())} to {int(codes.max())} for a codebook of {vqvae.config.size}: they were made with "
            "another VQ-VAE; give the run that encoded them"
        )
    parts = [vqvae.decode(vqvae.codebook.look_up(part.to(_device(vqvae)).long())).cpu() for part in codes.split(batch)]
    return torch.cat(parts)


def check_vqvae(vqvae: nn.Module, expected: str, what: str) -> None:
    """Raise UserError unless these are the weights with which `what`, a codes file or a run, was made."""
    found = fingerprint(vqvae)
    if found != expected:
        raise UserError(
            f"{what} was made with the VQ-VAE of fingerprint {expected[:12]}, this one is {found[:12]}: give the run that "
            "encoded its codes, as it was then; codes of one VQ-VAE mean nothing to another"
        )


def _device(vqvae: Quantiser) -> torch.device:
    return next(vqvae.codebook.buffers()).device
