"""Codes files: recordings as grids of codes, on which PixelSNAIL is trained. `foleybox encode` writes them.

A codes file is an npz without pickles: codes uint16 [N, H, W], labels uint8 [N], recordings and names (text [N]), and
`about`, JSON with the number of codes K, the fingerprint of the VQ-VAE that made them, its step, and a row about each clip
(licence, source). The fingerprint is that of all its weights: another VQ-VAE, or the same one after more training, cannot
decode the codes.
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
from foleybox.lab.baseline.vqvae import Quantiser
from foleybox.lab.core.clips import ClipFile, split_by_recording
from foleybox.lab.core.runs import fingerprint
from foleybox.labels import LABELS

FORMAT = "foleybox codes 1"


class Features(Protocol):
    """Features of N clips that can be read in parts: a tensor [N, M, T], or the CEmbeds of CMU's track A on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, clips: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class Codes:
    """The codes of N clips, and the facts needed to use them."""

    codes: Tensor
    "int64 [N, H, W], 0 to size - 1; row 0 holds the lowest mels: 20 x 86 for 80 x 344"
    labels: Tensor
    "int64 [N]"
    recordings: list[str]
    "[N] clips cut from one recording share it: the unit of splitting"
    names: list[str]
    "[N] folder/file"
    rows: list[dict[str, str]]
    "[N] `clips.training_rows` of the clips, for the record of a run that is trained on these codes"
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
            [column[i] for i in chosen.tolist()] for column in (self.recordings, self.names, self.rows)
        )
        codes, labels = self.codes[chosen], self.labels[chosen]
        return replace(self, codes=codes, labels=labels, recordings=recordings, names=names, rows=rows)


def split_codes(codes: Codes, held_out: float) -> tuple[Codes, Codes]:
    """Split into (kept, held out) by recording, the same way as `clips.split_by_recording` splits the clips."""
    clips = [ClipFile(Path(name), None, recording) for name, recording in zip(codes.names, codes.recordings)]
    held = {clip.recording for clip in split_by_recording(clips, held_out)[1]}
    mask = torch.tensor([recording in held for recording in codes.recordings], dtype=torch.bool)
    return codes.pick(~mask), codes.pick(mask)


# --- the file -----------------------------------------------------------------------------------------------------


def write_codes(path: Path, codes: Codes) -> None:
    """Write a codes file atomically; the same codes give the same bytes."""
    about = {"format": FORMAT, "size": codes.size, "fingerprint": codes.fingerprint, "step": codes.step}
    content = io.BytesIO()
    np.savez_compressed(
        content,
        codes=codes.codes.numpy().astype(np.uint16),
        labels=codes.labels.numpy().astype(np.uint8),
        recordings=np.array(codes.recordings, dtype=np.str_),
        names=np.array(codes.names, dtype=np.str_),
        about=np.array(json.dumps(about | {"clips": codes.rows}, ensure_ascii=False)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getbuffer())


def read_codes(path: Path) -> Codes:
    """Read a codes file. Raises UserError for a missing, damaged, or other file."""
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
                about["clips"] if "clips" in about else about["heard"],  # the name in files of earlier versions
                int(about["size"]),
                str(about["fingerprint"]),
                int(about["step"]),
            )
        _check(found)
    except Exception as error:  # damaged zip and npy files fail in many ways
        raise UserError(
            f"{path} is damaged or not a codes file ({type(error).__name__}: {error}): make it again with `foleybox encode`"
        ) from error
    return found


def _check(codes: Codes) -> None:
    """Raise ValueError for columns that contradict each other."""
    counts = {len(column) for column in (codes.codes, codes.labels, codes.recordings, codes.names, codes.rows)}
    if codes.codes.ndim != 3 or counts != {len(codes.codes)} or not len(codes.codes):
        raise ValueError(f"codes {list(codes.codes.shape)}, columns of {', '.join(map(str, sorted(counts)))} clips")
    lowest, highest = int(codes.codes.min()), int(codes.codes.max())
    if not 0 <= lowest <= highest < codes.size:
        raise ValueError(f"codes {lowest} to {highest} of a codebook of {codes.size}")
    if int(codes.labels.max()) >= len(LABELS):
        raise ValueError(f"label {int(codes.labels.max())} of {len(LABELS)}")


# --- to codes and back --------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_features(model: Quantiser, features: Features, batch: int = 16) -> Tensor:
    """Return the codes int64 [N, H, W] of features [N, M, T] (log-mels; CEmbeds for an MVQVAE), on the CPU.

    Always in float32 and in eval mode; the model's mode is restored. Shows a progress bar on a terminal.
    """
    console = Console(file=sys.stderr)
    was_training = model.training
    model.eval()
    parts = torch.arange(len(features)).split(batch)
    shown = track(parts, "encoding", console=console, transient=True, disable=not console.is_terminal)
    codes = [model.codebook(model.encode(features[part].to(_device(model)))).cpu() for part in shown]
    model.train(was_training)
    return torch.cat(codes)


@torch.no_grad()
def decode_codes(model: Quantiser, codes: Tensor, batch: int = 16) -> Tensor:
    """Return the log-mels float32 [N, M, T] (CEmbeds of an MVQVAE) of codes int64 [N, H, W], on the CPU.

    Raises UserError for codes that the codebook does not have.
    """
    if codes.ndim != 3 or codes.is_floating_point():
        raise UserError(f"codes {codes.dtype} of shape {list(codes.shape)}: expected integers of shape [N, H, W]")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < model.config.size:
        raise UserError(
            f"codes {int(codes.min())} to {int(codes.max())} for a codebook of {model.config.size}: they were made with "
            "another VQ-VAE; give the run that encoded them"
        )
    parts = [model.decode(model.codebook.lookup(part.to(_device(model)).long())).cpu() for part in codes.split(batch)]
    return torch.cat(parts)


def check_fingerprint(model: nn.Module, expected: str, source: str) -> None:
    """Raise UserError unless these are the weights with which `source`, a codes file or a run, was made."""
    found = fingerprint(model)
    if found != expected:
        raise UserError(
            f"{source} was made with the VQ-VAE of fingerprint {expected[:12]}, this one is {found[:12]}: give the run that "
            "encoded its codes, unchanged; another VQ-VAE cannot decode them"
        )


def _device(model: Quantiser) -> torch.device:
    return model.codebook.vectors.device
