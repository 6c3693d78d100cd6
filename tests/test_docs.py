"""Every command in README and docs runs: `bash` and `python` blocks literally, `console` blocks as far as their flags.

A block with a file's name after its language (```csv jobs.csv) is that file, there for the commands of its page.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from foleybox import cli
from foleybox.flags import parse
from foleybox.labels import LABELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHER_COMMANDS = {"make", "pip", "tensorboard", "torchrun", "python"}  # in console blocks: named, not run


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def files(page: Path) -> list[tuple[str, str]]:
    """Return the files that a page shows, as (name, content)."""
    return re.findall(r"^```\w+ (\S+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path, language: str) -> list[list[str]]:
    lines = [line for block in blocks(page, language) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_flags_of_every_command_are_understood(page: Path) -> None:
    for words in commands(page, "bash") + commands(page, "console"):
        if words[0] != "foleybox":
            assert words[0] in OTHER_COMMANDS, words
            continue
        verb = next(" ".join(words[1:end]) for end in (3, 2) if " ".join(words[1:end]) in cli.VERBS)
        function = cli._load(cli.VERBS[verb][0])
        (config_type,) = (kind for name, kind in get_type_hints(function).items() if name != "return")
        parse(config_type, words[1 + len(verb.split()) :], verb)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.name)
def test_every_command_of_a_page_runs_in_order(
    page: Path, recordings: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real recordings the pages of the two chains, where such recordings are; on made ones all others."""
    pytest.importorskip("torch", reason="the pages use the lab")
    from helpers_lab import toy_folder

    real = recordings if page.name in ("baseline.md", "cmu-a.md") else None
    if real:
        for label in LABELS:
            (tmp_path / "my_sounds" / label.name).mkdir(parents=True)
            for clip in sorted((real / "data" / "foley" / label.name).iterdir())[:3]:
                (tmp_path / "my_sounds" / label.name / clip.name).symlink_to(clip.resolve())
    else:
        toy_folder(tmp_path / "my_sounds", per_label=3)
    run_page(page, tmp_path, monkeypatch)
    if real:
        assert len(list((tmp_path / "sounds").rglob("*.wav"))) == 14


def run_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's commands one after the other where `my_sounds` is, in this process: torch takes seconds to import."""
    from accelerate.state import AcceleratorState

    for name, content in files(page):
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    for words in commands(page, "bash"):
        assert words[0] == "foleybox", f"only foleybox commands can be run: {words}"
        AcceleratorState._reset_state(reset_partial_state=True)  # which keeps the precision of an earlier command
        assert cli.main(words[1:]) == 0, shlex.join(words)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_link_of_a_page_leads_to_a_file() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_verb_of_the_table_has_help_with_an_example_and_plain_metavars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for verb in cli.VERBS:
        assert cli.main([*verb.split(), "--help"]) == 0
        printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"Example: foleybox {verb}" in printed, verb
        assert "{None" not in printed, verb


def test_the_demo_needs_nothing_but_python_and_make() -> None:
    command = ["make", "-n", "--no-print-directory", "demo", "VENV=nowhere"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # the suite runs in make
    recipe = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout
    words = {shlex.split(line)[0] for line in recipe.splitlines() if line}
    assert words <= {"python3", "nowhere/bin/python", "nowhere/bin/foleybox", "touch"}
    assert shutil.which("make")
