"""Training by the sound of it: the loops of VQ-VAE and PixelSNAIL, handed the distance of what they make to real clips.

CMU measured 32 clips of each label while they trained (Pillay et al. 2023, 2.1). A loop does not know what a score is;
here it meets synthesis and evaluation. The score of PixelSNAIL is of drawn sounds, always the same labels and seeds; that
of the VQ-VAE is of real clips there and back, against those very clips: 0 is a perfect reconstruction. Scores of other
numbers of clips, or another embedding, are not comparable (the distance has a bias that falls with their number).

Letters: N clips, L samples, M mel bands, T frames.
"""

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
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.core.loop import at_least
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import fingerprint
from foleybox.lab.evaluation.embeddings import Embedding, EmbeddingName, embed_clips, load_embedding
from foleybox.lab.evaluation.frechet import frechet, gaussian, psd_root
from foleybox.lab.play.sample import SECONDS, check_rows, mels_of_codes, read_vocoder, read_vqvae, vocode
from foleybox.labels import LABELS


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What sounds are measured against while a model trains."""

    reference: str | None = None
    "real clips (`folder:split`) that choose the best weights while training, so not those that will measure them; default: none"
    score_clips: int = 32
    "clips of each label that are scored, CMU's 32; scores of another number are not comparable"
    vocoder: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "the run of `foleybox train vocoder` that makes the sounds which are scored"
    embedding: EmbeddingName = "mn04"
    "of the Fréchet distance that is the score"
    weights: Path | None = None
    "the embedding's weights (of `encoder`: its run), found as `foleybox evaluate` finds them if not given"


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
    "the run of `foleybox train vqvae` that made the codes: it decodes the sounds which are scored"


def train_vqvae(config: ScoredVqvae) -> int:
    """Train, scored if there is a reference; Ctrl-C stops at the last checkpoint."""
    loop = TrainVqvae(**{field.name: getattr(config, field.name) for field in fields(TrainVqvae)})
    vocoder = read_parts(config)
    if vocoder is None:
        return vqvae.main(loop)
    clips = reference_clips(config, config.score_clips)
    ruler = Ruler(clips, load_embedding(config.embedding, config.weights))
    mels, labels = load_mels(clips, DCASE), [clip.label.id for clip in clips if clip.label]

    @torch.no_grad()
    def score(model: Vqvae) -> float:
        device = model.codebook.vectors.device
        made = torch.cat([model(part.to(device)).mel.cpu() for part in mels.split(16)])
        return ruler.distance(vocode(vocoder, made), labels)

    return vqvae.main(loop, score, said(config, vocoder, ruler, "reconstructed"))


def train_pixelsnail(config: ScoredPixelsnail) -> int:
    """Read the codes and train, scored if there is a reference; Ctrl-C stops at the last checkpoint."""
    loop = TrainPixelsnail(**{field.name: getattr(config, field.name) for field in fields(TrainPixelsnail)})
    codes, vocoder = read_codes(config.data), read_parts(config)
    if vocoder is None:
        pixelsnail.train(loop, codes, config.out)
        return 0
    if config.vqvae is None:
        raise UserError("--reference needs --vqvae: name the run whose codes these are, it makes mels of what is drawn")
    decoder = read_vqvae(config.vqvae, codes.fingerprint, str(config.data))
    check_rows(codes.codes.shape[1], str(config.data))
    if on_gpu(config):
        decoder.cuda()
    ruler = Ruler(reference_clips(config), load_embedding(config.embedding, config.weights))
    labels = [label for label in ruler.references for _ in range(config.score_clips)]
    seeds = [*range(config.score_clips)] * len(ruler.references)

    def score(model: PixelSnail) -> float:
        mels = mels_of_codes(model, decoder, labels, seeds, watched=False)  # the loop's bar is on the terminal
        return ruler.distance(vocode(vocoder, mels), labels)

    pixelsnail.train(loop, codes, config.out, score, said(config, vocoder, ruler, "drawn"))
    return 0


def read_parts(config: ScoredVqvae | ScoredPixelsnail) -> nn.Module | None:
    """Return the vocoder of the score, None where none is asked for. Raises UserError for half of what it takes."""
    at_least(config, score_clips=2)
    others = {"--score-every": config.score_every, "--vocoder": config.vocoder, "--weights": config.weights}
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
    return config.run.device == "auto" and torch.cuda.is_available()


def reference_clips(config: Scoring, most: int | None = None) -> list[ClipFile]:
    """Return the real clips, of each label the first `most`. Raises UserError for a label with one clip only."""
    assert config.reference is not None
    clips, found = find_clips(config.reference), []
    for label in LABELS:
        theirs = [clip for clip in clips if clip.label is label]
        if len(theirs) == 1:
            raise UserError(f"{config.reference} has 1 clip of {label.name}: a distance needs at least 2")
        found += theirs[:most]
    return found


def said(config: Scoring, vocoder: nn.Module, ruler: "Ruler", what: str) -> str:
    """Return what the score of a run is: a run that is scored otherwise is another run."""
    return (
        f"Fréchet distance of {config.score_clips} {what} clips a label, {ruler.embedding.name}, to {config.reference}, "
        f"vocoder {fingerprint(vocoder)[:12]}"
    )


class Ruler:
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
        """Return the distance of waves [N, L] at 22,050 Hz, for each of their labels."""
        files = as_written(waves).numpy()
        heard = np.stack([resample(wave, DCASE.rate, self.embedding.rate) for wave in files])
        parts = [self.embedding.embed(part).vectors for part in torch.from_numpy(heard).split(32)]
        vectors, numbers = torch.cat(parts).numpy(), np.array(labels)
        return {
            int(label): frechet(self.references[label], gaussian(_flat(vectors[numbers == label])), self.roots[label])
            for label in np.unique(numbers)
        }


def as_written(waves: Tensor) -> Tensor:
    """Return waves [N, L] as they would be read from 16-bit files: never above full scale, in steps."""
    louder = waves.abs().amax(1, keepdim=True).clamp(min=1)
    return (waves / louder * 32768).round().clamp(-32768, 32767) / 32768


def _flat(vectors: np.ndarray) -> np.ndarray:
    return vectors.reshape(-1, vectors.shape[-1])
