"""Embeddings: clips -> vectors, each with its own rate, width and rule of windows, and where their weights are found.

Letters: N clips, L samples, W windows of a clip, E embedding width.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from foleybox.audio import fit, read_wave, resample
from foleybox.errors import UserError
from foleybox.files import atomic_path, sha256
from foleybox.lab.core.cache import cache_folder, cached
from foleybox.lab.core.clips import ClipFile
from foleybox.lab.core.mel import DCASE, LogMel
from foleybox.lab.evaluation import mn, vggish
from foleybox.lab.kt.encoder import encode_mels
from foleybox.lab.kt.runs import load_encoder
from foleybox.labels import LABELS

Result = TypeVar("Result")
EmbeddingName = Literal["mn04", "vggish", "vggish-official", "encoder"]

AUDIOSET: dict[str, dict[int, str]] = {
    # Which of AudioSet's 527 classes (index: display name) count as which of our labels.
    "dog_bark": {74: "Dog", 75: "Bark", 76: "Yip", 77: "Howl", 78: "Bow-wow", 79: "Growling", 80: "Whimper (dog)"},
    "footstep": {51: "Run", 52: "Shuffle", 53: "Walk, footsteps"},
    "gunshot": {427: "Gunshot, gunfire", 428: "Machine gun", 429: "Fusillade", 430: "Artillery fire", 431: "Cap gun"},
    "keyboard": {384: "Typing", 385: "Typewriter", 386: "Computer keyboard"},
    "moving_motor_vehicle": {
        **{306: "Motor vehicle (road)", 307: "Car", 314: "Car passing by", 315: "Race car, auto racing", 316: "Truck"},
        **{321: "Bus", 326: "Motorcycle", 327: "Traffic noise, roadway noise", 343: "Engine"},
        **{351: "Engine starting", 352: "Idling", 353: "Accelerating, revving, vroom"},
    },
    "rain": {289: "Rain", 290: "Raindrop", 291: "Rain on surface"},
    "sneeze_cough": {47: "Cough", 49: "Sneeze"},
}


class Embedded(NamedTuple):
    """Embedded waves."""

    vectors: Tensor
    "[N, W, E] float32"
    tags: Tensor | None
    "[N, 7] score of each label by the embedding's own tagger; None without a tagger"


class Embedding(Protocol):
    """The interface of an embedding."""

    name: str
    rate: int  # Hz, of the waves it is given
    width: int
    rule: str  # how a wave is cut into windows, as printed in every report
    weights: str  # identifies the weights

    def windows(self, samples: int) -> int:
        """Return how many windows a wave of that many samples gives."""
        ...

    def embed(self, waves: Tensor) -> Embedded:
        """Embed waves [N, L], full scale at 1."""
        ...


def frame(waves: Tensor, window: int, hop: int) -> Tensor:
    """Return the windows [N, W, window] that lie wholly in the waves [N, L]."""
    return waves.unfold(1, window, hop)


class MN04:
    """EfficientAT's mn04: 384 numbers for each second, every half second, and AudioSet tags."""

    name, rate, width = "mn04", mn.RATE, 384
    rule = "1 s every 0.5 s at 32 kHz"

    def __init__(self, path: Path):
        state = load_state(path)
        digest = state_digest(state)
        if digest != MN04_DIGEST:
            raise UserError(
                f"{path} does not hold mn04's published weights (digest of its tensors {digest[:12]}, expected "
                f"{MN04_DIGEST[:12]}): get it again from {RELEASES['mn04'].url}"
            )
        network = mn.MN()
        network.load_state_dict(state, strict=False)  # only batch counters may differ: the digest was compared above
        self.network, self.weights = network.fuse(), f"EfficientAT mn04_as_mAP_432, tensors {digest[:12]}"
        names = [list(AUDIOSET[label.slug]) for label in LABELS]
        self._groups = [torch.tensor(indices) for indices in names]

    def windows(self, samples: int) -> int:
        return (samples - self.rate) // (self.rate // 2) + 1

    @torch.inference_mode()
    def embed(self, waves: Tensor) -> Embedded:
        frames = frame(waves, self.rate, self.rate // 2)  # [N, W, 32000]
        vectors, logits = zip(*(self.network(part) for part in frames.flatten(0, 1).split(64)))
        count = frames.shape[:2]
        scores = torch.cat(logits).unflatten(0, count).amax(1)  # [N, 527]: maximum over the windows
        tags = torch.stack([scores[:, group].amax(1) for group in self._groups], 1)
        return Embedded(torch.cat(vectors).unflatten(0, count), tags)


class VGGishEmbedding:
    """VGGish: 128 numbers for each 16,000 samples, every 8,000. `official` is how the challenge's tool uses it."""

    width = 128

    def __init__(self, path: Path, official: bool):
        self.official = official
        self.name = "vggish-official" if official else "vggish"
        self.rate = 22_050 if official else 16_000
        self.rule = (
            "16,000 samples every 8,000 at 22,050 Hz, not resampled, over max(0.1, signed maximum) in int16 units"
            if official
            else "16,000 samples every 8,000 at 16 kHz, full scale 1"
        )
        self.network = vggish.VGGish().eval()
        try:
            self.network.load_state_dict(load_state(path))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} does not hold VGGish weights as torchvggish names them: {reason}") from None
        self.weights = f"torchvggish {path.name}, sha256 {sha256(path)[:12]}"

    def windows(self, samples: int) -> int:
        return (samples - vggish.WINDOW) // vggish.HOP + 1

    @torch.inference_mode()
    def embed(self, waves: Tensor) -> Embedded:
        if self.official:
            waves = vggish.official_scale(waves)
        frames = frame(waves, vggish.WINDOW, vggish.HOP)
        vectors = torch.cat([self.network(part) for part in frames.flatten(0, 1).split(32)])
        return Embedded(vectors.unflatten(0, frames.shape[:2]), None)


class EncoderEmbedding:
    """An encoder of ours (`foleybox train encoder`): its features of a whole clip, and its classifier as the tagger.

    The vectors are the features before the head, not the unit embeddings: there, the supervised contrastive loss maps all
    clips of a label to one point, so that a distance cannot show the variety within a label (as in Chen et al. 2020,
    section 4.2). Measure against recordings that the encoder was not trained on.
    """

    name, rate = "encoder", DCASE.rate
    rule = "the whole clip at 22,050 Hz"

    def __init__(self, run: Path):
        self.encoder, step = load_encoder(run)
        self.width = 8 * self.encoder.config.width
        self.weights = f"foleybox encoder, step {step}, sha256 {sha256(run / 'state.pt')[:12]}"
        self.mel = LogMel(DCASE)

    def windows(self, samples: int) -> int:
        return int(samples >= DCASE.n_fft)

    @torch.no_grad()
    def embed(self, waves: Tensor) -> Embedded:
        features = encode_mels(self.encoder, self.mel(waves)).feature
        return Embedded(features[:, None], self.encoder.classifier(features).softmax(1))


def load_embedding(name: EmbeddingName, weights: Path | None = None) -> Embedding:
    """Return an embedding, its weights found (see `find_weights`) or fetched. Raises UserError where they are not."""
    if name == "encoder":
        if weights is None:
            raise UserError(
                "the embedding encoder is one of your own: name a run of `foleybox train encoder` with --weights"
            )
        return EncoderEmbedding(weights)
    if name == "mn04":
        return MN04(find_weights("mn04", weights))
    return VGGishEmbedding(find_weights("vggish", weights), official=name == "vggish-official")


# --- weights ------------------------------------------------------------------------------------------------------


class Release(NamedTuple):
    """Where a network's published weights are."""

    names: tuple[str, ...]  # file names that are looked for, the first one for a download
    url: str
    sha256: str  # the file's SHA-256, or its beginning; "" where the tensors are checked instead


MN04_DIGEST = "ba5e68352c1e4cbe723261dc4d04f24003f8a1aa6e73d2d4f3a9abdcdd7c8dbf"
RELEASES = {
    "mn04": Release(
        ("mn04_as_mAP_432.pt", "mn04_as_mAP_432.safetensors"),
        "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/mn04_as_mAP_432.pt",
        "",  # MN04 compares the tensors: the same for .pt and .safetensors
    ),
    "vggish": Release(
        ("vggish-10086976.pth", "vggish.safetensors"),
        "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        "10086976",  # as the release's own file name says
    ),
}


def weight_folders() -> list[Path]:
    """Return where weights are looked for, in order: FOLEYBOX_WEIGHTS, FOLEYBOX_SHARED/weights, the user's cache."""
    folders = [Path(text) for text in [os.environ.get("FOLEYBOX_WEIGHTS")] if text]
    folders += [Path(text) / "weights" for text in [os.environ.get("FOLEYBOX_SHARED")] if text]
    return [*folders, cache_folder() / "weights"]


def find_weights(name: str, given: Path | None = None) -> Path:
    """Return the file of a network's weights: the given one, one in `weight_folders`, or the public release.

    Raises UserError if the given file is absent, and if there is none and the release cannot be fetched or has a
    wrong checksum.
    """
    release = RELEASES[name]
    if given is not None:
        if not given.is_file():
            raise UserError(f"no file {given}: --weights expects the weights of {name}, such as {release.names[0]}")
        return given
    for folder in weight_folders():
        for file in release.names:
            if (folder / file).is_file():
                return folder / file
    return _fetch(name, release, cache_folder() / "weights" / release.names[0])


def _fetch(name: str, release: Release, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching the weights of {name} from {release.url}", file=sys.stderr)
    with atomic_path(path) as partial:
        try:
            with urllib.request.urlopen(release.url, timeout=30) as reply, partial.open("wb") as file:
                while block := reply.read(1 << 20):
                    file.write(block)
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"the weights of {name} are not here and cannot be fetched ({reason}): put "
                f"{' or '.join(release.names)} into {' or '.join(map(str, weight_folders()))}, or name the file with "
                f"--weights; the public release is {release.url}"
            ) from None
        found = sha256(partial)
        if not found.startswith(release.sha256):
            raise UserError(
                f"{release.url} has SHA-256 {found[:16]}..., expected {release.sha256}...: it was discarded; fetch it by "
                "hand and name it with --weights if you trust it"
            )
    return path


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from .pt/.pth with no code run. Raises UserError if it is neither."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the two libraries raise half a dozen kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"cannot read weights from {path} ({reason}): expected .safetensors, .pt or .pth") from None


def state_digest(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict's tensors, whatever file they came in; batch counters do not count."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.endswith("num_batches_tracked"):
            tensor = state[name].detach().float().contiguous()
            digest.update(f"{name} {list(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


# --- clips --------------------------------------------------------------------------------------------------------

PIECE = 5_000  # clips that are embedded and cached together
SILENT = 10 ** (-60 / 20)  # a clip whose peak is under -60 dBFS


class EmbeddedClips(NamedTuple):
    """Clips of one source, their embeddings, and rate and peak of their files."""

    clips: tuple[ClipFile, ...]
    vectors: NDArray[np.float32]  # [N, W, E]
    tags: NDArray[np.float32] | None  # [N, 7]
    rates: NDArray[np.int64]  # [N] Hz of the files
    peaks: NDArray[np.float32]  # [N]

    def of(self, chosen: Sequence[int] | NDArray) -> "EmbeddedClips":
        """Return some of the clips, in that order."""
        index = np.asarray(chosen, np.int64)
        tags = None if self.tags is None else self.tags[index]
        clips = tuple(self.clips[i] for i in index)
        return EmbeddedClips(clips, self.vectors[index], tags, self.rates[index], self.peaks[index])


def join(pieces: Sequence[EmbeddedClips]) -> EmbeddedClips:
    """Return the clips of all pieces, in order; one piece is returned as it is."""
    if len(pieces) == 1:
        return pieces[0]
    clips, vectors, tags, rates, peaks = zip(*pieces)
    return EmbeddedClips(
        tuple(clip for piece in clips for clip in piece),
        np.concatenate(vectors),
        None if any(each is None for each in tags) else np.concatenate(tags),
        np.concatenate(rates),
        np.concatenate(peaks),
    )


def embed_clips(clips: Sequence[ClipFile], embedding: Embedding, seconds: float) -> EmbeddedClips:
    """Return what `embed_stream` yields, as one."""
    return join(list(embed_stream(clips, embedding, seconds)))


def embed_stream(clips: Sequence[ClipFile], embedding: Embedding, seconds: float) -> Iterator[EmbeddedClips]:
    """Embed files, cut or zero-padded at the end to `seconds`, PIECE at a time; each piece is kept in the user's cache.

    Any number of clips takes the memory of one piece, and an interrupted run continues at the piece where it stopped.
    Raises UserError for a file that cannot be read or holds NaN, and for a length that gives no window.
    """
    samples = round(seconds * embedding.rate)
    if embedding.windows(samples) < 1:
        raise UserError(f"{seconds:g} s give no window of {embedding.name} ({embedding.rule})")
    for start in range(0, len(clips), PIECE):
        piece = tuple(clips[start : start + PIECE])
        what = f"{embedding.name}: clips {start + 1:,} to {start + len(piece):,} of {len(clips):,}"
        yield _embed_piece(
            piece, embedding, samples, what
        )  # held by no name here, so that its memory is free for the next piece


def _embed_piece(clips: tuple[ClipFile, ...], embedding: Embedding, samples: int, what: str) -> EmbeddedClips:
    def compute() -> Tensor:
        return torch.cat(list(_embed_batches(clips, embedding, samples, what)))

    sheet = cached(f"embedding-{embedding.name}", clips, f"{embedding.weights} {samples}", compute).numpy()
    windows = embedding.windows(samples)
    edge = windows * embedding.width
    tags = sheet[:, edge : edge + len(LABELS)]
    return EmbeddedClips(
        clips,
        sheet[:, :edge].reshape(len(clips), windows, embedding.width),
        None if np.isnan(tags).all() else tags,
        sheet[:, -2].astype(np.int64),
        sheet[:, -1],
    )


def _embed_batches(
    clips: Sequence[ClipFile], embedding: Embedding, samples: int, what: str, batch: int = 32
) -> Iterator[Tensor]:
    """Yield rows [batch, W * E + 7 + 2]: vectors, tags (NaN without a tagger), rate of the file, peak."""

    def rows(start: int) -> Tensor:
        waves, rates, peaks = [], [], []
        for clip in clips[start : start + batch]:
            wave, rate = read_wave(clip.path)
            waves.append(fit(resample(wave, rate, embedding.rate), samples))
            rates.append(rate)
            peaks.append(float(np.abs(wave).max(initial=0.0)))
        vectors, tags = embedding.embed(torch.from_numpy(np.stack(waves)))
        if tags is None:
            tags = torch.full((len(waves), len(LABELS)), torch.nan)
        found = torch.tensor([rates, peaks], dtype=torch.float32).T
        return torch.cat([vectors.flatten(1), tags, found], 1)

    starts = range(0, len(clips), batch)
    yield from progress(parallel_map(rows, starts), len(starts), what)


def progress(items: Iterable[Result], total: int, what: str) -> Iterator[Result]:
    """Yield the items, with a progress bar on a terminal."""
    hidden = total < 2 or not sys.stderr.isatty()
    yield from track(items, what, total, console=Console(stderr=True), transient=True, disable=hidden)


def parallel_map(work: Callable[[int], Result], items: Sequence[int]) -> Iterator[Result]:
    """Yield `work` of each item, in order; items run in parallel, each in one thread of torch.

    Faster than threads within an item, and the numbers do not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)
