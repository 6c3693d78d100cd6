"""CEmbeds: the features of a pretrained encoder and a mel, stacked frame by frame.

Letters: B batch, N clips, L samples, S states of the encoder (its input and the output of each layer), F rows, T frames.

Pillay et al. 2023, section 2.2: 1,023 rows of MERT-v1-330M above the 129 mel bands of `mel.CEMBED`, [1152, 300] for 4 s
at 24 kHz. The encoder is any model with states of 1,024 rows at a stride of 320 samples: MERT, or random weights of
MERT's shape, which are called stand-in wherever they are used and whose results say nothing about MERT.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.cmu.mvqvae import Rows
from foleybox.lab.core.cache import cache_folder, read_array, write_array
from foleybox.lab.core.clips import ClipFile, load_waves
from foleybox.lab.core.mel import CEMBED, SILENCE, LogMel
from foleybox.lab.core.runs import PythonOnly

MERT = "m-a-p/MERT-v1-330M"
STAND_IN = "stand-in"
WIDTH = 1024  # rows of the encoder
PARTS = (WIDTH - 1, CEMBED.bands)  # rows of the encoder, then rows of the mel
FRAMES = 300  # of 4 s
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of the encoder's convolutions, without padding
STRIDE, FIELD = 320, 400  # samples from frame to frame, samples in the receptive field of a frame's convolutions


@dataclass(frozen=True)
class CembedConfig:
    """How the encoder's rows are made; every setting is part of the cache's key."""

    encoder: str = MERT
    "a repository on the Hugging Face hub, a folder with its files, or stand-in: random weights, for tests and dry runs"
    revision: PythonOnly[str] = "0e06c986db0527c0fd1b47181c40f006805e3de0"
    "of the repository; a folder has none"
    layer_weights: PythonOnly[tuple[float, ...]] = ()
    "weights of the encoder's states, the input first (MERT: 25); none: the plain mean, as published"
    drop: PythonOnly[int] = 951
    "the one of 1,024 rows that is left out; the public copy of CMU's code found 951 to be an outlier"
    encoder_seed: PythonOnly[int] = 0
    "of the stand-in's weights"

    @property
    def stand_in(self) -> bool:
        """Whether the rows come from random weights."""
        return self.encoder == STAND_IN


# --- the encoder --------------------------------------------------------------------------------------------------


class WaveEncoder(Protocol):
    """A model of waves [B, L] at 24 kHz with states [B, S, 1024, frames_of(L)]."""

    def __call__(self, wave: Tensor, /) -> Tensor: ...


def frames_of(samples: int) -> int:
    """Return the encoder's number of frames for a wave: 299 for 96,000 samples, 300 for 96,080 to 96,399."""
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


class StandIn(nn.Module):
    """Random weights of MERT's shape: its convolutions (narrower), 25 states of 1,024 rows with growing receptive fields."""

    CHANNELS, STATES, INNER = 32, 25, 32

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            widths = (1, *[self.CHANNELS] * len(KERNELS))
            self.convs = nn.ModuleList(
                nn.Conv1d(before, after, kernel, stride)
                for before, after, kernel, stride in zip(widths, widths[1:], KERNELS, STRIDES, strict=False)
            )
            self.widen = nn.Linear(self.CHANNELS, WIDTH)
            self.downs = nn.ModuleList(nn.Linear(WIDTH, self.INNER) for _ in range(self.STATES - 1))
            self.ups = nn.ModuleList(nn.Linear(self.INNER, WIDTH) for _ in range(self.STATES - 1))
        self.eval().requires_grad_(False)

    def forward(self, wave: Tensor) -> Tensor:
        x = wave[:, None]
        for conv in self.convs:
            x = F.gelu(conv(x))
            x = F.layer_norm(x.transpose(1, 2), x.shape[1:2]).transpose(1, 2)
        states = [self.widen(x.transpose(1, 2))]  # [B, T, 1024]
        for down, up in zip(self.downs, self.ups, strict=True):
            near = F.avg_pool1d(states[-1].transpose(1, 2), 5, 1, 2).transpose(1, 2)
            states.append(F.layer_norm(states[-1] + 4 * up(torch.tanh(down(near))), (WIDTH,)))
        return torch.stack(states, 1).transpose(2, 3)


class Mert(nn.Module):
    """MERT as transformers' HubertModel, which is its architecture: no code of the repository is run.

    MERT's two additions to HuBERT are off in this checkpoint (a CQT front end) or change no number (`attention_relax`
    shifts logits before a softmax). A missing weight is an error: transformers would leave it random.
    """

    def __init__(self, source: str, revision: str) -> None:
        super().__init__()
        try:
            from transformers import HubertConfig, HubertModel  # pyright: ignore[reportMissingImports] (an extra)
            from transformers.utils import logging  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise UserError(
                "MERT needs transformers, which is not installed: pip install -c constraints.txt '.[mert]', or give --encoder "
                f"{STAND_IN} for random weights instead"
            ) from None
        where: dict[str, Any] = {} if Path(source).is_dir() else {"revision": revision}
        logging.set_verbosity_error()  # it warns of "model of type mert_model"; the checks below are stricter
        logging.disable_progress_bar()
        try:
            config = HubertConfig.from_pretrained(source, **where)
            options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, **where}
            loaded: Any = HubertModel.from_pretrained(
                source, config=config, **options
            )  # a checkpoint may be in float16
            self.model, found = loaded
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no encoder in {source} ({type(error).__name__}: {' '.join(str(error).split())[:150]}): expected "
                f"{MERT}, reachable or downloaded before, or a folder with its config.json and weights; --encoder "
                f"{STAND_IN} has random weights instead"
            ) from error
        missing = sorted(found["missing_keys"])
        shape = (config.hidden_size, tuple(config.conv_kernel), tuple(config.conv_stride))
        if missing or found["mismatched_keys"]:
            raise UserError(f"{source} lacks {len(missing)} weights of the encoder, {missing[:1]} among them: not MERT")
        if shape != (WIDTH, KERNELS, STRIDES):
            raise UserError(f"{source} makes {shape[0]} rows by kernels {shape[1]}: expected {WIDTH} by {KERNELS}")
        self.eval().requires_grad_(False)

    def forward(self, wave: Tensor) -> Tensor:
        made = self.model(wave, output_hidden_states=True)
        # The last hidden state is layer-normalised in `last_hidden_state` and, since transformers 5, not in the list.
        return torch.stack([*made.hidden_states[:-1], made.last_hidden_state], 1).transpose(2, 3)


def load_encoder_of_waves(config: CembedConfig) -> StandIn | Mert:
    """Return the encoder, frozen. Raises UserError if it cannot be loaded."""
    return StandIn(config.encoder_seed) if config.stand_in else Mert(config.encoder, config.revision)


def _identity(config: CembedConfig) -> str:
    """Return what identifies an encoder in the cache, without reading its weights."""
    if config.stand_in:
        return f"{STAND_IN} {config.encoder_seed}"
    library = f"transformers {version('transformers') if find_spec('transformers') else 'none'}"
    folder = Path(config.encoder)
    if not folder.is_dir():
        return f"{library} {config.encoder} {config.revision}"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return " ".join([library, *(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)])


# --- waves to CEmbeds ---------------------------------------------------------------------------------------------


class Cembed(nn.Module):
    """Waves [B, L] at 24 kHz to CEmbeds [B, 1152, T], T = L / 320: the encoder's rows first, the mel's last.

    Frame k of the mel is centred on sample 320 k + 160. The encoder has no padding: 4 s would be 299 frames, and frame
    k would be centred on 320 k + 200. With 40 zeros on either side it has 300, centred as the mel's.
    """

    def __init__(self, encoder: WaveEncoder, config: CembedConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.front_end = LogMel(CEMBED)
        self.keep = [row for row in range(WIDTH) if row != config.drop]
        if len(self.keep) != PARTS[0]:
            raise UserError(f"drop {config.drop}: expected a row of the encoder, 0 to {WIDTH - 1}")

    def forward(self, wave: Tensor) -> Tensor:
        mel = self.front_end(wave)
        margin = (FIELD - STRIDE) // 2
        states = self.encoder(F.pad(wave[:, : mel.shape[2] * STRIDE], (margin, margin)))  # [B, S, 1024, T]
        if states.shape[2:] != (WIDTH, mel.shape[2]):
            raise UserError(f"the encoder made {list(states.shape[2:])}: expected {[WIDTH, mel.shape[2]]}")
        weights = self.config.layer_weights or (1.0,) * states.shape[1]
        if len(weights) != states.shape[1] or not sum(weights):
            raise UserError(
                f"layer_weights has {len(weights)} numbers of sum {sum(weights):g}: expected {states.shape[1]}, a weight "
                "for each state, at least one of them not 0"
            )
        rows = torch.einsum("s,bsft->bft", wave.new_tensor(weights) / sum(weights), states)
        return torch.cat([rows[:, self.keep], mel], 1)


class Cembeds:
    """The CEmbeds of N clips on disk, one file per clip (1.4 MB), indexed like a tensor [N, 1152, 300]."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, which: Tensor) -> Tensor:
        """Return float32 [B, 1152, 300] of the clips `which`, int64 [B]. Raises UserError for a damaged file."""
        found = [self._read(self.paths[index]) for index in which.tolist()]
        return torch.stack(found) if found else torch.empty(0, sum(PARTS), FRAMES)

    @staticmethod
    def _read(path: Path) -> Tensor:
        try:
            return torch.from_numpy(read_array(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): remove it, and it is computed again") from None


@torch.no_grad()
def load_cembeds(clips: Sequence[ClipFile], config: CembedConfig, batch: int = 4) -> Cembeds:
    """Return the CEmbeds of 4 s of the clips, unscaled.

    Each is kept on disk under a key of its file (path, size, time) and of all settings, and is computed once for all
    sets of clips. The scale belongs to a model (`mvqvae.Rows`), since it depends on the training clips. Shows a progress
    bar on a terminal. Raises UserError for an encoder that cannot be loaded.
    """
    settings = f"2 {_identity(config)} {config.layer_weights} {config.drop} {CEMBED}"
    folder = cache_folder() / (f"cembeds-{STAND_IN}" if config.stand_in else "cembeds")
    paths = []
    for clip in clips:
        state = clip.path.stat()
        key = f"{settings}\n{clip.path.resolve()} {state.st_size} {state.st_mtime_ns}"
        paths.append(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy")
    missing = [index for index, path in enumerate(paths) if not path.is_file() or not path.stat().st_size]
    if missing:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        cembed = Cembed(load_encoder_of_waves(config), config).to(device)
        folder.mkdir(parents=True, exist_ok=True)
        console = Console(file=sys.stderr)
        starts = range(0, len(missing), batch)
        for start in track(starts, "CEmbeds", console=console, transient=True, disable=not console.is_terminal):
            some = missing[start : start + batch]
            waves = load_waves([clips[index] for index in some], CEMBED.rate, FRAMES * STRIDE).to(device)
            for index, made in zip(some, cembed(waves.float() / 32768).cpu().numpy(), strict=True):
                write_array(paths[index], made)
    return Cembeds(paths)


# --- the scale of the rows ----------------------------------------------------------------------------------------

PUBLISHED_MEAN, PUBLISHED_SCALE = 1.9993998, 5.2803254  # of all of MERT's rows together; the mel is not scaled


def published_scale() -> tuple[Tensor, Tensor]:
    """Return (mean [F], scale [F]) of the public copy of CMU's code: one pair for MERT, none for the mel."""
    mert, mel = PARTS
    mean = torch.cat([torch.full((mert,), PUBLISHED_MEAN), torch.zeros(mel)])
    return mean, torch.cat([torch.full((mert,), PUBLISHED_SCALE), torch.ones(mel)])


def row_scale(features: Cembeds | Tensor, batch: int = 16) -> tuple[Tensor, Tensor]:
    """Return (mean [F], standard deviation [F]) of the rows of CEmbeds [N, F, T], over clips and frames.

    A constant row has a deviation of 1.
    """
    means, squares = [], []
    for part in torch.arange(len(features)).split(batch):
        rows = features[part].double()
        means.append(rows.mean(2).sum(0))
        squares.append(rows.square().mean(2).sum(0))
    mean = torch.stack(means).sum(0) / len(features)
    deviation = (torch.stack(squares).sum(0) / len(features) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation > 1e-3, deviation, 1.0).float()


def principal_rows(features: Cembeds | Tensor, mean: Tensor, scale: Tensor, components: int, batch: int = 16) -> Tensor:
    """Return the principal directions [components, 1023] of the scaled rows of the encoder, the strongest first.

    `features` are CEmbeds [N, F, T], `mean` and `scale` [F] their scale. The directions have unit length times one
    factor for all, which gives the components a mean square of 1.
    """
    mert = PARTS[0]
    covariance = torch.zeros(mert, mert, dtype=torch.float64)
    for part in torch.arange(len(features)).split(batch):
        scaled = (features[part][:, :mert] - mean[:mert, None]) / scale[:mert, None]
        flat = scaled.transpose(0, 1).flatten(1)  # [1023, B T]
        covariance += (flat @ flat.T).double() / (len(features) * scaled.shape[2])
    values, vectors = torch.linalg.eigh(covariance)  # in ascending order
    chosen = vectors.flip(1)[:, :components].T
    return (chosen / values.flip(0)[:components].mean().clamp(min=1e-12).sqrt()).float().contiguous()


def fill_rows(rows: Rows, features: Cembeds | Tensor, scale: Literal["rows", "published"]) -> None:
    """Set a model's scale of rows, and their principal components, from the CEmbeds of its training clips."""
    mean, deviation = published_scale() if scale == "published" else row_scale(features)
    rows.fill(mean, deviation, principal_rows(features, mean, deviation, rows.components) if rows.components else None)


def fill_value(rows: Rows, fill: Literal["silence", "zero"]) -> Tensor:
    """Return the value [F, 1] of masked entries of a raw CEmbed: silence, or the one that the public copy scales to 0."""
    value = rows.mean.clone()
    value[PARTS[0] :] = SILENCE if fill == "silence" else 0.0
    return value[:, None]
