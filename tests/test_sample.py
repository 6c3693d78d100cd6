"""`foleybox sample` plays runs: a label and a seed determine the sound, and parts that do not belong together are refused."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers import toy_instrument
from toy_runs import SNAIL, VOCOS, VQ, autoencoder_run, gan_run, patches_run, snail_run, vocoder_run, vqvae_run

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.baseline.codes import decode_codes
from foleybox.lab.baseline.pixelsnail import PixelSnail
from foleybox.lab.baseline.runs import load_vqvae
from foleybox.lab.baseline.sampling import sample
from foleybox.lab.baseline.vqvae import Vqvae
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import fingerprint
from foleybox.lab.patches.runs import load_patches_and_autoencoder
from foleybox.lab.patches.transformer import GUIDANCE, GUIDED_FROM, TEMPERATURE, draw
from foleybox.lab.play import sample as synthesis
from foleybox.lab.play.sample import Sample, load_system, mels_of_codes, read_vqvae, vocode
from foleybox.lab.vocoders import hifigan, vocos
from foleybox.lab.vocoders.runs import hifigan_config, load_vocoder
from foleybox.labels import LABELS


@dataclass(frozen=True)
class Runs:
    """Run folders of one system."""

    vqvae: Path
    snail: Path
    vocoder: Path
    gan: Path
    autoencoder: Path
    patches: Path
    wide: Path
    "a vocoder of the mel that patches make"

    def config(self, **changes: Any) -> Sample:
        return Sample(
            **{"labels": ("all",), "run": self.snail, "vqvae": self.vqvae, "vocoder": self.vocoder, **changes}
        )

    def parts(self, kind: str) -> dict[str, Any]:
        """Return the changes that make `config` one for a kind of run."""
        patches = {"run": self.patches, "vqvae": None, "autoencoder": self.autoencoder, "vocoder": self.wide}
        return {"snail": {}, "gan": {"run": self.gan, "vqvae": None}, "patches": patches}[kind]

    def words(self, out: Path, **changes: Any) -> list[str]:
        """A command line; a flag that is None is left out."""
        flags: dict[str, Any] = {"run": self.snail, "vqvae": self.vqvae, "vocoder": self.vocoder}
        flags |= {"out": out, "device": "cpu"} | changes
        run = flags.pop("run")
        words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
        return ["sample", str(run), "all", *words]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    made = Runs(*(folder / name for name in ("vqvae", "snail", "vocoder", "gan", "autoencoder", "patches", "wide")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vocos.SIZES, "small", VOCOS)
        snail_run(made.snail, vqvae_run(made.vqvae))
        vocoder_run(made.vocoder)
        gan_run(made.gan)
        patches_run(made.patches, autoencoder_run(made.autoencoder))
        vocoder_run(made.wide, mel="wide")
        yield made


# --- the sound ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["snail", "gan", "patches"])
def test_a_label_and_a_seed_alone_determine_a_sound(kind: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "SETTLING", 2)
    changes = runs.parts(kind)
    labels, seeds = [0, 3, 3, 6], [5, 5, 6, 2**53 - 1]
    together = load_system(runs.config(**changes)).waves(labels, seeds)
    assert together.shape == (4, 88_200)
    alone = load_system(runs.config(**changes, batch=1))
    torch.manual_seed(99)  # nothing is drawn from the global generator
    for label, seed, wave in zip(labels, seeds, together):
        assert torch.equal(alone.waves([label], [seed])[0], wave)
    flat = {wave.numpy().tobytes() for wave in together}
    assert len(flat) == 4  # another label or another seed is another sound


def test_the_wave_is_the_vocoders_of_the_mel_that_the_vqvae_makes_of_the_drawn_codes(runs: Runs) -> None:
    system = load_system(runs.config())
    vqvae, vocoder = load_vqvae(runs.vqvae)[0], load_vocoder(runs.vocoder)[0]
    snail = PixelSnail(SNAIL)
    snail.load_state_dict(torch.load(runs.snail / "state.pt")["pixelsnail"])
    codes = sample(snail.eval(), [2, 4], [1, 2])
    with torch.no_grad():
        wave = vocoder(decode_codes(vqvae, codes))
    assert wave.shape[1] == 16 * 256
    made = system.waves([2, 4], [1, 2])
    torch.testing.assert_close(made[:, : wave.shape[1]], wave, atol=1e-5, rtol=1e-4)
    assert not made[:, wave.shape[1] :].any()


def test_patches_are_drawn_as_an_instrument_of_them_draws(runs: Runs) -> None:
    """With the labels' guidance and temperature of `export`, four seconds, through autoencoder and vocoder."""
    model, autoencoder, _ = load_patches_and_autoencoder(runs.patches, runs.autoencoder)
    system = load_system(runs.config(**runs.parts("patches")))
    label, size, positions = 5, autoencoder.config, 87  # 88,200 / (256 * 4)
    noise = torch.Generator().manual_seed(3)
    start = TEMPERATURE[label] * torch.randn(1, positions, size.latent, generator=noise)
    fine = torch.randn(1, positions * size.patch, size.noise, generator=noise)
    latents = draw(model, torch.tensor([label]), start, guidance=GUIDANCE[label], guided_from=GUIDED_FROM)
    mel = autoencoder(latents, fine).detach()
    assert torch.equal(system.mels([label], [3]), mel)
    with torch.no_grad():
        wave = load_vocoder(runs.wide)[0](mel)[0, :88_200]
    assert torch.equal(system.waves([label], [3])[0], wave)
    assert not torch.equal(load_system(runs.config(**runs.parts("patches"), temperature=0.5)).mels([label], [3]), mel)


def test_best_and_last_weights_can_be_chosen(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a PixelSNAIL, with the best first; of a GAN, whose best is the average; a GAN's snapshot by name."""
    monkeypatch.setattr(synthesis, "SETTLING", 2)
    run = tmp_path / "snail"
    shutil.copytree(runs.snail, run)
    state = torch.load(run / "state.pt")
    state["step"] = 4
    state["pixelsnail"]["out.bias"] += torch.linspace(-3, 3, 8)
    torch.save(state, run / "best.pt")
    made = {weights: load_system(runs.config(run=run, weights=weights)) for weights in ("best", "last")}
    assert "PixelSNAIL at step 4" in made["best"].about
    assert "PixelSNAIL at step 5" in made["last"].about
    assert load_system(runs.config(run=run)).about == made["best"].about
    mels = {weights: system.mels([1], [1]) for weights, system in made.items()}
    assert not torch.equal(mels["best"], mels["last"])
    assert torch.equal(mels["last"], load_system(runs.config()).mels([1], [1]))
    gan = runs.parts("gan")
    assert load_system(runs.config(**gan)).about.endswith("average weights")
    assert load_system(runs.config(**gan, weights="last")).about.endswith("last weights")


def test_the_vqvae_whose_codes_were_learnt_is_found_among_best_and_last_weights(runs: Runs, tmp_path: Path) -> None:
    """`encode` takes the best, or the last with --weights last: the fingerprint says which."""
    run = tmp_path / "vqvae"
    shutil.copytree(runs.vqvae, run)
    other = torch.load(run / "state.pt")
    other["vqvae"]["narrow.bias"] += 1
    torch.save(other, run / "best.pt")
    best, last = (fingerprint(load_vqvae(run, weights)[0]) for weights in ("best", "last"))
    assert best != last == fingerprint(load_vqvae(runs.vqvae)[0])
    for expected in (best, last):
        assert fingerprint(read_vqvae(run, expected, "codes")) == expected
    with pytest.raises(UserError, match="codes was made with the VQ-VAE of fingerprint 000000000000"):
        read_vqvae(run, "0" * 64, "codes")


def test_an_official_hifigan_file_is_a_vocoder(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(hifigan.VERSIONS, "hifigan-v1", replace(hifigan.VERSIONS["hifigan-v1"], width=16))
    generator = hifigan.Hifigan(hifigan_config(DCASE, "hifigan-v1"))
    weights = generator.state_dict()
    names = hifigan.official_names(generator.config)
    torch.save({"generator": {theirs: weights[mine] for mine, theirs in names.items()}}, tmp_path / "g_00000001")
    system = load_system(runs.config(vocoder=tmp_path / "g_00000001"))
    mel = torch.randn(1, 80, 16)
    with torch.no_grad():
        torch.testing.assert_close(system.vocoder(mel), generator.eval()(mel), atol=1e-5, rtol=1e-4)
    assert system.waves([1], [1]).shape == (1, 88_200)
    wrong = runs.words(tmp_path / "out", **{**runs.parts("patches"), "vocoder": tmp_path / "g_00000001"})
    assert cli.main(wrong) == 2
    assert "an official HiFi-GAN reads the mel dcase, this system makes wide" in capsys.readouterr().err


def test_a_longer_wave_is_cut_and_344_frames_are_filled_up_to_four_seconds() -> None:
    class Ones(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            return self.weight * torch.ones(len(mel), mel.shape[-1] * 256)

    waves = vocode(Ones(), torch.zeros(2, 80, 344))
    assert (waves.shape, float(waves.sum())) == ((2, 88_200), 2 * 88_064)
    assert not waves[:, 88_064:].any()
    assert vocode(Ones(), torch.zeros(1, 80, 400)).shape == (1, 88_200)


def test_temperature_top_k_and_top_p_reach_the_drawing(runs: Runs) -> None:
    plain = load_system(runs.config()).mels([1], [1])
    for changes in ({"temperature": 0.1}, {"top_k": 1}, {"top_p": 0.1}):
        assert not torch.equal(load_system(runs.config(**changes)).mels([1], [1]), plain)
    one = load_system(runs.config(top_k=1))
    assert torch.equal(one.mels([1], [1]), one.mels([1], [2]))  # the likeliest code everywhere: no chance is left


# --- foleybox sample --------------------------------------------------------------------------------------------


def test_the_verb_writes_what_the_challenge_asks_for_where_evaluate_finds_it(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = runs.words(tmp_path / "out", count=2, seed=10)
    assert cli.main(words) == 0
    assert "wrote 14 sounds of 4 s" in capsys.readouterr().out
    clips = find_clips(tmp_path / "out")
    assert [clip.label for clip in clips] == [label for label in LABELS for _ in range(2)]
    assert [clip.path.name for clip in clips[:2]] == ["DogBark_s10.wav", "DogBark_s11.wav"]
    info = soundfile.info(clips[0].path)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (22_050, 1, 88_200, "PCM_16")
    wave = load_system(runs.config()).waves([0], [11])[0].numpy()
    written = soundfile.read(clips[1].path, dtype="float32")[0]
    np.testing.assert_allclose(written, wave / max(1, np.abs(wave).max()), atol=2**-15)

    before = {clip.path.name: clip.path.read_bytes() for clip in clips}
    assert cli.main(words) == 2
    assert "and 13 more exist already: add --force" in capsys.readouterr().err
    assert cli.main([*words, "--force", "--batch", "5"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.wav")} == before


def test_ctrl_c_leaves_complete_files_and_says_how_many(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, written = synthesis.write_wave, []

    def stop(path: Path, *rest: Any, **more: Any) -> float:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, *rest, **more)

    monkeypatch.setattr(synthesis, "write_wave", stop)
    assert cli.main(runs.words(tmp_path / "out")) == 130
    assert "stopped after 3 of 7 files" in capsys.readouterr().err
    assert sorted((tmp_path / "out").rglob("*.*")) == sorted(written)
    assert all(soundfile.info(path).frames == 88_200 for path in written)


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_parts_that_do_not_belong_together_are_refused_in_one_line(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, partial, empty, tall = (tmp_path / name for name in ("other", "partial", "empty", "tall"))
    vqvae_run(other, seed=1)
    theirs = vqvae_run(partial)
    state = torch.load(partial / "state.pt")
    del state["vqvae"]["narrow.weight"]
    torch.save(state, partial / "state.pt")
    snail_run(empty, theirs)
    (empty / "state.pt").unlink()
    snail_run(tall, theirs, height=24)
    half = tmp_path / "half"
    vocoder_run(half)
    state = torch.load(half / "state.pt")
    state["average"].popitem()
    torch.save(state, half / "state.pt")
    for changes, complaint in (
        ({"vqvae": other}, "was made with the VQ-VAE of fingerprint"),
        ({"vqvae": partial}, "Missing key(s) in state_dict"),
        ({"vqvae": None}, "name its run with --vqvae"),
        ({"vqvae": runs.snail}, "is a run of 'pixelsnail': expected one of `foleybox train vqvae`"),
        ({"vqvae": tmp_path / "none"}, "is not a run folder"),
        ({"vocoder": None}, "name a run of `foleybox train vocoder` (with an MVQVAE: `train mhifigan`) with --vocoder"),
        ({"vocoder": runs.vqvae}, "expected one of `foleybox train vocoder`"),
        ({"vocoder": runs.wide}, "reads the mel wide, this system makes dcase"),
        ({"run": empty}, "holds no state.pt yet"),
        ({"run": tall}, "codes of 24 rows, mels of 96 bands: expected 20"),
        ({"run": runs.vqvae}, "is a run of 'vqvae': it belongs to --vqvae; expected one of"),
        ({"run": runs.vocoder}, "it belongs to --vocoder"),
        ({"run": tmp_path / "none"}, "is not a run folder"),
        ({"run": runs.gan}, "is a run of `train sagan`, which does not use --vqvae: drop it"),
        ({"run": runs.gan, "vqvae": None, "top-k": 3, "top-p": 0.5}, "does not use --top-k and --top-p: drop it"),
        ({"run": runs.gan, "vqvae": None, "weights": "snapshot_7"}, "has no weights 'snapshot_7'"),
        ({"weights": "average"}, "is a PixelSNAIL, which has best and last weights"),
        ({"autoencoder": runs.autoencoder}, "is a run of `train pixelsnail`, which does not use --autoencoder"),
        ({"run": runs.autoencoder}, "it belongs to --autoencoder"),
        (runs.parts("patches") | {"autoencoder": None}, "draws the latents of an autoencoder: name its run"),
        (runs.parts("patches") | {"autoencoder": runs.vqvae}, "expected one of `foleybox train autoencoder`"),
        (runs.parts("patches") | {"vocoder": runs.vocoder}, "reads the mel dcase, this system makes wide"),
        (runs.parts("patches") | {"weights": "last"}, "is played with its averaged weights: drop --weights last"),
        (runs.parts("patches") | {"vqvae": runs.vqvae}, "is a run of `train patches`, which does not use --vqvae"),
        ({"count": 0}, "--count 0: expected 1 or more"),
        ({"seed": -1}, "--seed -1: expected 0 or more"),
        ({"seed": 2**53}, "the last seed would exceed"),
        ({"batch": 0}, "--batch 0: expected 1 or more"),
        ({"temperature": 0}, "--temperature 0.0: expected above 0"),
        ({"top-p": 2}, "--top-p 2.0: expected above 0, up to 1"),
    ):
        assert cli.main(runs.words(tmp_path / "out", **changes)) == 2, changes
        said = "".join(line for line in capsys.readouterr().err.splitlines(True) if "note:" not in line)
        assert complaint in said
        assert len(said.splitlines()) == 1
    assert cli.main(["sample", str(runs.snail), "moo", *runs.words(tmp_path / "out")[3:]]) == 2
    assert "unknown label 'moo'" in capsys.readouterr().err
    assert cli.main(["sample", str(runs.snail), *runs.words(tmp_path / "out")[3:]]) == 2
    assert "no label: expected one or more of dog_bark" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_codes_beyond_the_codebook_are_refused() -> None:
    torch.manual_seed(0)
    snail = PixelSnail(replace(SNAIL, codes=40)).eval()
    with pytest.raises(UserError, match="for a codebook of 8: they were made with another VQ-VAE"):
        mels_of_codes(snail, Vqvae(VQ), [0], [0])


def test_too_little_memory_is_reported_before_the_first_draw(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("foleybox.lab.baseline.sampling.memory_free", lambda _: 1)
    assert cli.main(runs.words(tmp_path / "out")) == 2
    assert "GB are free: a smaller model is needed" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.wav"))


# --- run or instrument --------------------------------------------------------------------------------------------


def test_an_instrument_is_refused_and_the_verb_that_plays_it_is_named(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instrument = toy_instrument(tmp_path / "toy")
    assert cli.main(runs.words(tmp_path / "out", run=instrument)) == 2
    said = capsys.readouterr().err
    assert "is an instrument: play it with `foleybox generate --instrument" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_torch_a_run_says_what_to_install(runs: Runs) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from foleybox.cli import main;"
        f"sys.exit(main(['sample', {str(runs.snail)!r}, 'rain']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "foleybox: `sample` needs the lab, and torch is not installed: in a checkout of foleybox, "
        "pip install -c constraints.txt '.[lab]'\n"
    )
