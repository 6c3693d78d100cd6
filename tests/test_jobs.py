"""`foleybox jobs`: the table is checked first, every file is made once, and its bytes do not depend on the workers."""

import csv
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from helpers import toy_instrument
from hypothesis import given, settings
from hypothesis import strategies as st

import foleybox
from foleybox.audio import read_wave
from foleybox.cli import main
from foleybox.errors import UserError
from foleybox.studio.jobs import COLUMNS, Job, Makers, read_jobs, tasks_of
from foleybox.studio.recipe import read_recipe
from foleybox.studio.synth import Synth

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(foleybox.__file__).parents[1]), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def synth(tmp_path_factory: pytest.TempPathFactory) -> Synth:
    return Synth.load(toy_instrument(tmp_path_factory.mktemp("jobs") / "toy"), threads=1)


@pytest.fixture
def toy(synth: Synth) -> list[str]:
    return ["--instrument", str(synth.folder)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(content: str) -> None:
    Path("jobs.csv").write_text(content, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_each_line_makes_its_files_with_its_knobs(here: Path, toy: list[str], capsys) -> None:
    write("label;count;seed;temperature;seconds;lufs;rate;format;name\n"
          "Rain;2;5;0,8;0,5;-30;;;\n"
          "dog bark;1;;;;;16000;FLAC;Bello, der Hund\n"
          "Sneeze/Cough;2;7;;;;;ogg;Grüße\n")  # fmt: skip
    assert main(["jobs", "jobs.csv", "-o", "aug", "--lufs", "-20", "--subtype", "PCM_24", *toy]) == 0
    assert capsys.readouterr().out == "made 5 of 5 sounds in aug/; they are listed in aug/manifest.csv\n"
    names = ["Rain/Rain_s5.wav", "Rain/Rain_s6.wav", "DogBark/Bello, der Hund.flac",
             "Sneeze_Cough/Grüße_s7.ogg", "Sneeze_Cough/Grüße_s8.ogg"]  # fmt: skip
    assert set(contents(here / "aug")) == {*names, "manifest.csv"}
    recipes = [read_recipe(here / "aug" / name) for name in names]
    assert [recipe and recipe.asked for recipe in recipes] == [
        {"seconds": 0.5, "lufs": -30.0}, {"seconds": 0.5, "lufs": -30.0}, {"rate": 16_000, "lufs": -20.0},
        {"lufs": -20.0}, {"lufs": -20.0},
    ]  # fmt: skip
    assert recipes[0] is not None
    assert recipes[0].make["of"]["temperature"] == 0.8
    wave, rate = read_wave(here / "aug" / names[2])
    assert (len(wave), rate) == (3_600, 16_000)
    with (here / "aug" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == names
    assert [row["label"] for row in rows] == ["Rain", "Rain", "DogBark", "Sneeze_Cough", "Sneeze_Cough"]
    assert [row["seconds"] for row in rows] == ["0.5000", "0.5000", "0.2250", "0.2250", "0.2250"]
    assert {(row["licence"], row["licence_tier"], row["generated"]) for row in rows} == {("CC-BY-NC-4.0", "nc", "1")}
    assert main(["verify", "aug", *toy]) == 0


def test_the_manifest_is_one_that_the_lab_reads(here: Path, toy: list[str]) -> None:
    pytest.importorskip("torch", reason="needs the lab extra")
    from importlib import import_module

    write("label,count\nrain,2\ndog,1\n")
    assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 0
    clips = import_module("foleybox.lab.core.clips").find_clips("aug")
    assert [(str(clip.label), clip.tier) for clip in clips] == [("DogBark", "nc"), ("Rain", "nc"), ("Rain", "nc")]


def listed(folder: Path) -> list[str]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


def test_a_second_table_adds_to_the_manifest_of_the_first_and_a_file_that_is_gone_leaves_it(
    here: Path, toy: list[str]
) -> None:
    first, second = ["Rain/Rain_s0.wav", "Rain/Rain_s1.wav"], ["DogBark/DogBark_s0.wav"]
    for table in ("label,count\nrain,2\n", "label\ndog\n"):
        write(table)
        assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 0
    assert listed(here / "aug") == second + first
    before = (here / "aug/manifest.csv").read_bytes()
    assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 0
    assert (here / "aug/manifest.csv").read_bytes() == before
    (here / "aug" / first[0]).unlink()
    assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 0
    assert listed(here / "aug") == second + first[1:]


@pytest.mark.parametrize("content", [b"file,label\nmine.wav,Rain\n", b"", b"\xff\xfe"])
def test_a_manifest_of_something_else_stays_unless_forced(here: Path, toy: list[str], content: bytes, capsys) -> None:
    write("label\nrain\n")
    (here / "aug").mkdir()
    (here / "aug/manifest.csv").write_bytes(content)
    assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 2
    assert "aug/manifest.csv is not a list that `jobs` wrote: add --force" in capsys.readouterr().err
    assert set(contents(here / "aug")) == {"manifest.csv"}
    assert main(["jobs", "jobs.csv", "-o", "aug", "--force", *toy]) == 0
    assert listed(here / "aug") == ["Rain/Rain_s0.wav"]


# --- bad lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "jobs.csv is empty"),
        ("label\n", "has no line below its header"),
        ("count,seed\n1,2\n", "has no column `label`"),
        ("label,temprature\nrain,3\n", "has the unknown column 'temprature': did you mean temperature?"),
        ("label,licence\nrain,CC0\n", "has the column 'licence', which `jobs` writes in its manifest"),
        ("label;name\nrain;Rain_s3\nrain;\ndog;\nrain;rain_s0\n", "line 5 would make Rain/rain_s0.wav, as"),
        ("label\nrain\ncat\n", "line 3: unknown label 'cat'"),
        ("label,count\nrain,\n,2\n", "line 3: unknown label ''"),
        ("label,count\nrain,2\nrain,many\n", "line 3: count 'many': expected a whole number"),
        ("label,count\nrain,0\n", "line 2: count 0: expected 1 to"),
        ("label,count\nrain,1e9\n", "line 2: count '1e9'"),
        ("label,count\nrain,999999999\n", "line 2: count 999999999: expected 1 to 1,000,000"),
        ("label,seed\nrain,-1\n", "line 2: seed -1: expected a whole number from 0"),
        (f"label,seed,count\nrain,{2**53 - 1},2\n", "line 2: seed 9007199254740991, count 2: the last seed"),
        ("label;format;subtype\nrain;ogg;PCM_24\n", "line 2: format ogg subtype PCM_24: OGG is Vorbis"),
        ("label;fade\nrain;10\n", "line 2: fade 10.0: the sound has 0.225 s"),
        ("label;temperature\nrain;warm\n", "line 2: temperature 'warm': expected a number"),
        ("label;temperature\nrain;-1\n", "line 2: temperature -1.0: expected 0 to 10"),
        ("label;lufs\nrain;-23\nrain;12\n", "line 3: lufs 12.0: expected -70 to 0 LUFS"),
        ("label;rate\nrain;44,1\n", "line 2: rate '44,1': expected a whole number"),
        ("label;seconds\nrain;0\n", "line 2: seconds 0.0: expected 0.02 to 3600"),
        ("label;format\nrain;mp3\n", "line 2: format 'mp3': expected wav, flac or ogg"),
        ("label;subtype\nrain;PCM_8\n", "line 2: subtype 'PCM_8': expected PCM_16"),
        ("label;subtype;format\nrain;float;flac\n", "line 2: format flac subtype FLOAT: FLAC holds integers"),
        ("label;name\nrain;../../x\n", "line 2: name '../../x': expected a file name"),
        ("label;name\nrain;C:\\x\n", "line 2: name 'C:\\\\x'"),
        ("label;name\nrain;.hidden\n", "line 2: name '.hidden'"),
        (f"label;name\nrain;{'x' * 300}\n", "line 2: name 'xxx"),
        ("label;seed;count\nrain;0;5\ndog;0;1\nrain;4;1\n", "line 4 would make Rain/Rain_s4.wav, as line 2 does"),
        ("label;name\nrain;a\nrain;A\n", "line 3 would make Rain/A.wav, as line 2 does"),
        ("label;seed\nrain;1,5\n", "line 2: seed '1,5'"),
        ("label,seconds\nrain,0,5\n", "line 2 has 3 cells, the header 2; a decimal comma needs `;`"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_made(
    here: Path, toy: list[str], capsys, content: str, words: str
) -> None:
    write(content)
    assert main(["jobs", "jobs.csv", *toy]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert [path.name for path in here.iterdir()] == ["jobs.csv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.csv"], "cannot read nowhere.csv"),
        (["jobs.csv", "--workers", "0"], "--workers 0"),
        (["jobs.csv", "--fade", "99"], "fade 99.0: expected 0 to 60"),
        (["jobs.csv", "-o", "jobs.csv"], "cannot write to jobs.csv"),
        (["jobs.csv", "--instrument", "nowhere"], "no instrument nowhere"),
    ],
)
def test_a_bad_flag_is_reported_in_one_line(
    here: Path, toy: list[str], capsys, arguments: list[str], words: str
) -> None:
    write("label\nrain\n")
    assert main(["jobs", *toy, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


CELLS = st.text(max_size=6) | st.sampled_from(
    ["rain", "dog", "1", "0,5", "-23", "wav", "PCM_24", "nan", "1e400", "../x", "\n", '"']
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([*COLUMNS, "", "x"]), min_size=1, max_size=5),
    st.lists(st.lists(CELLS, max_size=5), max_size=4),
    st.sampled_from(",;\t"),
)
def test_any_table_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, synth: Synth, columns: list[str], rows: list[list[str]], separator: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "jobs.csv"
    lines = [columns, *([*row, *[""] * 5][: len(columns)] for row in rows)]
    path.write_bytes("\n".join(separator.join(cells) for cells in lines).encode())
    found, refused = [], ""
    try:
        found = read_jobs(path, synth)
    except UserError as error:
        refused = str(error)
    assert bool(found) != (len(refused.splitlines()) == 1)
    paths = [task.path for task in tasks_of(found)]
    assert len({str(path).casefold() for path in paths}) == len(paths)
    assert all(len(path.parts) == 2 and ".." not in path.parts for path in paths)


# --- once, and the same -------------------------------------------------------------------------------------------

TABLE = "label,count,seconds,lufs\nrain,6,0.1,-23\ndog,5,1.0,\ngun,4,,-30\n"


def test_the_files_are_the_same_to_the_byte_whatever_the_workers(here: Path, toy: list[str]) -> None:
    write(TABLE)
    for workers in ("1", "2", "5"):
        assert main(["jobs", "jobs.csv", "-o", workers, "--workers", workers, *toy]) == 0
    assert len(contents(here / "1")) == 16
    assert contents(here / "1") == contents(here / "2") == contents(here / "5")


def test_the_same_command_again_makes_nothing_twice(here: Path, toy: list[str], capsys) -> None:
    write(TABLE)
    assert main(["jobs", "jobs.csv", *toy]) == 0
    first = {path: path.stat().st_mtime_ns for path in here.rglob("*.wav")}
    some = list(first)[::4]
    for path in some:
        path.unlink()
    write(TABLE + "key,2,,\n")  # lines may be added
    capsys.readouterr()
    assert main(["jobs", "jobs.csv", *toy]) == 0
    assert f"made {len(some) + 2} of 17 sounds in out/, {15 - len(some)} existed" in capsys.readouterr().out
    again = {path: path.stat().st_mtime_ns for path in here.rglob("*.wav")}
    assert len(again) == 17
    assert all(again[path] == first[path] for path in first if path not in some)


@pytest.mark.parametrize("change", ["rain,6,0.1,-24", "rain,6,0.2,-23", "rain,6,0.1,"])
def test_a_file_of_another_sound_is_in_the_way_and_stays_unless_forced(
    here: Path, toy: list[str], capsys, change: str
) -> None:
    write(TABLE)
    assert main(["jobs", "jobs.csv", *toy]) == 0
    before = contents(here / "out")
    write(TABLE.replace("rain,6,0.1,-23", change))
    capsys.readouterr()
    assert main(["jobs", "jobs.csv", *toy]) == 2
    assert "out/Rain/Rain_s0.wav and 5 more exist and are not what line 2 asks for" in capsys.readouterr().err
    assert contents(here / "out") == before
    assert main(["jobs", "jobs.csv", "--force", *toy]) == 0
    assert "made 6 of 15 sounds" in capsys.readouterr().out
    assert (here / "out/Rain/Rain_s0.wav").read_bytes() != before["Rain/Rain_s0.wav"]


@pytest.mark.parametrize("flags", [["--temperature", "0.5"], ["--subtype", "PCM_24"]])
def test_other_knobs_are_another_sound(here: Path, toy: list[str], capsys, flags: list[str]) -> None:
    write("label\nrain\n")
    assert main(["jobs", "jobs.csv", *toy]) == 0
    assert main(["jobs", "jobs.csv", *flags, *toy]) == 2
    assert "not what line 2 asks for" in capsys.readouterr().err


def test_a_file_of_someone_else_stays(here: Path, toy: list[str], capsys) -> None:
    write("label\nrain\n")
    (here / "out/Rain").mkdir(parents=True)
    (here / "out/Rain/Rain_s0.wav").write_bytes(b"mine")
    assert main(["jobs", "jobs.csv", *toy]) == 2
    assert "out/Rain/Rain_s0.wav exists and is not what line 2 asks for" in capsys.readouterr().err
    assert (here / "out/Rain/Rain_s0.wav").read_bytes() == b"mine"


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "foleybox", "jobs", "jobs.csv", *arguments],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
@pytest.mark.parametrize("killed", [True, False])
def test_it_goes_on_after_kill_9_and_ctrl_c_where_it_was(here: Path, toy: list[str], killed: bool) -> None:
    write("label,count,seconds\nrain,60,1\ndog,60,1\n")
    process = command("-o", "aug", "--workers", "2", *toy)
    deadline = time.monotonic() + 30
    while len(list(here.glob("aug/*/[!.]*.wav"))) < 25 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL if killed else signal.SIGINT)
    _, err = process.communicate(timeout=30)
    if not killed:
        assert process.returncode == 130
        assert err.startswith("foleybox: stopped after ")
        assert "the same command again continues from there" in err
    there = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in here.glob("aug/*/[!.]*.wav")}
    assert 25 <= len(there) < 120
    assert not (here / "aug/manifest.csv").exists()
    (here / "aug/Rain/.Rain_s7.0123abcd.partial.wav").write_bytes(b"RIFF")  # what kill -9 leaves, if it meets a write
    assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 0
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in there} == there  # none was made twice
    assert main(["jobs", "jobs.csv", "-o", "whole", "--workers", "1", *toy]) == 0
    made = contents(here / "aug")
    assert made == contents(here / "whole")


def test_json_is_a_line_for_each_file(here: Path, toy: list[str], capsys) -> None:
    write("label,count\nrain,3\n")
    assert main(["jobs", "jobs.csv", "--json", *toy]) == 0
    assert capsys.readouterr().out.count('"file": "out/Rain/Rain_s') == 3


# --- what is there is not believed --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["flac", "ogg"])
def test_a_file_that_was_cut_short_is_made_again(here: Path, toy: list[str], capsys, format: str) -> None:
    write("label,count,seconds\nrain,3,4\n")
    assert main(["jobs", "jobs.csv", "--format", format, *toy]) == 0
    before, path = contents(here / "out"), here / f"out/Rain/Rain_s1.{format}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    capsys.readouterr()
    assert main(["jobs", "jobs.csv", "--format", format, *toy]) == 0
    assert "made 1 of 3 sounds in out/, 2 existed" in capsys.readouterr().out
    assert contents(here / "out") == before


def test_memory_does_not_depend_on_the_number_of_sounds(here: Path, synth: Synth) -> None:
    """A hundred lines of a million sounds are checked in the memory of a hundred lines of one."""
    peaks = []
    for count in (1, 1_000_000):
        write("label,seed,count\n" + "".join(f"rain,{line * 1_000_000},{count}\n" for line in range(100)))
        tracemalloc.start()
        jobs = read_jobs(Path("jobs.csv"), synth)
        assert sum(job.count for job in jobs) == 100 * count
        assert Makers(jobs).makes(f"Rain/Rain_s{99_000_000 + count - 1}.wav")
        assert next(tasks_of(jobs)).path == Path("Rain/Rain_s0.wav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 1_000_000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["rain", "dog"]), st.integers(0, 12), st.integers(1, 5),
            st.sampled_from(["", "a", "A_s3", "Rain", "rain_s2", "x_s03"]),
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_ranges_of_seeds_know_the_files_that_lines_make(
    tmp_path_factory: pytest.TempPathFactory, synth: Synth, lines: list[tuple[str, int, int, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges.csv"
    path.write_text("label,seed,count,name\n" + "".join(",".join(map(str, line)) + "\n" for line in lines))
    label = {"rain": "Rain", "dog": "DogBark"}
    jobs = [Job(2 + at, label[name], count, seed, named) for at, (name, seed, count, named) in enumerate(lines)]
    files = [str(task.path) for task in tasks_of(jobs)]
    if len({file.casefold() for file in files}) < len(files):
        with pytest.raises(UserError, match=r"would make .*, as line \d does"):
            read_jobs(path, synth)
        return
    makers = Makers(read_jobs(path, synth))
    assert all(makers.makes(file) and makers.makes(file.upper().replace(".WAV", ".wav")) for file in files)
    others = [f"{folder}/{stem}.wav" for folder in ("Rain", "DogBark") for stem in ("a", "Rain_s1", "a_s4", "x_s3")]
    made = {file.casefold() for file in files}
    assert [makers.makes(file) for file in others] == [file.casefold() in made for file in others]


def test_columns_of_other_names_are_repeated_in_the_manifest(here: Path, toy: list[str]) -> None:
    write("label,split,mood\nrain,train,-1\ndog,test,=1+1\n")
    assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 0
    write("label,recording_id\ngun,r1\n")
    assert main(["jobs", "jobs.csv", "-o", "aug", *toy]) == 0
    with (here / "aug/manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["recording_id"], row["split"], row["mood"]) for row in rows] == [
        ("GunShot", "r1", "", ""), ("Rain", "", "train", "-1"), ("DogBark", "", "test", "'=1+1"),
    ]  # fmt: skip


def test_labels_that_would_share_a_file_are_noticed() -> None:
    conflict = Makers([Job(2, "a/b"), Job(3, "c"), Job(4, "a:b")]).conflict()
    assert conflict
    assert (conflict[0].line, conflict[1].line, conflict[2]) == (4, 2, Path("a_b/a_b_s0.wav"))
    assert Makers([Job(2, "=a"), Job(3, "=b")]).makes("_a/_a_s0.wav")


# --- two at once --------------------------------------------------------------------------------------------------


def test_a_second_command_in_the_folder_is_told_and_loses_nothing(here: Path, toy: list[str]) -> None:
    write("label,count,seconds\nrain,30,1\ndog,30,1\n")
    processes = [command("-o", "aug", *toy) for _ in range(3)]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert {code for _, code in ends} <= {0, 2}
    assert 0 in {code for _, code in ends}
    assert all("aug is in use by process" in err and len(err.splitlines()) == 1 for err, code in ends if code == 2)
    assert main(["jobs", "jobs.csv", "-o", "whole", *toy]) == 0
    assert contents(here / "aug") == contents(here / "whole")
