"""`foleybox audit`: is any generated clip a copy of a training clip?

Letters: N queries, M known clips, L samples, B mel bands, T frames, Q frequencies of a spectrum, E embedding width.

Each generated clip is compared with the training clips in four ways: `wave`, the waveform's normalised cross-correlation
over all lags (a shifted, louder or noisier copy); `mel`, that of its mel (a copy with other phases, as a vocoder makes
it); `ratio`, the nearest-neighbour ratio of the mel (a vocoded copy of rain: not very similar to its source, since a
vocoder makes its own noise, but far less similar to any other recording); `embedding`, the cosine of its embedding (the
same sound made again). The limits come from real clips: the same comparison of real clips with training clips of other
recordings, of which the share `false_alarm` may be flagged.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from foleybox.errors import UserError
from foleybox.files import check_writable, write_text
from foleybox.lab.core.cache import load_wave_cache
from foleybox.lab.core.clips import ClipFile, find_clips, load_waves
from foleybox.lab.core.mel import LogMel, MelConfig
from foleybox.lab.evaluation import page
from foleybox.lab.evaluation.embeddings import embed_clips, load_embedding, parallel_map
from foleybox.labels import LABELS
from foleybox.version import __version__

MEL = MelConfig(hop=512, bands=40)
COPY = 0.9  # a waveform correlation above this is a copy whatever the limits are
WAYS = {
    "wave": "waveform, highest normalised cross-correlation over all lags",
    "mel": "square-root mel without each band's mean, highest normalised cross-correlation over all lags",
    "ratio": "nearest-neighbour ratio: 1 - (1 - mel of the nearest) / (1 - mel of the nearest other recording)",
    "embedding": "cosine of the clips' mean embeddings, from the training clips' mean",
}


@dataclass(frozen=True)
class Audit:
    """Look for copies of training clips among generated clips: waveform, mel and embedding, judged against real clips.

    Exits with 1 if a copy is found. A verdict tells which clips to listen to; it is not a legal opinion.

    Example: foleybox audit out/ --against ../shared/data/foley:train --html audit.html
    """

    generated: tyro.conf.Positional[str]
    "a folder of class folders, or with a manifest; `folder:split` for one split"
    against: str
    "the training clips, found the same way"
    real: str | None = None
    "real clips that were not trained on, to calibrate with; otherwise training clips against other recordings"
    embedding: Literal["mn04", "vggish", "none"] = "mn04"
    "of the fourth comparison; none: waveform and mel only"
    weights: Path | None = None
    "the embedding's weights; otherwise found as `foleybox evaluate` finds them"
    seconds: float = 4.0
    "clips are cut or zero-padded at the end to this length"
    false_alarm: float = 0.01
    "the share of real clips of other recordings that may be flagged"
    calibration: int = 600
    "real clips to calibrate with, evenly spaced"
    candidates: int = 16
    "training clips whose waveform is compared with each clip: those nearest by mel and by embedding; 0 for all (slow)"
    pairs: int = 20
    "pairs to listen to in the page"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "write the result to this file"
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "write a page with the nearest pairs and players to this file"


def audit(config: Audit) -> int:
    """Compare, print a summary, write what was asked for; 1 if a copy was found, else 0."""
    check_writable(config.json, config.html)
    result = run(config)
    print(summary(result))
    if config.json:
        write_text(config.json, json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False) + "\n")
    if config.html:
        write_html(config, result)
    return 1 if result.counts()["copy"] else 0


# --- comparing ----------------------------------------------------------------------------------------------------


class Sounds(NamedTuple):
    """Clips ready to be compared."""

    waves: Tensor
    "[N, L] int16"
    vectors: Tensor | None
    "[N, E] mean embeddings"
    recordings: tuple[str, ...]


class Nearest(NamedTuple):
    """The nearest known clip of each query, one way."""

    known: NDArray[np.int64]  # [N] its place among the known clips
    value: NDArray[np.float64]  # [N] at most 1
    lag: NDArray[np.float64]  # [N] seconds that the query comes later; 0 for embeddings


def mel_spectra(waves: Tensor, front_end: LogMel) -> Tensor:
    """Return the spectra over time [N, Q, B] of unit-length mels of waves [N, L]; silence is all zeros.

    The mel is the square root of its magnitude (noise 30 dB down hardly shows) without each band's mean (so that two
    steady sounds of one spectrum are not similar: only changes over time count).
    """
    mel = (front_end(waves) / 2).exp()
    mel = mel - mel.mean(-1, keepdim=True)
    mel = unit(mel.flatten(1)).unflatten(1, mel.shape[1:])
    return torch.fft.rfft(mel, 2 * mel.shape[-1]).transpose(1, 2)


def unit(rows: Tensor) -> Tensor:
    """Scale rows [N, X] to length 1; rows of zeros stay so."""
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / lengths.where(lengths > 1e-6, torch.inf)


def mel_correlations(queries: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest cross-correlation and its lag in frames, both [N, M], of spectra [N, Q, B] and [M, Q, B]."""
    products = torch.einsum("nqb,mqb->nmq", queries, known.conj())
    return highest(torch.fft.irfft(products))


def highest(correlations: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over circular lags [..., lags] and where it is; lags past the middle are negative."""
    best = correlations.max(-1)
    size = correlations.shape[-1]
    return best.values, torch.where(best.indices < size // 2, best.indices, best.indices - size)


def wave_correlations(query: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest normalised cross-correlation of a wave [L] with each of [M, L] over all lags, and the lag."""
    size = fast_length(2 * len(query))
    spectra = torch.fft.rfft(unit(known.float()), size)
    return highest(torch.fft.irfft(torch.fft.rfft(unit(query.float()[None]), size) * spectra.conj(), size))


def fast_length(size: int) -> int:
    """Return the smallest 2^a 3^b 5^c, even, from `size` up: an FFT of that length is fast.

    >>> fast_length(176_400), fast_length(176_401)
    (180000, 180000)
    """
    twos = [2**a for a in range(1, size.bit_length() + 1)]
    smooth = [two * 3**b * 5**c for two in twos for b in range(12) for c in range(8)]
    return min(length for length in smooth if length >= size)


def compare(queries: Sounds, known: Sounds, candidates: int, apart: bool) -> dict[str, Nearest]:
    """Find the nearest known clip of every query, each way; `apart` leaves out clips of the query's own recording.

    Mels and embeddings are compared with every known clip; waveforms with the `candidates` that are nearest by mel and
    the few nearest by embedding.
    """
    front_end = LogMel(MEL)
    parts = range(0, len(known.waves), 64)
    spectra = torch.cat(
        list(parallel_map(lambda at: mel_spectra(known.waves[at : at + 64].float() / 32768, front_end), parts))
    )
    centre = 0 if known.vectors is None else known.vectors.mean(0)  # or every cosine would be near 1
    own = np.array(known.recordings)
    whose = torch.from_numpy(np.unique(own, return_inverse=True)[1])

    @torch.inference_mode()
    def nearest(start: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        rows = slice(start, start + 16)
        waves = queries.waves[rows]
        barred = torch.zeros(len(waves), len(own), dtype=torch.bool)
        if apart:
            barred = torch.from_numpy(np.array(queries.recordings[rows])[:, None] == own)
        similarity, lags = mel_correlations(mel_spectra(waves.float() / 32768, front_end), spectra)
        similarities = [similarity.masked_fill(barred, -1)]
        found = {"mel": _best(similarities[0], lags * (MEL.hop / MEL.rate))}
        found["ratio"] = nearest_neighbour_ratio(similarities[0], whose, found["mel"])
        if queries.vectors is not None and known.vectors is not None:
            cosine = unit(queries.vectors[rows] - centre) @ unit(known.vectors - centre).T
            similarities.append(cosine.masked_fill(barred, -1))
            found["embedding"] = _best(similarities[1], torch.zeros_like(cosine))
        return {"wave": _nearest_waves(waves, known.waves, similarities, barred, candidates), **found}

    chunks = list(parallel_map(nearest, range(0, len(queries.waves), 16)))
    return {
        way: Nearest(*(torch.cat(column).numpy() for column in zip(*(each[way] for each in chunks))))
        for way in chunks[0]
    }


def _best(similarity: Tensor, lags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best = similarity.max(1)
    return best.indices, best.values.double(), lags.gather(1, best.indices[:, None])[:, 0].double()


def nearest_neighbour_ratio(
    similarity: Tensor, whose: Tensor, nearest: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `nearest` of similarities [N, M] with another value, the nearest-neighbour ratio.

    `whose` [M] numbers the recordings of the known clips. The ratio is 1 - (1 - s1) / (1 - s2), with s1 the similarity of
    the nearest clip and s2 that of the nearest clip of another recording. 0: another recording is as near; 1: the nearest
    is the query itself. A vocoded copy of rain with s1 = 0.77 and s2 = 0.19 has 0.72; the median of real clips against
    other recordings is 0.04.
    """
    index, value, lag = nearest
    other = similarity.masked_fill(whose == whose[index, None], -1).max(1).values.double()
    return index, 1 - (1 - value) / (1 - other).clamp(min=1e-6), lag


def _nearest_waves(
    waves: Tensor, known: Tensor, similarities: Sequence[Tensor], barred: Tensor, candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare each wave with its candidates; [N] index, correlation, lag in seconds."""
    index, value, lag = [], [], []
    for row, wave in enumerate(waves):
        if candidates:
            near = [similarities[0][row].topk(min(candidates, len(known))).indices]
            near += [each[row].topk(min(max(1, candidates // 4), len(known))).indices for each in similarities[1:]]
            chosen = torch.cat(near).unique()
        else:
            chosen = torch.arange(len(known))
        chosen = chosen[~barred[row, chosen]]
        if not len(chosen):
            chosen = chosen.new_zeros(1)
        scores, lags = zip(*(wave_correlations(wave, known[part]) for part in chosen.split(64)))
        scores, lags = torch.cat(scores), torch.cat(lags)
        best = int(scores.argmax())
        index.append(int(chosen[best]))
        value.append(float(scores[best]))
        lag.append(float(lags[best]) / MEL.rate)
    return torch.tensor(index), torch.tensor(value, dtype=torch.float64), torch.tensor(lag, dtype=torch.float64)


# --- judging ------------------------------------------------------------------------------------------------------


def thresholds(real: dict[str, Nearest], false_alarm: float) -> dict[str, float]:
    """Return the similarity, each way, that real clips exceed in `false_alarm` / (number of ways) of all cases."""
    share = false_alarm / len(real)
    return {way: float(np.quantile(each.value, 1 - share, method="higher")) for way, each in real.items()}


def flags(found: dict[str, Nearest], limits: dict[str, float]) -> list[list[str]]:
    """Return, for each query, the ways in which it is nearer to a known clip than real clips are."""
    count = len(next(iter(found.values())).value)
    return [
        [way for way, each in found.items() if each.value[i] > min(limits[way], COPY if way == "wave" else 1.0)]
        for i in range(count)
    ]


def verdict(by: Sequence[str], wave: float) -> str:
    """Return `copy` (the waveform itself), `close` (above a limit of real clips), or `own`."""
    return "copy" if wave > COPY else "close" if by else "own"


@dataclass(frozen=True)
class Neighbour:
    """The nearest training clip of a generated one, in one way."""

    similarity: float
    nearest: str
    "path of the training clip"
    recording: str
    lag_ms: float


@dataclass(frozen=True)
class Verdict:
    """A generated clip and its nearest training clips, by way."""

    file: str
    label: str
    verdict: str
    "copy, close or own"
    by: list[str]
    "the ways in which it is above the limit"
    nearest: dict[str, Neighbour]


@dataclass(frozen=True)
class Way:
    """Similarities in one way: minimum, quartiles and maximum."""

    what: str
    real_quantiles: list[float]
    generated_quantiles: list[float]
    limit: float


@dataclass(frozen=True)
class AuditResult:
    """The result of an audit; the JSON file has the same keys. Version 1 called `ratio` `alone` and similarity likeness."""

    foleybox: str
    generated: str
    against: str
    against_clips: int
    calibrated_on: str
    real_clips: int
    real_flagged: int
    false_alarm: float
    chance: float
    "expected share of flagged clips among clips that copy nothing"
    embedding: str
    candidates: int
    seconds: float
    ways: dict[str, Way]
    clips: list[Verdict]
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    "by slug: n, copy, close, own"
    version: int = 2

    def counts(self, label: str | None = None) -> dict[str, int]:
        """Return the number of verdicts of each kind, of one label or of all."""
        words = [each.verdict for each in self.clips if label in (None, each.label)]
        return {"n": len(words), **{word: words.count(word) for word in ("copy", "close", "own")}}


def run(config: Audit) -> AuditResult:
    """Compare every generated clip with the training clips and return the result."""
    if not 0 < config.false_alarm < 1 or config.calibration < 2 or config.candidates < 0:
        raise UserError(
            f"false alarm {config.false_alarm}, calibration {config.calibration}, candidates {config.candidates}: expected "
            "a share between 0 and 1, at least 2 clips, and 0 or more candidates"
        )
    clips, known = find_clips(config.generated), find_clips(config.against)
    if len(known) < 2:
        raise UserError(f"{config.against} has {len(known)} clip: expected the training clips")
    calibrating = find_clips(config.real) if config.real else known
    step = max(1, len(calibrating) / max(1, config.calibration))
    calibrating = [calibrating[int(i * step)] for i in range(min(config.calibration, len(calibrating)))]
    if len({clip.recording for clip in known}) < 2:
        raise UserError(f"{config.against} is one recording: there are no other recordings to calibrate with")

    prepared = [_prepare(each, config, keep=each is known) for each in (known, calibrating, clips)]
    real = compare(prepared[1], prepared[0], config.candidates, apart=True)
    limits = thresholds(real, config.false_alarm)
    found = compare(prepared[2], prepared[0], config.candidates, apart=False)
    verdicts = []
    for i, (clip, by) in enumerate(zip(clips, flags(found, limits), strict=True)):
        nearest = {way: _neighbour(each, i, known) for way, each in found.items()}
        word = verdict(by, float(found["wave"].value[i]))
        verdicts.append(Verdict(str(clip.path), clip.label.slug if clip.label else "", word, by, nearest))
    result = AuditResult(
        foleybox=__version__,
        generated=config.generated,
        against=config.against,
        against_clips=len(known),
        calibrated_on=config.real or f"{config.against}, against other recordings",
        real_clips=len(calibrating),
        real_flagged=sum(map(bool, flags(real, limits))),
        false_alarm=config.false_alarm,
        chance=max(config.false_alarm, len(real) / (len(calibrating) + 1)),
        embedding=config.embedding,
        candidates=config.candidates,
        seconds=config.seconds,
        ways={way: Way(WAYS[way], _quantiles(real[way]), _quantiles(found[way]), limits[way]) for way in found},
        clips=verdicts,
    )
    by_label = {label.slug: result.counts(label.slug) for label in LABELS}
    return dataclasses.replace(result, labels={k: v for k, v in by_label.items() if v["n"]})


def _neighbour(found: Nearest, i: int, known: Sequence[ClipFile]) -> Neighbour:
    clip = known[int(found.known[i])]
    return Neighbour(
        round(float(found.value[i]), 6), str(clip.path), clip.recording, round(1000 * float(found.lag[i]), 3)
    )


def _quantiles(found: Nearest) -> list[float]:
    """Return minimum, quartiles and maximum."""
    return [round(float(q), 6) for q in np.quantile(found.value, (0, 0.25, 0.5, 0.75, 1))]


def _prepare(clips: Sequence[ClipFile], config: Audit, keep: bool) -> Sounds:
    samples = round(config.seconds * MEL.rate)
    waves = load_wave_cache(clips, MEL.rate, config.seconds) if keep else load_waves(clips, MEL.rate, samples)
    vectors = None
    if config.embedding != "none":
        embedding = load_embedding(config.embedding, config.weights)
        vectors = torch.from_numpy(embed_clips(clips, embedding, config.seconds).vectors.mean(1))
    return Sounds(waves, vectors, tuple(clip.recording for clip in clips))


# --- reports ------------------------------------------------------------------------------------------------------


def summary(result: AuditResult) -> str:
    """Return the verdicts in a few lines."""
    found = result.counts()
    lines = [
        f"{found['n']} clips of {result.generated} against {result.against_clips} of {result.against}: "
        f"{found['copy']} copies, {found['close']} close, {found['own']} their own",
        f"calibrated on {result.real_clips} real clips ({result.calibrated_on}): "
        f"{result.real_flagged} of them flagged; of {found['n']} clips that copy nothing about "
        f"{result.chance * found['n']:.0f} would be called close by chance",
    ]
    for name, way in result.ways.items():
        real, generated = way.real_quantiles, way.generated_quantiles
        lines.append(
            f"  {name:9} limit {way.limit:.3f}   median real {real[2]:.3f}, generated {generated[2]:.3f}   "
            f"highest real {real[4]:.3f}, generated {generated[4]:.3f}"
        )
    for clip in ranked(result):
        if clip.verdict != "own":
            near = clip.nearest[clip.by[0]]
            lines.append(f"{clip.verdict:5} {clip.file}  <-  {near.nearest}  ({', '.join(clip.by)})")
    return "\n".join(lines)


def ranked(result: AuditResult) -> list[Verdict]:
    """Return the clips, those nearest to a limit first."""

    def excess(clip: Verdict) -> float:
        ways = clip.nearest.items()
        return max((1 - result.ways[way].limit + 1e-3) / (1 - each.similarity + 1e-3) for way, each in ways)

    return sorted(result.clips, key=lambda clip: (clip.verdict != "copy", -excess(clip), clip.file))


def nearest_way(result: AuditResult, clip: Verdict) -> str:
    """Return the way in which a clip is furthest above its limit."""
    return max(clip.nearest, key=lambda way: clip.nearest[way].similarity - result.ways[way].limit)


def write_html(config: Audit, result: AuditResult) -> None:
    """Write the page: verdicts, similarities, and the nearest pairs with players."""
    assert config.html is not None
    sounds, found = page.Sounds(config.html), result.counts()
    parts = [
        f"<h1>Originality of {page.escape(result.generated)}</h1>",
        f"<p>{found['copy']} copies, {found['close']} close, {found['own']} their own, of {found['n']} clips. "
        "<b>Copy</b>: the waveform is that of a training clip. <b>Close</b>: more similar to a training clip, in some way, "
        "than real clips are to other recordings. Listen before you decide: this is not a legal opinion.</p>",
        page.definitions(
            [
                ("against", f"{result.against} ({result.against_clips} clips)"),
                ("calibrated on", f"{result.calibrated_on}: {result.real_clips} clips, {result.real_flagged} flagged"),
                ("by chance", f"about {result.chance:.1%} of clips that copy nothing are called close"),
                ("embedding", result.embedding),
                ("clips", f"cut or zero-padded at the end to {result.seconds:g} s"),
            ]
        ),
        "<h2>Similarity</h2>",
        page.table(
            ["way", "limit", "real: median", "highest", "generated: median", "highest"],
            [
                [name, f"{way.limit:.3f}"]
                + [f"{each[i]:.3f}" for each in (way.real_quantiles, way.generated_quantiles) for i in (2, 4)]
                for name, way in result.ways.items()
            ],
        ),
        page.definitions([(name, way.what) for name, way in result.ways.items()]),
        "<h2>Verdicts</h2>",
        page.table(
            ["label", "n", "copy", "close", "own"],
            [[slug, *(str(row[key]) for key in ("n", "copy", "close", "own"))] for slug, row in result.labels.items()],
        ),
        f"<h2>The {min(config.pairs, found['n'])} nearest pairs</h2>",
    ]
    for clip in ranked(result)[: config.pairs]:
        way = nearest_way(result, clip)
        near = clip.nearest[way]
        rows = [
            [name, f"{each.similarity:.3f}", "–" if name == "embedding" else f"{each.lag_ms:+.0f} ms"]
            for name, each in clip.nearest.items()
        ]
        parts.append(
            f'<div class="pair">{sounds.figure(Path(clip.file), "generated: " + clip.file, config.seconds)}'
            f"{sounds.figure(Path(near.nearest), f'nearest by {way}: ' + near.nearest, config.seconds)}"
            f"<div><b>{clip.verdict}</b> {page.escape(', '.join(clip.by))}"
            f"{page.table(['way', 'similarity', 'lag'], rows)}</div></div>"
        )
    page.save(config.html, f"foleybox audit: {result.generated}", "\n".join(parts))
