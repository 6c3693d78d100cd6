"""The graphs of an instrument, loaded into ONNX Runtime; those of an instrument that does not ship run within limits.

A graph without loops (`foleybox.graphs`) ends, but may take hours or all memory. The sessions of a stranger's instrument
take their memory from one allocator, which refuses more than MOST_GB in all. A call that takes longer than MOST_SECONDS is
stopped between two operators, and loading between two passes of onnxruntime's optimiser (constants are computed in one of
them, so that a graph which computes for hours from constants alone is stopped by Ctrl-C only). So no other process is
needed, and sounds are the same bits.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from foleybox.errors import UserError
from foleybox.instrument import SHIPPED, Instrument, check_graph_ports

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MOST_SECONDS = 60.0  # of one call
RAISE = "FOLEYBOX_GRAPH_GB"
_asked = os.environ.get(RAISE, "")
MOST_GB = int(_asked) if _asked.isascii() and _asked.isdecimal() and len(_asked) < 6 else 2
"""memory of all graphs of instruments that do not ship, unless the environment variable RAISE states another number"""


def load_sessions(instrument: Instrument, folder: Path, threads: int) -> dict[str, "InferenceSession"]:
    """Return the graphs of an instrument by name. Raises UserError if they are not what its kind promises."""
    import onnxruntime

    ours = folder.resolve().parent == SHIPPED.resolve()
    if not ours:
        _limit_memory()
    sessions: dict[str, InferenceSession] = {}
    for name, graph in instrument.graphs.items():
        options = onnxruntime.SessionOptions()
        # One thread a call (see `Synth._run`), but for "next", which gives the same on two (see stream.py).
        options.intra_op_num_threads = min(2, threads) if name == "next" else 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3 if ours else 4  # or onnxruntime prints what the error says
        if not ours:
            options.add_session_config_entry("session.use_env_allocators", "1")
        path = folder / graph.file
        late = Timer(MOST_SECONDS, getattr(options, "set_load_cancellation_flag", lambda _: None), [True])
        late.daemon = True
        try:
            late.start()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen exceptions without a common base
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"onnxruntime cannot load {path} ({reason}): export it again") from error
        finally:
            late.cancel()
        check_graph_ports(instrument, name, session.get_inputs(), session.get_outputs(), path)
        if name == "next":
            _check_metadata(session, len(instrument.labels), path)
        sessions[name] = session if ours else Limited(session, path)  # pyright: ignore[reportArgumentType]
    return sessions


@functools.cache
def _limit_memory() -> None:
    import onnxruntime as ort

    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"max_mem": MOST_GB << 30, "arena_extend_strategy": 1}))


def _check_metadata(session: "InferenceSession", labels: int, path: Path) -> None:
    """Raise UserError unless the metadata have a guidance and a temperature for each label."""
    metadata = session.get_modelmeta().custom_metadata_map
    for key in ("guidance", "temperature"):
        try:
            numbers = [float(each) for each in metadata[key].split()]
        except (KeyError, ValueError):
            numbers = []
        if len(numbers) < labels or not all(0 <= number <= 100 for number in numbers):  # NaN is not either
            raise UserError(f"{path} states no {key} of 0 to 100 for each of {labels} labels: export it again")


class Limited:
    """A session whose calls end after MOST_SECONDS, and whose errors are those of the instrument."""

    def __init__(self, session: "InferenceSession", path: Path) -> None:
        self.session, self.path = session, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any]) -> Sequence[Any]:
        """Return the outputs, as `InferenceSession.run` does."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        late = Timer(MOST_SECONDS, lambda: setattr(options, "terminate", True))
        late.daemon = True
        late.start()
        try:
            return self.session.run(names, inputs, options)
        except Exception as error:  # onnxruntime has a dozen exceptions without a common base
            if options.terminate:
                raise UserError(
                    f"{self.path} took longer than {MOST_SECONDS:g} s for one sound: it was stopped"
                ) from None
            reason = " ".join(str(error).split())
            if "memory" in reason.casefold() or "bfc_arena" in reason:
                raise UserError(
                    f"{self.path} needs more than {MOST_GB} GB of memory: set {RAISE} to a higher number if you trust it"
                ) from None
            raise UserError(f"{self.path} cannot be run ({reason[:200]}): export it again") from None
        finally:
            late.cancel()


@contextmanager
def blamed(instrument: Instrument) -> Iterator[None]:
    """Turn errors of arrays that graphs gave in shapes which do not fit one another into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(
            f"the graphs of {instrument.name} do not fit one another ({reason}): export it again"
        ) from error
