"""Training with a score: the loops of VQ-VAE and PixelSNAIL, given a distance of their sounds to real clips.

CMU measured 32 clips of each label while training (Pillay et al. 2023, section 2.1). A loop does not know what its score
is; here it gets one made of sampling and evaluation. The score of PixelSNAIL is of drawn sounds, always of the same
labels and seeds. That of the VQ-VAE is of reconstructions of real clips, against those same clips: 0 is perfect. Scores
of other numbers of clips, or of another embedding, are not comparable: the distance has a bias that falls with the number.

Letters: N clips, L samples, M mel bands, T frames, W windows of a clip, E embedding width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from foleybox.audio import resample
from foleybox.errors import UserError
from foleybox.lab.baseline import train_pixelsnail as pixelsnail
from foleybox.lab.baseline import train_vqvae as vqvae
from foleybox.lab.baseline.codes import read_codes
from foleybox.lab.baseline.pixelsnail import PixelSnail
from foleybox.lab.baseline.train_pixelsnail import TrainPixelsnail
from foleybox.lab.baseline.train_vqvae import TrainVqvae
from foleybox.lab.baseline.vqvae import Vqvae
from foleybox.lab.cmu.zen import make_pixelsnail
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.core.loop import at_least, evenly_spaced
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import PythonOnly, fingerprint
from foleybox.lab.evaluation.embeddings import Embedding, EmbeddingName, embed_clips, load_embedding
from foleybox.lab.evaluation.frechet import frechet, gaussian, psd_root
from foleybox.lab.play.sample import SECONDS, check_rows, mels_of_codes, read_vocoder, read_vqvae, vocode
from foleybox.labels import LABELS


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The clips that sounds are measured against while a model trains, and how."""

    reference: str | None = None
    "real clips (`folder:split`) whose distance chooses the best weights: not the clips of the evaluation; default: none"
    vocoder: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE")] = None
    "with --reference: the vocoder of the scored sounds, a run of `foleybox train vocoder` or an official HiFi-GAN file"
    score_clips: PythonOnly[int] = 32
    "scored clips of each label, CMU's 32; scores of another number are not comparable"
    embedding: PythonOnly[EmbeddingName] = "mn04"
    "of the Fréchet distance"
    weights: PythonOnly[Path | None] = None
    "the embedding's weights (of `encoder`: its run); None: found as `foleybox evaluate` does"


@dataclass(frozen=True)
class ScoredVqvae(Scoring, TrainVqvae):
    """Train the VQ-VAE of a system on a folder of recordings. The same command resumes.

    Example: foleybox train vqvae my_sounds/ --system cmu-b -o runs/vqvae
    """


@dataclass(frozen=True)
class ScoredPixelsnail(Scoring, TrainPixelsnail):
    """Train the PixelSNAIL of a system on a codes file. The same command resumes.

    Example: foleybox train pixelsnail runs/codes.npz --size small -o runs/pixelsnail
    """

    vqvae: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "with --reference: the run of `foleybox train vqvae` that made the codes"


def train_vqvae(config: ScoredVqvae) -> int:
    """Train, with a score if there is a reference; Ctrl-C stops at the last checkpoint."""
    loop = TrainVqvae(**{field.name: getattr(config, field.name) for field in fields(TrainVqvae)})
    vocoder = read_scoring_vocoder(config)
    if vocoder is None:
        return vqvae.main(loop)
    clips = reference_clips(config, config.score_clips)
    reference = ReferenceDistance(clips, load_embedding(config.embedding, config.weights))
    mels, labels = load_mels(clips, DCASE), [clip.label.id for clip in clips if clip.label]

    @torch.no_grad()
    def score(model: Vqvae) -> float:
        device = model.codebook.vectors.device
        made = torch.cat([model(part.to(device)).output.cpu() for part in mels.split(16)])
        return reference.distance(vocode(vocoder, made), labels)

    return vqvae.main(loop, score, score_name(config, vocoder, reference, "reconstructed"))


def train_pixelsnail(config: ScoredPixelsnail) -> int:
    """Read the codes and train, with a score if there is a reference; Ctrl-C stops at the last checkpoint."""
    loop = TrainPixelsnail(**{field.name: getattr(config, field.name) for field in fields(TrainPixelsnail)})
    codes, vocoder = read_codes(config.data), read_scoring_vocoder(config)
    if vocoder is None:
        pixelsnail.train(loop, codes, config.out, build=make_pixelsnail)
        return 0
    if config.vqvae is None:
        raise UserError("--reference needs --vqvae: name the run whose codes these are, it decodes what is drawn")
    decoder = read_vqvae(config.vqvae, codes.fingerprint, str(config.data))
    check_rows(codes.codes.shape[1], str(config.data))
    if on_gpu(config):
        decoder.cuda()
    reference = ReferenceDistance(reference_clips(config), load_embedding(config.embedding, config.weights))
    labels = [label for label in reference.references for _ in range(config.score_clips)]
    seeds = [*range(config.score_clips)] * len(reference.references)

    def score(model: PixelSnail) -> float:
        mels = mels_of_codes(model, decoder, labels, seeds, progress=False)  # the loop's bar is on the terminal
        return reference.distance(vocode(vocoder, mels), labels)

    name = score_name(config, vocoder, reference, "drawn")
    pixelsnail.train(loop, codes, config.out, score, name, build=make_pixelsnail)
    return 0


def read_scoring_vocoder(config: ScoredVqvae | ScoredPixelsnail) -> nn.Module | None:
    """Return the vocoder of the score, None without a reference. Raises UserError for incomplete settings."""
    at_least(config, score_clips=2)
    others = {"--score-every": config.score_every, "--vocoder": config.vocoder, "weights": config.weights}
    others["--vqvae"] = getattr(config, "vqvae", None)
    given = next((flag for flag, value in others.items() if value), None)
    if config.reference is None:
        if given is not None:
            raise UserError(f"{given} goes with --reference: name real clips to score sounds against, or drop it")
        return None
    if config.vocoder is None:
        raise UserError("--reference needs --vocoder: name a run of `foleybox train vocoder`, it makes the sounds")
    vocoder = read_vocoder(config.vocoder)
    return vocoder.cuda() if on_gpu(config) else vocoder


def on_gpu(config: ScoredVqvae | ScoredPixelsnail) -> bool:
    """Return whether the training runs on a GPU."""
    return config.run.device == "auto" and torch.cuda.is_available()


def reference_clips(config: Scoring, most: int | None = None) -> list[ClipFile]:
    """Return the real clips, of each label `most` over as many recordings as possible, or all.

    Raises UserError for a label with a single clip.
    """
    assert config.reference is not None
    clips, found = find_clips(config.reference), []
    for label in LABELS:
        of_label = [clip for clip in clips if clip.label is label]
        if len(of_label) == 1:
            raise UserError(f"{config.reference} has 1 clip of {label.name}: a distance needs at least 2")
        found += of_label if most is None else spread_over_recordings(of_label, most)
    return found


def spread_over_recordings(clips: Sequence[ClipFile], most: int) -> list[ClipFile]:
    """Return `most` of the clips in their order: the first of every recording, then the second, and so on.

    Of the last such group, which may have too many, evenly spaced ones.
    """
    count, groups = Counter[str](), dict[int, list[int]]()
    for index, clip in enumerate(clips):
        groups.setdefault(count[clip.recording], []).append(index)
        count[clip.recording] += 1
    chosen: list[int] = []
    for group in groups.values():
        chosen += [group[i] for i in evenly_spaced(len(group), most - len(chosen)).tolist()]
    return [clips[index] for index in sorted(chosen)]


def score_name(config: Scoring, vocoder: nn.Module, reference: "ReferenceDistance", kind: str) -> str:
    """Return the name of a run's score, as its folder records it: a run cannot be resumed with another score."""
    return (
        f"Fréchet distance of {config.score_clips} {kind} clips a label, {reference.embedding.name}, to "
        f"{config.reference}, vocoder {fingerprint(vocoder)[:12]}"
    )


class ReferenceDistance:
    """The mean over labels of the Fréchet distance of waves to real clips, as `foleybox evaluate` measures files."""

    def __init__(self, clips: Sequence[ClipFile], embedding: Embedding) -> None:
        self.embedding = embedding
        vectors = embed_clips(clips, embedding, SECONDS).vectors  # [N, W, E]
        numbers = np.array([clip.label.id for clip in clips if clip.label])
        self.references = {int(label): gaussian(_flat(vectors[numbers == label])) for label in np.unique(numbers)}
        self.roots = {label: psd_root(reference.cov) for label, reference in self.references.items()}

    def distance(self, waves: Tensor, labels: Sequence[int]) -> float:
        """Return the mean distance of waves [N, L] at 22,050 Hz of all the labels that the real clips have."""
        found = self.by_label(waves, labels)
        return float(np.mean([found[label] for label in self.references]))

    def by_label(self, waves: Tensor, labels: Sequence[int]) -> dict[int, float]:
        """Return the distance of waves [N, L] at 22,050 Hz for each of their labels."""
        files = as_written(waves).numpy()
        resampled = np.stack([resample(wave, DCASE.rate, self.embedding.rate) for wave in files])
        parts = [self.embedding.embed(part).vectors for part in torch.from_numpy(resampled).split(32)]
        vectors, numbers = torch.cat(parts).numpy(), np.array(labels)
        return {
            int(label): frechet(self.references[label], gaussian(_flat(vectors[numbers == label])), self.roots[label])
            for label in np.unique(numbers)
        }


def as_written(waves: Tensor) -> Tensor:
    """Return waves [N, L] as they are read from 16-bit files: scaled down to full scale if above it, and rounded."""
    peak = waves.abs().amax(1, keepdim=True).clamp(min=1)
    return (waves / peak * 32768).round().clamp(-32768, 32767) / 32768


def _flat(vectors: np.ndarray) -> np.ndarray:
    return vectors.reshape(-1, vectors.shape[-1])
