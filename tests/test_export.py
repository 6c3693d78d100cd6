"""An exported instrument plays what torch plays, and is refused when it would not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_lab import configured

from foleybox.errors import UserError
from foleybox.instrument import read_instrument
from foleybox.lab.core.mel import DCASE, WIDE
from foleybox.lab.core.runs import NUMBERED, open_run, save_state
from foleybox.lab.export import export, graphs
from foleybox.lab.export.card import describe_generator, rewrite_card
from foleybox.lab.export.export import Export, count_clips
from foleybox.lab.export.graphs import GeneratorGraph, build_gan, without_parametrizations
from foleybox.lab.kt.runs import load_generator
from foleybox.lab.kt.sagan import Generator, SaganConfig, refresh_batch_norm
from foleybox.lab.kt.train_sagan import TrainSagan
from foleybox.lab.vocoders.hifigan import Hifigan
from foleybox.lab.vocoders.runs import hifigan_config, load_vocoder, vocos_config
from foleybox.lab.vocoders.train_hifigan import TrainHifigan
from foleybox.lab.vocoders.train_vocos import TrainVocoder
from foleybox.lab.vocoders.vocos import Vocos, VocosConfig
from foleybox.labels import LABELS
from foleybox.licences import licence_of
from foleybox.studio.seeds import noise
from foleybox.studio.synth import Synth

TINY = SaganConfig(width=8, latent=16, embedding=16)
TINY_VOCOS = VocosConfig(width=16, inner=16, layers=1)
CLIPS = [
    {"clip": f"Rain/{i}.wav 9", "label": "Rain", "tier": "open", "licence": "CC0", "source": "me"} for i in range(3)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two run folders with untrained parts, as training leaves them."""
    gan, vocoder = tmp_path_factory.mktemp("gan"), tmp_path_factory.mktemp("vocoder")
    torch.manual_seed(0)
    rates = {"batch": 16, "lr_generator": 2e-4, "lr_discriminator": 4e-4}
    open_run(gan, "sagan", configured(TrainSagan, out=gan, model=TINY, **rates), CLIPS)
    save_state(gan / "state.pt", 5, {"average": Generator(TINY)})
    open_run(vocoder, "vocoder", configured(TrainVocoder, out=vocoder, size="small"), CLIPS)
    save_state(vocoder / "state.pt", 7, {"average": Vocos(VocosConfig())})
    return gan, vocoder


@pytest.fixture(scope="module")
def toy(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The instrument of both, exported once: that takes a quarter of a minute."""
    out = tmp_path_factory.mktemp("instrument") / "toy"
    assert export.main(Export(*runs, out, draws=1)) == 0
    return out


def test_of_clips_known_by_number_and_clips_known_by_name_the_larger_number_counts() -> None:
    """They may be the same clips: a restored instrument may be trained on its own recordings again."""
    numbered = [{**CLIPS[0], "clip": f"{NUMBERED}toy 1, 1.{i}"} for i in range(5)]
    other = [{**CLIPS[0], "clip": f"{NUMBERED}toy 1, 2.1", "label": "DogBark"}]
    assert [(row.label, row.clips) for row in count_clips(CLIPS, numbered)] == [("Rain", 5)]
    assert [(row.label, row.clips) for row in count_clips(CLIPS, CLIPS, numbered[:2])] == [("Rain", 3)]
    assert [(row.label, row.clips) for row in count_clips(CLIPS, other)] == [("DogBark", 1), ("Rain", 3)]


def test_the_instrument_plays_what_torch_plays(runs: tuple[Path, Path], toy: Path) -> None:
    instrument = read_instrument(toy)
    assert (instrument.rate, instrument.samples, instrument.latent) == (22_050, 88_200, (16,))
    assert instrument.licence.terms == "CC-BY-4.0"
    assert instrument.made_with["generator"]["steps"] == 5
    assert "2C without label" in (toy / "CARD.md").read_text()

    generator, vocoder = load_generator(runs[0])[0], load_vocoder(runs[1])[0]
    torch.manual_seed(0)
    refresh_batch_norm(generator, 1)
    latent, label = torch.from_numpy(noise(7, (16,)))[None], torch.tensor([3])
    with torch.no_grad():
        wave = vocoder(GeneratorGraph(generator, 345)(latent, label))[0, :88_200].numpy()
    np.testing.assert_allclose(Synth.load(toy).render("keyboard", 7).wave, wave, atol=1e-3)


def test_a_hifigan_run_becomes_an_instrument_that_plays_what_torch_plays(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run, out = tmp_path / "hifigan", tmp_path / "toy"
    torch.manual_seed(0)
    trained = Hifigan(hifigan_config(DCASE, "hifigan-v3", 8))
    open_run(
        run, "vocoder", configured(TrainHifigan, out=run, vocoder="hifigan-v3", width=8, start_from=tmp_path), CLIPS
    )
    save_state(run / "state.pt", 9, {"generator": trained})
    assert export.main(Export(runs[0], run, out, draws=0)) == 0
    assert "Vocoder: HiFi-GAN V3 of width 8, 9 steps of 16 x 32 frames, seed 0." in (out / "CARD.md").read_text()
    assert str(tmp_path) not in (out / "instrument.json").read_text()

    generator, vocoder = load_generator(runs[0])[0], load_vocoder(run)[0]
    assert isinstance(vocoder, Hifigan)
    assert not any("parametrizations" in name for name in vocoder.state_dict())
    latent, label = torch.from_numpy(noise(7, (16,)))[None], torch.tensor([3])
    with torch.no_grad():
        wave = trained.eval()(GeneratorGraph(generator, 345)(latent, label))[0, :88_200].numpy()
    assert np.ptp(wave) > 0.01
    np.testing.assert_allclose(Synth.load(out).render("keyboard", 7).wave, wave, atol=1e-4)


def test_the_last_frame_is_held_so_that_four_seconds_are_full() -> None:
    mel = GeneratorGraph(Generator(TINY).eval(), 345)(torch.randn(1, 16), torch.tensor([0]))
    assert mel.shape == (1, 80, 345)
    assert torch.equal(mel[..., 344], mel[..., 343])


def test_multiplying_out_the_spectral_norms_changes_no_output() -> None:
    torch.manual_seed(0)
    generator = Generator(TINY).eval()
    z, label = torch.randn(2, 16), torch.tensor([0, 5])
    plain = without_parametrizations(generator)
    assert not any("parametrizations" in name for name in plain.state_dict())
    torch.testing.assert_close(plain(z, label), generator(z, label))


def test_a_graph_that_differs_from_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "to_onnx", lambda *_: b"")
    monkeypatch.setattr(graphs, "largest_difference", lambda *_: 0.5)
    with pytest.raises(UserError, match=r"differs from torch by 0\.5 at batch 1"):
        build_gan(Generator(TINY), Vocos(TINY_VOCOS), DCASE, 345)


def test_a_vocoder_of_another_mel_is_refused() -> None:
    with pytest.raises(UserError, match="train a vocoder with --mel dcase"):
        build_gan(Generator(TINY), Vocos(TINY_VOCOS), WIDE, 345)


def test_runs_in_the_wrong_order_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a run of 'vocoder': expected one of `foleybox train sagan`"):
        export.main(Export(runs[1], runs[0], tmp_path / "x"))
    with pytest.raises(UserError, match="is not a run folder"):
        export.main(Export(tmp_path, runs[1], tmp_path / "x"))


def test_a_clip_of_two_parts_counts_once_and_others_add_up() -> None:
    other = [{**CLIPS[0], "clip": "Engine/0.wav 5", "label": "(other)", "tier": "nc"}]
    more = [{**CLIPS[0], "clip": "Rain/9.wav 9"}]
    assert [(row.label, row.clips) for row in count_clips(CLIPS, CLIPS[:2] + other)] == [("(other)", 1), ("Rain", 3)]
    assert [(row.label, row.clips) for row in count_clips(CLIPS, more)] == [("Rain", 4)]


def test_an_instrument_is_replaced_only_by_force_and_other_models_never(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious.onnx").write_bytes(b"weights")
    with pytest.raises(UserError, match="contains other files than an instrument's"):
        export.main(Export(*runs, theirs, draws=1))
    assert (theirs / "precious.onnx").read_bytes() == b"weights"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "instrument.json").write_text("{}")
    with pytest.raises(UserError, match="contains an instrument: name another folder, or replace it with --force"):
        export.main(Export(*runs, mine, draws=1))


def test_the_card_describes_the_training_of_patches() -> None:
    model = {"width": 256, "layers": 6, "labels": len(LABELS) + 1}
    run = {"part": "patches", "model": model, "steps": 1200, "batch": 32, "lr": 6e-4, "decay": 0.999, "seed": 3}
    continued = describe_generator({**run, "others_share": 0.25, "seen_before": 104_000})
    assert (
        "1,200 steps of 32 clips, 25% of them other sounds, started from weights trained on 104,000 clips, AdamW"
        in continued
    )
    alone = describe_generator({**run, "model": {**model, "labels": len(LABELS)}, "others_share": 0.25})
    assert "1,200 steps of 32 clips, AdamW" in alone
    few = describe_generator(
        {**run, "model": {**model, "labels": len(LABELS)}, "most_of_recording": 2, "without": ["fs1"]}
    )
    assert (
        "1,200 steps of 32 clips, without the recordings fs1, at most 2 clips of a recording per epoch of its label, AdamW"
        in few
    )


def test_the_card_of_an_instrument_begins_with_its_licence_and_has_its_scores(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "toy")
    score = {"value": 7.871, "low": 7.5, "high": 8.175, "floor": 2.555}
    measured = {"n": "100 a label", "mean": {"frechet": score}, "frechet by label": {"rain": score}, "audit": "a\nb"}
    rewrite_card(tmp_path / "toy", "## Use\n\nAny.\n", measured)
    text = (tmp_path / "toy" / "CARD.md").read_text()
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["## Licence", "## Use", "## Scores", "## Training", "## Training clips"]
    assert "| Fréchet distance (lower is better) | 7.871 | 7.5 to 8.175 | 2.555 |" in text
    assert "| Fréchet distance (lower is better): rain | 7.871 |" in text
    assert "* n: 100 a label" in text
    assert "```\na\nb\n```" in text
    assert read_instrument(tmp_path / "toy").fingerprint == read_instrument(toy).fingerprint


@pytest.mark.parametrize("order", [1, -1])
def test_no_term_is_lost_where_two_clips_have_one_name_and_size(order: int) -> None:
    rows = [{**CLIPS[0], "tier": "nc"}, {**CLIPS[0], "tier": "open"}][::order]
    counted = count_clips(rows)
    assert [(row.tier, row.clips) for row in counted] == [("free", 1), ("nc", 1)]
    assert licence_of(counted).terms == "CC-BY-NC-4.0"
    assert count_clips(rows[:1], rows[:1])[0].clips == 1  # one clip of two parts


def test_an_instrument_gets_another_vocoder_and_keeps_its_generator(toy: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other, again = tmp_path / "vocoder", tmp_path / "again"
    open_run(
        other,
        "vocoder",
        configured(TrainVocoder, out=other, size="small", seed=1),
        [*CLIPS, {**CLIPS[0], "tier": "nc"}],
    )
    save_state(other / "state.pt", 11, {"average": Vocos(VocosConfig())})
    assert export.main(Export(toy, other, again, version="2")) == 0
    before, after = read_instrument(toy), read_instrument(again)
    assert (toy / "generator.onnx").read_bytes() == (again / "generator.onnx").read_bytes()
    assert after.made_with["vocoder"]["steps"] == 11
    assert after.made_with["generator"] == before.made_with["generator"]
    assert [(row.tier, row.clips) for row in after.training_clips] == [
        ("free", 3),
        ("nc", 1),
    ]  # clips of both count once
    latent, rain = noise(7, (1, 16)), [before.labels[5]]
    mel = Synth.load(toy).mel(rain, latent)
    with torch.no_grad():
        wanted = load_vocoder(other)[0](torch.from_numpy(mel))[0, :88_200].numpy()
    np.testing.assert_allclose(next(Synth.load(again).waves(rain, latent)), wanted, atol=1e-3)
    with pytest.raises(UserError, match="contains an instrument"):
        export.main(Export(toy, other, again))


def test_a_vocoder_of_another_mel_is_not_given_to_an_instrument(toy: Path, tmp_path: Path) -> None:
    run = tmp_path / "wide"
    open_run(run, "vocoder", configured(TrainVocoder, out=run, size="small", mel="wide"), CLIPS)
    save_state(run / "state.pt", 7, {"average": Vocos(vocos_config(WIDE, "small"))})
    with pytest.raises(UserError, match="for that mel"):
        export.main(Export(toy, run, tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_small_instrument_of_a_gan_plays_nearly_the_same(runs: tuple[Path, Path], toy: Path, tmp_path: Path) -> None:
    assert export.main(Export(*runs, tmp_path / "small", draws=0, small=True)) == 0
    small = Synth.load(tmp_path / "small")
    sizes = [sum(graph.bytes for graph in each.graphs.values()) for each in (read_instrument(toy), small.instrument)]
    assert sizes[1] < 0.4 * sizes[0]
    latent = noise(7, (1, 16))
    with torch.no_grad():
        wanted = GeneratorGraph(load_generator(runs[0])[0].eval(), 345)(torch.from_numpy(latent), torch.tensor([3]))
    assert 0 < np.abs(small.mel([small.labels[3]], latent) - wanted.numpy()).mean() < 0.1
