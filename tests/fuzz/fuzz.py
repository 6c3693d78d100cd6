"""`make fuzz`: mutated inputs for every parser, for a number of inputs or for hours.

    python tests/fuzz/fuzz.py --inputs 1000000 --workers 2 --out /tmp/fuzz

An input fails if its target raises anything but UserError, takes more than 5 s of processor time, or lets the process grow
beyond 2 GB. Each distinct place that fails is written to --out once, as an input for the corpus, and printed. The exit code is
1 if there is one.
"""

import argparse
import contextlib
import faulthandler
import gc
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from mutate import mutated  # noqa: E402
from targets import LAB, TARGETS, Workspace, seeds  # noqa: E402

from foleybox.errors import UserError  # noqa: E402

MOST_SECONDS, MOST_BYTES = 5.0, 2 << 30
SHARES = {
    "recipe": 20, "recipe_play": 12, "recipe_cli": 2, "cli": 3, "manifest": 8, "graph": 10, "sound": 8, "events": 10, "jobs": 8,
    "signature": 6, "data_manifest": 3, "clips_jsonl": 8, "codes": 3, "cache": 6, "run_config": 1, "run_state": 0.5,
}  # fmt: skip
"""of the inputs, by target: more for those that are quick"""


class HangError(BaseException):
    """An input that took too long."""


def check(name: str, data: bytes, work: Workspace) -> str:
    """Return what is wrong with a target's reaction to an input, "" if nothing: the error and the place that raised it."""

    def stop(*_: Any) -> None:
        raise HangError(f"more than {MOST_SECONDS:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    faulthandler.dump_traceback_later(60, exit=True)  # in C, where no signal arrives
    try:
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        TARGETS[name](data, work)
    except UserError:
        pass
    except (Exception, HangError) as error:
        return f"{type(error).__name__} at {_place(error)}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)
    return ""


def _place(error: BaseException) -> str:
    """Return the last line of foleybox that an error passed: file and line."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "foleybox" in each.filename]
    return f"{Path(frames[-1].filename).name} {frames[-1].lineno}" if frames else "?"


def memory() -> int:
    """Return the highest memory of the process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work_on(number: int, options: argparse.Namespace, shared: Any) -> None:
    """Check inputs until there are enough; runs in a process of its own, which is started again if it dies."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        torch = not set(options.targets).isdisjoint(LAB)
        if torch:
            import torch as package

            package.set_num_threads(1)
        work = Workspace(Path(folder), torch)
        found = {name: each for name, each in seeds(work).items() if name in options.targets}
        names, weights = list(found), [SHARES[name] for name in found]
        rng = random.Random(f"{options.seed} {number} {time.time_ns() if options.seed is None else shared['starts']}")
        shared["starts"] = shared["starts"] + 1
        baseline, counts, seen = memory(), Counter(), set()
        resource.setrlimit(resource.RLIMIT_AS, (40 << 30, resource.RLIM_INFINITY))
        last = Path(options.out, f"last.{number}")
        end = time.monotonic() + options.hours * 3600
        while time.monotonic() < end:
            (name,) = rng.choices(names, weights)
            data = mutated(rng.choice(found[name]), found[name], rng)
            last.write_bytes(name.encode() + b"\n" + data)
            problem = check(name, data, work)
            if memory() > baseline + MOST_BYTES:
                problem, baseline = problem or f"memory {memory() / 1e9:.1f} GB", memory()
            counts[name] += 1
            key = (name, problem.partition(":")[0])
            if problem and key not in seen:
                seen.add(key)
                report(options, name, data, problem)
            if sum(counts.values()) >= 500:
                with shared["lock"]:
                    shared["counts"] = dict(Counter(shared["counts"]) + counts)
                    enough = sum(shared["counts"].values()) >= options.inputs
                counts.clear()
                gc.collect()
                if enough:
                    break
        with shared["lock"]:
            shared["counts"] = dict(Counter(shared["counts"]) + counts)
        last.unlink()


def report(options: argparse.Namespace, name: str, data: bytes, problem: str) -> None:
    """Write an input that fails, once for each place, and print it."""
    place = "".join(each if each.isalnum() else "-" for each in problem.partition(": ")[0])[:60]
    path = Path(options.out, f"{name}_{place}.bin")
    if not path.exists():
        path.write_bytes(data)
        print(f"{path}: {problem}", flush=True)


def main() -> int:
    """Start the workers, and again those that die, until there are enough inputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", default=None, help="the same seed and one worker: the same inputs")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--out", default="fuzz-failures", help="folder for the inputs that fail")
    parser.add_argument("--work", default=None, help="folder for temporary files, in memory if possible")
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the workers too
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        shared: Any = manager.dict({"counts": {}, "starts": 0, "lock": manager.Lock()})
        start = time.monotonic()
        workers = {number: _start(context, number, options, shared) for number in range(options.workers)}
        while workers:
            time.sleep(0.5)
            Path(options.out, "counts.json").write_text(json.dumps(dict(shared["counts"])))
            for number, process in list(workers.items()):
                if process.is_alive():
                    continue
                del workers[number]
                last = Path(options.out, f"last.{number}")
                if process.exitcode and last.exists():
                    name, _, data = last.read_bytes().partition(b"\n")
                    report(options, name.decode(), data, f"process ended with {process.exitcode}")
                    workers[number] = _start(context, number, options, shared)
        counts = dict(shared["counts"])
    failures = [path.name for path in Path(options.out).glob("*.bin")]
    print(json.dumps({"inputs": sum(counts.values()), "seconds": round(time.monotonic() - start), "by_target": counts}))
    print(f"{len(failures)} distinct places fail" + "".join(f"\n  {name}" for name in sorted(failures)))
    return 1 if failures else 0


def _start(context: Any, number: int, options: argparse.Namespace, shared: Any) -> Any:
    process = context.Process(target=work_on, args=(number, options, shared), daemon=True)
    process.start()
    return process


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    os._exit(130)
