"""What reads files and arguments of strangers: a target takes bytes, and may raise UserError alone.

`Workspace` has what the targets need around the bytes: a folder, a small instrument, sounds, runs of training. Targets whose
names begin with `run_`, `codes`, `cache`, `clips`, `data` need the lab.
"""

import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from helpers import clicks, tone, toy_instrument

from foleybox import Shape
from foleybox.audio import read_wave, write_wave
from foleybox.cli import main
from foleybox.commands.info import describe_instrument, describe_sound
from foleybox.commands.verify import verify_files
from foleybox.errors import UserError
from foleybox.graphs import graph_problems
from foleybox.instrument import _digest, read_instrument
from foleybox.signature import signer
from foleybox.studio.events import Event, read_events, recorded_events
from foleybox.studio.extend import extend
from foleybox.studio.jobs import read_jobs
from foleybox.studio.latents import morph, vary, walk
from foleybox.studio.loop import loop_source, looped
from foleybox.studio.pack import licence_text
from foleybox.studio.recipe import CHUNK, from_json
from foleybox.studio.remake import rerender
from foleybox.studio.scene import perform
from foleybox.studio.shots import one_shot
from foleybox.studio.synth import Synth

Target = Callable[[bytes, "Workspace"], None]
SUFFIXES = {b"WAV": ".wav", b"FLAC": ".flac", b"OGG": ".ogg", b"AIFF": ".aif", b"AU": ".au"}
LISTS = (".json", ".csv", ".txt", ".mid")  # of events


class Workspace:
    """A folder with everything that the targets use; made once, what a target writes is overwritten by the next."""

    def __init__(self, folder: Path, lab: bool = True) -> None:
        self.folder = folder
        self.toy = toy_instrument(folder / "toy", "gan", rate=8_000)
        self.synth = Synth.load(self.toy, threads=1)
        self.hostile = Path(shutil.copytree(self.toy, folder / "hostile"))
        self.manifest = (self.toy / "instrument.json").read_bytes()
        self.recipes = list(self._recipes())
        self.runs: dict[bytes, Path] = {}
        if lab:
            self._runs()

    def _recipes(self) -> Iterator[bytes]:
        synth = self.synth
        rain, dog = synth.render("rain", 3), synth.render("dog", 1)
        clips = [
            rain,
            next(vary(synth, rain.recipe.make, 0.2, batch=1)),
            [clip for _, clip in zip(range(3), walk(synth, rain.recipe.make, 0.2, batch=1))][2],
            list(morph(synth, rain.recipe.make, dog.recipe.make, 3, batch=1))[1],
            extend(synth, dog, 8_000),
            one_shot(dog)[0],
            rain.shaped(Shape(trim=40, seconds=0.1, fade=0.02, rate=16_000, lufs=-23, peak=-1)),
            looped(loop_source(synth, rain, 0.5), 0.5, rate=16_000)[0],
            perform(synth, [0.1, 0.3, Event(0.5, "rain")], "dog", surfaces={"rain": 0.5}, seconds=1).mix(),
        ]
        yield from (clip.recipe.to_json().encode() for clip in clips)
        made = synth.instrument
        first = {
            "foleybox_recipe": 1, "foleybox": "0.1.0", "instrument": made.name, "fingerprint": made.fingerprint,
            "licence": made.licence.terms, "rate": 8_000, "label": "Rain", "seed": 3, "temperature": 1.0,
        }  # fmt: skip
        yield json.dumps(first).encode()

    def _runs(self) -> None:
        import toy_runs

        for model, write in {
            "gan": toy_runs.gan_run, "vq": toy_runs.vqvae_run, "auto": toy_runs.autoencoder_run, "vocos": toy_runs.vocoder_run,
            "hifigan": toy_runs.hifigan_run, "mhifigan": toy_runs.mhifigan_run, "mvq": toy_runs.mvqvae_run,
        }.items():  # fmt: skip
            self.runs[model.encode()] = self.folder / model
            write(self.folder / model)
        self.runs[b"snail"] = self.folder / "snail"
        toy_runs.snail_run(self.folder / "snail", "0" * 64)

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def sealed_recipe(self, data: bytes) -> bytes:
        """Return a recipe with the fingerprint of this instrument, sealed anew if it was sealed."""
        ours = self.synth.instrument.fingerprint.encode()
        data = data.replace(b"61ca9a7b6b5998a40e9e5a301895e1757cdc3be6cf055f676f1302045b4fb6bd", ours)
        body, seal, _ = data.rpartition(b', "checksum": "')
        return body + seal + hashlib.sha256(body).hexdigest().encode() + b'"}' if seal else data

    def sealed_manifest(self, data: bytes) -> bytes:
        """Return a manifest of the graphs of this instrument, with the checksum that fits."""
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):
            content, ours = json.loads(data), json.loads(self.manifest)
            for name, graph in ours["graphs"].items():
                content["graphs"][name] |= {"sha256": graph["sha256"], "bytes": graph["bytes"]}
            content.pop("checksum", None)
            data = json.dumps(content | {"checksum": _digest(content)}).encode()
        return data


# --- the studio ---------------------------------------------------------------------------------------------------


def recipe(data: bytes, work: Workspace) -> None:
    """A recipe as text."""
    found = from_json(work.sealed_recipe(data).decode(errors="replace"))
    assert isinstance(found.label, str)
    assert isinstance(found.seed, int)
    assert from_json(found.to_json()) == found
    found.comment().encode()


def recipe_play(data: bytes, work: Workspace) -> None:
    """A recipe, rendered again."""
    wave, rate = rerender(from_json(work.sealed_recipe(data).decode(errors="replace")), work.synth)
    assert wave.dtype == np.float32
    assert 1_000 <= rate <= 768_000


def recipe_cli(data: bytes, work: Workspace) -> None:
    """A recipe in a WAV and as .json; the first line has the command's arguments."""
    line, _, text = data.partition(b"\n")
    arguments = [
        str(work.folder / "out" / "l.wav") if "/" in each else each for each in line.decode(errors="replace").split()
    ]
    text = work.sealed_recipe(text)
    write_wave(work.folder / "x.wav", tone(300, 8_000, 0.5), 8_000, chunks={CHUNK: text})
    for path in (work.folder / "x.wav", work.write("x.json", text)):
        run([*arguments, str(path)], work)
    list(verify_files([work.folder / "x.wav"], work.toy))


class EnoughError(UserError):
    """A command was about to write its first sound."""


def run(arguments: list[str], work: Workspace) -> None:
    """Run a command until it writes its first sound; fail for any exit code but those of an answer or a mistake."""

    def enough(*_: Any, **__: Any) -> None:
        raise EnoughError("about to write")

    from foleybox.studio import synth

    written, synth.write_clip = synth.write_clip, enough  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(arguments)
    finally:
        synth.write_clip = written
    assert code in (0, 1, 2), f"exit code {code}: {err.getvalue()}"


def cli(data: bytes, work: Workspace) -> None:
    """The arguments of a command as JSON."""
    try:
        arguments = json.loads(data)
    except (ValueError, RecursionError):
        arguments = data.decode(errors="replace").split()
    arguments = [str(each).replace("\0", "") for each in arguments] if isinstance(arguments, list) else []
    if arguments and arguments[0] in (
        "generate",
        "vary",
        "morph",
        "walk",
        "jobs",
        "perform",
        "loop",
        "pack",
        "info",
        "verify",
    ):
        instrument = [] if arguments[0] in ("info",) else ["--instrument", str(work.toy)]
        place = ["-o", str(work.folder / "cli")] if arguments[0] not in ("info", "verify", "loop") else []
        run([*arguments, *instrument, *place], work)


def manifest(data: bytes, work: Workspace) -> None:
    """The manifest of an instrument."""
    (work.hostile / "instrument.json").write_bytes(work.sealed_manifest(data))
    instrument = read_instrument(work.hostile)
    json.dumps(describe_instrument(instrument, work.hostile)).encode()
    licence_text(instrument).encode()
    Synth(instrument, work.hostile, 1).render(instrument.labels[0], 1)


def graph(data: bytes, work: Workspace) -> None:
    """An ONNX file."""
    if next(graph_problems(data), None) is None:
        json.dumps("accepted")


def sound(data: bytes, work: Workspace) -> None:
    """A sound file; before it may stand how it was made."""
    match = re.match(rb"(\[[^\n]{0,80}\]\n|(WAV|FLAC|OGG|AIFF|AU)[\x00-\x1f])", data)
    name = (
        match[2]
        if match and match[2]
        else b"FLAC"
        if data[:4] == b"fLaC"
        else b"OGG"
        if data[:4] == b"OggS"
        else b"WAV"
    )
    path = work.write(f"x{SUFFIXES[name]}", data[match.end() if match else 0 :])
    json.dumps(describe_sound(path)).encode()
    read_wave(path, 22_050)
    with contextlib.suppress(UserError):  # a steady sound has no onsets
        recorded_events(path)


def events(data: bytes, work: Workspace) -> None:
    """A list of events; its first byte is the index of its format."""
    read_events(work.write("x" + LISTS[(data[0] if data else 0) % len(LISTS)], data[1:]))


def jobs(data: bytes, work: Workspace) -> None:
    """A table of jobs."""
    read_jobs(work.write("x.csv", data), work.synth)


def signature(data: bytes, work: Workspace) -> None:
    """A signature."""
    signer(work.write("x.sig", data), "recipe", b"content")


# --- the lab ------------------------------------------------------------------------------------------------------


def data_manifest(data: bytes, work: Workspace) -> None:
    """The manifest of a folder of recordings."""
    from foleybox.lab.core.clips import find_clips, load_waves, split_by_recording, training_rows

    folder = work.folder / "data"
    if not folder.is_dir():
        for name in ("0", "1", "2"):
            (folder / "Rain").mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "Rain" / f"{name}.wav", tone(300, 8_000, 0.1), 8_000)
    work.write("data/manifest.csv", data)
    clips = find_clips(folder)
    split_by_recording(clips, 0.5)
    load_waves(clips[:3], 8_000, 800)
    with contextlib.suppress(OSError):  # a file that is listed and missing
        training_rows(clips)


def clips_jsonl(data: bytes, work: Workspace) -> None:
    """The list of the training clips of a run."""
    from foleybox.lab.core.runs import merge_rows, read_clips

    folder = work.folder / "listed"
    folder.mkdir(exist_ok=True)
    work.write("listed/clips.jsonl", data)
    rows = read_clips(folder)
    merge_rows(rows, rows)
    assert all(isinstance(row[key], str) for row in rows for key in ("clip", "label", "tier", "licence", "source"))


def codes(data: bytes, work: Workspace) -> None:
    """A codes file."""
    from foleybox.lab.baseline.codes import read_codes, split_codes

    found = read_codes(work.write("x.npz", data))
    split_codes(found, 0.5)
    assert 0 <= int(found.codes.min()) <= int(found.codes.max()) < found.size


def cache(data: bytes, work: Workspace) -> None:
    """A file of the cache."""
    from foleybox.lab.core.cache import read_array

    with contextlib.suppress(ValueError):
        read_array(work.write("x.npy", data))


def _load(model: bytes, run: Path) -> None:
    from foleybox.lab.baseline.runs import load_pixelsnail, load_vqvae
    from foleybox.lab.cmu.runs import load_mhifigan, load_mvqvae
    from foleybox.lab.kt.runs import load_gan
    from foleybox.lab.patches.runs import load_autoencoder
    from foleybox.lab.vocoders.runs import load_vocoder

    loaders = {
        b"gan": load_gan, b"vq": load_vqvae, b"auto": load_autoencoder, b"snail": load_pixelsnail, b"vocos": load_vocoder,
        b"hifigan": load_vocoder, b"mhifigan": load_mhifigan, b"mvq": load_mvqvae,
    }  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()):
        loaders[model](run)


def run_config(data: bytes, work: Workspace) -> None:
    """The name of a model, and the settings of its run."""
    _run(data, work, "config.json")


def run_state(data: bytes, work: Workspace) -> None:
    """The name of a model, and a checkpoint of its run."""
    _run(data, work, "state.pt")


def _run(data: bytes, work: Workspace, name: str) -> None:
    model, _, content = data.partition(b"\n")
    if model in work.runs:
        folder = work.folder / "run"
        folder.mkdir(exist_ok=True)
        for file in ("config.json", "state.pt"):
            shutil.copyfile(work.runs[model] / file, folder / file)
        (folder / name).write_bytes(content)
        _load(model, folder)


STUDIO: dict[str, Target] = {
    "recipe": recipe, "recipe_play": recipe_play, "recipe_cli": recipe_cli, "cli": cli, "manifest": manifest, "graph": graph,
    "sound": sound, "events": events, "jobs": jobs, "signature": signature,
}  # fmt: skip
LAB: dict[str, Target] = {
    "data_manifest": data_manifest, "clips_jsonl": clips_jsonl, "codes": codes, "cache": cache, "run_config": run_config,
    "run_state": run_state,
}  # fmt: skip
TARGETS = STUDIO | LAB
CORPUS = Path(__file__).parent / "corpus"


def target_of(name: str) -> str:
    """Return the target of a file of the corpus, by its name."""
    if name.startswith("header_") or name.endswith((".flac", ".wav")):
        return "sound"
    return max((each for each in TARGETS if name.startswith(f"{each}_")), key=len)


# --- seeds --------------------------------------------------------------------------------------------------------


def seeds(work: Workspace) -> dict[str, list[bytes]]:
    """Return valid inputs by target, which are mutated, and those of the corpus."""
    found: dict[str, list[bytes]] = {
        "recipe": work.recipes,
        "recipe_play": work.recipes,
        "recipe_cli": [line + each for line in (b"info --recipe\n", b"info --json\n") for each in work.recipes],
        "cli": [json.dumps(each.split()).encode() for each in COMMANDS],
        "manifest": [work.manifest, _as_format_1(work.manifest)],
        "graph": [(work.toy / "vocoder.onnx").read_bytes(), (work.toy / "generator.onnx").read_bytes()],
        "sound": list(_sounds(work)),
        "events": list(EVENTS),
        "jobs": [b"label,count,seed\nrain,3,1\ndog,2,5\n", b"label;count;fade;temperature\r\nrain;10;;0,8\r\nengine;;;0,8\r\n"],
        "signature": [json.dumps({"foleybox_signature": 1, "of": "recipe", "key": "0" * 64, "signature": "0" * 128}).encode()],
    }  # fmt: skip
    if work.runs:
        found |= _lab_seeds(work)
    for path in sorted(CORPUS.iterdir()):
        name = target_of(path.name)
        if name in found:
            found[name] = [*found[name], path.read_bytes()]
    return found


COMMANDS = (
    "generate rain --count 3 --seed 1 --temperature 0.8", "generate dog --seconds 2 --lufs -20 --rate 44100 --format flac",
    "vary rain:3 --amount 0.3 --count 2", "morph rain:1 dog:2 -n 5", "walk rain:7 --amount 0.1 --steps 4",
    "perform --bpm 120 --pattern x..x --label footstep --repeat 2", "loop rain --seconds 0.5", "pack footstep --count 2",
    "generate all --trim 40 --fade 0.1 --peak -3 --subtype PCM_24", "info", "verify nowhere",
)  # fmt: skip
EVENTS = (
    b'\0{"events": [0.5, {"time": 1.25, "label": "rain", "velocity": 0.8, "seed": 3}]}',
    b"\1time,label,velocity,seed\n0.5,dog,0.7,3\n1:02.5,rain,,\n",
    b"\x020.5\t0.7\tfootstep\n1.0\t1.2\train\n",
    b"\3MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\x13\0\xff\x51\3\7\xa1\x20\0\x90\x24\x40\x60\x80\x24\0\0\xff\x2f\0",
)


def _as_format_1(manifest: bytes) -> bytes:
    content = json.loads(manifest)
    content |= {"format": 1, "heard": content.pop("training_clips")}
    content["licence"] = {"terms": content["licence"]["terms"], "why": ["..."]}
    del content["same_sounds_as"]
    return json.dumps(content).encode()


def _sounds(work: Workspace) -> Iterator[bytes]:
    clip = work.synth.render("rain", 3)
    for name in ("s.wav", "s.flac", "s.ogg"):
        clip.save(work.folder / name)
        yield (work.folder / name).read_bytes()
    wave = clicks([0.05, 0.2], 0.3)
    stereo = np.stack([wave, 0.5 * wave], 1)
    for prefix, kind, subtype, samples in (
        (b"", "WAV", "PCM_24", wave), (b"", "WAV", "FLOAT", stereo), (b"WAV\0", "WAV", "ULAW", wave),
        (b"WAV\1", "WAV", "MS_ADPCM", wave), (b"FLAC\1", "FLAC", "PCM_24", stereo), (b"AIFF\1", "AIFF", "PCM_16", wave),
        (b"AU\1", "AU", "FLOAT", wave), (b"OGG\1", "OGG", "VORBIS", stereo),
    ):  # fmt: skip
        memory = io.BytesIO()
        soundfile.write(memory, samples, 8_000, subtype, format=kind)
        yield prefix + memory.getvalue()


def _lab_seeds(work: Workspace) -> dict[str, list[bytes]]:
    import toy_runs

    from foleybox.lab.baseline.codes import write_codes
    from foleybox.lab.core.cache import write_array

    write_codes(work.folder / "s.npz", toy_runs.toy_codes("0" * 64))
    write_array(work.folder / "s.npy", np.zeros((3, 10), np.float32))
    row = {"clip": "a/b 3", "label": "Rain", "tier": "nc", "licence": "CC0", "source": "x"}
    return {
        "data_manifest": [b"file,label,split,recording_id,licence_tier,licence,source_repo\n"
                          b"Rain/0.wav,Rain,train,r0,open,CC0,x\nRain/1.wav,rain,test,r1,nc,BY-NC,y\nRain/2.wav,dog bark,,,,,\n"],
        "clips_jsonl": [(json.dumps(row) + "\n").encode() * 2],
        "codes": [(work.folder / "s.npz").read_bytes()],
        "cache": [(work.folder / "s.npy").read_bytes()],
        "run_config": [model + b"\n" + (run / "config.json").read_bytes() for model, run in work.runs.items()],
        "run_state": [model + b"\n" + (run / "state.pt").read_bytes() for model, run in work.runs.items()],
    }  # fmt: skip
