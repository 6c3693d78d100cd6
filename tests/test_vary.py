"""Variations, morphs, walks and longer sounds: how far a variation is, what the ends are, whether seams are audible.

A GAN changes smoothly with its latent. The default instrument renders position after position, so that a small change of
its latent at one position changes all later ones: the claims about it are weaker.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import toy_instrument, toy_manifest

from foleybox.audio import Wave, read_wave, rms_db, true_peak_db
from foleybox.cli import main
from foleybox.errors import UserError
from foleybox.studio import extend, latents
from foleybox.studio.latents import Point, interpolate, mix_mels, morph, neighbour, point_of, vary, walk
from foleybox.studio.recipe import read_recipe, write_clip
from foleybox.studio.remake import remake, rerender
from foleybox.studio.seeds import VARY, noise
from foleybox.studio.shape import Shape, event_loudness, levels
from foleybox.studio.synth import Clip, Synth


@pytest.fixture(scope="module")
def synth(tmp_path_factory: pytest.TempPathFactory) -> Synth:
    return Synth.load(toy_instrument(tmp_path_factory.mktemp("vary") / "toy"), threads=1)


@pytest.fixture(scope="module")
def instruments() -> dict[str, Synth]:
    return {name: Synth.load(name, threads=1) for name in ("foley",)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(wave: Wave, rate: int) -> np.ndarray:
    """Return log levels [frames, bands] in dB: 46 ms, 24 bands a third of an octave or wider."""
    size = 2 ** round(math.log2(0.046 * rate))
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[:: size // 2] * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(frames)))  # [frames, bins]
    edges = np.unique(np.geomspace(2, size // 2, 25).round().astype(int))
    return 10 * np.log10(np.stack([power[:, a:b].mean(1) for a, b in itertools.pairwise(edges)], 1) + 1e-8)


def distance(a: Wave, b: Wave, rate: int) -> float:
    """Return how far two sounds of one length are apart, in dB, in the mean over time and bands."""
    return float(np.abs(picture(a, rate) - picture(b, rate)).mean())


def first(clips: Iterator, count: int) -> list:
    return list(itertools.islice(clips, count))


# --- neighbours ---------------------------------------------------------------------------------------------------


def test_amount_0_is_the_same_sound_and_every_neighbour_is_another(synth: Synth) -> None:
    source = synth.render("rain", 7)
    (same,) = first(vary(synth, source.recipe.make, 0.0, batch=1), 1)
    np.testing.assert_array_equal(same.wave, source.wave)
    waves = [clip.wave for clip in first(vary(synth, source.recipe.make, 0.3), 6)]
    for one, other in itertools.combinations([source.wave, *waves], 2):
        assert np.abs(one - other).max() > 0.01


def test_neighbours_are_a_function_of_their_seeds_alone(synth: Synth) -> None:
    make = synth.render("rain", 7).recipe.make
    for batch in (1, 3):
        for seed, clip in zip(range(5, 12), vary(synth, make, 0.3, seed=5, batch=batch)):
            assert clip.seed == seed
            (alone,) = first(vary(synth, make, 0.3, seed=seed, batch=1), 1)
            np.testing.assert_allclose(clip.wave, alone.wave, atol=2**-15)


@pytest.mark.parametrize(("name", "amounts"), [("foley", (0.05, 0.1, 0.2, 0.4, 0.7, 1))])
def test_the_larger_the_amount_the_more_different_the_sound(
    instruments: dict[str, Synth], name: str, amounts: tuple[float, ...]
) -> None:
    synth, means = instruments[name], []
    sources = [synth.render(label, 3) for label in ("dog", "step", "rain")]
    for amount in amounts:
        pairs = [(source, first(vary(synth, source.recipe.make, amount, batch=1), 1)[0]) for source in sources]
        means.append(np.mean([distance(source.wave, clip.wave, clip.rate) for source, clip in pairs]))
    assert means == sorted(means)
    assert means[0] < 0.4 * means[-1]
    if 0.2 in amounts:
        fresh = [distance(source.wave, synth.render(source.label, 4).wave, source.rate) for source in sources]
        assert means[amounts.index(0.2)] < 0.5 * np.mean(fresh)  # the default amount gives a similar sound


def test_neighbours_and_walks_stay_standard_normal() -> None:
    start = Point(noise(1, (4_000,)).astype(float), 1.0, {"Rain": 1.0})
    for amount in (0.1, 0.5, 0.9):
        drawn = neighbour(start, noise(2, (4_000,), VARY), amount).latent  # pyright: ignore[reportAttributeAccessIssue]
        assert drawn.std() == pytest.approx(1, abs=0.04)
        assert np.corrcoef(start.latent, drawn)[0, 1] == pytest.approx(math.cos(amount * math.pi / 2), abs=0.04)


def test_a_walk_goes_on_by_steps_of_one_length_and_is_found_again_at_any_step(synth: Synth) -> None:
    source = synth.render("rain", 7)
    clips = first(walk(synth, source.recipe.make, 0.2, seed=3, batch=4), 9)
    np.testing.assert_allclose(clips[0].wave, source.wave, atol=2**-15)
    for clip in clips:
        np.testing.assert_allclose(remake(clip.recipe.make, synth), clip.wave, atol=2**-15)
    latents = [point_of(clip.recipe.make, synth).latent for clip in first(walk(synth, source.recipe.make, 0.2, 3), 40)]  # pyright: ignore[reportAttributeAccessIssue]
    assert np.std(latents) == pytest.approx(1, abs=0.25)
    turns = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in itertools.pairwise(latents)]
    assert np.mean(turns) == pytest.approx(math.cos(0.2 * math.pi / 2), abs=0.03)


def test_a_silent_neighbour_is_drawn_anew(synth: Synth, monkeypatch: pytest.MonkeyPatch) -> None:
    make = synth.render("rain", 7).recipe.make
    drawn = [remake({"do": "vary", "of": make, "amount": 1, "seed": 0, "stream": s}, synth) for s in range(8)]
    peaks = [float(np.abs(wave).max()) for wave in drawn]
    monkeypatch.setattr("foleybox.studio.synth.AUDIBLE", peaks[0] + 1e-6)
    louder = next(stream for stream, peak in enumerate(peaks) if peak > peaks[0] + 1e-6)
    (clip,) = first(vary(synth, make, 1.0, batch=1), 1)
    assert clip.recipe.make["stream"] == louder
    np.testing.assert_array_equal(clip.wave, drawn[louder])


# --- morphs -------------------------------------------------------------------------------------------------------


def test_the_ends_of_a_morph_are_the_two_sounds(synth: Synth) -> None:
    for a, b in ((("rain", 1), ("rain", 2)), (("rain", 1), ("dog", 2))):
        one, other = synth.render(*a), synth.render(*b)
        clips = list(morph(synth, one.recipe.make, other.recipe.make, 5))
        for clip, end in ((clips[0], one), (clips[-1], other)):
            lowered = 10 ** (clip.recipe.make["db"] / 20)  # by the same as all, so that no peak is above the ceiling
            np.testing.assert_allclose(clip.wave, lowered * end.wave, atol=2**-15)
        assert [clip.recipe.make["at"] for clip in clips] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("name", "other"), [("foley", "rain"), ("foley", "motor")])
def test_a_morph_leaves_one_sound_and_comes_to_the_other(instruments: dict[str, Synth], name: str, other: str) -> None:
    synth = instruments[name]
    one, two = synth.render("rain", 2), synth.render(other, 3)
    clips = list(morph(synth, one.recipe.make, two.recipe.make, 5))

    def timbre(clip: Clip) -> np.ndarray:
        return picture(clip.wave, clip.rate).mean(0)

    def apart(clip: Clip, end: Clip) -> float:
        return float(np.abs(timbre(clip) - timbre(end)).mean())

    nearer = [apart(clip, one) - apart(clip, two) for clip in clips]
    assert nearer == sorted(nearer)
    assert nearer[0] < 0 < nearer[-1]
    low, high = sorted((rms_db(one.wave), rms_db(two.wave)))
    assert all(low - 8 < rms_db(clip.wave) < high + 8 for clip in clips)  # no hole and no hump on the way


def test_between_keeps_the_length_and_the_angle() -> None:
    a, b = (Point(noise(seed, (500,)).astype(float), 1.0, {"Rain": 1.0}) for seed in (1, 2))
    for at in (0.0, 0.3, 1.0):
        here = interpolate(a, b, at)
        length = (1 - at) * np.linalg.norm(a.latent) + at * np.linalg.norm(b.latent)
        assert np.linalg.norm(here.latent) == pytest.approx(length)
    np.testing.assert_allclose(interpolate(a, a, 0.5).latent, a.latent)
    zero = Point(np.zeros(500), 0.0, {"Rain": 1.0})
    assert np.isfinite(interpolate(zero, a, 0.5).latent).all()


def test_labels_mix_by_their_weights_also_twice_over() -> None:
    rain, dog = (Point(np.ones(4), 1.0, {label: 1.0}) for label in ("Rain", "DogBark"))
    half = interpolate(rain, dog, 0.5)
    assert half.labels == {"Rain": 0.5, "DogBark": 0.5}
    assert interpolate(half, rain, 0.5).labels == {"Rain": 0.75, "DogBark": 0.25}
    assert neighbour(half, np.ones(4), 0.5).labels == half.labels  # pyright: ignore[reportAttributeAccessIssue]
    assert interpolate(rain, dog, 0.0).labels == {"Rain": 1.0}


def test_a_mixed_mel_has_the_mean_timbre_and_a_level_between() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal((6, 12)).astype(np.float32) - 4 * n for n in range(2))
    half = mix_mels([(one, 0.5), (other, 0.5)])
    apart = half - (one + other) / 2
    np.testing.assert_allclose(apart, apart.mean(), atol=1e-5)  # the same everywhere: only the level is moved
    level = [latents._level(mel) for mel in (one, half, other)]
    assert level[1] == pytest.approx((level[0] + level[2]) / 2, abs=1e-5)
    assert mix_mels([(one, 1.0)]) is one


def test_the_onsets_of_a_blend_meet_and_what_sounds_in_one_only_becomes_quieter() -> None:
    one, other = np.full((4, 40), -9, np.float32), np.full((4, 40), -9, np.float32)
    one[0, 10:14], other[2, 30:34] = 0, -1
    half = latents.blend(one, other, 0.5, [10, 30])
    assert (half[0, 20:24] > -4).all()  # a quarter of the way down to -9: loudness is halved
    assert (half[2, 20:24] > -5).all()
    assert half[0].argmax() == half[2].argmax() == 20
    assert half[1].max() < -8.9
    assert latents.blend(one, other, 0, [10, 30]) is one
    assert latents.blend(one, other, 1, [10, 30]) is other


@pytest.mark.parametrize("pair", ["gun rain", "step key", "key key"])
def test_the_steps_of_a_morph_are_on_the_line_in_loudness_as_they_are_written(
    instruments: dict[str, Synth], here: Path, pair: str
) -> None:
    synth, (one, other) = instruments["foley"], pair.split()
    makes = [synth.render(label, seed).recipe.make for label, seed in ((one, 31), (other, 32))]
    loud = []
    for clip in morph(synth, *makes, 4):  # pyright: ignore[reportCallIssue]
        clip.save(here / "step.wav")
        wave, rate = read_wave(here / "step.wav")
        assert true_peak_db(wave) <= -1 + 0.001
        loud.append(event_loudness(wave, rate))
    assert np.abs(np.array(loud) - np.linspace(loud[0], loud[-1], 4)).max() < 2


def test_a_morph_of_an_earlier_version_is_rendered_as_it_was(synth: Synth) -> None:
    one, other = (synth.render(label, 1) for label in ("rain", "dog"))
    old = {"do": "morph", "of": one.recipe.make, "to": other.recipe.make, "at": 0.5}
    mels = synth.mel(["Rain", "DogBark"], np.stack([noise(1, synth.instrument.latent)] * 2))
    (expected,) = synth.vocode(mix_mels([(mels[0], 0.5), (mels[1], 0.5)])[None])
    np.testing.assert_allclose(remake(old, synth), expected, atol=2**-15)
    old = {"do": "vary", "of": one.recipe.make, "amount": 0.3, "seed": 2, "stream": 0}
    moved = neighbour(
        Point(noise(1, synth.instrument.latent).astype(float), 1.0, {"Rain": 1.0}),
        noise(2, synth.instrument.latent, VARY),
        0.3,
    )
    (expected,) = latents.render_points(synth, [moved])
    np.testing.assert_allclose(remake(old, synth), expected, atol=2**-15)


def test_variations_of_the_default_instrument_keep_the_time_and_level_of_events_and_render_again(
    instruments: dict[str, Synth],
) -> None:
    synth = instruments["foley"]
    for label in ("step", "gun", "key"):
        source, other = synth.render(label, 3), synth.render(label, 4)
        for clip in first(vary(synth, source.recipe.make, 0.1, seed=50, batch=2), 2):
            assert clip.recipe.make["follow"] == 0.9
            near, far = (distance(clip.wave, each.wave, clip.rate) for each in (source, other))
            assert near < 0.3 * far
            assert abs(event_loudness(clip.wave, clip.rate) - event_loudness(source.wave, clip.rate)) < 4
        np.testing.assert_allclose(remake(clip.recipe.make, synth), clip.wave, atol=2**-14)  # pyright: ignore[reportPossiblyUnboundVariable]


# --- what cannot be done ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_an_amount_beyond_0_to_1_is_said(synth: Synth, amount: float) -> None:
    make = synth.render("rain", 0).recipe.make
    for endless in (vary(synth, make, amount), walk(synth, make, amount)):
        with pytest.raises(UserError, match=r"expected 0 .* to 1"):
            next(endless)


def test_a_scene_has_no_neighbours(synth: Synth) -> None:
    with pytest.raises(UserError, match="says perform, not one rendered sound"):
        next(vary(synth, {"do": "perform", "label": "Rain", "seed": 1}, 0.2))
    with pytest.raises(UserError, match="2 or more"):
        next(morph(synth, synth.render("rain", 0).recipe.make, synth.render("rain", 1).recipe.make, 1))


# --- longer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calm", [True, False])
@pytest.mark.parametrize("seconds", [0.2251, 0.5, 3.0])
def test_a_longer_sound_is_exactly_as_long_and_made_again_from_its_recipe(
    synth: Synth, calm: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extend, "is_steady", lambda *_: calm)
    clip = synth.render("rain", 1)
    longer = extend.finished(synth, clip, Shape(seconds=seconds))
    assert len(longer.wave) == round(seconds * 8_000)
    assert longer.recipe.make["kind"] == ("steady" if calm else "events")
    np.testing.assert_array_equal(rerender(longer.recipe, synth)[0], longer.wave)
    joint = longer.recipe.make["joint"]
    np.testing.assert_array_equal(longer.wave[12 : 1_500 - joint], clip.wave[12 : 1_500 - joint])  # 1.5 ms: no click
    assert abs(longer.wave[-1]) < 1e-2


def test_a_sound_that_is_long_enough_is_not_built(synth: Synth) -> None:
    clip = synth.render("rain", 1)
    assert extend.finished(synth, clip, Shape(seconds=0.2)).recipe.make == clip.recipe.make


@pytest.mark.parametrize(("name", "label", "seed"), [("foley", "rain", 2), ("foley", "rain", 3), ("foley", "motor", 2)])
def test_no_seam_of_a_longer_steady_sound_exceeds_its_own_changes(
    instruments: dict[str, Synth], name: str, label: str, seed: int
) -> None:
    synth = instruments[name]
    clip, rate = synth.render(label, seed), synth.instrument.rate
    longer = extend.extend(synth, clip, 20 * rate)
    make, frame = longer.recipe.make, 512  # samples from one picture's column to the next
    assert make["kind"] == "steady"
    frames = picture(longer.wave, rate)
    flux = np.abs(np.diff(frames, axis=0)).mean(1)  # dB from one column to the next
    joined = np.zeros(len(flux), bool)
    for part in make["parts"][1:]:
        joined[part[4] // frame : (part[4] + make["joint"]) // frame + 1] = True
    assert len(make["parts"]) > 5
    own = np.abs(np.diff(picture(clip.wave, rate), axis=0)).mean(1)
    assert flux[joined].mean() < 1.1 * own.mean()
    assert flux[joined].max() < 1.3 * own.max()

    def spread(wave: Wave) -> float:
        return float(np.ptp(10 * np.log10(np.convolve(10 ** (levels(wave, rate) / 10), np.ones(20) / 20, "valid"))))

    assert spread(longer.wave[: -rate // 10]) < spread(clip.wave[: -rate // 10]) + 3


def test_a_longer_bark_has_further_barks_each_different(instruments: dict[str, Synth]) -> None:
    synth = instruments["foley"]
    clip = synth.render("dog", 0)
    longer = extend.extend(synth, clip, 10 * 22_050)
    make = longer.recipe.make
    assert make["kind"] == "events"
    assert len({tuple(part[:2]) for part in make["parts"][1:]}) == len(make["parts"]) - 1
    for start in range(0, 10, 5):
        assert event_loudness(longer.wave[start * 22_050 : (start + 5) * 22_050], 22_050) > -40


# --- the verbs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(synth: Synth) -> str:
    return str(synth.folder)


def test_a_file_is_varied_as_it_was_treated(here: Path, toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["generate", "rain", "--instrument", toy, "--seconds", "0.1", "--lufs", "-30", "-o", "Töne und mehr"]) == 0
    )
    source = "Töne und mehr/Rain/Rain_s0.wav"
    assert main(["vary", source, "-n", "2", "--seed", "4", "--instrument", toy, "-o", "v", "--sheet", "v/s.png"]) == 0
    assert sorted(path.name for path in (here / "v").iterdir()) == ["Rain_s0_v4.wav", "Rain_s0_v5.wav", "s.png"]
    wave, rate = read_wave(here / "v" / "Rain_s0_v4.wav")
    assert len(wave) == 0.1 * rate
    assert event_loudness(wave, rate) == pytest.approx(-30, abs=0.1)
    assert main(["vary", source, "-n", "1", "--seconds", "0.5", "--instrument", toy, "-o", "long"]) == 0
    recipe = read_recipe(here / "long" / "Rain_s0_v0.wav")
    assert recipe is not None
    assert recipe.asked == {"seconds": 0.5, "lufs": -30.0}
    assert (
        main(["vary", "long/Rain_s0_v0.wav", "-n", "1", "--instrument", toy, "-o", "again"]) == 0
    )  # of the one it began with
    capsys.readouterr()
    assert main(["info", source, "--recipe"]) == 0
    (here / "r.json").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["vary", "r.json", "-n", "1", "--seed", "4", "--instrument", toy, "-o", "j"]) == 0
    assert (here / "j" / "r_v4.wav").read_bytes() == (here / "v" / "Rain_s0_v4.wav").read_bytes()


def test_morph_and_walk_write_their_steps(here: Path, toy: str) -> None:
    assert main(["morph", "rain:1", "dog:2", "-n", "3", "--instrument", toy]) == 0
    assert main(["walk", "rain:1", "-n", "11", "--instrument", toy, "--format", "flac"]) == 0
    names = sorted(path.name for path in (here / "out").iterdir())
    assert names == [
        *(f"Rain_s1-DogBark_s2_m{step}.wav" for step in range(3)), *(f"Rain_s1_w{step:02}.flac" for step in range(11))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vary", "nowhere.wav"], "no file nowhere.wav: expected a sound file made by foleybox"),
        (["vary", "cat:3"], "unknown label 'cat'"),
        (["vary", "rain:-3"], "no file rain:-3"),
        (["vary", "rain:٣"], "no file rain"),
        (["vary", f"rain:{2**53}"], "expected a whole number from 0"),
        (["vary", "rain:3", "--amount", "2"], "amount 2.0: expected 0"),
        (["vary", "rain:3", "--count", "0"], "--count 0: expected 1 or more"),
        (["vary", "rain:3", "--lufs", "9"], "--lufs 9.0: expected -70 to 0 LUFS"),
        (["vary", "rain:3", "--fade", "1"], "--fade 1.0: the sound has 0.225 s; expected 0 to 0.225 seconds"),
        (["walk", "rain:3", "-o", "x.wav"], "-o x.wav is a sound file's name: expected a folder"),
        (["vary", "rain:3", "--sheet", "x.gif"], "ends in .png"),
        (["vary", "theirs.wav"], "theirs.wav: it carries no recipe"),
        (["vary", "scene.wav"], "scene.wav: the recipe says perform, not one rendered sound"),
        (["vary", "edited.json"], "edited.json: the recipe was edited"),
        (["morph", "rain:3", "rain:4", "--steps", "1"], "1 steps: expected 2 or more"),
        (["walk", "rain:3", "--steps", "0"], "0 steps: expected 2 or more"),
        (["vary", "rain:3", "-o", "there"], "there/Rain_s3_v0.wav exists already: add --force"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    here: Path, synth: Synth, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    recipe = synth.render("rain", 3).recipe
    write_clip("theirs.wav", np.zeros(99, np.float32), recipe)
    (here / "theirs.wav").write_bytes(
        (here / "theirs.wav").read_bytes().replace(b"fbrc", b"junk").replace(b"foleybox 0", b"someone's")
    )
    write_clip(
        "scene.wav",
        np.zeros(99, np.float32),
        synth.clip(
            np.zeros(9, np.float32), {"do": "perform", "label": "Rain", "seed": 0, "samples": 9, "tracks": []}
        ).recipe,
    )
    (here / "edited.json").write_text(recipe.to_json().replace(": 3", ": 4"))
    (here / "there").mkdir()
    (here / "there/Rain_s3_v0.wav").write_bytes(b"mine")
    assert main([*arguments, "--instrument", str(synth.folder)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert not (here / "out").exists()


def test_sounds_of_two_instruments_are_not_joined(here: Path, synth: Synth, monkeypatch, capsys) -> None:
    monkeypatch.setattr("foleybox.instrument.SHIPPED", here / "shipped")
    (here / "shipped").mkdir()
    for name in ("a", "b"):
        labels = tuple(reversed(toy_manifest().labels)) if name == "b" else toy_manifest().labels
        folder = toy_instrument(here / "shipped" / name, name=name, labels=labels)
        Synth.load(folder).render("rain", 1).save(f"{name}.wav")
    assert main(["morph", "a.wav", "b.wav"]) == 2
    assert "a.wav is of a, b.wav of another instrument" in capsys.readouterr().err
