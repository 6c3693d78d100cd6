"""`foleybox select`: choose from many generated clips those that are distributed like real ones, without near-copies.

Letters: N candidates of a label, R real clips of it, D features of a clip, M mel bands, T frames.

For each label, candidates are chosen one after another by kernel herding (Chen, Welling & Smola 2010, equation 4): the
next one brings the features of the chosen set closest to those of the real clips. A candidate that is more similar to a
chosen clip than real clips of different recordings are to each other is left out. With an encoder, the features are the
encoder's, and candidates that its classifier recognises as their label come first; without one, the features are
statistics of the mel. The real clips must be training clips: measurements on clips that were the reference of a selection
are biased.
"""

import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor

from foleybox.errors import UserError
from foleybox.files import atomic_folder, sha256, write_text
from foleybox.lab.core.cache import cached
from foleybox.lab.core.clips import ClipFile, find_clips, limit_per_recording, load_waves
from foleybox.lab.core.mel import DCASE, LogMel
from foleybox.lab.core.runs import read_run_config
from foleybox.lab.kt.encoder import Encoder, encode_mels
from foleybox.lab.kt.runs import load_encoder
from foleybox.labels import LABELS, Label

SELECTION = "selection.json"
SECONDS = 4.0  # length of a clip for its features: cut, or zero-padded at the end


@dataclass(frozen=True)
class Select:
    """Choose from generated clips those that are recognised as their label and distributed like real clips, without near-copies.

    Generate several times more clips than you need first. Files are copied unchanged.

    Example: foleybox select candidates/ --reference my_sounds/ --keep 100 -o selected/
    """

    generated: tyro.conf.Positional[str]
    "a folder of class folders (label names in any spelling), or with a manifest"
    keep: int
    "clips per label"
    encoder: Path | None = None
    "a finished run of `foleybox train encoder`; default: compare statistics of the mels, and check no labels"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("selected")
    "the new folder: <Label>/<file>, and selection.json with the reason for each candidate"
    reference: str | None = None
    "real clips to be distributed like; default: the encoder's training clips. Never those that you evaluate with"
    most_of_recording: int = 0
    "at most this many real clips of one recording are used; 0: all"
    confidence: float = 0.5
    "the encoder recognises a candidate if it gives its label at least this probability"
    near: float | None = None
    """cosine similarity above which two clips are near-copies; default, for each label: the 99th percentile of real clips'
    similarity to other recordings"""
    force: bool = False
    "replace an earlier selection"


class Choice(NamedTuple):
    """The result of `choose` for N candidates."""

    kept: list[int]
    "in the order of choice: the first n are the result for `keep` = n"
    copy_of: dict[int, int]
    "near-copies that were left out, and the kept clip of each"


def select(config: Select) -> int:
    """`foleybox select`. Raises UserError before anything is written."""
    check(config)
    extractor = FeatureExtractor(config.encoder)
    candidates = find_clips(config.generated)
    by_label = {label: [clip for clip in candidates if clip.label == label] for label in LABELS}
    by_label = {label: clips for label, clips in by_label.items() if clips}
    for label, clips in by_label.items():
        if len(clips) < config.keep:
            raise UserError(
                f"{label.name} has {len(clips)} candidates: expected at least --keep {config.keep}; generate "
                "several times as many"
            )
        name, count = Counter(clip.path.name for clip in clips).most_common(1)[0]
        if count > 1:
            raise UserError(f"{count} candidates are called {label.name}/{name}: name one split with folder:split")
    sources, real = find_reference(config)
    real = limit_per_recording(real, config.most_of_recording)
    for label in by_label:
        if sum(clip.label == label for clip in real) < 2:
            raise UserError(f"{' '.join(sources)} holds fewer than 2 real clips of {label.name}: expected 2 or more")

    decisions: dict[str, Any] = {}
    copies: list[tuple[Path, Path]] = []
    for label, clips in by_label.items():
        real_clips = [clip for clip in real if clip.label == label]
        reference = extractor.features(real_clips, f"real {label.name}")
        features = extractor.features(clips, label.name)
        confidence = extractor.confidence(features, label)
        if extractor.encoder is None:
            reference, features = standardize(reference, features)
        near = config.near if config.near is not None else near_copy_threshold(reference, real_clips, label)
        choice = choose(features, confidence, reference, config.keep, config.confidence, near)
        if len(choice.kept) < config.keep:
            raise UserError(
                f"{label.name}: {len(choice.kept)} of {len(clips)} candidates are left without near-copies (similarity above "
                f"{near:.4f}), expected --keep {config.keep}: generate more candidates, lower --keep or raise --near"
            )
        decisions[label.name] = decision(clips, confidence, choice, config, near)
        copies += [(clips[i].path, Path(label.name) / clips[i].path.name) for i in choice.kept]
        print(summary(label, decisions[label.name], recognised=extractor.encoder is not None))

    protocol = {
        "generated": config.generated,
        "encoder": extractor.name,
        "reference": sources,
        "settings": {
            name: value
            for name, value in asdict(config).items()
            if name in ("keep", "confidence", "near", "most_of_recording")
        },
    }
    write_selection(config.out, copies, {**protocol, "labels": decisions})
    print(f"copied {len(copies):,} clips to {config.out}/; {config.out / SELECTION} has the reason for each candidate")
    return 0


def check(config: Select) -> None:
    """Raise UserError for settings out of range, and for an `out` in which files would be lost."""
    if config.keep < 1:
        raise UserError(f"--keep {config.keep}: expected 1 or more")
    if config.most_of_recording < 0:
        raise UserError(f"--most-of-recording {config.most_of_recording}: expected 1 or more, or 0 for all")
    if not 0 <= config.confidence <= 1:
        raise UserError(f"--confidence {config.confidence}: expected a probability, 0 to 1")
    folder = Path(config.generated) if Path(config.generated).exists() else Path(config.generated.rsplit(":", 1)[0])
    out, folder = config.out.resolve(), folder.resolve()
    if out.is_relative_to(folder) or folder.is_relative_to(out):
        raise UserError(
            f"-o {config.out} and the candidates' folder {folder} contain one another: name a separate folder"
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / SELECTION).is_file():
        raise UserError(
            f"{config.out} exists and is no earlier selection (no {SELECTION}): name another folder with -o"
        )
    if not config.force:
        raise UserError(f"{config.out} holds a selection already: add --force to replace it, or name another -o")
    own = _files_of(out)
    if foreign := sorted(path for path in out.rglob("*") if path.is_file() and path not in own):
        raise UserError(f"{foreign[0]} is no file of the selection that --force would replace: move it elsewhere first")


def _files_of(out: Path) -> set[Path]:
    """Return the files of an earlier selection. Raises UserError if its record is damaged."""
    try:
        labels = json.loads((out / SELECTION).read_text(encoding="utf-8"))["labels"]
        rows = [(label, row) for label, found in labels.items() for row in found["clips"]]
        return {out / SELECTION, *(out / label / row["file"] for label, row in rows if "rank" in row)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{out / SELECTION} is damaged: remove {out} yourself, or name another -o") from None


def find_reference(config: Select) -> tuple[list[str], list[ClipFile]]:
    """Return (the folders, the clips) of the real clips: `reference`, or the encoder's training data."""
    if config.reference is not None:
        return [config.reference], find_clips(config.reference)
    if config.encoder is None:
        raise UserError(
            "no --reference: name a folder of real clips, or an --encoder, whose training clips are used then"
        )
    settings = read_run_config(config.encoder)
    tiers = tuple(settings["tiers"]) or None
    try:
        return settings["data"], [clip for source in settings["data"] for clip in find_clips(source, tiers=tiers)]
    except UserError as error:
        raise UserError(
            f"the training clips of {config.encoder} are not available ({error}): name real clips with --reference"
        ) from None


class FeatureExtractor:
    """Features by which clips are compared: an encoder's, or statistics of the mel."""

    def __init__(self, run: Path | None) -> None:
        """`run` is a finished run of `train encoder`, or None. Raises UserError for another run."""
        self.encoder: Encoder | None = None
        self.name = self.key = "statistics of the mel"
        if run is not None:
            self.encoder, step = load_encoder(run)
            self.key = sha256(run / "state.pt")[:12]
            self.name = f"{run}, step {step}, sha256 {self.key}"

    def features(self, clips: list[ClipFile], title: str, batch: int = 64) -> Tensor:
        """Return the features of clips, float32 [N, D], cached; `title` is shown at the progress bar."""

        def compute() -> Tensor:
            mel = LogMel(DCASE)
            console = Console(file=sys.stderr)
            parts = []
            for start in track(range(0, len(clips), batch), title, console=console, disable=not console.is_terminal):
                waves = load_waves(clips[start : start + batch], DCASE.rate, round(SECONDS * DCASE.rate))
                mels = mel(waves.float() / 32768)
                parts.append(encode_mels(self.encoder, mels).feature if self.encoder else mel_statistics(mels))
            return torch.cat(parts)

        return cached("encoder", clips, f"{self.key} {SECONDS}", compute)

    def confidence(self, features: Tensor, label: Label) -> Tensor:
        """Return the classifier's probability of `label` for features [N, D], float64 [N]; 1 without an encoder."""
        if self.encoder is None:
            return torch.ones(len(features), dtype=torch.float64)
        return self.encoder.classifier(features).softmax(1)[:, label.id].double()


def mel_statistics(mels: Tensor) -> Tensor:
    """Return statistics [N, 76] of log-mels [N, M, T], M a multiple of 20.

    Mean, standard deviation and roughness (mean absolute difference of frames) of 20 bands; the mean of 16 parts of time.
    """
    N, M, T = mels.shape
    bands = mels[..., : T // 16 * 16].reshape(N, 20, M // 20, -1).mean(2)
    rough = bands.diff().abs().mean(2)
    return torch.cat([bands.mean(2), bands.std(2, correction=0), rough, bands.mean(1).reshape(N, 16, -1).mean(2)], 1)


def standardize(reference: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Scale features of real clips [R, D] and of candidates [N, D] so that the real ones have mean 0 and deviation 1."""
    centre, spread = reference.mean(0), reference.std(0, correction=0) + 1e-3
    return (reference - centre) / spread, (features - centre) / spread


def similarity(features: Tensor, others: Tensor, centre: Tensor) -> Tensor:
    """Return the cosine similarities [N, N'] of features [N, D] and [N', D] less `centre` [D], the mean of the real clips.

    The encoder's features are outputs of ReLUs, none negative: without centring, all clips of a label are similar.
    """
    return F.normalize(features - centre, dim=1) @ F.normalize(others - centre, dim=1).T


def near_copy_threshold(reference: Tensor, clips: list[ClipFile], label: Label, share: float = 0.99) -> float:
    """Return the `share` quantile, over real clips [R, D], of the largest similarity to a clip of another recording.

    Raises UserError where all real clips are of one recording.
    """
    reference = reference.double()
    similarities = similarity(reference, reference, reference.mean(0))
    names = {name: number for number, name in enumerate(dict.fromkeys(clip.recording for clip in clips))}
    recording = torch.tensor([names[clip.recording] for clip in clips])
    if len(names) < 2:
        raise UserError(
            f"the real clips of {label.name} are of one recording: no threshold of near-copies can be computed; set --near"
        )
    nearest = similarities.masked_fill(recording[:, None] == recording, -torch.inf).amax(1)
    return float(nearest.quantile(share))


def choose(
    features: Tensor, confidence: Tensor, reference: Tensor, keep: int, confident: float = 0.5, near: float = 1.0
) -> Choice:
    """Choose up to `keep` of the candidates [N, D]; fewer if no more are left without near-copies.

    Kernel herding: with the kept x_1 ... x_t and the real clips y, the next one is the candidate x with the largest

        mean over y of k(x, y)  -  1/(t + 1) sum over s of k(x, x_s),      k(x, y) = exp(-|x - y|² / 2 s²),

    s the median distance of real clips. This keeps the maximum mean discrepancy between the kept and the real clips small.
    Candidates whose `confidence` [N] is at least `confident` come first; after them the others, by confidence. Candidates
    whose similarity to a kept clip is above `near` are left out.
    """
    features, reference = features.double(), reference.double()
    scale = F.pdist(reference).median().clamp(min=1e-12)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") / scale).square() / 2)

    to_real = kernel(features, reference).mean(1)  # [N]
    similarities = similarity(features, features, reference.mean(0))  # [N, N]
    to_kept = torch.zeros_like(to_real)
    left = torch.ones(len(features), dtype=torch.bool)
    choice = Choice([], {})
    while len(choice.kept) < keep and left.any():
        recognised = left & (confidence >= confident)
        if recognised.any():
            score = (to_real - to_kept / (len(choice.kept) + 1)).masked_fill(~recognised, -torch.inf)
        else:
            score = confidence.masked_fill(~left, -torch.inf)
        pick = int(score.argmax())
        left[pick] = False
        copies = torch.nonzero(left & (similarities[pick] > near)).flatten().tolist()
        left[copies] = False
        choice.kept.append(pick)
        choice.copy_of.update(dict.fromkeys(copies, pick))
        to_kept += kernel(features, features[pick : pick + 1])[:, 0]
    return choice


def decision(clips: list[ClipFile], confidence: Tensor, choice: Choice, config: Select, near: float) -> dict[str, Any]:
    """Return the record of a label for selection.json: counts, and the confidence and verdict of each candidate."""
    rank = {candidate: place for place, candidate in enumerate(choice.kept, start=1)}
    rows = []
    for i, (clip, probability) in enumerate(zip(clips, confidence.tolist(), strict=True)):
        row: dict[str, Any] = {"file": clip.path.name, "confidence": round(probability, 4)}
        recognised = probability >= config.confidence
        if i in rank:
            row |= {"verdict": "kept" if recognised else "kept, not recognised as its label", "rank": rank[i]}
        elif i in choice.copy_of:
            row |= {"verdict": "near-copy", "copy_of": clips[choice.copy_of[i]].path.name}
        else:
            row |= {"verdict": "not needed" if recognised else "not recognised as its label"}
        rows.append(row)
    return {
        "candidates": len(clips),
        "recognised": int((confidence >= config.confidence).sum()),
        "near": round(near, 6),
        "near_copies": len(choice.copy_of),
        "kept": len(choice.kept),
        "kept_not_recognised": int((confidence[choice.kept] < config.confidence).sum()),
        "clips": rows,
    }


def summary(label: Label, found: dict[str, Any], *, recognised: bool) -> str:
    """Return the line printed for a label; `recognised` is whether an encoder checked the labels."""
    doubtful = found["kept_not_recognised"]
    counted = f"{found['recognised']:,} recognised as their label, " if recognised else ""
    return (
        f"{label.name:20} kept {found['kept']:,} of {found['candidates']:,}: {counted}"
        f"{found['near_copies']:,} near-copies left out (similarity above {found['near']:.4f})"
        + (f"; {doubtful} of the kept NOT recognised as their label" if doubtful else "")
    )


def write_selection(out: Path, copies: list[tuple[Path, Path]], record: dict[str, Any]) -> None:
    """Copy the files and write selection.json to a temporary folder, which then replaces `out`."""
    out = out.resolve()  # "." has no name
    with atomic_folder(out) as partial:
        for source, target in copies:
            (partial / target).parent.mkdir(exist_ok=True)
            shutil.copy2(source, partial / target)
        write_text(partial / SELECTION, json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")
