"""The `foleybox` command: a table of verbs, each imported when it is used.

A verb is a function of one frozen dataclass, from which tyro makes flags and help; it returns an exit code or None (0).
Exit codes: 0 done; 1 done, and the answer is no (a check that failed); 2 a mistake of the user or the disk, in one
line on stderr; 130 stopped by Ctrl-C. FOLEYBOX_DEBUG=1 (or --debug) shows tracebacks.
"""

import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path

from foleybox.errors import INSTALL_LAB, UserError
from foleybox.version import __version__

VERBS = {
    "generate": ("foleybox.commands.generate:generate", "make sounds: labels and seeds become WAV, FLAC or OGG files"),
    "vary": ("foleybox.commands.vary:vary", "make neighbours of a sound that you like"),
    "morph": ("foleybox.commands.vary:morph", "go from one sound to another in even steps"),
    "walk": ("foleybox.commands.vary:walk", "walk on from a sound, step by step"),
    "jobs": ("foleybox.commands.jobs:jobs", "make what a table asks for: label, count, seed and knobs, line by line"),
    "perform": ("foleybox.commands.perform:perform", "play sounds at given times: stems, a mix, markers"),
    "loop": ("foleybox.commands.loop:loop", "make a seamless loop of a steady sound"),
    "pack": ("foleybox.commands.pack:pack", "make a set of variations for a game engine"),
    "verify": ("foleybox.commands.verify:verify", "make sounds again from the recipes they carry, and compare"),
    "info": ("foleybox.commands.info:info", "say what an instrument or a sound file is"),
    "data check": ("foleybox.lab.core.check:check", "look through a folder of recordings before training on it"),
    "train sagan": ("foleybox.lab.kt.train_sagan:main", "train KT's GAN: label and noise become a mel"),
    "train vocoder": (
        "foleybox.lab.play.train_vocoder:main",
        "train our vocoder, a Vocos: a mel becomes a wave",
    ),
    "train hifigan": ("foleybox.lab.play.train_vocoder:main_hifigan", "train the published HiFi-GAN vocoder"),
    "train mhifigan": (
        "foleybox.lab.cmu.train_mhifigan:main",
        "train CMU's MHiFiGAN: a CEmbed becomes a wave",
    ),
    "train encoder": ("foleybox.lab.kt.train_encoder:main", "train the encoder: a mel becomes an embedding and label"),
    "train autoencoder": (
        "foleybox.lab.patches.train_autoencoder:main",
        "train our autoencoder: a mel becomes latents and back",
    ),
    "train patches": (
        "foleybox.lab.patches.train_patches:main",
        "train causal patches: a label becomes latents, one by one",
    ),
    "train vqvae": ("foleybox.lab.play.scored:train_vqvae", "train the VQ-VAE: a mel becomes a grid of codes and back"),
    "train mvqvae": (
        "foleybox.lab.cmu.train_mvqvae:main",
        "train CMU's MVQVAE: a CEmbed becomes a grid of codes and back",
    ),
    "encode": ("foleybox.lab.play.encode:encode", "turn recordings into codes with a trained VQ-VAE"),
    "train pixelsnail": (
        "foleybox.lab.play.scored:train_pixelsnail",
        "train PixelSNAIL: a label becomes a grid of codes",
    ),
    "sample": ("foleybox.lab.play.sample:sample", "make sounds with a training run, without an instrument"),
    "evaluate": ("foleybox.lab.evaluation.report:evaluate", "measure sounds against real recordings"),
    "audit": ("foleybox.lab.evaluation.originality:audit", "look for copies of the recordings among sounds"),
    "select": ("foleybox.lab.kt.selection:select", "keep the best and most various of many generated sounds"),
    "export": ("foleybox.lab.export.command:main", "make an instrument of trained parts"),
    "restore": ("foleybox.lab.export.restore:main", "make runs of an instrument again, to train on from it"),
    "doctor": ("foleybox.commands.doctor:main", "see whether this machine has all that foleybox needs"),
}
LAB = {"torch", "accelerate", "safetensors", "scipy", "matplotlib", "tensorboard", "onnx", "onnxscript"}


def usage() -> str:
    """Return the help of `foleybox` itself."""
    verbs = "\n".join(f"  {verb:14} {summary}" for verb, (_, summary) in VERBS.items())
    return (
        "usage: foleybox VERB ...\n\n"
        "Foley by category: as many different, production-ready sounds as you like.\n\n"
        f"{verbs}\n\n"
        "  foleybox VERB --help   the flags of a verb\n"
        "  foleybox --version\n\n"
        "example: foleybox generate dog_bark --count 4 -o out\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return its exit code."""
    _mend_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("FOLEYBOX_DEBUG", "0") not in ("", "0")
    if "--debug" in arguments:
        arguments.remove("--debug")
        debug = True
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a pipe that was closed shows itself here at the latest
        return code
    except (UserError, OSError, KeyboardInterrupt) as error:
        if debug and not isinstance(error, BrokenPipeError):
            raise
        return _tell(error)


def _mend_streams() -> None:
    """Let what a terminal cannot show be escaped, and what was closed be nowhere, so that neither stops the work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif stream.errors == "strict" and hasattr(stream, "reconfigure"):  # of JSON, \u96e8 is what it means
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(f"foleybox {__version__}")
        return 0
    verb = next((words for size in (2, 1) if (words := " ".join(arguments[:size])) in VERBS), None)
    if verb is None:
        raise UserError(_unknown(arguments))
    try:
        rest = arguments[len(verb.split()) :]
        return _call(_load(VERBS[verb][0]), verb, rest)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in LAB:
            raise
        raise UserError(f"`{verb}` needs the lab, and {error.name} is not installed: {INSTALL_LAB}") from None


def _unknown(arguments: list[str]) -> str:
    import difflib

    family = [verb for verb in VERBS if verb.startswith(arguments[0] + " ")]
    if family:
        found = (
            f"unknown verb {' '.join(arguments[:2])!r}" if arguments[1:] else f"`{arguments[0]}` needs a second word"
        )
        return f"{found}: expected {' or '.join(family)}"
    about = {"licence", "license", "licences", "list", "show", "card"}  # what people ask of an instrument
    near = ["info"] if arguments[0] in about else difflib.get_close_matches(arguments[0], VERBS, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}"
    return f"unknown verb {arguments[0]!r}: {hint}"


def _load(target: str) -> Callable[..., int | None]:
    from importlib import import_module

    module, name = target.split(":")
    return getattr(import_module(module), name)


def _call(function: Callable[..., int | None], verb: str, arguments: list[str]) -> int:
    """Make the verb's config of its flags, and run it."""
    from typing import get_type_hints

    import tyro

    (config_type,) = (kind for name, kind in get_type_hints(function).items() if name != "return")
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            config = tyro.cli(config_type, args=arguments, prog=f"foleybox {verb}", config=style)
    except SystemExit as stop:  # tyro has printed help (0) or what is wrong with the flags (2)
        if stop.code == 0:
            return 0
        raise UserError(f"{_one_line(told.getvalue())}; `foleybox {verb} --help` shows the flags") from None
    print(told.getvalue(), end="", file=sys.stderr)  # a warning, if anything
    return function(config) or 0


def _one_line(box: str) -> str:
    """Return what tyro says in a box about wrong flags, in a line."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()][1:]  # the first is a title; boxes may be of ASCII

    def rule(line: str) -> bool:
        return not line.strip("─-")

    lines = list(itertools.dropwhile(rule, lines))
    told = list(itertools.takewhile(lambda line: not line or not rule(line), lines))  # what follows is help
    text = " ".join(" ".join(told).split()).rstrip(". ")
    if (flag := re.match(r"Error parsing (\S+): ", text)) and (
        value := re.search(r"(?:from \[|10: |float: )'(.*?)'", text)
    ):
        kind = "a whole number" if re.search(r"INT\b|int\(\)", text) else "a number"
        return f"{flag[1]} {value[1]}: expected {kind}"
    if lacking := re.match(r"Missing from foleybox [\w ]+?: (\S+)", text):
        return f"{lacking[1]} is missing"
    near = [line for line in lines[len(told) + 1 :] if line.startswith("--")]
    return text + (f"; did you mean {near[0].split()[0]}?" if near and text.startswith("Unrecognized") else "")


def _tell(error: BaseException) -> int:
    """Print one line for an error that needs no traceback; return the exit code."""
    if isinstance(error, BrokenPipeError):
        # Nobody reads on (`foleybox info | head -1`): not a mistake, and nobody to tell. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, KeyboardInterrupt):
        new_line = "\n" if sys.stderr.isatty() else ""  # the terminal has written ^C
        print(f"{new_line}foleybox: {error if str(error) else 'stopped'}", file=sys.stderr)
        return 130
    if isinstance(error, OSError):
        name = f": {error.filename}" if error.filename else ""
        print(f"foleybox: {error.strerror or error}{name}", file=sys.stderr)
        return 2
    print(f"foleybox: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
