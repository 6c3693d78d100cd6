"""The recipes run from recordings to the evaluation's JSON file at toy size, continue where they stopped, and refuse in a line.

A stand-in for `foleybox` on the PATH writes down the commands that a script gives; the commands then run in this process,
since every new one would import torch anew.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers import toy_instrument
from helpers_lab import configured, toy_folder

pytest.importorskip("torch", reason="the recipes use the lab")

from accelerate.state import AcceleratorState
from toy_runs import vocoder_run

from foleybox import cli
from foleybox.lab.core.clips import find_clips
from foleybox.lab.evaluation.report import Report, report
from foleybox.lab.evaluation.result import read_result
from foleybox.lab.kt.encoder import EncoderConfig
from foleybox.lab.kt.train_encoder import TrainEncoder
from foleybox.labels import LABELS

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STAND_IN = r"""#!/bin/sh
number=$(ls "$COMMANDS" | wc -l)
[ "$number" = "${FAIL_AT:-none}" ] && exit 2
printf '%s\0' "$@" > "$COMMANDS/$(printf %03d "$number")"
"""


class Shell:
    """A folder of recordings and a PATH on which `foleybox` is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for split, takes in (("train", 3), ("dev", 2)):
            toy_folder(folder / "sounds" / split, takes)
        (folder / "bin").mkdir()
        (folder / "bin" / "foleybox").write_text(STAND_IN)
        (folder / "bin" / "foleybox").chmod(0o755)

    def run(self, recipe: str, **variables: str) -> tuple[list[list[str]], subprocess.CompletedProcess[str]]:
        """Run a recipe; return the commands that it gave, and how it ended."""
        script, *arguments = recipe.split()
        written = self.folder / "commands"
        written.mkdir(exist_ok=True)
        for path in written.iterdir():
            path.unlink()
        clean = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        values = {"DATA": str(self.folder / "sounds"), "SIZE": "toy", "COUNT": "2", "DEVICE": "cpu"}
        done = subprocess.run(
            [RECIPES / f"{script}.sh", *arguments], cwd=self.folder, capture_output=True, text=True,
            env={**clean, "PATH": path, "COMMANDS": str(written), **values, **variables},
        )  # fmt: skip
        commands = [path.read_text().rstrip("\0").split("\0") for path in sorted(written.iterdir())]
        return commands, done


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that the recipes can use: an encoder for the evaluation, and a vocoder of the reports' mel."""
    from foleybox.lab.kt.train_encoder import train

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        AcceleratorState._reset_state(reset_partial_state=True)
        clips = find_clips(toy_folder(folder / "sounds", 2))
        quick = {"device": "cpu", "tracker": "none", "batch": 7, "contrastive_steps": 1, "classifier_steps": 1}
        train(configured(TrainEncoder, out=folder / "encoder", model=EncoderConfig(width=4), **quick), clips)
    vocoder_run(folder / "vocoder")
    return folder


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        ("baseline", 6),
        ("cmu-b", 5),
        ("cmu-a", 6),
        ("kt kt-csupcon", 4),
        ("patches", 7),
    ],
)
def test_a_recipe_runs_from_recordings_to_the_file_of_its_evaluation(
    shell: Shell, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, stages: int
) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    vocoder = {"VOCODER": str(trained / "vocoder")} if recipe in ("cmu-b", "kt kt-csupcon") else {}
    wanted = {"EMBEDDING": "encoder", "WEIGHTS": str(trained / "encoder"), "ENCODER": "stand-in" * (recipe == "cmu-a")}
    commands, done = shell.run(recipe, OUT="out", **vocoder, **{key: value for key, value in wanted.items() if value})
    assert (done.returncode, done.stderr) == (0, "")
    assert len(commands) == stages
    monkeypatch.setattr("foleybox.lab.play.sample.SETTLING", 1)
    for command in commands:
        AcceleratorState._reset_state(reset_partial_state=True)  # which keeps the precision of an earlier command
        if command[0] == "export":  # takes longer than all others; tests/test_docs.py runs it at this size
            toy_instrument(Path("out/instrument"))
        else:
            assert cli.main(command) == 0, command
    (made,) = Path("out").glob("*.json")
    (system,) = read_result(made).systems
    assert system.run is not None
    assert system.run.clips_seen in (7 * 2, 4 * 2, 2 * 2, 16 * 2)
    assert system.run.sound_seeds == (0, 1)
    assert {part.n for part in system.labels.values()} == {2}
    assert len(system.labels) == len(LABELS)
    assert report(Report((made,), Path("systems.md"))) == 0


def test_a_recipe_that_was_stopped_continues_at_that_stage(shell: Shell) -> None:
    every, done = shell.run("baseline", OUT="whole")
    assert done.returncode == 0
    first, done = shell.run("baseline", OUT="out", FAIL_AT="2")
    assert done.returncode == 2
    assert done.stderr.endswith("stage codes stopped (exit code 2): run the recipe again to continue\n")
    rest, done = shell.run("baseline", OUT="out")
    assert done.returncode == 0
    as_whole = [[word.replace("out/", "whole/") for word in command] for command in [*first, *rest]]
    assert as_whole == every
    assert shell.run("baseline", OUT="out")[0] == []


def test_every_seed_size_and_device_reaches_the_trainings(shell: Shell) -> None:
    for size in ("small", "published"):
        for recipe in ("baseline", "cmu-b", "cmu-a", "kt kt-2c", "patches"):
            commands, done = shell.run(recipe, SIZE=size, SEED="3", THREADS="2", OUT=f"out/{size}-{recipe[:6]}")
            assert done.returncode == 0, done.stderr
            trainings = [" ".join(command) for command in commands if command[0] == "train"]
            assert all("--seed 3 --threads 2 --device cpu" in command for command in trainings)
            sampled = [command for command in commands if command[0] in ("sample", "generate")]
            assert [command[2 if command[0] == "sample" else 1] for command in sampled] == [
                label.slug for label in LABELS
            ]
            for command in commands:  # every flag is one that there is
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(cli, "_load", checked(cli._load))
                    assert cli.main(command) == 0, command


def checked(load):
    """Return a loader of verbs that take their flags and do nothing."""

    def loaded(target: str):
        function = load(target)

        def nothing(config: object) -> None:
            pass

        nothing.__annotations__ = {**function.__annotations__}
        return nothing

    return loaded


@pytest.mark.parametrize(
    ("recipe", "variables", "complaint"),
    [
        ("baseline", {"DATA": "nowhere"}, "no folder nowhere: set DATA to a folder of recordings"),
        ("baseline", {"SIZE": "huge"}, "SIZE=huge: expected small, published or toy"),
        ("kt", {}, "SYSTEM is missing: expected kt-2c, kt-csupcon"),
        ("kt sagan", {}, "SYSTEM sagan: expected kt-2c"),
        ("baseline", {"OUT": "used", "SIZE": "small"}, "used was started with recipe=baseline SIZE=toy"),
        ("baseline", {"OUT": "used", "TRAIN": "sounds:dev"}, "use another OUT"),
        ("cmu-b", {"OUT": "used"}, "used was started with recipe=baseline"),
    ],
)
def test_a_recipe_that_cannot_begin_says_why_in_a_line(
    shell: Shell, recipe: str, variables: dict[str, str], complaint: str
) -> None:
    shell.run("baseline", OUT="used")
    commands, done = shell.run(recipe, **variables)
    assert (done.returncode, commands) == (2, [])
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_every_variable(shell: Shell) -> None:
    for recipe in ("baseline", "cmu-b", "cmu-a", "kt", "patches"):
        commands, done = shell.run(f"{recipe} --help")
        assert (done.returncode, commands) == (0, [])
        for word in ("DATA", "OUT", "SIZE", "SEED", "THREADS", "DEVICE"):
            assert word in done.stdout
    assert json.dumps(done.stdout)  # plain text
