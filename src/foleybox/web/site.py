"""The page as files: what `foleybox page` writes and `foleybox serve` sends.

The page (`page/`) is HTML, CSS and ES modules, used as they are. `config.json` tells it which instruments there are and
whether a server renders for it. Without a server, a Worker of the page renders with onnxruntime-web, whose files are in
`page/vendor/`, compressed (tools/vendor.py).
"""

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from foleybox.errors import UserError
from foleybox.files import make_folders, write_bytes, write_text
from foleybox.instrument import CARD, shipped
from foleybox.labels import find_label
from foleybox.studio.pack import licence_text
from foleybox.studio.synth import Synth
from foleybox.version import __version__

PAGE = Path(__file__).parent / "page"
CONFIG = "config.json"
# Wasm is compiled while it arrives only if the server names its type; the meta tag of index.html has the same policy.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self' blob:; img-src 'self' "
    "blob: data:; media-src 'self' blob:; worker-src 'self'; base-uri 'none'; form-action 'none'"
)


def page_files() -> dict[str, Path]:
    """Return the files of the page by name; those whose path ends in .gz are compressed, and named without it."""
    found = (path for path in sorted(PAGE.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(PAGE).as_posix().removesuffix(".gz"): path for path in found}


def instrument_files(synth: Synth) -> dict[str, Path]:
    """Return the graphs and the card of an instrument by name."""
    names = [*(graph.file for graph in synth.instrument.graphs.values()), CARD]
    return {f"instruments/{synth.instrument.name}/{name}": synth.folder / name for name in names}


def write_site(folder: Path, synths: Iterable[Synth]) -> int:
    """Write the page and its instruments to a folder; return the number of bytes. `config.json` is written last."""
    synths = list(synths)
    page = {
        name: path for name, path in page_files().items() if not name.startswith("api.")
    }  # which describe the server
    files = {**page, **{name: path for synth in synths for name, path in instrument_files(synth).items()}}
    make_folders({(folder / name).parent: None for name in files}, "-o")
    size = 0
    for name, path in files.items():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        write_bytes(folder / name, content)
        size += len(content)
    write_text(folder / CONFIG, config(synths, server=False))
    return size


def config(synths: Iterable[Synth], server: bool, **more: Any) -> str:
    """Return the content of config.json."""
    content = {"foleybox": __version__, "server": server, "kernel": oversampling_kernel(), **more}
    content["instruments"] = [describe(synth) for synth in synths]
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def describe(synth: Synth) -> dict[str, Any]:
    """Return what the page must know of an instrument, the inputs of its graphs among it."""
    about = synth.instrument
    labels = [{"name": name, "slug": label_slug(name), "steady": is_steady_label(name)} for name in about.labels]
    graphs = {
        name: {"file": each.file, "bytes": each.bytes, "sha256": each.sha256} for name, each in about.graphs.items()
    }
    content = {
        "name": about.name, "version": about.version, "fingerprint": about.fingerprint, "kind": about.kind,
        "rate": about.rate, "samples": about.samples, "latent": about.latent, "labels": labels,
        "licence": {"terms": about.licence.terms, "reasons": about.licence.reasons, "text": licence_text(about)},
        "graphs": graphs,
        "inputs": {
            name: [{"name": each.name, "shape": [size if isinstance(size, int) else 0 for size in each.shape]}
                   for each in session.get_inputs()]
            for name, session in synth.sessions.items()
        },
    }  # fmt: skip
    if "next" in synth.sessions:
        metadata = synth.sessions["next"].get_modelmeta().custom_metadata_map
        content |= {key: [float(value) for value in metadata[key].split()] for key in ("guidance", "temperature")}
    return content


def label_slug(name: str) -> str:
    """Return a label as it is written in an address."""
    known = find_label(name)
    return known.slug if known else name


def is_steady_label(name: str) -> bool:
    """Return whether the sounds of a label are steady."""
    known = find_label(name)
    return bool(known and known.steady)


def oversampling_kernel() -> list[float]:
    """Return the right half of the filter with which `audio.true_peak_db` oversamples four times, its middle first.

    The page needs the same filter, or its true peaks and so its gains would be others.
    """
    impulse = np.zeros(513, np.float32)
    impulse[256] = 1
    response = soxr.resample(impulse, 1.0, 4.0, quality="VHQ")[4 * 256 :]
    return [round(float(value), 9) for value in response[:560]]


def load_instruments(sources: Iterable[str]) -> list[Synth]:
    """Return the instruments of a page by name or folder, or all that ship if there are none.

    Raises UserError for one that cannot be used, and for names that addresses cannot tell apart.
    """
    synths = [Synth.load(source) for source in list(sources) or shipped()]
    names = [synth.instrument.name for synth in synths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two instruments named {twice}: expected each name once")
    if odd := next((name for name in names if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII)), None):
        raise UserError(f"an instrument named {odd!r}: expected letters, digits, hyphens and dots, for an address")
    return synths
