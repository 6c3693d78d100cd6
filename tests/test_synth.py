"""A clip is a function of (instrument, label, seed, parameters), whatever else is rendered."""

import base64
import io
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import FRAMES, HOP, LATENT, NOISE, PATCH, toy_graphs, toy_instrument, toy_manifest

import foleybox
from foleybox.audio import read_wave, true_peak_db
from foleybox.errors import UserError
from foleybox.instrument import SHIPPED, find_instrument, write_instrument
from foleybox.labels import LABELS
from foleybox.studio.recipe import read_recipe
from foleybox.studio.seeds import noise
from foleybox.studio.stream import guidance_rows
from foleybox.studio.synth import Clip, Synth

STEP = 2**-15


@pytest.fixture(scope="module", params=["patches", "gan"])
def synth(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Synth:
    return Synth.load(toy_instrument(tmp_path_factory.mktemp("synth") / "toy", request.param))


def run(kind: str, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """Return what a graph gives for its inputs in order, without onnxruntime."""
    from onnx import ModelProto
    from onnx.reference import ReferenceEvaluator

    model = ModelProto.FromString(toy_graphs(kind)[name])
    values = dict(zip((each.name for each in model.graph.input), inputs, strict=True))
    return list(map(np.asarray, ReferenceEvaluator(model).run(None, values)))


def test_a_clip_of_a_gan_is_the_graphs_of_the_seeds_noise(tmp_path: Path) -> None:
    (mel,) = run("gan", "generator", noise(7, (1, LATENT)), np.array([5]))
    (wave,) = run("gan", "vocoder", mel)
    synth = Synth.load(toy_instrument(tmp_path / "toy", "gan"))
    np.testing.assert_allclose(synth.render("rain", 7).wave, wave[0, : FRAMES * HOP - 120], atol=1e-6)


@pytest.mark.parametrize(("label", "guidance", "temperature"), [(5, 1.0, 1.0), (4, 1.5, 1.0), (6, 1.0, 0.9)])
def test_a_clip_of_patches_is_drawn_position_by_position(
    tmp_path: Path, label: int, guidance: float, temperature: float
) -> None:
    latent = noise(7, (1, FRAMES // PATCH, LATENT + PATCH * NOISE))
    rows = 1 if guidance == 1 else 2  # the second one without a label
    labels, mix = np.array([label, -1][:rows]), np.array([[guidance, 1 - guidance]] * 2, np.float32)[:rows, :rows]
    keys, values = np.zeros((2, rows, 1, 2, LATENT), np.float32)
    drawn = [np.zeros((rows, LATENT), np.float32)]
    for position in range(FRAMES // PATCH):
        patch = np.repeat(latent[:, position, :LATENT] * np.float32(temperature), rows, 0)
        inputs = (drawn[-1], labels, mix, np.array(position), patch, keys, values)
        latents, keys[:, :, position % 2], values[:, :, position % 2] = run("patches", "next", *inputs)
        drawn.append(latents)
    latents, channels = np.stack([each[0] for each in drawn[1:]])[None], latent[:, :, LATENT:].reshape(1, -1, NOISE)
    (wave,) = run("patches", "vocoder", *run("patches", "decoder", latents, channels))
    synth = Synth.load(toy_instrument(tmp_path / "toy"))
    np.testing.assert_allclose(synth.render(label, 7).wave, wave[0, : FRAMES * HOP - 120], atol=1e-6)


def test_only_a_clip_with_guidance_has_a_second_row_and_clips_are_never_mixed() -> None:
    clip, label, mix = guidance_rows(np.array([5, 3, 0]), np.array([2.0, 1.0, 1.5], np.float32))
    assert clip.tolist() == [0, 1, 2, 0, 2]
    assert label.tolist() == [5, 3, 0, -1, -1]
    assert mix[[0, 3]].tolist() == [[2, 0, 0, -1, 0]] * 2
    assert mix[1].tolist() == [0, 1, 0, 0, 0]
    assert mix[[2, 4]].tolist() == [[0, 0, 1.5, 0, -0.5]] * 2


def test_a_clip_is_the_same_alone_in_any_batch_and_in_another_process(synth: Synth, tmp_path: Path) -> None:
    pairs = [(label.name, seed) for seed in range(10) for label in LABELS][:64]
    together = list(synth.render_many(pairs, batch=64))
    alone = [synth.render(label, seed) for label, seed in pairs]
    ragged = list(synth.render_many(reversed(pairs), batch=7))[::-1]
    code = (
        "import sys, numpy as np; from foleybox.studio.synth import Synth; s = Synth.load(sys.argv[1]);"
        "np.save(sys.argv[2], np.stack([s.render(int(i) % 7, int(i) // 7).wave for i in range(64)]))"
    )
    subprocess.run([sys.executable, "-c", code, synth.folder, tmp_path / "x.npy"], check=True, timeout=60)
    elsewhere = np.load(tmp_path / "x.npy")
    for place, clip in enumerate(together):
        assert (clip.label, clip.seed) == pairs[place]
        for other in (alone[place].wave, ragged[place].wave, elsewhere[place]):
            assert np.abs(clip.wave - other).max() < STEP


def test_every_seed_and_every_label_is_another_sound(synth: Synth) -> None:
    waves = [clip.wave for clip in synth.render_many(itertools.product(range(7), range(4)))]
    for one, other in itertools.combinations(waves, 2):
        assert np.abs(one - other).max() > 0.01


def test_a_clip_longer_than_the_graph_gives_is_zero_padded(tmp_path: Path) -> None:
    folder = toy_instrument(tmp_path / "long", samples=FRAMES * HOP + 50)
    wave = Synth.load(folder).render("rain", 0).wave
    assert len(wave) == FRAMES * HOP + 50
    assert not wave[-50:].any()
    assert wave[: FRAMES * HOP].any()


def test_rendering_streams_from_an_endless_supply(synth: Synth) -> None:
    endless = synth.render_many((("rain", seed) for seed in itertools.count()), batch=16)
    assert [clip.seed for clip in itertools.islice(endless, 40)] == list(range(40))


def test_temperature_zero_is_one_sound_for_all_seeds(synth: Synth) -> None:
    one, other = (synth.render("rain", seed, temperature=0).wave for seed in (1, 2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("label", ["dog_bark", "DogBark", "0", 0, "dog bark"])
def test_any_spelling_plays(synth: Synth, label: str | int) -> None:
    assert synth.resolve(label) == "DogBark"


def test_an_instrument_can_have_other_labels(tmp_path: Path) -> None:
    synth = Synth.load(toy_instrument(tmp_path / "own", labels=("Door_Slam", "Rain")))
    assert synth.render("door slam", 0).label == "Door_Slam"
    with pytest.raises(UserError, match="instrument toy plays Door_Slam, rain"):
        synth.render("dog_bark", 0)


def test_a_saved_clip_reads_back_with_its_recipe_at_any_rate(synth: Synth, tmp_path: Path) -> None:
    clip = synth.render("rain", 3).shaped(foleybox.Shape(rate=44_100))
    assert clip.save(tmp_path / "x.wav", "PCM_24", exact=True) <= 1
    wave, rate = read_wave(tmp_path / "x.wav")
    assert (len(wave), rate) == (round(synth.instrument.samples * 44_100 / 8_000), 44_100)
    assert read_recipe(tmp_path / "x.wav") == clip.recipe
    gain = clip.save(tmp_path / "x.wav", "PCM_24")  # its true peak is above -1 dBTP
    assert true_peak_db(read_wave(tmp_path / "x.wav")[0]) == pytest.approx(-1, abs=0.003)
    recipe = read_recipe(tmp_path / "x.wav")
    assert recipe is not None
    assert recipe.process == (*clip.recipe.process, {"do": "gain", "db": pytest.approx(20 * np.log10(gain))})
    assert clip.recipe.fingerprint == synth.instrument.fingerprint


def test_a_recipe_names_the_stream_that_was_not_silent(synth: Synth, monkeypatch: pytest.MonkeyPatch) -> None:
    assert synth.render("rain", 3).recipe.make == {
        "do": "render", "label": "Rain", "seed": 3, "temperature": 1.0, "stream": 0
    }  # fmt: skip
    monkeypatch.setattr("foleybox.studio.synth.AUDIBLE", 2.0)
    assert synth.render("rain", 3).recipe.make["stream"] == 7


def test_one_thread_is_what_onnxruntime_is_given(synth: Synth) -> None:
    assert Synth.load(synth.folder, threads=1).sessions["vocoder"].get_session_options().intra_op_num_threads == 1


def test_the_instrument_of_a_recipe_is_found_or_named(
    tmp_path: Path, synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = synth.render("rain", 0).recipe
    assert Synth.of(recipe, synth.folder).folder == synth.folder
    other = Synth.load(toy_instrument(tmp_path / "other", labels=("Rain", "Snow")))
    with pytest.raises(UserError, match=r"made with the instrument toy .* is another: name its folder"):
        Synth.of(recipe, other.folder)
    with pytest.raises(UserError, match="does not ship"):
        Synth.of(recipe)
    monkeypatch.setattr("foleybox.instrument.SHIPPED", tmp_path)
    assert Synth.of(other.render("rain", 0).recipe).folder == tmp_path / "other"


def test_a_clip_plays_in_a_notebook_without_being_clipped_or_scripted(synth: Synth) -> None:
    clip = synth.render("rain", 3)
    loud = Clip(clip.wave * 9, replace(clip.recipe, make={"do": "<b>", "label": "Rain", "seed": 1}))
    page = loud._repr_html_()
    assert "<b>" not in page
    sound = base64.b64decode(page.partition("base64,")[2].partition('"')[0])
    wave, rate = soundfile.read(io.BytesIO(sound))
    assert rate == clip.rate
    np.testing.assert_allclose(wave, clip.wave / np.abs(clip.wave).max(), atol=STEP)


def test_the_package_exposes_the_studio(synth: Synth, tmp_path: Path) -> None:
    clip = foleybox.load(synth.folder).render("rain", 3)
    assert isinstance(clip, foleybox.Clip)
    foleybox.finished(synth, clip, foleybox.Shape(seconds=0.5, lufs=-30)).save(tmp_path / "x.wav")
    assert foleybox.read_recipe(tmp_path / "x.wav").asked == {"seconds": 0.5, "lufs": -30}  # type: ignore[union-attr]
    assert all(getattr(foleybox, name) for name in dir(foleybox))
    with pytest.raises(AttributeError, match="no attribute 'play'"):
        foleybox.play  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label": "cat", "seed": 0}, "plays dog_bark, footstep"),
        ({"label": "rain", "seed": -1}, "seed -1"),
        ({"label": "rain", "seed": 0, "temperature": float("nan")}, "temperature nan"),
    ],
)
def test_arguments_that_cannot_be_rendered_are_errors(synth: Synth, arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        synth.render(**arguments)


def test_graphs_with_other_inputs_or_damaged_are_refused(tmp_path: Path) -> None:
    graphs = toy_graphs()
    swapped = {"generator": graphs["vocoder"], "vocoder": graphs["generator"]}
    write_instrument(tmp_path / "swapped", toy_manifest(), swapped, "")
    with pytest.raises(UserError, match="takes mel: expected latent, label"):
        Synth.load(tmp_path / "swapped").render("rain", 0)
    with pytest.raises(UserError, match=r"generator graph .* is no ONNX file"):
        write_instrument(tmp_path / "junk", toy_manifest(), {"generator": b"not onnx", "vocoder": b"nor this"}, "")
    changed = graphs["vocoder"].replace(b"Tanh", b"Gelu")  # no operator of this version
    write_instrument(tmp_path / "junk", toy_manifest(), {**graphs, "vocoder": changed}, "")
    with pytest.raises(UserError, match="onnxruntime cannot load"):
        Synth.load(tmp_path / "junk").render("rain", 0)


GREEDY = """vocoder (float[N, 6, 12] mel) => (float[N, 1920] wave) {
    size = Constant <value = int64[2] {4000000, 4000000}> ()
    large = ConstantOfShape (size)
    least = ReduceMin <keepdims = 0> (large)
    wave = Add (mel, least)
}"""
SLOW = """vocoder (float[N, 6, 12] mel) => (float[N, 1920] wave) {
    size = Constant <value = int64[2] {700, 700}> ()
    quiet = ReduceMin <keepdims = 0> (mel)
    x0 = Expand (quiet, size)
    PRODUCTS
    least = ReduceMin <keepdims = 0> (x60)
    wave = Add (mel, least)
}""".replace("PRODUCTS", "".join(f"x{at + 1} = MatMul (x{at}, x{at})\n" for at in range(60)))
MISFIT = "vocoder (float[N, 6, 12] mel) => (float[N, 1920] wave) { wave = Tanh (mel) }"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GREEDY, "needs more than 2 GB of memory: set FOLEYBOX_GRAPH_GB"),
        (SLOW, "took longer than 0.01 s for one sound"),
        (MISFIT, "rendered .* for a clip"),
    ],
)
def test_a_graph_that_takes_all_memory_or_time_is_stopped_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    from onnx import parser

    monkeypatch.setattr("foleybox.studio.sessions.MOST_SECONDS", 0.01 if text is SLOW else 60)
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    graphs = {**toy_graphs(), "vocoder": model.SerializeToString()}
    write_instrument(tmp_path / "toy", toy_manifest(), graphs, "")
    with pytest.raises(UserError, match=words):
        Synth.load(tmp_path / "toy", threads=1).render("rain", 0)


def test_a_missing_instrument_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no instrument nowhere"):
        find_instrument("nowhere")
    monkeypatch.setattr("foleybox.instrument.SHIPPED", tmp_path)
    monkeypatch.delenv("FOLEYBOX_INSTRUMENT", raising=False)
    with pytest.raises(UserError, match="no instrument ships"):
        Synth.load()
    toy_instrument(tmp_path / "toy")
    assert Synth.load().folder == Synth.load("toy").folder == tmp_path / "toy"


def test_the_environment_names_the_instrument_that_is_played_if_no_other_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foleybox.instrument.SHIPPED", tmp_path)
    toy_instrument(tmp_path / "a")
    toy_instrument(tmp_path / "b")
    monkeypatch.setenv("FOLEYBOX_INSTRUMENT", "b")
    assert find_instrument() == tmp_path / "b"
    assert find_instrument("a") == tmp_path / "a"
    monkeypatch.setenv("FOLEYBOX_INSTRUMENT", "")
    assert find_instrument() == tmp_path / "a"


def test_foley_plays_when_no_instrument_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOLEYBOX_INSTRUMENT", raising=False)
    with pytest.raises(UserError, match=r"no instrument foley-open: .* history at commit c8b5aca"):
        find_instrument("foley-open")
    assert find_instrument() == SHIPPED / "foley"


def test_loading_the_synth_imports_neither_torch_nor_onnxruntime_nor_progress_bars() -> None:
    heavy = ("torch", "tqdm", "onnxruntime")
    code = f"import sys, foleybox; foleybox.load; foleybox.Synth; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not list(SHIPPED.glob("*/instrument.json")), reason="no instrument ships yet")
def test_the_shipped_instrument_renders_all_seven_alike_alone_and_together() -> None:
    synth = Synth.load()
    assert synth.labels == tuple(label.name for label in LABELS)
    together = list(synth.render_many((label, 1) for label in synth.labels))
    alone = synth.render("rain", 1)
    assert np.abs(together[5].wave - alone.wave).max() < STEP
    for clip in together:
        assert clip.wave.shape == (synth.instrument.samples,)
        assert 0.001 < np.abs(clip.wave).max() < 4


def test_a_silent_clip_is_drawn_again_from_the_seeds_next_stream(synth: Synth, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, stream: int) -> np.ndarray:
        return next(synth.waves(["Rain"], noise(seed, synth.instrument.latent, stream)[None]))

    seed = next(seed for seed in range(50) if np.abs(drawn(seed, 0)).max() < np.abs(drawn(seed, 1)).max())
    quiet, loud = drawn(seed, 0), drawn(seed, 1)
    assert np.array_equal(synth.render("rain", seed).wave, quiet)
    monkeypatch.setattr("foleybox.studio.synth.AUDIBLE", float(np.abs(loud).max()))
    assert np.array_equal(synth.render("rain", seed).wave, loud)
    among_others = list(synth.render_many([("dog", 1), ("rain", seed), ("key", 2)], batch=3))[1].wave
    np.testing.assert_allclose(among_others, loud, atol=2**-15)
    monkeypatch.setattr(
        "foleybox.studio.synth.AUDIBLE", 2.0
    )  # nothing is that loud: silence is what it plays, after eight tries
    assert np.array_equal(synth.render("rain", seed).wave, drawn(seed, 7))


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SHIPPED.glob("*/instrument.json")))
def test_no_instrument_that_ships_begins_or_ends_a_steady_sound_with_a_click(name: str) -> None:
    """Spectral losses do not see the edges of a clip, and a vocoder trained with them alone clicked (docs/experiments.md)."""
    edges = []
    for clip in Synth.load(SHIPPED / name).render_many(
        (label, seed) for label in ("rain", "motor") for seed in range(6)
    ):
        rest = clip.wave[2000:-2000].std()
        edges.append([np.abs(clip.wave[:8]).max() / rest, np.abs(clip.wave[-8:]).max() / rest])
    assert np.median(edges, 0).max() < 3
