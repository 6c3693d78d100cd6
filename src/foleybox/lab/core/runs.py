"""What a run folder is: settings, checkpoint, log, samples; and how trained parts are read from it.

`foleybox train` writes it, the same command resumes from it, `export` and `synthesis` read it.

    config.json   the part and its settings        clips.jsonl   what was heard, a line a clip
    state.pt      the step and the state dicts     log.jsonl     a line a logged step      samples/   pictures
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import tyro
from torch import nn

from foleybox.errors import UserError
from foleybox.files import write_bytes, write_text

CLIPS = "clips.jsonl"
NUMBERED = "one of those of "
"how the name of a clip begins of which a run knows the collection alone: it was restored from an instrument"
MAY_CHANGE = {
    "steps",
    "save_every",
    "log_every",
    "sample_every",
    "measure_every",
    "score_every",
    "threads",
    "device",
    "precision",
    "compile",
    "out",
    "data",
    "tracker",
}
"settings that a resumed run may be given anew: they do not change what the model or its batches are"


@dataclass(frozen=True)
class RunConfig:
    """How a training runs; what all training commands have in common."""

    seed: int = 0
    "of the first weights, the batches and the noise"
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] | None = None
    "mixed precision, if not the system's: bf16 is twice as fast on GPUs and processors with avx512_bf16; fp16 needs a GPU"
    threads: int = 0
    "CPU threads; 0: torch's choice"
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    save_every: int = 500
    "steps between checkpoints"
    sample_every: int = 1000
    "steps between sample sheets and held-out measurements"
    log_every: tyro.conf.Suppress[int] = 50
    "steps between lines of the log"


class Stateful(Protocol):
    """Anything with a state dict: a module, an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def plain(config: Any) -> dict[str, Any]:
    """Return a dataclass as JSON-ready values; the fields of its RunConfig stand among its own, as in config.json."""
    values = json.loads(_json(dataclasses.asdict(config)))
    return values | values.pop("run") if isinstance(getattr(config, "run", None), RunConfig) else values


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def open_run(out: Path, part: str, config: Any, clips: list[dict[str, str]], started_from: Path | None = None) -> None:
    """Make the run folder, or check that it holds a run of this very part, configuration and clips.

    `part` is the loop that trains it (sagan, vocoder ...). `clips` is `data.heard` of the training clips: what an
    exported instrument will say it was trained on. `started_from` is the run whose weights it begins with, if any: what
    those had seen is kept beside the settings as `seen_before`, so that nobody takes the last sitting for all of it.
    """
    path = out / "config.json"
    listed = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in clips)
    mine = {"part": part, "clips": hashlib.sha256(listed.encode()).hexdigest(), **plain(config)}
    if path.is_file():
        stored = read_run_config(out)
        if "seen_before" in stored:  # the run that it started from may have gone on, or be gone
            mine["seen_before"] = stored["seen_before"]
        theirs = _completed(stored, config)
        if theirs.get("part") != part:
            raise UserError(f"{out} is a run of {theirs.get('part')!r}, not of {part!r}: give another folder with -o")
        differing = [
            key
            for key in sorted(mine.keys() | theirs.keys())
            if key not in MAY_CHANGE and mine.get(key) != theirs.get(key)
        ]
        if differing:
            key = differing[0]
            raise UserError(
                f"{out} was started with {key} = {theirs.get(key)!r}, now {mine.get(key)!r}"
                + (f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else "")
                + ": give the same settings to resume it, or another folder with -o"
            )
    elif out.exists() and not all(half_written(each) for each in out.iterdir()):
        raise UserError(f"{out} is not empty and not a run folder: give another folder with -o")
    elif started_from is not None:
        mine["seen_before"] = clips_seen(started_from)
    out.mkdir(parents=True, exist_ok=True)
    # The settings first: they make it a run folder. The other processes of a run find all as they would write it.
    for name, text in ((path.name, json.dumps(mine, indent=1) + "\n"), (CLIPS, listed)):
        if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != text:
            for each in filter(half_written, out.iterdir()):  # what kill -9 left of an earlier sitting
                each.unlink(missing_ok=True)
            write_text(out / name, text)


def half_written(path: Path) -> bool:
    """Say whether a file is what a write that was killed left."""
    return path.name.startswith(".") and ".partial" in path.name


def _completed(stored: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return stored settings with those that `foleybox` did not have yet when the run began, at their defaults.

    So a new setting's default must be what was done before there was one.
    """
    stored = dict(stored)
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if isinstance(value, RunConfig):
            stored = _completed(stored, value)
        elif each.name in stored:
            if dataclasses.is_dataclass(value) and isinstance(stored[each.name], dict):
                stored[each.name] = _completed(stored[each.name], value)
        elif each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING:
            default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
            stored[each.name] = plain(default) if dataclasses.is_dataclass(default) else json.loads(_json(default))
    return stored


def read_run_config(run: Path) -> dict[str, Any]:
    """Return a run's settings. Raises UserError if `run` is not a run folder."""
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} is not a run folder (no config.json): expected the -o folder of `foleybox train`")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore it, or train into another folder") from error
    if not isinstance(settings, dict) or "part" not in settings:
        raise UserError(f"{path} does not hold the settings of a run: restore it, or name another folder")
    return settings


def read_clips(run: Path) -> list[dict[str, str]]:
    """Return what a run heard, a row a clip. Raises UserError if the list is not there."""
    path = run / CLIPS
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): what a run heard must be known to export it") from None


def clips_seen(run: Path) -> int:
    """Return how many clips a run's weights have seen, those of the runs that it started from included.

    A clip counts as often as it was in a batch. Raises UserError for a bad run.
    """
    settings = read_run_config(run)
    return settings.get("seen_before", 0) + read_state(run / "state.pt")["step"] * settings["batch"]


def merge_rows(mine: list[dict[str, str]], *others: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of a run's own clips (`data.heard`), then those of what others heard and is not among them yet."""
    told = list(mine)
    for rows in others:
        told += [row for row in rows if row not in told]
    return told


def save_state(path: Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write a checkpoint whole or not at all: kill -9 at any moment leaves the last one readable."""
    content = io.BytesIO()  # torch turns a full disk into errors of its own; bytes keep the system's
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, content)
    write_bytes(path, content.getbuffer())


def read_state(path: Path, advice: str = "remove it to start anew") -> dict[str, Any]:
    """Read a checkpoint's dictionary without running code. Raises UserError if the file is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}): {advice}") from error


def resume(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Load a checkpoint into `parts`, strictly, and return the step to go on from; 0 if there is none."""
    if not path.is_file():
        return 0
    state = read_state(path)
    for name, part in parts.items():
        fill_part(part, name, state, path)
    return int(state["step"])


def fill_part(part: Stateful, name: str, state: Mapping[str, Any], path: Path) -> None:
    """Load one part of a checkpoint, strictly: a missing or a surplus weight is an error, never a random layer."""
    if name not in state:
        raise UserError(f"{path} holds no {name!r}: it is not a whole checkpoint of this system; name another folder")
    try:
        part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit the model ({name}: {reason}): was the width changed?") from error


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's names, shapes and values, 64 hexadecimal digits: the same for the same weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_trained(run: Path, part: str, name: str = "state.pt") -> tuple[dict[str, Any], dict[str, Any]]:
    settings = read_run_config(run)
    if settings.get("part") != part:
        raise UserError(f"{run} is a run of {settings.get('part')!r}: expected one of `foleybox train {part}`")
    path = run / name
    if not path.is_file():
        raise UserError(f"{run} holds no {name} yet: let the training reach its first checkpoint")
    return settings, read_state(path)
