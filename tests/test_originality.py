"""`foleybox audit`: copies are found however they are shifted, scaled or re-phased; other recordings are not flagged."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foleybox.audio import fit, read_wave, write_wave
from foleybox.lab.core.clips import find_clips, split_by_recording
from foleybox.lab.core.mel import LogMel
from foleybox.lab.evaluation.originality import (
    MEL,
    Audit,
    AuditResult,
    Nearest,
    Sounds,
    audit,
    compare,
    fast_length,
    mel_correlations,
    mel_spectra,
    nearest_neighbour_ratio,
    run,
    thresholds,
    verdict,
    wave_correlations,
    write_html,
)

RATE, SAMPLES = 22_050, 44_100


def recording(generator: np.random.Generator) -> np.ndarray:
    """A few decaying bursts of noise at moments of their own."""
    wave = np.zeros(SAMPLES)
    for start in generator.uniform(0.05, 1.6, generator.integers(2, 6)):
        at = round(start * RATE)
        length = min(SAMPLES - at, 6_000)
        colour = np.convolve(generator.normal(size=length), generator.normal(size=9), "same")
        wave[at : at + length] += colour * np.exp(-np.arange(length) / generator.uniform(300, 2_000))
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def copied(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """37 ms later, 6 dB down, with noise at 30 dB."""
    shift = round(0.037 * RATE)
    late = np.concatenate([np.zeros(shift), wave[:-shift]]) * 10 ** (-6 / 20)
    return (late + generator.normal(size=len(wave)) * np.sqrt(np.mean(late**2)) * 10 ** (-30 / 20)).astype(np.float32)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """40 training recordings; 20 generated clips, of which the first four are copies; three more that are none."""
    folder, generator = tmp_path_factory.mktemp("studio"), np.random.default_rng(0)
    for name, count in (("train", 40), ("fake", 20), ("own", 3)):
        (folder / name / "GunShot").mkdir(parents=True)
        for index in range(count):
            wave = recording(generator)
            if name == "fake" and index < 4:
                wave = copied(read_wave(folder / "train" / "GunShot" / f"{7 * index:02d}.wav")[0], generator)
            write_wave(folder / name / "GunShot" / f"{index:02d}.wav", wave, RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(folder / "cache"))
        yield folder


def asked(studio: Path, generated: str = "fake", **changes: Any) -> Audit:
    return Audit(str(studio / generated), str(studio / "train"), embedding="none", seconds=2.0, **changes)


@pytest.fixture(scope="module")
def found(studio: Path) -> AuditResult:
    return run(asked(studio))


def test_every_planted_copy_is_found_with_its_source_and_shift_and_nothing_else(found: AuditResult) -> None:
    words = [clip.verdict for clip in found.clips]
    assert words[:4] == ["copy"] * 4
    assert "copy" not in words[4:]
    assert words.count("own") >= 13  # 40 clips to calibrate with: about one in forty is above all of them, each way
    for index, clip in enumerate(found.clips[:4]):
        near = clip.nearest["wave"]
        assert Path(near.nearest).name == f"{7 * index:02d}.wav"
        assert near.lag_ms == pytest.approx(37, abs=0.1)
        assert clip.nearest["mel"].nearest == near.nearest
    assert found.labels["gunshot"]["n"] == 20
    assert found.labels["gunshot"]["copy"] == 4
    assert found.chance == pytest.approx(3 / 41)


def test_the_exit_code_says_whether_there_are_copies_and_two_runs_find_the_same(
    studio: Path, found: AuditResult, tmp_path: Path
) -> None:
    assert audit(asked(studio, json=tmp_path / "a.json")) == 1
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(found)))
    assert found.ways["wave"].limit < 0.9
    assert audit(asked(studio, "own")) == 0


def test_comparing_every_waveform_finds_what_the_candidates_found(studio: Path, found: AuditResult) -> None:
    every = run(asked(studio, candidates=0)).clips
    for a, b in zip(found.clips[:4], every[:4]):
        assert a.nearest["wave"] == b.nearest["wave"]
    pairs = zip(found.clips, every)
    assert all(a.nearest["wave"].similarity <= b.nearest["wave"].similarity + 1e-6 for a, b in pairs)


def test_the_page_plays_both_clips_of_a_pair(studio: Path, found: AuditResult, tmp_path: Path) -> None:
    write_html(asked(studio, html=tmp_path / "a.html", pairs=3), found)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert text.count("<audio") == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_clips_of_ones_own_recording_do_not_set_the_limit() -> None:
    generator = np.random.default_rng(1)
    wave = torch.from_numpy((recording(generator) * 32_767).astype(np.int16))
    other = torch.from_numpy((recording(generator) * 32_767).astype(np.int16))
    known = Sounds(torch.stack([wave, wave, other]), None, ("a", "a", "b"))
    query = Sounds(wave[None], None, ("a",))
    assert compare(query, known, 4, apart=True)["wave"].known.tolist() == [2]
    assert compare(query, known, 4, apart=False)["wave"].value[0] == pytest.approx(1, abs=1e-4)


def test_waveform_correlation_is_the_sum_over_every_lag() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=300), generator.normal(size=300)
    found, lag = wave_correlations(torch.from_numpy(a).float(), torch.from_numpy(b).float()[None])
    every = np.correlate(a, b, "full") / np.linalg.norm(a) / np.linalg.norm(b)
    assert float(found) == pytest.approx(every.max(), abs=1e-5)
    assert int(lag) == int(every.argmax()) - 299  # the query comes that much later
    gained, _ = wave_correlations(torch.from_numpy(0.01 * a).float(), torch.from_numpy(b).float()[None])
    assert float(gained) == pytest.approx(float(found), abs=1e-5)


def test_a_copy_with_other_phases_is_found_by_its_mel_alone() -> None:
    generator = np.random.default_rng(3)
    wave = recording(generator)
    spectrum = torch.stft(torch.from_numpy(wave), 1024, 256, window=torch.hann_window(1024), return_complex=True)
    angles = torch.from_numpy(generator.uniform(0, 2 * np.pi, spectrum.shape)).float()
    again = torch.istft(torch.polar(spectrum.abs(), angles), 1024, 256, window=torch.hann_window(1024), length=SAMPLES)
    waves = torch.stack([torch.from_numpy(wave), again, torch.from_numpy(recording(generator))])
    spectra = mel_spectra(waves, LogMel(MEL))
    similarity, _ = mel_correlations(spectra[:1], spectra)
    assert float(similarity[0, 0]) == pytest.approx(1, abs=1e-4)
    assert float(similarity[0, 1]) > 0.85 > float(similarity[0, 2]) + 0.1
    assert float(wave_correlations(waves[0], waves[1:2])[0]) < 0.5


def test_the_nearest_neighbour_ratio_is_high_for_what_is_similar_to_one_recording_only() -> None:
    similarity = torch.tensor([[0.77, 0.76, 0.19], [0.95, 0.94, 0.90]])
    whose = torch.tensor([0, 0, 1])  # two clips of one recording, one of another
    index, value, _ = nearest_neighbour_ratio(
        similarity, whose, (torch.tensor([0, 0]), similarity[:, 0].double(), torch.zeros(2))
    )
    assert index.tolist() == [0, 0]
    assert value.tolist() == pytest.approx([1 - 0.23 / 0.81, 1 - 0.05 / 0.10], abs=1e-5)


def vocoded(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The sound made again out of noise whose spectrum is its own in every 12 ms, roughly: other phases, other grain."""
    window = torch.hann_window(1024)
    noise = torch.from_numpy(generator.normal(size=len(wave))).float()
    spectra = [
        torch.stft(each, 1024, 256, window=window, return_complex=True) for each in (torch.from_numpy(wave), noise)
    ]
    smooth = torch.nn.functional.avg_pool2d(spectra[0].abs()[None], 5, 1, 2)[0]
    return torch.istft(smooth * spectra[1], 1024, 256, window=window, length=len(wave)).numpy()


def test_a_vocoded_copy_is_found_where_no_other_recording_is_like_it() -> None:
    generator = np.random.default_rng(7)
    steady = [
        generator.normal(size=SAMPLES) * (1 + 0.3 * generator.normal(size=SAMPLES // 441)).repeat(441) for _ in range(8)
    ]
    waves = [(0.1 * each).astype(np.float32) for each in steady]
    known = Sounds(torch.from_numpy(np.stack(waves) * 32_767).to(torch.int16), None, tuple("abcdefgh"))
    again = vocoded(waves[2], generator)
    again = again / np.abs(again).max()
    query = Sounds(torch.from_numpy(again[None] * 32_767).to(torch.int16), None, ("x",))
    found, real = compare(query, known, 4, apart=False), compare(known, known, 4, apart=True)
    assert found["ratio"].known.tolist() == [2]
    assert found["ratio"].value[0] > 2 * real["ratio"].value.max()
    assert found["wave"].value[0] < 0.3


def test_a_delayed_mel_is_found_at_its_delay() -> None:
    wave = fit(recording(np.random.default_rng(4))[:30_000], SAMPLES)
    late = np.concatenate([np.zeros(10 * MEL.hop, np.float32), wave])[:SAMPLES]
    spectra = mel_spectra(torch.from_numpy(np.stack([late, wave])), LogMel(MEL))
    _, lag = mel_correlations(spectra[:1], spectra[1:])
    assert int(lag) == 10


def test_silence_is_like_nothing() -> None:
    waves = torch.zeros(2, SAMPLES)
    assert float(wave_correlations(waves[0], waves[1:])[0]) == 0
    spectra = mel_spectra(waves, LogMel(MEL))
    assert float(mel_correlations(spectra[:1], spectra[1:])[0]) == 0


def test_limits_leave_the_asked_share_of_real_clips_above_over_all_ways() -> None:
    generator = np.random.default_rng(5)
    real = {way: Nearest(np.zeros(1000, int), generator.uniform(size=1000), np.zeros(1000)) for way in ("wave", "mel")}
    limits = thresholds(real, 0.02)
    assert all(9 <= int((each.value > limits[way]).sum()) <= 10 for way, each in real.items())


def test_the_words_of_the_verdict() -> None:
    assert [verdict(["wave"], 0.95), verdict(["mel"], 0.3), verdict([], 0.3)] == ["copy", "close", "own"]


def test_lengths_of_ffts_are_even_smooth_and_long_enough() -> None:
    for size in (2, 1001, 88_200, 176_400):
        length = fast_length(size)
        assert length >= size
        assert length % 2 == 0
        for prime in (2, 3, 5):
            while length % prime == 0:
                length //= prime
        assert length == 1


def test_planted_copies_of_real_clips_are_found(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    dev = find_clips(shared / "data" / "foley", "dev")
    generator = np.random.default_rng(6)
    for name, clips in zip(("train", "other"), split_by_recording(dev, 0.5)):
        for index, clip in enumerate(clips[::4]):
            assert clip.label is not None
            wave = fit(read_wave(clip.path, RATE)[0], 88_200)
            versions = {
                name: wave,
                **({"planted": copied(wave, generator)} if name == "train" and index % 6 == 0 else {}),
            }
            for folder, version in versions.items():
                (tmp_path / folder / clip.label.name).mkdir(parents=True, exist_ok=True)
                write_wave(tmp_path / folder / clip.label.name / f"{index:03d}.wav", version, RATE)
    for name, flagged in (("planted", 1.0), ("other", 0.0)):
        question = Audit(str(tmp_path / name), str(tmp_path / "train"), embedding="none", candidates=6)
        words = [clip.verdict for clip in run(question).clips]
        share = np.mean([word != "own" for word in words])
        assert abs(share - flagged) <= 0.08, (name, words)  # some 85 real clips to calibrate with
