"""What an instrument is on disk: the one thing that passes from the lab to the studio.

A folder with `instrument.json` (this file's business), ONNX graphs, and `CARD.md` for people. Every kind ends in

    vocoder     mel float32 [N, M, T]                        -> wave float32 [N, L]     L >= samples, or zero-padded

The graph before it of kind "gan":

    generator   latent float32 [N, *latent], label int64 [N] -> mel float32 [N, M, T]   label: place in `labels`

Those of kind "patches", whose clips are P places one after the other; its latent is [P, D + G], of each place D numbers
for what is drawn there and G for the grain of its T / P frames:

    next        before float32 [R, D] (what place - 1 drew), label int64 [R] (-1: none), mix float32 [R, R], place int64 [],
                noise float32 [R, D], keys_0, values_0, keys_1 ... float32 [R, H, W, E]: what each layer keeps of the
                last W places, that of place p in slot p mod W
                -> latent float32 [R, D], new_keys_0, new_values_0, new_keys_1 ... float32 [R, H, E]: what to keep of
                this place. A clip is a row; where it is guided by g it is two, the second one without a label, which
                mix with g and 1 - g. Its metadata `guidance` has g for each label, 1 being none, and `temperature`
                what the noise of each label is multiplied by.
    decoder     latents float32 [N, P, D], grain float32 [N, T, G P / T] -> mel float32 [N, M, T]

N clips at once (any number), M mel bands, T frames, L samples. Reading is strict: an instrument that was cut short, or
edited by hand, is refused with one line that says what is wrong.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from foleybox.errors import UserError
from foleybox.files import replace_folder, sha256, write_text
from foleybox.licences import Licence, TrainingClips, roll_up

FORMAT = 1
MANIFEST, CARD = "instrument.json", "CARD.md"
SHIPPED = Path(__file__).parent / "studio" / "instruments"
DEFAULT = "foley-small"  # of those, the one that plays when none is named
GRAPHS = {"gan": ("generator", "vocoder"), "patches": ("next", "decoder", "vocoder")}  # kind -> the graphs it must have


@dataclass(frozen=True)
class Graph:
    """One ONNX file of an instrument."""

    file: str  # a name in the instrument's folder
    sha256: str
    bytes: int


def check_training_clips(instrument: "Instrument") -> None:
    """Raise UserError for an instrument that does not say how its parts were trained: nothing can be built on it."""
    parts = ("generator", "vocoder", *(("autoencoder",) if instrument.kind == "patches" else ()))
    for part in parts:
        if not isinstance(instrument.made_with.get(part), dict):
            raise UserError(
                f"{instrument.name} does not say how its {part} was trained: expected one that `export` wrote"
            )


# --- the manifest -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instrument:
    """The manifest of an instrument. `licence` follows from `heard`; `fingerprint` names what it sounds like."""

    name: str
    version: str
    labels: tuple[str, ...]  # in the order of the generator's label numbers
    rate: int  # Hz
    samples: int  # in a clip
    latent: tuple[int, ...]  # shape of the generator's latent, without N: (128,)
    mel: dict[str, int | float]  # the numbers of the mel between the graphs: rate, n_fft, hop, bands, low, high
    heard: tuple[TrainingClips, ...]  # what it was trained on
    kind: str = "gan"
    graphs: dict[str, Graph] = field(default_factory=dict)  # filled by write_instrument
    measured: dict[str, Any] = field(default_factory=dict)  # scores, any JSON
    made_with: dict[str, Any] = field(default_factory=dict)  # versions, command, commit, seed: any JSON

    @property
    def seconds(self) -> float:
        return self.samples / self.rate

    @property
    def licence(self) -> Licence:
        return roll_up(self.heard)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides the samples: two instruments that have it in common sound the same."""
        parts = [self.kind, self.labels, self.rate, self.samples, self.latent]
        return _digest([*parts, {name: graph.sha256 for name, graph in self.graphs.items()}])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_instrument(
    folder: str | Path, instrument: Instrument, files: Mapping[str, Path | bytes], card: str
) -> Instrument:
    """Write an instrument to `folder`, whole or not at all; return it as written, with `graphs` filled in.

    `files` gives each graph of the kind ("generator" and "vocoder" of a "gan") as an ONNX file or its bytes; they
    become `<graph>.onnx`. `card` is the text of CARD.md. An instrument already in `folder` is replaced; to add scores,
    write it again with `dataclasses.replace(instrument, measured=...)` and its own files.

    Raises UserError if the graphs are not those of the kind, or `folder` holds something other than an instrument.
    """
    folder = Path(folder).resolve()  # "." has no name
    if set(files) != set(GRAPHS.get(instrument.kind, ())):
        wanted = ", ".join(GRAPHS.get(instrument.kind, ())) or f"none, for the unknown kind {instrument.kind!r}"
        raise UserError(f"graphs {', '.join(files) or '(none)'} for instrument {instrument.name}: expected {wanted}")
    check_place(folder, instrument.kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        beside.mkdir()
        graphs = {}
        for name in GRAPHS[instrument.kind]:
            content = files[name]
            path = beside / f"{name}.onnx"
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            graphs[name] = Graph(path.name, sha256(path), path.stat().st_size)
        written = Instrument(**{**_shallow(instrument), "graphs": graphs})
        (beside / CARD).write_text(card, encoding="utf-8")
        write_text(beside / MANIFEST, json.dumps(_to_json(written), indent=1, ensure_ascii=False) + "\n")
        read_instrument(beside)  # what the reader would refuse is never put in place
        replace_folder(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return written


def check_place(folder: Path, kind: str) -> None:
    """Raise UserError if `folder` is there and is not an instrument alone: an instrument is never written over other work."""
    if not folder.exists():
        return
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {""}
    ours = {MANIFEST, CARD, *(f"{name}.onnx" for name in GRAPHS[kind])}
    if names and (MANIFEST not in names or names - ours):
        raise UserError(f"{folder} holds other things than an instrument: name a new folder for it")


def _shallow(instrument: Instrument) -> dict[str, Any]:
    return {each.name: getattr(instrument, each.name) for each in fields(instrument)}


def _to_json(instrument: Instrument) -> dict[str, Any]:
    content = {"format": FORMAT, **asdict(instrument), "licence": asdict(instrument.licence)}
    content = json.loads(json.dumps(content, allow_nan=False))  # tuples become lists, as they will be when read back
    return {**content, "checksum": _digest(content)}


KEYS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "name": str,
    "version": str,
    "kind": str,
    "labels": list,
    "rate": int,
    "samples": int,
    "latent": list,
    "mel": dict,
    "graphs": dict,
    "heard": list,
    "licence": dict,
    "measured": dict,
    "made_with": dict,
    "checksum": str,
}
ROWS: dict[str, dict[str, type]] = {
    "graphs": {"file": str, "sha256": str, "bytes": int},
    "heard": {"label": str, "tier": str, "licence": str, "clips": int, "source": str},
}


def shipped() -> list[Path]:
    """Return the folders of the instruments that ship with the package, the default one first."""
    found = (path.parent for path in SHIPPED.glob(f"*/{MANIFEST}"))
    return sorted(found, key=lambda folder: (folder.name != DEFAULT, folder.name))


def find_instrument(source: str | Path | None = None) -> Path:
    """Return the folder of an instrument: one shipped by that name, else a folder.

    None is what FOLEYBOX_INSTRUMENT names, else the first that ships. Raises UserError if there is no such instrument.
    """
    ours = shipped()
    source = source or os.environ.get("FOLEYBOX_INSTRUMENT") or None
    if source is None:
        if not ours:
            raise UserError("no instrument ships with this copy of foleybox: name a folder with --instrument")
        return ours[0]
    named = next((folder for folder in ours if folder.name == str(source)), None)
    if named is not None and not Path(source).is_dir():
        return named
    if not Path(source).is_dir():
        names = ", ".join(folder.name for folder in ours) or "none"
        raise UserError(f"no instrument {source}: expected a folder with {MANIFEST}, or one that ships ({names})")
    return Path(source)


def read_instrument(folder: str | Path) -> Instrument:
    """Read and check an instrument: its manifest key by key, its checksum, the size and SHA-256 of every graph.

    Raises UserError with one line for the first thing that is wrong.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    again = "get a whole copy of the instrument, or export it again"
    if not folder.is_dir():
        raise UserError(f"no instrument at {folder}: expected a folder with {MANIFEST}")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not an instrument: it has no {MANIFEST}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{manifest} is cut short or not JSON ({error}): {again}") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"{manifest} is not an instrument's manifest: it states no format number")
    if content["format"] != FORMAT:
        raise UserError(
            f"{manifest} is of format {content['format']}, this foleybox reads format {FORMAT}: "
            + ("update foleybox" if content["format"] > FORMAT else again)
        )
    _check_keys(content, KEYS, f"{manifest}", again)
    for name, expected in ROWS.items():
        rows = content[name].items() if isinstance(content[name], dict) else enumerate(content[name])
        for place, row in rows:
            _check_keys(row, expected, f"{manifest}, {name} {place}", again)
    _check_values(content, manifest, again)
    stated = content.pop("checksum")
    if stated != _digest(content):
        raise UserError(f"{manifest} was changed after it was written (its checksum does not fit): {again}")
    for name, graph in content["graphs"].items():
        _check_graph(folder / graph["file"], name, graph, again)
    instrument = Instrument(
        **{key: content[key] for key in ("name", "version", "kind", "rate", "samples", "mel", "measured", "made_with")},
        labels=tuple(content["labels"]),
        latent=tuple(content["latent"]),
        graphs={name: Graph(**row) for name, row in content["graphs"].items()},
        heard=tuple(TrainingClips(**row) for row in content["heard"]),
    )
    if content["licence"]["terms"] != instrument.licence.terms:
        raise UserError(
            f"{manifest} states the terms {content['licence']['terms']!r}, but {instrument.licence.terms!r} follows "
            f"from what it heard: {again}"
        )
    return instrument


def _check_keys(row: object, expected: Mapping[str, type | tuple[type, ...]], where: str, again: str) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}: expected an object with {', '.join(expected)}; {again}")
    for problem, keys in (("lacks", expected.keys() - row.keys()), ("has the unknown", row.keys() - expected.keys())):
        if keys:
            raise UserError(f"{where} {problem} {', '.join(sorted(keys))}: expected {', '.join(expected)}; {again}")
    for key, kind in expected.items():
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            found, wanted = type(row[key]).__name__, kind.__name__ if isinstance(kind, type) else "number"
            raise UserError(f"{where}: {key} is {found}, expected {wanted}; {again}")


def _check_values(content: dict[str, Any], manifest: Path, again: str) -> None:
    """Check what types alone do not say."""
    kind, labels = content["kind"], content["labels"]
    numbers = (int, float)
    rules = {
        f"kind {kind!r}, expected one of {', '.join(GRAPHS)} (or a newer foleybox)": kind in GRAPHS,
        f"graphs {', '.join(content['graphs'])}, expected {', '.join(GRAPHS.get(kind, ()))}": set(content["graphs"])
        == set(GRAPHS.get(kind, ())),
        "labels, expected different names": bool(labels)
        and all(isinstance(label, str) and label for label in labels)
        and len(set(map(str, labels))) == len(labels),
        f"latent {content['latent']}, expected positive whole numbers": bool(content["latent"])
        and all(type(size) is int and size > 0 for size in content["latent"]),
        f"rate {content['rate']} and samples {content['samples']}, expected positive numbers": content["rate"] > 0
        and content["samples"] > 0,
        "mel, expected numbers": all(type(value) in numbers for value in content["mel"].values()),
        "licence, expected terms": isinstance(content["licence"].get("terms"), str),
        "a graph outside its folder": all(
            graph["file"] == os.path.basename(graph["file"]) and graph["file"] not in ("", ".", "..")  # noqa: PTH119
            for graph in content["graphs"].values()
        ),
    }
    for problem, holds in rules.items():
        if not holds:
            raise UserError(f"{manifest} has {problem}; {again}")


def _check_graph(path: Path, name: str, graph: Mapping[str, Any], again: str) -> None:
    if not path.is_file():
        raise UserError(f"the {name} graph {path} is missing: {again}")
    if (size := path.stat().st_size) != graph["bytes"]:
        raise UserError(f"the {name} graph {path} has {size:,} bytes, expected {graph['bytes']:,}: {again}")
    if (found := sha256(path)) != graph["sha256"]:
        raise UserError(
            f"the {name} graph {path} was changed (sha256 {found[:12]}..., expected {graph['sha256'][:12]}...): {again}"
        )
