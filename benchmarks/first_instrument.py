"""Write results/first_instrument.md: everything that is claimed of the instrument that ships, measured in one go.

python benchmarks/first_instrument.py ../shared

Needs the lab, the real recordings and the tagger's weights (`../shared`: data/foley, weights). Speeds are those of the
machine it runs on: let nothing else run beside it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from foleybox.audio import fit, write_wave
from foleybox.lab.core.clips import find_clips, load_waves
from foleybox.lab.core.mel import DCASE, LogMel
from foleybox.lab.export.card import rewrite_card
from foleybox.labels import LABELS
from foleybox.studio.synth import Synth

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SHARED = Path()  # set by main, for the commands that it runs
SAMPLES = 344 * DCASE.hop


@dataclass(frozen=True)
class FirstInstrument:
    """Measure the shipped instrument and write the page."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    clips: int = 100
    "sounds of each label that are evaluated"
    seed: int = 0
    "seed of the first of them"
    notes: Path | None = None
    "also write the scores, and this Markdown, into the instrument's card"
    skip_install: bool = False
    "leave the installation out (it downloads the core)"


def run(*command: str | Path) -> str:
    """Run a command at the repository's root and return what it printed."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "FOLEYBOX_SHARED": str(SHARED)}
    done = subprocess.run([str(each) for each in command], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout.rstrip()


def install() -> str:
    """Install the core into new environments, as `make demo` does and as plain pip does; return a line of each."""
    lines = []
    for flags, name in ((["--no-compile"], "as `make demo` does"), ([], "with pip's bytecode")):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run(sys.executable, "-m", "venv", folder)
            run(Path(folder) / "bin" / "python", "-m", "pip", "install", "-q", *flags, "-c", "constraints.txt", ".")
            seconds = time.perf_counter() - start
            size = sum(path.lstat().st_size for path in Path(folder).rglob("*") if not path.is_dir())
            packages = run(Path(folder) / "bin" / "python", "-m", "pip", "list", "--format", "freeze")
            assert "torch" not in packages
            assert "scipy" not in packages
        lines.append(f"core installed {name:20} {size / 1e6:8.0f} MB in {seconds:.0f} s (targets: 200 MB, 30 s)")
    return "\n".join(lines)


@torch.no_grad()
def round_trip(synth: Synth, shared: Path, out: Path) -> str:
    """Send the real `dev` clips through mel and vocoder, into class folders at `out`; return a table of mel L1 by label."""
    clips = find_clips(f"{shared}/data/foley:dev")
    front_end = LogMel(DCASE)
    real = load_waves(clips, DCASE.rate, 88_200).float() / 32768
    mel = front_end(real)  # [N, 80, 344]
    waves = [synth.sessions["vocoder"].run(None, {"mel": chunk.numpy()})[0] for chunk in mel.split(8)]
    wave = torch.from_numpy(np.concatenate(waves))[:, :SAMPLES]  # type: ignore[arg-type]
    for clip, sound in zip(clips, wave):
        assert clip.label is not None
        path = out / clip.label.name / f"{clip.path.stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wave(path, fit(sound.numpy(), 88_200), DCASE.rate)
    fake, real = front_end(wave), front_end(real[:, :SAMPLES])
    distance = (fake - real).abs().mean((1, 2))
    roughness = [part.diff(dim=2).abs().mean((1, 2)) for part in (real, fake)]
    lines = ["| label | n | mel L1 | roughness real | roughness vocoded |", "|---|---|---|---|---|"]
    ids = torch.tensor([clip.label.id for clip in clips if clip.label])
    for label in LABELS:
        mine = ids == label.id
        cells = f"{distance[mine].mean():.3f} | {roughness[0][mine].mean():.3f} | {roughness[1][mine].mean():.3f}"
        lines.append(f"| {label.name} | {int(mine.sum())} | {cells} |")
    lines.append(
        f"| all clips | {len(ids)} | {distance.mean():.3f} | {roughness[0].mean():.3f} | {roughness[1].mean():.3f} |"
    )

    picture = RESULTS / "round_trip.png"
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    axes = figure.subplots(2, len(LABELS))
    window = torch.hann_window(1024)
    for label in LABELS:
        index = int(torch.nonzero(ids == label.id)[3])
        for row, (name, sound) in enumerate(
            (("real", real_wave(clips[index])), ("through mel and vocoder", wave[index]))
        ):
            spectrum = torch.stft(sound[:SAMPLES], 1024, 256, window=window, return_complex=True).abs()
            axis = axes[row, label.id]
            axis.imshow(
                20 * torch.log10(spectrum + 1e-4), origin="lower", aspect="auto", cmap="magma", vmin=-60, vmax=40
            )
            axis.set_title(f"{label.name}, {name}", fontsize=6)
            axis.set_axis_off()
    figure.savefig(picture, dpi=110)
    return "\n".join(lines)


def real_wave(clip) -> torch.Tensor:
    return load_waves([clip], DCASE.rate, 88_200)[0].float() / 32768


def main(config: FirstInstrument) -> int:
    if shutil.which("git") and run("git", "status", "--porcelain", "src"):
        print("note: the source tree has uncommitted changes", file=sys.stderr)
    RESULTS.mkdir(exist_ok=True)
    os.environ["FOLEYBOX_INSTRUMENT"] = "sagan-small"  # the first one; of this command and of all that it runs
    synth = Synth.load()
    made = synth.instrument
    global SHARED
    python, shared = sys.executable, config.shared
    SHARED = shared.resolve()
    installed = "(left out)" if config.skip_install else install()
    studio = run(python, "benchmarks/studio.py")
    vocoder = run(python, "benchmarks/vocoder.py", "--graph", synth.folder / "vocoder.onnx", "--sizes", "base")
    with tempfile.TemporaryDirectory() as folder:
        out, vocoded = Path(folder) / made.name, Path(folder) / "dev through the vocoder"
        table = round_trip(synth, shared, vocoded)
        count, seed = str(config.clips), str(config.seed)
        run(python, "-m", "foleybox", "generate", "all", "-n", count, "--seed", seed, "-o", out)
        page, figures = Path(folder) / "page.md", RESULTS / "first_instrument.json"
        dev, train = f"{shared}/data/foley:dev", f"{shared}/data/foley:train"
        systems = (out, vocoded, dev)
        outputs = ("--markdown", page, "--json", figures, "--html", ROOT / "runs" / "first_instrument.html")
        run(python, "-m", "foleybox", "evaluate", *systems, "--reference", dev, "--floor", train, *outputs)
        for path in (page, figures):
            path.write_text(
                path.read_text(encoding="utf-8").replace(f"{folder}/", "").replace(str(shared), "../shared")
            )
        evaluation = page.read_text(encoding="utf-8")
        run(python, "-m", "foleybox", "generate", "all", "-n", "12", "--seed", seed, "-o", out / "sheet", "--sheet",
            RESULTS / "first_instrument.png", "--force")  # fmt: skip
    if config.notes:
        rewrite_card(
            synth.folder, measured(json.loads(figures.read_text()), config), config.notes.read_text(encoding="utf-8")
        )
    commit = run("git", "rev-parse", "--short", "HEAD")
    text = f"""# The first instrument, measured

`{made.name}` {made.version} ({sum(graph.bytes for graph in made.graphs.values()) / 1e6:.1f} MB, {made.licence.terms}),
written by `python benchmarks/first_instrument.py ../shared` at commit {commit}, on {os.cpu_count()} cores of
{processor()}, Python {platform.python_version()}, torch {torch.__version__}. Seeds {config.seed} to
{config.seed + config.clips - 1}, n = {config.clips} a label.

## Installing and rendering

```
{installed}
{studio}
```

## The vocoder beside HiFi-GAN

`vocoder.onnx` is the shipped one; the others have random weights of their published sizes, which does not change the
time. Same mel, same run. Target for the shipped one: 100 x real time.

```
{vocoder.replace(str(synth.folder) + "/", "")}
```

## Real clips through mel and vocoder

Every clip of `dev`, none of which the vocoder heard: mean |difference| of the log-mel (natural logarithm), and the
roughness of both (mean |frame-to-frame difference| of the log-mel).

{table}

![real clips above, the same through mel and vocoder below](round_trip.png)

## Against real recordings

Three systems: the instrument; the real `dev` clips through mel and vocoder (what the vocoder alone costs; the very clips
of the reference, so its distances are flattered); `dev` against itself, for the tagger's accuracy on real clips only.

{evaluation}

## What it looks like

Twelve seeds a label, `foleybox generate all -n 12 --sheet`:

![contact sheet](first_instrument.png)
"""
    seen = RESULTS / "first_instrument_seen.md"
    if seen.is_file():
        text += "\n" + seen.read_text(encoding="utf-8")
    (RESULTS / "first_instrument.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def measured(result: dict[str, Any], config: FirstInstrument) -> dict[str, Any]:
    """Return what the instrument's manifest says of its scores: by label, with n, floor and the command."""
    mine, _, dev = (system["labels"] for system in result["systems"])
    rows, lines = (
        {},
        ["| label | FD (mn04) | real clips' FD | heard as its label | real dev clips |", "|---|---|---|---|---|"],
    )
    for label in LABELS:
        found, real = mine[label.slug]["figures"], dev[label.slug]["figures"]
        distance, accuracy = found["frechet"], found["accuracy"]
        rows[label.name] = {"frechet": distance, "accuracy": accuracy, "accuracy_dev": real["accuracy"]["value"]}
        lines.append(
            f"| {label.name} | {distance['value']:.1f} | {distance['floor']:.1f} | {accuracy['value']:.0%} | "
            f"{real['accuracy']['value']:.0%} |"
        )
    said = (
        f"{config.clips} sounds a label (seeds {config.seed} to {config.seed + config.clips - 1}) against the held-out "
        "split `dev`, embedding mn04; the third column is what real `train` clips score at most at that n; the tagger is "
        "mn04's. Command: `python benchmarks/first_instrument.py ../shared`."
    )
    return {"protocol": said, "labels": rows, "table": "\n".join([*lines, "", said])}


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.is_file() else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(FirstInstrument, config=(tyro.conf.OmitArgPrefixes,))))
