"""`foleybox evaluate`: the figures, their JSON, tables and page, and the inputs that are refused."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from toy_embedding import RATE, ToyEmbedding, sounds, toy

from foleybox.audio import write_wave
from foleybox.errors import UserError
from foleybox.lab.core.clips import find_clips
from foleybox.lab.evaluation import page
from foleybox.lab.evaluation.evaluate import Evaluate, _check_official, budget, evaluate, run
from foleybox.lab.evaluation.frechet import Gaussian, Statistics, write_statistics
from foleybox.lab.evaluation.measures import MeasureConfig
from foleybox.lab.evaluation.result import Protocol, read_result, write_result
from foleybox.lab.evaluation.signal import signal_measures
from foleybox.lab.evaluation.tables import PRINTED, differences, markdown, number, printed_title
from foleybox.labels import LABELS

__all__ = ["toy"]  # a fixture


def asked(tmp_path: Path, *generated: str, **changes: Any) -> Evaluate:
    values: dict[str, Any] = {
        "generated": generated or (str(tmp_path / "fake"),),
        "reference": str(tmp_path / "real"),
        "seconds": 4.0 if changes.get("mode") == "official" else 1.0,
        "measure": MeasureConfig(bootstrap=20),
        "players": 0,
    }
    return Evaluate(**{**values, **changes})


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two folders of all seven labels, eight clips each: fake and real."""
    sounds(tmp_path / "real", seed=0)
    sounds(tmp_path / "fake", seed=1)
    return tmp_path


def test_two_runs_with_one_seed_write_the_same_json(toy: ToyEmbedding, folders: Path) -> None:
    for name in ("a", "b"):
        assert evaluate(asked(folders, json=folders / f"{name}.json")) == 0
    assert (folders / "a.json").read_bytes() == (folders / "b.json").read_bytes()
    evaluate(asked(folders, json=folders / "c.json", measure=MeasureConfig(seed=1, bootstrap=20)))
    assert (folders / "a.json").read_bytes() != (folders / "c.json").read_bytes()


def test_the_reference_itself_is_at_no_distance_and_covers_itself(toy: ToyEmbedding, folders: Path) -> None:
    figures = run(asked(folders, str(folders / "real"))).systems[0].mean.figures
    assert abs(figures["frechet"].value) < 1e-5
    assert figures["precision"].value == figures["coverage"].value == 1
    assert figures["accuracy"].value == 1


def test_every_figure_has_its_n_its_interval_and_the_score_of_real_clips(toy: ToyEmbedding, folders: Path) -> None:
    result = run(asked(folders, floor=str(folders / "fake")))
    part = result.systems[0].labels["rain"]
    assert (part.n, part.windows, part.floor_n) == (8, 24, 8)
    for name, figure in part.figures.items():
        assert figure.floor is not None, name
        of_halves = name in ("precision", "recall", "density", "coverage")  # four clips have no five neighbours
        assert (figure.low is None) == of_halves, name
    assert part.figures["frechet"].floor == part.figures["frechet"].value  # the same clips
    protocol = result.protocol
    assert protocol.embedding == "toy"
    assert protocol.windows == toy.rule
    assert protocol.reference_clips["rain"] == 8


def test_of_many_clips_the_distance_is_over_all_and_the_rest_over_a_stated_draw(
    toy: ToyEmbedding, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foleybox.lab.evaluation.embeddings.PIECE", 5)
    every = run(asked(folders)).systems[0]
    result = run(asked(folders, measure=MeasureConfig(bootstrap=20, keep=6)))
    few = result.systems[0]
    assert few.pooled
    assert every.pooled
    for part, whole in ((few.labels["rain"], every.labels["rain"]), (few.pooled, every.pooled)):
        assert (part.n, part.windows, part.kept) == (whole.n, whole.windows, 6)
        for name, figure in part.figures.items():
            exact = name in ("frechet", "accuracy")
            assert (figure.value == pytest.approx(whole.figures[name].value, abs=2e-6)) >= exact, name
        assert part.figures["kad"].value != whole.figures["kad"].value
    assert "| Rain | 8 (6 drawn) |" in markdown(result)
    assert any("wider than those of all" in note for note in result.notes)
    assert any("Of the reference, KAD to coverage" in note for note in result.notes)


def test_wrong_labels_are_far_and_classified_as_wrong(toy: ToyEmbedding, folders: Path) -> None:
    (folders / "fake" / "Rain").rename(folders / "fake" / "swap")
    (folders / "fake" / "DogBark").rename(folders / "fake" / "Rain")
    (folders / "fake" / "swap").rename(folders / "fake" / "DogBark")
    labels = run(asked(folders)).systems[0].labels
    assert labels["rain"].figures["frechet"].value > 20 * labels["keyboard"].figures["frechet"].value
    assert labels["rain"].figures["accuracy"].value == 0
    assert labels["rain"].figures["precision"].value == 0


def test_the_tables_state_embedding_windows_reference_and_n(toy: ToyEmbedding, folders: Path) -> None:
    evaluate(asked(folders, markdown=folders / "t.md"))
    text = (folders / "t.md").read_text(encoding="utf-8")
    for stated in (
        "toy, 8 numbers",
        toy.rule,
        str(folders / "real"),
        "8 to 8 clips",
        "| Rain | 8 |",
        "real clips, Rain",
    ):
        assert stated in text
    header, _, measured, *_ = text[text.index("## Printed figures") :].splitlines()[4:]
    assert "KT S3" in header
    assert "OTHER embedding, reference, protocol" in measured
    assert "here: toy, n 8" in measured


def test_a_statistics_file_gives_the_same_distance_as_its_clips(toy: ToyEmbedding, folders: Path) -> None:
    whole = run(asked(folders, statistics=folders / "real.npz")).systems[0]
    only = run(asked(folders, reference=str(folders / "real.npz"))).systems[0]
    for slug, part in only.labels.items():
        assert part.figures["frechet"].value == whole.labels[slug].figures["frechet"].value
        assert set(part.figures) == {"frechet", "frechet_infinity", "accuracy"}
    assert only.pooled is None


def test_an_earlier_result_is_shown_too_if_it_was_measured_alike(toy: ToyEmbedding, folders: Path) -> None:
    evaluate(asked(folders, json=folders / "a.json"))
    result = run(asked(folders, str(folders / "real"), compare=(folders / "a.json",)))
    assert [record.name for record in result.systems] == ["real", "fake"]
    with pytest.raises(UserError, match="such figures cannot be compared"):
        run(asked(folders, seconds=0.75, compare=(folders / "a.json",)))
    earlier = json.loads((folders / "a.json").read_text())
    earlier["protocol"]["reference_sha256"] = "0" * 16  # other clips, as many
    (folders / "other.json").write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="measured with reference_sha256 0000"):
        run(asked(folders, compare=(folders / "other.json",)))
    (folders / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match="expected a JSON file of"):
        run(asked(folders, compare=(folders / "bad.json",)))


def test_32_clips_are_named_differently_and_not_comparable_with_others(toy: ToyEmbedding, tmp_path: Path) -> None:
    sounds(tmp_path / "real", count=8)
    sounds(tmp_path / "fake", count=33, seed=1, samples=4_000)
    result = run(asked(tmp_path, mode="cmu32", json=tmp_path / "a.json"))
    assert result.protocol.distance == "FD at 32 clips"
    assert {part.n for part in result.systems[0].labels.values()} == {32}
    evaluate(asked(tmp_path, mode="cmu32", json=tmp_path / "a.json"))
    with pytest.raises(UserError, match="measured with mode cmu32"):
        run(asked(tmp_path, compare=(tmp_path / "a.json",)))


# --- bad input ----------------------------------------------------------------------------------------------------


def spoil(folder: Path, how: str) -> None:
    label = folder / "fake" / "Rain"
    if how == "missing":
        for path in label.iterdir():
            path.unlink()
        label.rmdir()
    elif how == "empty":
        for path in label.iterdir():
            path.unlink()
    elif how == "one":
        for path in sorted(label.iterdir())[1:]:
            path.unlink()
    elif how == "silent":
        write_wave(label / "003.wav", np.zeros(RATE, np.float32), RATE)
    elif how == "nan":
        soundfile.write(label / "003.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    elif how == "rates":
        write_wave(label / "003.wav", np.full(RATE, 0.5, np.float32), 2 * RATE)
    elif how == "text":
        (label / "003.wav").write_text("hello")


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("missing", "has no clips of Rain"),
        ("empty", "Rain is empty"),
        ("one", "1 clip of Rain"),
        ("silent", "1 silent clip"),
        ("nan", "NaN"),
        ("rates", "mixes rates, 8000 Hz"),
        ("text", "003.wav"),
    ],
)
def test_clips_that_give_no_valid_figure_are_one_clear_line(
    toy: ToyEmbedding, folders: Path, how: str, complaint: str
) -> None:
    spoil(folders, how)
    with pytest.raises(UserError, match=complaint) as caught:
        evaluate(asked(folders, json=folders / "a.json"))
    assert "\n" not in str(caught.value)
    assert not (folders / "a.json").exists()


def test_silent_clips_and_fewer_labels_are_measured_on_request_and_reported(toy: ToyEmbedding, folders: Path) -> None:
    spoil(folders, "silent")
    assert any("1 clips are silent" in note for note in run(asked(folders, keep_silent=True)).notes)
    assert set(run(asked(folders, labels=("dog_bark", "Keyboard"))).systems[0].labels) == {"dog_bark", "keyboard"}


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        (
            Statistics({label: Gaussian(np.zeros(8), np.eye(8), 9) for label in LABELS}, "mn04"),
            "statistics of mn04, not of toy",
        ),
        (
            Statistics({label: Gaussian(np.zeros(9), np.eye(9), 9) for label in LABELS}, "toy"),
            "reference of another embedding",
        ),
        (
            Statistics({label: Gaussian(np.zeros(8), np.eye(8), 9) for label in LABELS}, ""),
            "does not say of which embedding it is",
        ),
        (Statistics({LABELS[0]: Gaussian(np.zeros(8), np.eye(8), 9)}, "toy"), "no statistics of Footstep"),
    ],
)
def test_statistics_of_another_embedding_are_refused(
    toy: ToyEmbedding, folders: Path, statistics: Statistics, complaint: str
) -> None:
    write_statistics(folders / "other.npz", statistics)
    with pytest.raises(UserError, match=complaint):
        run(asked(folders, reference=str(folders / "other.npz")))


def test_statistics_of_another_encoder_are_refused(
    toy: ToyEmbedding, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "name", "encoder")
    monkeypatch.setattr(toy, "weights", "step 1")
    run(asked(folders, statistics=folders / "real.npz"))
    run(asked(folders, reference=str(folders / "real.npz")))
    monkeypatch.setattr(toy, "weights", "step 2")
    with pytest.raises(UserError, match="statistics of encoder, step 1, not of encoder, step 2"):
        run(asked(folders, reference=str(folders / "real.npz")))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"reference": None}, "no reference"),
        ({"reference": "none.npz"}, "no statistics file"),
        ({"mode": "official", "labels": ("rain",)}, "all seven labels"),
        ({"mode": "official", "seconds": 3.0}, "official measures 4 s"),
        ({"mode": "official", "embedding": "mn04", "reference": "x.npz"}, "defined on vggish-official"),
        ({"mode": "official"}, "compares with a statistics file"),
        ({"mode": "official", "reference": "x.npz"}, "8 clips of DogBark: --mode official takes exactly 100"),
        ({"mode": "cmu32"}, "needs 32 a label"),
        ({"generated": ()}, "nothing to evaluate"),
    ],
)
def test_questions_without_an_answer_are_refused(
    toy: ToyEmbedding, folders: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        run(asked(folders, **changes))


@pytest.mark.parametrize(
    ("rate", "samples", "subtype", "channels"),
    [
        (44_100, 88_200, "PCM_16", 1),
        (22_050, 88_199, "PCM_16", 1),
        (22_050, 88_200, "PCM_24", 1),
        (22_050, 88_200, "PCM_16", 2),
    ],
)
def test_the_official_protocol_refuses_what_its_tool_refuses(
    tmp_path: Path, rate: int, samples: int, subtype: str, channels: int
) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros((samples, channels)), rate, subtype=subtype)
    with pytest.raises(UserError, match="--mode official takes WAV of 22050 Hz, mono, 88200 samples, PCM_16"):
        _check_official(tmp_path / "x.wav")
    soundfile.write(tmp_path / "y.wav", np.zeros(88_200), 22_050, subtype="PCM_16")
    _check_official(tmp_path / "y.wav")
    soundfile.write(tmp_path / "z.flac", np.zeros(88_200), 22_050, subtype="PCM_16")
    with pytest.raises(UserError, match="is FLAC of 22050 Hz"):
        _check_official(tmp_path / "z.flac")


def test_the_official_protocol_takes_a_hundred_clips_and_names_its_score(toy: ToyEmbedding, tmp_path: Path) -> None:
    for label in LABELS:
        folder = tmp_path / "fake" / label.slug
        folder.mkdir(parents=True)
        wave = np.random.default_rng(label.id).normal(0, 0.1, 88_200).astype(np.float32)
        write_wave(folder / "000.wav", wave, 22_050)
        for index in range(1, 100):
            (folder / f"{index:03d}.wav").hardlink_to(folder / "000.wav")
    write_statistics(
        tmp_path / "s.npz", Statistics({label: Gaussian(np.zeros(8), np.eye(8), 1000) for label in LABELS}, "")
    )
    result = run(asked(tmp_path, mode="official", reference=str(tmp_path / "s.npz"), seconds=4.0))
    assert result.protocol.distance == "FAD (challenge protocol)"
    assert {part.n for part in result.systems[0].labels.values()} == {100}
    assert "kad" not in result.systems[0].mean.figures


def test_ninety_nine_clips_are_not_a_hundred(tmp_path: Path) -> None:
    for label in LABELS:
        (tmp_path / "fake" / label.slug).mkdir(parents=True)
        for index in range(99 if label.slug == "rain" else 100):
            (tmp_path / "fake" / label.slug / f"{index}.wav").touch()
    with pytest.raises(UserError, match="99 clips of Rain: --mode official takes exactly 100"):
        run(asked(tmp_path, mode="official", reference="x.npz"))


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_plays_the_clips(toy: ToyEmbedding, folders: Path) -> None:
    evaluate(asked(folders, html=folders / "r.html", players=2))
    text = (folders / "r.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([a-z]+:[a-z]+/[a-z]+)', text)) == {"data:image/png", "data:audio/flac"}
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count("<audio") == 2 * 2 * 7
    first = re.search(r'data:audio/flac;base64,([^"]+)"', text)
    assert first is not None
    (folders / "first.flac").write_bytes(base64.b64decode(first[1]))
    played, rate = soundfile.read(folders / "first.flac")
    real, _ = soundfile.read(folders / "real" / "DogBark" / "000.wav")
    assert rate == RATE
    np.testing.assert_allclose(played, real, atol=2 / 32_768)


def test_many_sounds_go_into_a_folder_next_to_the_page(folders: Path) -> None:
    sounds_of_page = page.Sounds(folders / "r.html", limit=0)
    figure = sounds_of_page.figure(folders / "real" / "Rain" / "000.wav", "rain", 1.0)
    source = re.search(r'<audio[^>]* src="([^"]+)"', figure)
    assert source is not None
    assert (folders / source[1]).is_file()


def test_names_cannot_write_html(toy: ToyEmbedding, folders: Path) -> None:
    (folders / "fake").rename(folders / "<script>alert(1)<")
    evaluate(asked(folders, str(folders / "<script>alert(1)<"), html=folders / "r.html", players=1))
    assert "<script" not in (folders / "r.html").read_text(encoding="utf-8")


def test_the_plot_shows_every_value_its_interval_and_the_score_of_real_clips(toy: ToyEmbedding, folders: Path) -> None:
    result = run(asked(folders))
    drawn = page.plot(result, ["frechet", "accuracy"])
    axes = drawn.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == [*(label.name for label in LABELS), "mean of 7", "pooled"]
    figures = [part.figures["frechet"] for part in result.systems[0].labels.values()]
    dots, marks = axes.lines[0], axes.lines[-1]
    np.testing.assert_allclose(np.asarray(dots.get_xdata())[:7], [figure.value for figure in figures])
    np.testing.assert_allclose(np.asarray(marks.get_xdata())[:7], [figure.floor or np.nan for figure in figures])
    assert page.png(drawn).startswith(b"\x89PNG")


# --- printed figures ----------------------------------------------------------------------------------------------


def test_printed_means_are_the_means_of_their_rows() -> None:
    for row in PRINTED:
        assert len(row.values) == 7
        assert row.mean == pytest.approx(np.mean(row.values), abs=0.0011), row.system
    assert {row.mean for row in PRINTED} >= {9.702, 6.616, 4.833, 5.060}


def some_protocol(**changes: Any) -> Protocol:
    values: dict[str, Any] = {
        **{"mode": "default", "distance": "FD", "embedding": "toy", "width": 8, "windows": "w", "weights": "none"},
        **{"seconds": 4.0, "reference": "real", "reference_clips": {"rain": 8}, "reference_windows": {"rain": 24}},
        **{"floor": None, "k": 5, "seed": 0, "bootstrap": 20, "confidence": 0.95},
    }
    return Protocol(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"embedding": "vggish"}, "OTHER embedding"),
        ({"reference": "ours.npz"}, "OTHER reference"),
        ({"mode": "cmu32"}, "OTHER protocol"),
    ],
)
def test_a_printed_column_says_what_was_measured_differently(changes: dict[str, str], expected: str) -> None:
    same = {"mode": "official", "embedding": "vggish-official", "reference": "x/dcase2023_eval_vggish_stats.npz"}
    protocol = some_protocol(**{**same, **changes})
    cmu = next(row for row in PRINTED if row.system.startswith("CMU"))
    assert differences(PRINTED[0], protocol) == expected
    assert differences(cmu, protocol).removeprefix("OTHER embedding; ") == "reference and n not stated"
    assert ("same protocol" in printed_title(protocol)) == (expected == "")


def test_numbers_keep_three_digits() -> None:
    assert [number(value) for value in (0.0123, 1.5, 12.34, 123.4, None)] == ["0.012", "1.50", "12.3", "123", "–"]


def test_json_of_a_run_is_plain(toy: ToyEmbedding, folders: Path) -> None:
    text = write_result(run(asked(folders)))
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["protocol"]["mode"] == "default"


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_result_is_read_back_as_it_was_written(toy: ToyEmbedding, folders: Path) -> None:
    result = run(asked(folders, signal=True, about=("a test",)))
    (folders / "a.json").write_text(write_result(result), encoding="utf-8")
    assert read_result(folders / "a.json") == result


def test_a_result_of_version_1_is_read(toy: ToyEmbedding, folders: Path) -> None:
    values = json.loads(write_result(run(asked(folders))))
    for key in ("version", "command", "commit"):
        del values[key]
    del values["protocol"]["reference_sha256"], values["protocol"]["keep"]
    for system in values["systems"]:
        del system["run"], system["mean"]["signal"]
        for part in [*system["labels"].values(), system["pooled"]]:
            del part["signal"]
    (folders / "old.json").write_text(json.dumps(values), encoding="utf-8")
    assert read_result(folders / "old.json").systems[0].labels["rain"].n == 8
    assert len(run(asked(folders, compare=(folders / "old.json",))).systems) == 2
    (folders / "new.json").write_text(json.dumps({**values, "version": 3}), encoding="utf-8")
    with pytest.raises(UserError, match="is of version 3, this foleybox reads up to 2"):
        read_result(folders / "new.json")


def test_a_result_records_the_command_and_the_seeds_and_budget_of_its_sounds(toy: ToyEmbedding, folders: Path) -> None:
    for path in sorted((folders / "fake").rglob("*.wav")):
        path.rename(path.with_name(f"x_s{int(path.stem) + 3}.wav"))
    trained = folders / "run"
    trained.mkdir()
    (trained / "config.json").write_text(
        json.dumps({"part": "x", "batch": 16, "seen_before": 5, "seed": 2, "tiers": ["nc"]})
    )
    torch.save({"step": 10}, trained / "state.pt")
    result = run(asked(folders, made_by=(trained,), about=("one line",), json=folders / "a.json"))
    made = result.systems[0].run
    assert made is not None
    assert (made.about, made.clips_seen, made.seed, made.tiers, made.sound_seeds) == (
        "one line",
        165,
        2,
        ("nc",),
        (3, 10),
    )
    assert result.command.startswith(f"foleybox evaluate {folders / 'fake'} --reference {folders / 'real'}")
    assert "--bootstrap 20" in result.command
    assert "json" not in result.command
    with pytest.raises(UserError, match="--made-by has 1 values for 2 folders"):
        run(asked(folders, str(folders / "fake"), str(folders / "real"), made_by=(trained,)))
    with pytest.raises(UserError, match="not a run folder"):
        budget(folders / "fake")


def test_measures_of_the_sounds_alone_find_repetition_and_attacks(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pattern = np.tile(generator.normal(0, 0.1, 300), 74)[:22_050]
    click = np.concatenate([1e-4 * generator.normal(size=11_025), generator.normal(0, 0.1, 11_025)])
    for name, wave in {"Rain": generator.normal(0, 0.1, 22_050), "Keyboard": pattern, "GunShot": click}.items():
        (tmp_path / name).mkdir()
        write_wave(tmp_path / name / "0.wav", wave.astype(np.float32), 22_050)
    found = {label.name: each for label, each in signal_measures(find_clips(str(tmp_path)), 1.0).items()}
    assert found["Rain"]["repetition"] < 0.1 < 0.5 < found["Keyboard"]["repetition"]
    assert found["Rain"]["attacks"] < 10 < 30 < found["GunShot"]["attacks"]
    assert found["Rain"]["roughness"] > 0.2
