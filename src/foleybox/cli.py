"""The `foleybox` command: a table of verbs, each imported when it is used.

A verb is a function of one frozen dataclass, from which `flags` makes flags and help; it returns an exit code or None (0).

    0    done
    1    done, and the answer is no: a file differs, a check failed, a pack is incomplete
    2    a mistake of the user, a damaged file, a full disk, too little memory: one line on stderr says what to do
    70   a fault of foleybox: one line on stderr says how to report it
    130  stopped by Ctrl-C
    141  nobody reads the output any more (`foleybox info | head -1`)

FOLEYBOX_DEBUG=1 (or --debug) also shows the traceback, with the same exit code.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

from foleybox.errors import INSTALL_LAB, INSTALL_SERVE, LAB_PACKAGES, SERVE_PACKAGES, UserError
from foleybox.version import __version__

GROUPS = {
    "Make sounds": {
        "generate": ("foleybox.commands.generate:generate", "a label and a seed become a WAV, FLAC or OGG file"),
        "vary": ("foleybox.commands.vary:vary", "variations of a sound"),
        "morph": ("foleybox.commands.morph:morph", "even steps from one sound to another"),
        "walk": ("foleybox.commands.walk:walk", "a chain of sounds, each a variation of the one before"),
        "jobs": ("foleybox.commands.jobs:jobs", "all the sounds that a table (CSV) lists"),
        "perform": ("foleybox.commands.perform:perform", "sounds at given times: a mix, stems, markers"),
    },
    "In a browser": {
        "serve": ("foleybox.commands.serve:serve", "choose, vary and place sounds on a page; a server for programs"),
        "page": ("foleybox.commands.page:page", "write the page as a folder for any web host"),
    },
    "Use sounds": {
        "loop": ("foleybox.commands.loop:loop", "make a seamless loop of a steady sound"),
        "pack": ("foleybox.commands.pack:pack", "make a set of variations for a game engine"),
        "verify": ("foleybox.commands.verify:verify", "render sound files again from their recipes and compare"),
        "sign": ("foleybox.commands.sign:sign_paths", "sign instruments and recipes, which verify then checks"),
        "info": ("foleybox.commands.info:info", "describe an instrument or a sound file"),
    },
    "Measure": {
        "evaluate": ("foleybox.lab.evaluation.evaluate:evaluate", "compare sounds with real recordings"),
        "report": ("foleybox.lab.evaluation.report:report", "compare systems in one table, from files of evaluate"),
        "audit": ("foleybox.lab.evaluation.originality:audit", "search sounds for copies of the training recordings"),
        "select": ("foleybox.lab.kt.selection:select", "choose the best and most varied of many sounds"),
        "data check": ("foleybox.lab.core.check:check", "check a folder of recordings before training on it"),
    },
    "Train": {
        "train patches": ("foleybox.lab.patches.train_patches:main", "our system: a label becomes latents, one by one"),
        "train distilled": (
            "foleybox.lab.patches.distil:main",
            "our system with a few steps per latent: renders faster",
        ),
        "train autoencoder": (
            "foleybox.lab.patches.train_autoencoder:main",
            "our autoencoder: mel to latents and back",
        ),
        "train vocoder": ("foleybox.lab.play.train_vocoder:main", "our vocoder, a Vocos: mel to wave"),
        "train sagan": ("foleybox.lab.kt.train_sagan:main", "KT's GAN: label and noise to mel"),
        "train encoder": ("foleybox.lab.kt.train_encoder:main", "KT's encoder: mel to embedding and label"),
        "train vqvae": ("foleybox.lab.play.scored:train_vqvae", "the baseline's VQ-VAE: mel to codes and back"),
        "train pixelsnail": ("foleybox.lab.play.scored:train_pixelsnail", "the baseline's PixelSNAIL: label to codes"),
        "train hifigan": (
            "foleybox.lab.play.train_vocoder:main_hifigan",
            "the baseline's HiFi-GAN vocoder: mel to wave",
        ),
        "train mvqvae": ("foleybox.lab.cmu.train_mvqvae:main", "CMU's MVQVAE: CEmbed to codes and back"),
        "train mhifigan": ("foleybox.lab.cmu.train_mhifigan:main", "CMU's MHiFiGAN vocoder: CEmbed to wave"),
        "encode": ("foleybox.lab.play.encode:encode", "turn recordings into codes with a trained VQ-VAE"),
        "sample": ("foleybox.lab.play.sample:sample", "make sounds with a training run"),
        "export": ("foleybox.lab.export.export:main", "make an instrument from training runs"),
        "restore": ("foleybox.lab.export.restore:main", "make training runs from an instrument"),
    },
    "Help": {"doctor": ("foleybox.commands.doctor:main", "check that this machine has what foleybox needs")},
}
VERBS = {verb: entry for group in GROUPS.values() for verb, entry in group.items()}
"verb -> (module:function, summary)"
_SAMPLE = "sounds of a training run are made with `foleybox sample RUN LABEL`"
MOVED = {
    "train vocoder": {"--vocoder": "the published vocoder is trained with `foleybox train hifigan --vocoder NAME`"},
    "generate": dict.fromkeys(("--vqvae", "--vocoder", "--top-k", "--top-p", "--weights"), _SAMPLE),
}
"verb -> flags of earlier versions and what replaces them"


def usage() -> str:
    """Return the help of `foleybox` itself."""
    groups = (
        f"{name}:\n" + "".join(f"  {verb:18} {summary}\n" for verb, (_, summary) in verbs.items())
        for name, verbs in GROUPS.items()
    )
    return (
        "usage: foleybox VERB ...\n\n"
        "Foley sounds by category: as many different, production-ready sounds as you like.\n\n"
        + "\n".join(groups)
        + "\nfoleybox VERB --help shows the flags of a verb, foleybox --version the version.\n"
        "example: foleybox generate dog_bark --count 4 -o out\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return its exit code."""
    _repair_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("FOLEYBOX_DEBUG", "0") not in ("", "0")
    if "--debug" in arguments:
        arguments.remove("--debug")
        debug = True
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a closed pipe raises here at the latest
        return code
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, BrokenPipeError):
            traceback.print_exc()
        return _report(error)


def _repair_streams() -> None:
    """Escape what the terminal cannot show, and replace closed streams, so that neither stops the work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif stream.errors == "strict" and hasattr(stream, "reconfigure"):  # \u96e8 is valid in JSON
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
        return _call(_load(VERBS[verb][0]), verb, arguments[len(verb.split()) :])
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in SERVE_PACKAGES:
            raise UserError(f"`{verb}` needs the server, and {package} is not installed: {INSTALL_SERVE}") from None
        if package not in LAB_PACKAGES:
            raise
        raise UserError(f"`{verb}` needs the lab, and {error.name} is not installed: {INSTALL_LAB}") from None


def _unknown(arguments: list[str]) -> str:
    """Return the line for a verb that is not in the table."""
    first, second = arguments[0], next(iter(arguments[1:]), "")
    if family := [verb for verb in VERBS if verb.startswith(f"{first} ")]:
        near = difflib.get_close_matches(second, [verb.split()[1] for verb in family], 1)
        hint = f"did you mean {first} {near[0]}?" if near else f"expected {' or '.join(family)}"
        return f"unknown verb '{first} {second}': {hint}" if second else f"`{first}` needs a second word: {hint}"
    about = {"licence", "license", "licences", "list", "show", "card"}  # words for what `info` does
    words = {*VERBS, *(verb.split()[0] for verb in VERBS)}
    near = ["info"] if first in about else difflib.get_close_matches(first, words, 1)
    return f"unknown verb {first!r}: " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}")


def _load(target: str) -> Callable[..., int | None]:
    module, name = target.split(":")
    return getattr(import_module(module), name)


def _call(function: Callable[..., int | None], verb: str, arguments: list[str]) -> int:
    """Make the verb's config from its arguments, and run it."""
    from foleybox.flags import parse

    (config_type,) = (kind for name, kind in get_type_hints(function).items() if name != "return")
    try:
        config = parse(config_type, arguments, verb, MOVED.get(verb))
    except SystemExit as stop:  # after printing help
        return int(stop.code or 0)
    return function(config) or 0


def _report(error: BaseException) -> int:
    """Print one line for an error that needs no traceback; return the exit code."""
    if isinstance(error, BrokenPipeError):  # nobody reads stdout any more (`foleybox info | head -1`): no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at exit
        return 141
    if isinstance(error, KeyboardInterrupt):
        new_line = "\n" if sys.stderr.isatty() else ""  # the terminal has written ^C
        print(f"{new_line}foleybox: {error if str(error) else 'stopped'}", file=sys.stderr)
        return 130
    if isinstance(error, OSError):
        name = f": {error.filename}" if error.filename else ""
        print(f"foleybox: {error.strerror or error}{name}", file=sys.stderr)
        return 2
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        print(f"foleybox: {text}", file=sys.stderr)
        return 2
    if isinstance(error, MemoryError):
        print(f"foleybox: not enough memory ({text or 'none is free'}): ask for less at once", file=sys.stderr)
        return 2
    print(
        f"foleybox: a fault of foleybox {__version__}, not of yours ({type(error).__name__}: {text[:200]}); please report "
        "this line and the command. --debug shows more, `foleybox doctor` checks the installation",
        file=sys.stderr,
    )
    return 70
