"""The instrument format: the folder that the lab exports and the studio plays.

An instrument is a folder with `instrument.json` (the manifest), ONNX graphs, and `CARD.md`, a description for people.
Letters: N clips, M mel bands, T frames, L samples. Every kind ends with

    vocoder     mel float32 [N, M, T]                        -> wave float32 [N, L]     L >= samples, or zero-padded

The graph before it in kind "gan":

    generator   latent float32 [N, *latent], label int64 [N] -> mel float32 [N, M, T]   label: index in `labels`

The graphs before it in kind "patches", where a clip is a sequence of P positions. The latent of a clip is [P, D + G]:
for each position, D numbers of noise for `next`, and G for the noise that `decoder` reads in T / P frames.

    next        previous float32 [R, D] (the output at the position before), label int64 [R] (-1: none),
                mix float32 [R, R], position int64 [], noise float32 [R, D],
                keys_0, values_0, keys_1, ... float32 [R, H, W, E]: the cache of each layer for the last W positions,
                position p in slot p mod W
                -> latent float32 [R, D], new_keys_0, new_values_0, new_keys_1, ... float32 [R, H, E]: the cache of this
                position. A clip is one row. With classifier-free guidance g it is two, the second without a label, mixed
                with weights g and 1 - g. The graph's metadata hold, for each label, `guidance` (1: none) and
                `temperature` (the factor of the noise).
    decoder     latents float32 [N, P, D], noise float32 [N, T, G P / T] -> mel float32 [N, M, T]

Inputs are passed by position. Format 1 named `previous` `before`, `position` `place`, and the decoder's `noise` `grain`.

A manifest is checked in full before anything of the instrument is used: an instrument that is incomplete or was edited is
refused with one line.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

from foleybox.errors import UserError
from foleybox.files import atomic_folder, earlier_folder, safe_name, sha256
from foleybox.graphs import graph_problems
from foleybox.licences import Licence, TrainingClips, licence_of
from foleybox.schema import (
    FINGERPRINT,
    HIGHEST_RATE,
    RATE,
    Anything,
    Items,
    Number,
    OneOf,
    Record,
    SchemaError,
    Table,
    Text,
    Whole,
    parse_json,
)

FORMAT = 2
MANIFEST, CARD, SIGNATURE = "instrument.json", "CARD.md", "instrument.sig"
SHIPPED = Path(__file__).parent / "studio" / "instruments"
FORMER: dict[str, str] = dict.fromkeys(
    ("foley-open", "sagan-small"),
    "it shipped with earlier versions and is in the repository's history at commit c8b5aca, src/foleybox/studio/instruments",
)
DEFAULT = "foley"  # the instrument that plays when none is named
GRAPHS = {"gan": ("generator", "vocoder"), "patches": ("next", "decoder", "vocoder")}  # kind -> its graphs
INPUTS = {
    "generator": ("latent", "label"),
    "next": ("previous", "label", "mix", "position", "noise"),  # then keys_0, values_0, ...
    "decoder": ("latents", "noise"),
    "vocoder": ("mel",),
}
INPUTS_OF_FORMAT_1 = {"before": "previous", "place": "position", "grain": "noise"}
AGAIN = "get a whole copy of the instrument, or export it again"

MOST_BYTES, MOST_DEPTH, MOST_LABELS, MOST_SECONDS = 4 << 20, 20, 1_000, 3_600
"limits of a manifest: bytes of the file, levels of nesting, labels, seconds of a clip"
MOST_NUMBERS = 1 << 24
"limit of a clip's latent, and of the cache of a layer, in numbers"

# Names go into file names, tables and terminals.
NAME = Text(100, pattern=r"[^\W_][^\n\t]*", expected="1 to 100 characters, the first a letter or a digit")
FILE = Text(100, pattern=r"[^\\/:*?\"<>|.][^\\/:*?\"<>|]*", expected="the name of a file in the instrument's folder")
TERMS = Text(1_000, least=0)
CLIPS = Record({"label": TERMS, "tier": TERMS, "licence": TERMS, "clips": Whole(1, 1 << 40), "source": TERMS})
CONTENT = Record(
    {
        "format": Whole(1, FORMAT), "name": NAME, "version": NAME, "kind": OneOf(tuple(GRAPHS)),
        "labels": Items(NAME, MOST_LABELS, 1), "rate": RATE, "samples": Whole(1, MOST_SECONDS * HIGHEST_RATE),
        "latent": Items(Whole(1, MOST_NUMBERS), 8, 1), "mel": Table(Number(-1e9, 1e9)),
        "graphs": Table(Record({"file": FILE, "sha256": FINGERPRINT, "bytes": Whole(1, (1 << 31) - 1)})),
        "same_sounds_as": Items(FINGERPRINT, 1_000), "training_clips": Items(CLIPS, 100_000),
        "licence": Record({"terms": TERMS}, {"reasons": Items(TERMS, 1_000), "why": Anything()}),
        "measured": Table(Anything()), "made_with": Table(Anything()), "checksum": FINGERPRINT,
    }
)  # fmt: skip
"""the content of a manifest; `_value_problems` says what else it must fulfil"""


@dataclass(frozen=True)
class Graph:
    """One ONNX file of an instrument."""

    file: str  # a file name in the instrument's folder
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Instrument:
    """The manifest of an instrument."""

    name: str
    version: str
    labels: tuple[str, ...]  # in the order of the label numbers that the graphs take
    rate: int  # Hz
    samples: int  # of a clip
    latent: tuple[int, ...]  # shape of a clip's latent, without N: (128,)
    mel: dict[str, int | float]  # the mel between the graphs: rate, n_fft, hop, bands, low, high
    training_clips: tuple[TrainingClips, ...]
    kind: str = "gan"
    graphs: dict[str, Graph] = field(default_factory=dict)  # filled in by write_instrument
    measured: dict[str, Any] = field(default_factory=dict)  # scores, any JSON
    made_with: dict[str, Any] = field(default_factory=dict)  # versions, commit, settings of the trainings: any JSON
    same_sounds_as: tuple[str, ...] = ()  # fingerprints of earlier files of these weights, which gave the same samples

    @property
    def seconds(self) -> float:
        return self.samples / self.rate

    @property
    def licence(self) -> Licence:
        """The terms that follow from the training clips."""
        return licence_of(self.training_clips)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that determines the samples of a sound, 64 hexadecimal digits.

        It covers the kind, the labels in their order, rate, samples, the shape of the latent, and the SHA-256 of every
        graph file; so also guidance and temperature, which are in a graph's metadata. It does not cover the name, the
        version, the training clips, the scores or the card: a new card leaves the fingerprint as it is.
        """
        parts = [self.kind, self.labels, self.rate, self.samples, self.latent]
        return _digest([*parts, {name: graph.sha256 for name, graph in self.graphs.items()}])

    def matches(self, fingerprint: str) -> bool:
        """Return whether this instrument gives the sounds of the instrument with that fingerprint, as a recipe has it.

        True for the instrument's own fingerprint and for those in `same_sounds_as`. All comparisons of a recipe with an
        instrument use this function.
        """
        return fingerprint == self.fingerprint or fingerprint in self.same_sounds_as


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def signed_content(folder: Path) -> bytes:
    """Return what a signature of an instrument is of: the SHA-256 of its manifest, which has those of the graphs, and card."""
    names = [name for name in (MANIFEST, CARD) if (folder / name).is_file()]
    return "".join(f"{name} {sha256(folder / name)}\n" for name in names).encode()


def check_trained(instrument: Instrument) -> None:
    """Raise UserError for an instrument that does not record how its parts were trained: it cannot be built on."""
    for part in ("generator", "vocoder", *(("autoencoder",) if instrument.kind == "patches" else ())):
        if not isinstance(instrument.made_with.get(part), dict):
            raise UserError(
                f"{instrument.name} does not record how its {part} was trained: expected an instrument that `export` wrote"
            )


# --- writing ------------------------------------------------------------------------------------------------------


def write_instrument(
    folder: str | Path, instrument: Instrument, files: Mapping[str, Path | bytes], card: str
) -> Instrument:
    """Write an instrument to `folder`, whole or not at all; return it as written, with `graphs` filled in.

    `files` gives each graph of the kind ("generator" and "vocoder" of a "gan") as an ONNX file or its bytes; they
    become `<graph>.onnx`. `card` is the text of CARD.md. An existing instrument in `folder` is replaced in one step
    (`files.atomic_folder`). To add scores, write an instrument again with `dataclasses.replace(instrument,
    measured=...)` and its own files.

    Raises UserError if the graphs are not those of the kind, if the manifest is one that `read_instrument` would refuse,
    or if `folder` contains anything other than an instrument.
    """
    folder = Path(folder).resolve()  # "." has no name
    if set(files) != set(GRAPHS.get(instrument.kind, ())):
        expected = ", ".join(GRAPHS.get(instrument.kind, ())) or f"none, for the unknown kind {instrument.kind!r}"
        raise UserError(f"graphs {', '.join(files) or '(none)'} for instrument {instrument.name}: expected {expected}")
    check_place(folder, instrument.kind)
    partial_folder = folder
    try:
        with atomic_folder(folder) as partial_folder:
            graphs = {}
            for name in GRAPHS[instrument.kind]:
                content = files[name]
                path = partial_folder / f"{name}.onnx"
                path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
                graphs[name] = Graph(path.name, sha256(path), path.stat().st_size)
            written = Instrument(
                **{**{each.name: getattr(instrument, each.name) for each in fields(instrument)}, "graphs": graphs}
            )
            (partial_folder / CARD).write_text(card, encoding="utf-8")
            text = json.dumps(_to_json(written), indent=1, ensure_ascii=False) + "\n"
            (partial_folder / MANIFEST).write_text(text, encoding="utf-8")
            read_instrument(partial_folder)
    except UserError as error:
        raise UserError(str(error).replace(str(partial_folder), str(folder))) from None
    return written


def check_place(folder: Path, kind: str) -> None:
    """Raise UserError if `folder` exists and contains anything other than an instrument: other files are never replaced."""
    if not folder.exists():
        return
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {""}
    ours = {MANIFEST, CARD, SIGNATURE, *(f"{name}.onnx" for name in GRAPHS[kind])}
    if names and (MANIFEST not in names or names - ours):
        raise UserError(f"{folder} contains other files than an instrument's: name a new folder")


def _to_json(instrument: Instrument) -> dict[str, Any]:
    content = {"format": FORMAT, **asdict(instrument), "licence": asdict(instrument.licence)}
    content = json.loads(json.dumps(content, allow_nan=False))  # tuples become lists, as when read back
    return {**content, "checksum": _digest(content)}


# --- finding and reading ------------------------------------------------------------------------------------------


def shipped() -> list[Path]:
    """Return the folders of the instruments that ship with the package, the default one first."""
    found = (path.parent for path in SHIPPED.glob(f"*/{MANIFEST}"))
    return sorted(found, key=lambda folder: (folder.name != DEFAULT, folder.name))


def find_instrument(source: str | Path | None = None) -> Path:
    """Return the folder of an instrument: a folder, or the name of one that ships.

    None stands for the value of FOLEYBOX_INSTRUMENT, or else for the default. Raises UserError if there is no such
    instrument.
    """
    ours = shipped()
    source = source or os.environ.get("FOLEYBOX_INSTRUMENT") or None
    if source is None:
        if not ours:
            raise UserError("no instrument ships with this copy of foleybox: name a folder with --instrument")
        return ours[0]
    if Path(source).is_dir():
        return Path(source)
    named = next((folder for folder in ours if folder.name == str(source)), None)
    if named is None:
        names = ", ".join(folder.name for folder in ours) or "none"
        former = f"; {FORMER[str(source)]}" if str(source) in FORMER else ""
        raise UserError(
            f"no instrument {source}: expected a folder with {MANIFEST}, or one that ships ({names}){former}"
        )
    return named


def read_instrument(folder: str | Path) -> Instrument:
    """Read and check an instrument of format 1 or 2: its manifest, its checksum, the size and SHA-256 of every graph.

    Raises UserError with one line for the first thing that is wrong. The graphs are not loaded (see `check_graph_ports`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        earlier = earlier_folder(folder) if folder.parent.is_dir() else None
        hint = f"; a write was interrupted and left the earlier one at {earlier}: rename it" if earlier else ""
        raise UserError(f"no instrument at {folder}: expected a folder with {MANIFEST}{hint}")
    manifest = folder / MANIFEST
    content = _parse(manifest)
    number = content.get("format") if isinstance(content, dict) else None
    if type(number) is not int:
        raise UserError(f"{manifest} is not an instrument's manifest: it states no format number")
    if number not in (1, FORMAT):
        advice = "update foleybox" if number > FORMAT else AGAIN
        raise UserError(f"{manifest} is of format {number}, this foleybox reads 1 and {FORMAT}: {advice}")
    problem = next(_problems(content, folder), None)
    if problem is not None:
        raise UserError(f"{problem}; {AGAIN}")
    content = _from_format_1(content) if number == 1 else content
    return Instrument(
        **{key: content[key] for key in ("name", "version", "kind", "rate", "samples", "mel", "measured", "made_with")},
        labels=tuple(content["labels"]),
        latent=tuple(content["latent"]),
        graphs={name: Graph(**row) for name, row in content["graphs"].items()},
        training_clips=tuple(TrainingClips(**row) for row in content["training_clips"]),
        same_sounds_as=tuple(content["same_sounds_as"]),
    )


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a manifest of format 1 under the names of format 2."""
    named = {"training_clips" if key == "heard" else key: value for key, value in content.items()}
    return named | {"same_sounds_as": []}


def _parse(manifest: Path) -> Any:
    """Return the JSON of a manifest. Raises UserError if it is missing, cut short, or beyond the limits of a manifest."""
    try:
        with manifest.open("rb") as file:
            return parse_json(file.read(MOST_BYTES + 1), MOST_BYTES, MOST_DEPTH)
    except FileNotFoundError:
        if manifest.with_name("config.json").is_file():
            advice = "make sounds with `foleybox sample`, or an instrument with `foleybox export`"
            raise UserError(f"{manifest.parent} is a training run, not an instrument: {advice}") from None
        raise UserError(f"{manifest.parent} is not an instrument: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest} is cut short or not a manifest ({error}): {AGAIN}") from None


def _problems(content: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield what is wrong with a manifest and with its graph files.

    Each check relies on those before it: take the first problem only.
    """
    manifest = folder / MANIFEST
    if "checksum" not in content:
        yield f"{manifest} lacks checksum"
    if content["checksum"] != _digest({key: value for key, value in content.items() if key != "checksum"}):
        yield f"{manifest} was changed after it was written (its checksum does not match)"
    content = _from_format_1(content) if content["format"] == 1 else content
    try:
        CONTENT(content, "")
    except SchemaError as error:
        yield f"{manifest}: {error}"
    yield from (f"{manifest} has {problem}" for problem in _value_problems(content))
    for name, graph in content["graphs"].items():
        yield from _graph_problems(folder / graph["file"], name, graph)


def _value_problems(content: dict[str, Any]) -> Iterator[str]:
    """Yield where the values of a manifest contradict each other."""
    kind, graphs, labels, latent = (content[key] for key in ("kind", "graphs", "labels", "latent"))
    if set(graphs) != set(GRAPHS[kind]):
        yield f"graphs {', '.join(graphs)}, expected {', '.join(GRAPHS[kind])}"
    if len({safe_name(label).casefold() for label in labels}) < len(labels):
        yield "labels, expected different names (as file names, too)"
    if math.prod(latent) > MOST_NUMBERS:
        yield f"latent {latent}, expected {MOST_NUMBERS:,} numbers in all at most"
    if kind == "patches" and len(latent) != 2:
        yield f"latent {latent}, expected [positions, numbers] of an instrument of patches"
    if content["samples"] > MOST_SECONDS * content["rate"]:
        yield f"{content['samples']:,} samples at {content['rate']:,} Hz, expected {MOST_SECONDS:,} s at most"
    stated = content["licence"]["terms"]
    follows = licence_of(TrainingClips(**row) for row in content["training_clips"]).terms
    if stated != follows:
        yield f"the terms {stated!r}, but {follows!r} follows from its training clips"


def _graph_problems(path: Path, name: str, graph: Mapping[str, Any]) -> Iterator[str]:
    if not path.is_file():
        yield f"the {name} graph {path} is missing"
    if (size := path.stat().st_size) != graph["bytes"]:
        yield f"the {name} graph {path} has {size:,} bytes, expected {graph['bytes']:,}"
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != graph["sha256"]:
        yield f"the {name} graph {path} was changed (sha256 {found[:12]}..., expected {graph['sha256'][:12]}...)"
    yield from (f"the {name} graph {path} {problem}" for problem in graph_problems(content))


# --- graphs -------------------------------------------------------------------------------------------------------


class Port(Protocol):
    """An input or output of a loaded graph, as onnxruntime describes it."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> Sequence[Any]: ...


def check_graph_ports(
    instrument: Instrument, graph: str, inputs: Sequence[Port], outputs: Sequence[Port], path: Path
) -> None:
    """Raise UserError if a loaded graph does not take and give what the kind of instrument says (head of this file)."""
    problem = next(_port_problems(instrument, graph, inputs, outputs), None)
    if problem is not None:
        raise UserError(f"{path} {problem}; export it again")


def _port_problems(
    instrument: Instrument, graph: str, inputs: Sequence[Port], outputs: Sequence[Port]
) -> Iterator[str]:
    fixed = INPUTS[graph]
    names = [INPUTS_OF_FORMAT_1.get(each.name, each.name) for each in inputs]
    caches = [f"{kind}_{at // 2}" for at, kind in zip(range(len(names) - len(fixed)), cycle(("keys", "values")))]
    expected = [*fixed, *(caches if graph == "next" else ())]
    if names != expected:
        yield f"takes {', '.join(names)}: expected {', '.join(expected)}"
    if graph == "next" and not caches:
        yield "takes no keys_0 and values_0: expected the cache of one layer or more"
    if len(outputs) != 1 + len(caches):
        yield f"gives {len(outputs)} outputs: expected {1 + len(caches)}"
    types = ["tensor(int64)" if name in ("label", "position") else "tensor(float)" for name in names]
    for port, kind in zip((*inputs, *outputs), [*types, *(["tensor(float)"] * len(outputs))]):
        if port.type != kind:
            yield f"has {port.name} of {port.type}: expected {kind}"
    shapes = {name: list(port.shape) for name, port in zip(names, inputs)}
    for name, sizes in _input_sizes(instrument, graph, shapes).items():
        differ = (type(size) is int and size != found for found, size in zip(shapes[name], sizes))
        if len(shapes[name]) != len(sizes) or any(differ):
            yield f"takes {name} {shapes[name]}: that does not fit the manifest's latent {[*instrument.latent]} and its mel"
    for name in caches:
        sizes = shapes[name][1:]
        if not all(type(size) is int and size > 0 for size in sizes) or math.prod(sizes) > MOST_NUMBERS:
            yield f"takes {name} {shapes[name]}: expected three fixed sizes, {MOST_NUMBERS:,} numbers in all at most"


def _input_sizes(instrument: Instrument, graph: str, shapes: Mapping[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the shapes that the inputs of a graph must have for this instrument; a letter stands for any size."""
    latent = instrument.latent
    if graph == "vocoder":
        return {"mel": ("N", "M", "T")}
    if graph == "generator":
        return {"latent": ("N", *latent), "label": ("N",)}
    positions, numbers = latent
    D = (shapes[INPUTS[graph][0]] or [0])[-1]
    D = D if type(D) is int and 0 < D < numbers else 0
    if graph == "next":
        caches = {name: ("R", "H", "W", "E") for name in shapes if name not in INPUTS["next"]}
        return {"previous": ("R", D), "label": ("R",), "mix": ("R", "R"), "position": (), "noise": ("R", D), **caches}
    frames, channels = shapes["noise"][1:] if len(shapes["noise"]) == 3 else ("T", "G")
    fits = type(frames) is int and type(channels) is int and frames * channels == positions * (numbers - D)
    return {"latents": ("N", positions, D), "noise": ("N", frames, channels if fits else 0)}
