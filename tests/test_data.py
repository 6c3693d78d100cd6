"""Recordings are found in every layout, checked, split by recording and cached safely."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers_lab import toy_folder, toy_wave

from foleybox.errors import UserError
from foleybox.lab.core.cache import cached, load_mels
from foleybox.lab.core.check import DataCheck, check, inspect
from foleybox.lab.core.clips import find_clips, label_ids, load_waves, split_by_recording, training_rows
from foleybox.lab.core.mel import DCASE, LogMel


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))


def write(path: Path, wave: np.ndarray, rate: int = 22_050) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)


def test_the_dcase_tree_is_found_in_sorted_order(tmp_path: Path) -> None:
    clips = find_clips(toy_folder(tmp_path / "dev", per_label=2, seconds=0.5))
    assert len(clips) == 14
    assert [clip.path.name for clip in clips[:2]] == ["000.wav", "001.wav"]
    assert label_ids(clips).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_class_folders_in_any_spelling_and_below_a_split_folder_are_found(tmp_path: Path) -> None:
    for folder in ("train/dog_bark", "train/SneezeCough", "eval/Moving Motor Vehicle", "eval/cats"):
        write(tmp_path / folder / "a.wav", toy_wave(0, 0, 0.2))
    clips = find_clips(tmp_path)
    assert [(clip.split, clip.label and clip.label.name) for clip in clips] == [
        ("eval", "MovingMotorVehicle"),
        ("train", "Sneeze_Cough"),
        ("train", "DogBark"),
    ]
    assert len(find_clips(f"{tmp_path}:eval")) == 1
    assert len(find_clips(tmp_path, any_label=True)) == 4


def test_a_manifest_gives_label_split_tier_and_recording(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write(tmp_path / "wav" / name, toy_wave(0, 0, 0.2))
    (tmp_path / "manifest.csv").write_text(
        "﻿file,label,split,licence_tier,recording_id\n"
        "wav/a.wav,Rain,train,open,r1\nwav/b.wav,rain,dev,nc,r2\nwav/c.wav,cat,train,open,r1\n",
        encoding="utf-8",
    )
    clips = find_clips(tmp_path)
    assert [(clip.split, clip.tier, clip.recording) for clip in clips] == [("train", "free", "r1"), ("dev", "nc", "r2")]
    assert [clip.tier for clip in find_clips(f"{tmp_path}:dev")] == ["nc"]
    assert len(find_clips(tmp_path, tiers=["open"])) == 1
    rows = training_rows(find_clips(tmp_path, any_label=True))
    assert [row["label"] for row in rows] == ["Rain", "Rain", "(other)"]
    assert rows[0]["clip"].startswith("wav/a.wav ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no folder .*nowhere: expected a folder of class folders"),
        ("empty", "no clips of the seven labels in .*empty .found: no folders.: expected class folders"),
        ("cats", "found: cats"),
        ("sounds:test", "no clips of split 'test' in .*: its splits are none"),
        ("bad", "has columns label, wav: expected `file`"),
        ("hole", "line 3: file or label is empty"),
        ("latin", "cannot be read as a table .*save it as CSV in UTF-8"),
    ],
)
def test_a_folder_without_clips_is_a_user_error(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "cats" / "cats" / "a.wav", toy_wave(0, 0, 0.2))
    toy_folder(tmp_path / "sounds", 1, 0.2)
    for name, text in (("bad", "wav,label\na.wav,Rain\n"), ("hole", "file,label\na.wav,Rain\n,Rain\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text(text)
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "metadata.csv").write_bytes("file,label\ntür.wav,Rain\n".encode("latin-1"))
    with pytest.raises(UserError, match=message):
        find_clips(f"{tmp_path}/{source}")


def test_tiers_that_no_manifest_states_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no clips of tiers open .*: it states \(not stated\)"):
        find_clips(toy_folder(tmp_path / "sounds", 1, 0.2), tiers=["open"])


def test_no_recording_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    rows = "".join(f"{i}.wav,Rain,r{i // 4}\n" for i in range(400))
    (tmp_path / "manifest.csv").write_text("file,label,recording_id\n" + rows)
    clips = find_clips(tmp_path)
    kept, held = split_by_recording(clips, 0.2)
    assert len(kept) + len(held) == 400
    assert not {clip.recording for clip in kept} & {clip.recording for clip in held}
    assert 0.1 < len(held) / 400 < 0.3
    more = split_by_recording(clips[:200], 0.2)[1]
    assert set(more) <= set(held)


def test_waves_are_cut_or_padded_to_length(tmp_path: Path) -> None:
    write(tmp_path / "Rain" / "long.wav", np.full(300, 0.5))
    write(tmp_path / "Rain" / "short.wav", np.full(50, -0.5))
    waves = load_waves(find_clips(tmp_path), 22_050, 100)
    assert waves.shape == (2, 100)
    assert waves[0].eq(16384).all()
    assert waves[1, :50].eq(-16384).all()
    assert waves[1, 50:].eq(0).all()


def test_cached_mels_are_those_of_the_waves_and_a_changed_file_is_computed_again(tmp_path: Path) -> None:
    clips = find_clips(toy_folder(tmp_path / "sounds", 1))[:2]
    first = load_mels(clips, DCASE)
    assert first.shape == (2, 80, 344)
    assert torch.equal(load_mels(clips, DCASE), first)
    torch.testing.assert_close(first[0], LogMel(DCASE)(load_waves(clips, 22_050, 88_200)[0].float() / 32768))
    write(clips[0].path, toy_wave(3, 1))
    os.utime(clips[0].path, ns=(1, 1))
    assert not torch.equal(load_mels(clips, DCASE)[0], first[0])


@pytest.mark.parametrize("content", [b"", b"NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', (" + 80 * b" "])
def test_a_damaged_cache_file_is_computed_again(tmp_path: Path, content: bytes) -> None:
    clips = find_clips(toy_folder(tmp_path / "sounds", 1, 0.2))
    cached("toy", clips, "", lambda: torch.zeros(3))
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(content)
    assert torch.equal(cached("toy", clips, "", lambda: torch.ones(3)), torch.ones(3))
    assert torch.equal(cached("toy", clips, "", lambda: torch.zeros(3)), torch.ones(3))


@pytest.mark.parametrize("place", [0, 11, 128, 130, -1, -70])
def test_one_flipped_bit_of_a_cache_file_is_noticed(tmp_path: Path, capsys, place: int) -> None:
    clips = find_clips(toy_folder(tmp_path / "sounds", 1, 0.2))
    cached("toy", clips, "", lambda: torch.zeros(3))
    (path,) = (tmp_path / "cache").iterdir()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert torch.equal(cached("toy", clips, "", lambda: torch.ones(3)), torch.ones(3))
    assert "is damaged (its SHA-256 does not fit) and is computed again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file",
    [
        "../x.wav",
        "/etc/x.wav",
        "Rain/../../x.wav",
        "a\\..\\..\\x.wav",
        "C:x.wav",
        "\\\\host\\x.wav",
        "x\0.wav",
        "\x1b.wav",
    ],
)
def test_a_manifest_that_names_files_outside_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "manifest.csv").write_text(f"file,label\nRain/a.wav,Rain\n{file},Rain\n")
    with pytest.raises(UserError, match=r"manifest\.csv, line 3: .*: expected a file inside the folder"):
        find_clips(tmp_path)


def test_a_cache_interrupted_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = find_clips(toy_folder(tmp_path / "sounds", 1, 0.2))
    monkeypatch.setattr("numpy.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cached("toy", clips, "", lambda: torch.zeros(3))
    assert list((tmp_path / "cache").iterdir()) == []


def bad_folder(folder: Path) -> Path:
    toy_folder(folder, 2, 1.0)
    write(folder / "Rain" / "silent.wav", np.zeros(22_050))
    write(folder / "Rain" / "clipped.wav", np.clip(3 * np.sin(np.arange(22_050) / 30), -1, 1))
    write(folder / "Rain" / "short.wav", toy_wave(1, 5, 0.05))
    write(folder / "Rain" / "long.wav", toy_wave(1, 6, 9.0))
    (folder / "Rain" / "copy.wav").write_bytes((folder / "Rain" / "000.wav").read_bytes())
    (folder / "Rain" / "text.wav").write_text("not audio")
    (folder / "Rain" / "empty.wav").write_bytes(b"")
    (folder / "Rain" / "phone.m4a").write_bytes(b"?")
    write(folder / "Rain" / "a" / "b" / "deep.wav", toy_wave(1, 7, 1.0))
    write(folder / "engine" / "car.wav", toy_wave(1, 8, 1.0))
    return folder


def test_check_reports_every_kind_of_problem(tmp_path: Path) -> None:
    folder = bad_folder(tmp_path / "sounds")
    found = inspect(find_clips(folder, any_label=True), folder, 4.0)
    assert found.clips == len(find_clips(folder)) == 21
    assert found.other == ["engine/car.wav"]
    assert set(found.unreadable) == {"Rain/text.wav", "Rain/empty.wav"}
    assert found.silent == ["Rain/silent.wav"]
    assert found.clipped == ["Rain/clipped.wav"]
    assert found.short == ["Rain/short.wav"]
    assert found.long == ["Rain/long.wav"]
    assert found.duplicates == [["Rain/000.wav", "Rain/copy.wav"]]


def test_the_verb_counts_what_it_found_and_fails_on_unreadable_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bad_folder(tmp_path / "sounds")
    assert check(DataCheck(str(folder), json=tmp_path / "report.json")) == 1
    printed = capsys.readouterr().out
    assert "21 clips in" in printed
    assert "2 unreadable:" in printed
    assert "1 exact duplicates:" in printed
    assert "1 outside the seven labels, not trained on:\n  engine/car.wav" in printed
    unread = "2 audio files outside the class folders, or of a format that is not read:"
    assert f"{unread}\n  Rain/a/b/deep.wav\n  Rain/phone.m4a" in printed
    assert (tmp_path / "report.json").is_file()
    assert check(DataCheck(str(toy_folder(tmp_path / "good", 2, 0.5)))) == 0
    assert check(DataCheck(str(toy_folder(tmp_path / "single", 1, 0.5)))) == 1


def test_the_real_recordings_are_found_by_split_and_tier(shared: Path) -> None:
    train, dev = (find_clips(f"{shared}/data/foley:{split}") for split in ("train", "dev"))
    assert (len(train), len(dev)) == (2516, 516)
    assert not {clip.recording for clip in train} & {clip.recording for clip in dev}
    licensed = find_clips(f"{shared}/data/foley:train", tiers=["open", "open-clip", "nc"])
    assert len(licensed) == 1109
    assert load_waves(dev[:3], 22_050, 88_200).abs().amax(1).gt(0).all()
