"""`foleybox select`: of many generated candidates, keep the best and most various, without near-copies of each other.

Letters: N candidates of a label, R real clips of it, D numbers of a clip, M mel bands, T frames.

For each label, one candidate after another is kept by kernel herding (Chen, Welling & Smola 2010, equation 4): the one
that brings the kept set's numbers nearest to those of the real clips; what is too like a kept clip is passed over. The
numbers are an encoder's features, and then only candidates that its classifier hears as their label are open; without an
encoder they are plain ones of the mel, and every candidate is believed. The real clips are training clips: with the
evaluation split as --reference the figures measured on that split afterwards would be worth nothing.
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
from foleybox.files import replace_folder, sha256, write_text
from foleybox.lab.core.cache import cached
from foleybox.lab.core.clips import ClipFile, few_of_each, find_clips, load_waves
from foleybox.lab.core.mel import DCASE, LogMel
from foleybox.lab.core.runs import read_run_config
from foleybox.lab.kt.encoder import Encoder, encode_mels
from foleybox.lab.kt.runs import load_encoder
from foleybox.labels import LABELS, Label

SELECTION = "selection.json"
SECONDS = 4.0  # what the encoder hears of a clip: cut, or zero-padded at the end


@dataclass(frozen=True)
class Select:
    """Keep the best of many generated clips: spread like real ones, no two nearly the same, heard as their label.

    Make several times more than you need first. Files are copied as they are, with all that they carry.

    Example: foleybox select candidates/ --reference my_sounds/ --keep 100 -o selected/
    """

    generated: tyro.conf.Positional[str]
    "a folder of class folders (any DCASE spelling), or with a manifest; anyone's"
    keep: int
    "clips a label"
    encoder: Path | None = None
    "a finished run of `foleybox train encoder` to listen with; default: plain numbers of the mels, and no doubt"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("selected")
    "the new folder: <Label>/<file> and selection.json, which says why"
    reference: str | None = None
    "real training clips to spread like; default: what the encoder heard. Never those that will be measured against"
    most_of_recording: int = 0
    "real clips of one recording that are listened to, as `foleybox train patches` has it; 0: all"
    confidence: float = 0.5
    "probability of its own label, by the encoder, from which a candidate is believed"
    near: float | None = None
    "likeness (cosine) above which two clips are near-copies; default: what 99 % of real clips stay under, label by label"
    force: bool = False
    "replace an earlier selection"


class Choice(NamedTuple):
    """What `choose` decided of N candidates."""

    kept: list[int]
    "in the order of choosing: the first n are a selection of n"
    copy_of: dict[int, int]
    "near-copies that were passed over, and the kept clip that each is like"


def select(config: Select) -> int:
    """Choose, copy, and say what was done; 0. Raises UserError before anything is written."""
    check(config)
    ear = Ear(config.encoder)
    candidates = find_clips(config.generated)
    by_label = {label: [clip for clip in candidates if clip.label == label] for label in LABELS}
    by_label = {label: clips for label, clips in by_label.items() if clips}
    for label, clips in by_label.items():
        if len(clips) < config.keep:
            raise UserError(
                f"{label.name} has {len(clips)} candidates: expected at least --keep {config.keep}; several times as "
                "many leave something to choose"
            )
        name, count = Counter(clip.path.name for clip in clips).most_common(1)[0]
        if count > 1:
            raise UserError(f"{count} candidates are called {label.name}/{name}: name one split with folder:split")
    sources, real = find_reference(config)
    real = few_of_each(real, config.most_of_recording)
    for label in by_label:
        if sum(clip.label == label for clip in real) < 2:
            raise UserError(
                f"{' '.join(sources)} holds fewer than 2 real clips of {label.name}: expected some to be like"
            )

    decisions: dict[str, Any] = {}
    copies: list[tuple[Path, Path]] = []
    for label, clips in by_label.items():
        theirs = [clip for clip in real if clip.label == label]
        heard = ear.listen(theirs, f"real {label.name}"), ear.listen(clips, label.name)
        confidence = ear.confidence(heard[1], label)
        reference, features = heard if ear.encoder else standardised(*heard)
        near = config.near if config.near is not None else calibrate(reference, theirs, label)
        choice = choose(features, confidence, reference, config.keep, config.confidence, near)
        if len(choice.kept) < config.keep:
            raise UserError(
                f"{label.name}: {len(choice.kept)} of {len(clips)} candidates are left when near-copies (likeness above "
                f"{near:.4f}) are taken out, --keep wants {config.keep}: make more candidates, lower --keep or raise --near"
            )
        decisions[label.name] = decision(clips, confidence, choice, config, near)
        copies += [(clips[i].path, Path(label.name) / clips[i].path.name) for i in choice.kept]
        print(summary(label, decisions[label.name], asked=ear.encoder is not None))

    protocol = {
        "generated": config.generated,
        "encoder": ear.name,
        "reference": sources,
        "settings": {
            name: value
            for name, value in asdict(config).items()
            if name in ("keep", "confidence", "near", "most_of_recording")
        },
    }
    write_selection(config.out, copies, {**protocol, "labels": decisions})
    print(f"copied {len(copies):,} clips to {config.out}/; {config.out / SELECTION} says why each was kept or not")
    return 0


def check(config: Select) -> None:
    """Refuse what cannot be meant, and an --out in which something would be lost."""
    if config.keep < 1:
        raise UserError(f"--keep {config.keep}: expected 1 or more")
    if config.most_of_recording < 0:
        raise UserError(f"--most-of-recording {config.most_of_recording}: expected 1 or more, or 0 for all")
    if not 0 <= config.confidence <= 1:
        raise UserError(f"--confidence {config.confidence}: expected a probability, 0 to 1")
    folder = Path(config.generated) if Path(config.generated).exists() else Path(config.generated.rsplit(":", 1)[0])
    out, folder = config.out.resolve(), folder.resolve()
    if out.is_relative_to(folder) or folder.is_relative_to(out):
        raise UserError(f"-o {config.out} and the candidates' folder {folder} lie in each other: name a folder apart")
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
        raise UserError(f"{foreign[0]} is not of the selection that --force would replace: move it elsewhere first")


def _files_of(out: Path) -> set[Path]:
    """Return the files that an earlier selection wrote."""
    try:
        labels = json.loads((out / SELECTION).read_text(encoding="utf-8"))["labels"]
        rows = [(label, row) for label, found in labels.items() for row in found["clips"]]
        return {out / SELECTION, *(out / label / row["file"] for label, row in rows if "rank" in row)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{out / SELECTION} is damaged: remove {out} yourself, or name another -o") from None


def find_reference(config: Select) -> tuple[list[str], list[ClipFile]]:
    """Return (the sources, their clips) of the real clips: --reference, or what the encoder was trained on."""
    if config.reference is not None:
        return [config.reference], find_clips(config.reference)
    if config.encoder is None:
        raise UserError("no --reference: name real training clips to spread like (an --encoder would know its own)")
    settings = read_run_config(config.encoder)
    tiers = tuple(settings["tiers"]) or None
    try:
        return settings["data"], [clip for source in settings["data"] for clip in find_clips(source, tiers=tiers)]
    except UserError as error:
        raise UserError(
            f"what {config.encoder} was trained on is not here ({error}): name real clips with --reference"
        ) from None


class Ear:
    """What clips are compared by: an encoder's features, or plain numbers of their mels."""

    def __init__(self, run: Path | None) -> None:
        """Raises UserError for a run that is no finished encoder."""
        self.encoder: Encoder | None = None
        self.name = self.key = "plain numbers of the mel"
        if run is not None:
            self.encoder, step = load_encoder(run)
            self.key = sha256(run / "state.pt")[:12]
            self.name = f"{run}, step {step}, sha256 {self.key}"

    def listen(self, clips: list[ClipFile], what: str, batch: int = 64) -> Tensor:
        """Return the numbers of the clips, float32 [N, D], from the user's cache when they are there."""

        def compute() -> Tensor:
            mel = LogMel(DCASE)
            console = Console(file=sys.stderr)
            parts = []
            for start in track(range(0, len(clips), batch), what, console=console, disable=not console.is_terminal):
                waves = load_waves(clips[start : start + batch], DCASE.rate, round(SECONDS * DCASE.rate))
                mels = mel(waves.float() / 32768)
                parts.append(encode_mels(self.encoder, mels).feature if self.encoder else plain_numbers(mels))
            return torch.cat(parts)

        return cached("encoder", clips, f"{self.key} {SECONDS}", compute)

    def confidence(self, features: Tensor, label: Label) -> Tensor:
        """Return how sure the encoder is of the label, float64 [N]; without an encoder 1."""
        if self.encoder is None:
            return torch.ones(len(features), dtype=torch.float64)
        return self.encoder.classifier(features).softmax(1)[:, label.id].double()


def plain_numbers(mels: Tensor) -> Tensor:
    """Return [N, 76] of log-mels [N, 80, T]: level, spread and roughness in 20 bands, and the level in 16 parts of the time."""
    N, M, T = mels.shape
    bands = mels[..., : T // 16 * 16].reshape(N, 20, M // 20, -1).mean(2)
    rough = bands.diff().abs().mean(2)
    return torch.cat([bands.mean(2), bands.std(2, correction=0), rough, bands.mean(1).reshape(N, 16, -1).mean(2)], 1)


def standardised(reference: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers of real clips [R, D] and of candidates [N, D] with the real ones at mean 0 and deviation 1."""
    centre, spread = reference.mean(0), reference.std(0, correction=0) + 1e-3
    return (reference - centre) / spread, (features - centre) / spread


def likeness(features: Tensor, others: Tensor, centre: Tensor) -> Tensor:
    """Return the cosines [N, N'] of features [N, D] and [N', D] as seen from `centre` [D], the mean of the real clips.

    Seen from the origin all clips of a label are alike: the features are those of rectifiers, none is negative.
    """
    return F.normalize(features - centre, dim=1) @ F.normalize(others - centre, dim=1).T


def calibrate(reference: Tensor, clips: list[ClipFile], label: Label, share: float = 0.99) -> float:
    """Return the likeness that `share` of the real clips [R, D] do not exceed toward any clip of another recording.

    Raises UserError where all real clips are of one recording.
    """
    reference = reference.double()
    alike = likeness(reference, reference, reference.mean(0))
    names = {name: number for number, name in enumerate(dict.fromkeys(clip.recording for clip in clips))}
    recording = torch.tensor([names[clip.recording] for clip in clips])
    if len(names) < 2:
        raise UserError(
            f"the real clips of {label.name} are of one recording: what is too like cannot be read off them; give --near"
        )
    nearest = alike.masked_fill(recording[:, None] == recording, -torch.inf).amax(1)
    return float(nearest.quantile(share))


def choose(
    features: Tensor, confidence: Tensor, reference: Tensor, keep: int, confident: float = 0.5, near: float = 1.0
) -> Choice:
    """Choose up to `keep` of the candidates [N, D]; fewer where near-copies leave no more.

    Kernel herding: with the kept x_1 ... x_t and the real clips y, the next one is the open candidate x with the largest

        mean over y of k(x, y)  -  1/(t + 1) sum over s of k(x, x_s),      k(x, y) = exp(-|x - y|² / 2 s²),

    s the median distance of real clips. This keeps the kernel distance (MMD) between the kept and the real clips small:
    their means, their spread, and all else that the kernel sees. Open are candidates of `confidence` [N] `confident` or
    more; when none is left, the most confident of the others is next. What is more like a kept clip than `near` is
    passed over.
    """
    features, reference = features.double(), reference.double()
    scale = F.pdist(reference).median().clamp(min=1e-12)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") / scale).square() / 2)

    toward_real = kernel(features, reference).mean(1)  # [N]
    alike = likeness(features, features, reference.mean(0))  # [N, N]
    toward_kept = torch.zeros_like(toward_real)
    left = torch.ones(len(features), dtype=torch.bool)
    choice = Choice([], {})
    while len(choice.kept) < keep and left.any():
        open_ = left & (confidence >= confident)
        if open_.any():
            score = (toward_real - toward_kept / (len(choice.kept) + 1)).masked_fill(~open_, -torch.inf)
        else:
            score = confidence.masked_fill(~left, -torch.inf)
        pick = int(score.argmax())
        left[pick] = False
        copies = torch.nonzero(left & (alike[pick] > near)).flatten().tolist()
        left[copies] = False
        choice.kept.append(pick)
        choice.copy_of.update(dict.fromkeys(copies, pick))
        toward_kept += kernel(features, features[pick : pick + 1])[:, 0]
    return choice


def decision(clips: list[ClipFile], confidence: Tensor, choice: Choice, config: Select, near: float) -> dict[str, Any]:
    """Return what selection.json says of a label: the numbers, and each candidate's confidence and verdict."""
    rank = {candidate: place for place, candidate in enumerate(choice.kept, start=1)}
    rows = []
    for i, (clip, belief) in enumerate(zip(clips, confidence.tolist(), strict=True)):
        row: dict[str, Any] = {"file": clip.path.name, "confidence": round(belief, 4)}
        believed = belief >= config.confidence
        if i in rank:
            row |= {"verdict": "kept" if believed else "kept, not heard as its label", "rank": rank[i]}
        elif i in choice.copy_of:
            row |= {"verdict": "near-copy", "copy_of": clips[choice.copy_of[i]].path.name}
        else:
            row |= {"verdict": "not needed" if believed else "not heard as its label"}
        rows.append(row)
    return {
        "candidates": len(clips),
        "believed": int((confidence >= config.confidence).sum()),
        "near": round(near, 6),
        "near_copies": len(choice.copy_of),
        "kept": len(choice.kept),
        "kept_not_believed": int((confidence[choice.kept] < config.confidence).sum()),
        "clips": rows,
    }


def summary(label: Label, found: dict[str, Any], *, asked: bool) -> str:
    """Return the line printed for a label; `asked` is whether an encoder was."""
    doubtful = found["kept_not_believed"]
    heard = f"{found['believed']:,} heard as their label, " if asked else ""
    return (
        f"{label.name:20} kept {found['kept']:,} of {found['candidates']:,}: {heard}"
        f"{found['near_copies']:,} near-copies passed over (likeness above {found['near']:.4f})"
        + (f"; {doubtful} kept that are NOT heard as their label, the best of the rest" if doubtful else "")
    )


def write_selection(out: Path, copies: list[tuple[Path, Path]], record: dict[str, Any]) -> None:
    """Copy the files and write selection.json into a folder beside `out`, which then takes its place."""
    out = out.resolve()  # "." has no name
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # what kill -9 left of an earlier one
    try:
        beside.mkdir(parents=True)
        for source, target in copies:
            (beside / target).parent.mkdir(exist_ok=True)
            shutil.copy2(source, beside / target)
        write_text(beside / SELECTION, json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")
        replace_folder(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
