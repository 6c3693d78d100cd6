"""The run folder of a training: its files, how they are written, and how trained parts are read from it.

`foleybox train` writes it, the same command resumes from it, `export` and `sample` read it.

    config.json   the part and its settings      clips.jsonl   the training clips, one JSON object per line
    state.pt      the step and the state dicts   log.jsonl     the logged means, one JSON object per line
    samples/      pictures

`state.pt` is the whole state of a training in one file, the best weights so far among it, so that a killed process leaves
one moment of it. It ends in the SHA-256 of its content. One process at a time trains in a run folder.
"""

import atexit
import dataclasses
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Protocol, TypeVar

import torch
import tyro
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from foleybox.errors import UserError
from foleybox.files import LOCK, TEMPORARY, FolderLock, sweep_files, write_bytes, write_text
from foleybox.licences import tier_of

CLIPS = "clips.jsonl"
NUMBERED = "one of those of "
"prefix of a clip's name in a run restored from an instrument: only the collection of such a clip is known"
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
PythonOnly = Annotated[T, tyro.conf.Fixed, tyro.conf.Suppress]
"a setting that can be changed from Python and is no flag of a command"
_ABSENT = object()
CLIP_KEYS = {"clip", "label", "tier", "licence", "source"}
"of a row of clips.jsonl; `content` is the beginning of the SHA-256 of the clip's file, where the run states it"
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
    "snapshots",
}
"settings that may differ when a run is resumed: they affect neither the model nor its batches"


@dataclass(frozen=True)
class RunConfig:
    """How a training runs; shared by all training commands."""

    seed: int = 0
    "determines the initial weights, the batches and the noise"
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] | None = None
    "mixed precision instead of the system's: bf16 is faster on GPUs and on CPUs with avx512_bf16; fp16 needs a GPU"
    threads: int = 0
    "CPU threads; 0: chosen by torch"
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
    """Return a dataclass as JSON values, as in config.json: the fields of its `run` are merged into the top level."""
    values = json.loads(_json(dataclasses.asdict(config)))
    return values | values.pop("run") if isinstance(getattr(config, "run", None), RunConfig) else values


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def open_run(out: Path, part: str, config: Any, clips: list[dict[str, str]], started_from: Path | None = None) -> None:
    """Make the run folder, or check that it holds a run of the same part, configuration and clips.

    `part` names the training loop (sagan, vocoder ...). `clips` are `clips.training_rows` of the training clips, which an
    exported instrument lists. `started_from` is the run whose weights are the initial ones, if any: the number of clips
    those were trained on is stored with the settings as `seen_before`.

    `config.REMOVED`, if there is one, maps settings of former versions to the value that this version implies: a run
    that was started with that value can be resumed.

    The process has the folder for itself until `close_run`, or until it ends.

    Raises UserError for a folder with other contents, a run with other settings, clips whose content changed since, and a
    folder in which another process trains.
    """
    new = _hold(out)
    try:
        _open_run(out, part, config, clips, started_from)
    except BaseException:
        if new:
            close_run(out)
        raise


_HELD: dict[Path, FolderLock] = {}
_HELD_LOCK = threading.Lock()


def _hold(out: Path) -> bool:
    """Have a run folder for this process, and its group under torchrun; return whether it is new."""
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process of the group holds it
        return False
    with _HELD_LOCK:
        if out.resolve() in _HELD:
            return False
        _HELD[out.resolve()] = FolderLock(out)
    return True


def close_run(out: Path) -> None:
    """Let other processes train in a run folder."""
    with _HELD_LOCK:
        if lock := _HELD.pop(out.resolve(), None):
            lock.release()


@atexit.register
def _close_runs() -> None:
    for out in list(_HELD):
        close_run(out)


def _open_run(out: Path, part: str, config: Any, clips: list[dict[str, str]], started_from: Path | None) -> None:
    path = out / "config.json"
    listed = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in clips)
    unnamed = "".join(json.dumps(_without_content(row), ensure_ascii=False) + "\n" for row in clips)
    mine = {"part": part, "clips": hashlib.sha256(unnamed.encode()).hexdigest(), **plain(config)}
    if path.is_file():
        removed = getattr(config, "REMOVED", {})
        stored = {name: value for name, value in read_run_config(out).items() if removed.get(name, _ABSENT) != value}
        if stored.get("clips") != mine["clips"] and _same_clips(out, clips):  # they were recorded by an earlier version
            stored["clips"] = mine["clips"]
        if "seen_before" in stored:  # the run that it started from may have continued since, or been removed
            mine["seen_before"] = stored["seen_before"]
        theirs = _completed(stored, config)
        if theirs.get("part") != part:
            raise UserError(f"{out} is a run of {theirs.get('part')!r}, not of {part!r}: give another folder with -o")
        differing = [
            key
            for key in sorted(mine.keys() | theirs.keys())
            if key not in MAY_CHANGE and mine.get(key) != theirs.get(key)
        ]
        if unknown := [key for key in differing if key not in mine]:
            raise UserError(
                f"{out} was started by another version of foleybox, with {unknown[0]} = {theirs[unknown[0]]!r}: give another "
                "folder with -o; commands with --start-from can begin with its weights"
            )
        if differing:
            key = differing[0]
            raise UserError(
                f"{out} was started with {key} = {theirs.get(key)!r}, now {mine.get(key)!r}"
                + (f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else "")
                + ": give the same settings to resume it, or another folder with -o"
            )
        _check_contents(out, clips)
    elif out.exists() and not all(half_written(each) or each.name == LOCK for each in out.iterdir()):
        raise UserError(f"{out} is not empty and not a run folder: give another folder with -o")
    elif started_from is not None:
        mine["seen_before"] = clips_seen(started_from)
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, out / "samples"):
        if folder.is_dir():
            sweep_files(folder)
    # The settings first: they make it a run folder. Other processes of the same run find both files already written.
    for name, text in ((path.name, json.dumps(mine, indent=1) + "\n"), (CLIPS, listed)):
        if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != text:
            write_text(out / name, text)


def half_written(path: Path) -> bool:
    """Return whether a file is a temporary one of `files.atomic_path`, left by a killed process."""
    return bool(TEMPORARY.fullmatch(path.name))


def _without_content(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key != "content"}


def _terms(row: dict[str, str]) -> tuple[str, ...]:
    """Return what is known of a clip, in today's terms, without its content."""
    return (row["clip"], row["label"], tier_of(row["tier"], row["licence"]), row["licence"], row["source"])


def _same_clips(out: Path, clips: Sequence[dict[str, str]]) -> bool:
    return (out / CLIPS).is_file() and list(map(_terms, read_clips(out))) == list(map(_terms, clips))


def _check_contents(out: Path, clips: Sequence[dict[str, str]]) -> None:
    """Raise UserError if a clip has another content than when the run began; runs of earlier versions state none."""
    if not (out / CLIPS).is_file():
        return
    before = {(row["clip"], row["content"]) for row in read_clips(out) if "content" in row}
    changed = [row["clip"] for row in clips if "content" in row and (row["clip"], row["content"]) not in before]
    if before and changed:
        more = f" (and {len(changed) - 1:,} more)" if changed[1:] else ""
        raise UserError(
            f"{out} was started with another content of {changed[0].rsplit(' ', 1)[0]}{more}, of the same size: restore the "
            "recordings, or give another folder with -o"
        )


def _completed(stored: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return stored settings, with settings that were added to `foleybox` since the run began at their defaults.

    The default of a new setting must therefore be the behaviour before it was added.
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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): restore it, or train into another folder") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("part"), str):
        raise UserError(f"{path} does not hold the settings of a run: restore it, or name another folder")
    return Settings(settings)


class Settings(dict[str, Any]):
    """The settings of a run. A setting that is not there is the user's mistake: the file was edited."""

    def __missing__(self, name: str) -> Any:
        raise UserError(f"config.json of the run lacks {name}: restore it, or name another folder")


def read_choice(settings: Mapping[str, Any], name: str, choices: Iterable[str], run: Path) -> str:
    """Return the setting `name` of a run. Raises UserError unless it is one of the choices."""
    value = settings[name]
    if not isinstance(value, str) or value not in (choices := tuple(choices)):
        raise UserError(f"{run} states {name} = {value!r:.60}: expected {', '.join(choices)}; restore its config.json")
    return value


def read_clips(run: Path) -> list[dict[str, str]]:
    """Return a run's training clips, one row per clip. Raises UserError if the list cannot be read."""
    path = run / CLIPS
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): a run without its list of training clips cannot be exported"
        ) from None
    for number, row in enumerate(rows, 1):
        values = row.values() if isinstance(row, dict) and row.keys() >= CLIP_KEYS else [None]
        if not all(isinstance(value, str) for value in values):
            expected = ", ".join(sorted(CLIP_KEYS))
            raise UserError(f"{path}, line {number}: expected an object with the texts {expected}; restore the file")
    return rows


def clips_seen(run: Path) -> int:
    """Return how many clips a run's weights were trained on, including the runs it started from.

    A clip counts as often as it was in a batch; a distillation reads none. Raises UserError for a bad run.
    """
    settings = read_run_config(run)
    return settings.get("seen_before", 0) + read_state(run / "state.pt", ours=True)["step"] * settings.get("batch", 0)


def merge_rows(mine: list[dict[str, str]], *others: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of a run's own training clips, then those rows of `others` that are not among them."""
    merged = list(mine)
    for rows in others:
        known = set(map(_terms, merged))
        merged += [row for row in rows if _terms(row) not in known]
    return merged


SEAL = b"foleybox sha256 "
"precedes the SHA-256 of a checkpoint, 64 hexadecimal digits, in the comment at the end of its ZIP"


def save_state(path: Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write a checkpoint atomically, with its SHA-256: a process killed at any moment leaves the previous one readable."""
    content = io.BytesIO()  # written as bytes, because torch.save hides the system's error for a full disk
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, content)
    content.seek(-2, io.SEEK_END)  # the length of the ZIP's comment, which torch leaves empty
    content.write((len(SEAL) + 64).to_bytes(2, "little") + SEAL)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    content.write(digest.encode())
    write_bytes(path, content.getbuffer())


def read_state(path: Path, advice: str = "remove it to start again", ours: bool = False) -> dict[str, Any]:
    """Read a checkpoint's dictionary; no code in it is run. It is verified by its SHA-256.

    Those of earlier versions have none: they are accepted if their weights are finite, with a note on stderr.
    `ours`: it must be one of `save_state`, with a step. Raises UserError if the file is damaged.
    """
    sealed = False
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - 64 - len(SEAL)))
            seal, digest = file.read(len(SEAL)), file.read()
            sealed = seal == SEAL
            if sealed and _sha256_of(file, size - 64) != digest.decode(errors="replace"):
                raise UserError(f"{path} was changed after it was written (its SHA-256 does not fit): {advice}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}): {advice}") from error
    if not ours:
        return state
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or step < 0:
        raise UserError(f"{path} holds no step: it is no checkpoint of a training; {advice}")
    if not sealed:
        if bad := next(_not_finite(state), None):
            raise UserError(f"{path} holds weights that are NaN or infinite ({bad}): {advice}")
        note = f"foleybox: note: {path} is of an earlier version and has no checksum, which shows damage"
        print(note, file=sys.stderr)
    return state


def _sha256_of(file: BinaryIO, size: int) -> str:
    """Return the SHA-256 of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (part := file.read(min(size, 2**20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest()


def _not_finite(state: Any, name: str = "") -> Iterator[str]:
    """Yield the names of the tensors in a state dict that have NaN or infinite values; scalars may be infinite."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and state.ndim and not bool(state.isfinite().all()):
            yield name
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _not_finite(value, f"{name}.{key}" if name else str(key))


def resume(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Load a checkpoint into `parts`, strictly, and return the step to continue from; 0 if there is no checkpoint."""
    if not path.is_file():
        return 0
    state = read_state(path, ours=True)
    for name, part in parts.items():
        fill_part(part, name, state, path)
    return state["step"]


def read_best(run: Path, part: str) -> tuple[dict[str, torch.Tensor], int]:
    """Return (the best weights, their step) of a run of an earlier version, which has them in a file of their own."""
    path = run / "best.pt"
    if not path.is_file():
        return {}, 0
    state = read_state(path, ours=True)
    return state.get(part, {}), state["step"]


def load_part(make: Callable[[], M], name: str, state: Mapping[str, Any], path: Path) -> M:
    """Return the module that `make` makes, with the weights `name` of a checkpoint.

    Their numbers and sizes are compared first, so that neither hours nor memory are taken for a model that the checkpoint
    cannot hold. Raises UserError for another size, a missing or an unexpected weight, and for settings of which no module can
    be made.
    """
    try:
        tensors = [value for value in state.get(name, {}).values() if isinstance(value, torch.Tensor)]
        with torch.device("meta"), _at_most_modules(20 * len(tensors) + 1_000, path):
            wanted = sum(value.numel() for value in make().state_dict().values())
        held = sum(value.numel() for value in tensors)
        if wanted > 2 * held + 1_000_000:
            raise UserError(
                f"{path} holds {held:,} weights of {name}, its config.json asks for {wanted:,}: restore both"
            )
        module = make()
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"no model can be made of the config.json next to {path} ({reason}): restore it") from error
    fill_part(module, name, state, path)
    return module


@contextmanager
def _at_most_modules(most: int, path: Path) -> Iterator[None]:
    """Raise UserError as soon as more than `most` modules are made."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise UserError(f"the config.json next to {path} asks for more layers than it holds: restore both")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def fill_part(part: Stateful, name: str, state: Mapping[str, Any], path: Path) -> None:
    """Load one part of a checkpoint, strictly: a missing or an unexpected weight raises UserError."""
    if name not in state:
        raise UserError(f"{path} holds no {name!r}: it is no complete checkpoint of this system; name another folder")
    try:
        part.load_state_dict(state[name])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit the model ({name}: {reason}): was the width changed?") from error


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state dict (names, dtypes, shapes, values) as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_trained(run: Path, part: str, name: str = "state.pt") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the settings of a run, its checkpoint `name`). Raises UserError for a run of another part or none."""
    settings = read_run_config(run)
    if settings.get("part") != part:
        raise UserError(f"{run} is a run of {settings.get('part')!r}: expected one of `foleybox train {part}`")
    path = run / name
    if not path.is_file():
        raise UserError(f"{run} holds no {name} yet: let the training reach its first checkpoint")
    return settings, read_state(path, ours=True)
