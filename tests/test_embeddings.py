"""What an embedding is given, what it returns, and where its weights are found."""

import hashlib
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_embedding import RATE, ToyEmbedding, sounds, toy

from foleybox.audio import write_wave
from foleybox.errors import UserError
from foleybox.lab.core.clips import find_clips
from foleybox.lab.evaluation import embeddings, mn, vggish
from foleybox.lab.evaluation.embeddings import (
    AUDIOSET,
    MN04,
    RELEASES,
    Release,
    VGGishEmbedding,
    embed_clips,
    embed_stream,
    find_weights,
    frame,
    load_embedding,
    load_state,
    state_digest,
)
from foleybox.labels import LABELS

__all__ = ["toy"]  # a fixture


@pytest.fixture(scope="session")
def mn04(shared: Path) -> MN04:
    path = shared / "weights" / "mn04_as_mAP_432.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return MN04(path)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No weights anywhere, and no way to fetch them; return the folder that the cache would be."""
    monkeypatch.delenv("FOLEYBOX_WEIGHTS", raising=False)
    monkeypatch.delenv("FOLEYBOX_SHARED", raising=False)
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    for name, release in RELEASES.items():
        monkeypatch.setitem(RELEASES, name, release._replace(url=(tmp_path / "absent").as_uri()))
    return tmp_path / "cache"


# --- mn04 ---------------------------------------------------------------------------------------------------------


def test_mn04_gives_its_published_numbers(mn04: MN04) -> None:
    t = np.arange(32_000) / 32_000
    wave = 0.5 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 3000 * t * (1 + 0.2 * t))
    with torch.inference_mode():
        embedding, logits = mn04.network(torch.from_numpy(wave).float()[None])
    assert float(embedding.mean()) == pytest.approx(-0.068740, abs=1e-5)
    assert float(embedding.std(correction=0)) == pytest.approx(0.247383, abs=4e-4)
    assert float(embedding.norm()) == pytest.approx(5.02528, abs=1e-4)
    assert int(logits.argmax()) == 501
    assert float(logits.max()) == pytest.approx(0.38456, abs=1e-4)


def test_mn04_classifies_real_clips_as_their_labels(
    mn04: MN04, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path))
    dev = find_clips(shared / "data" / "foley", "dev")
    some = [clip for label in LABELS for clip in [each for each in dev if each.label is label][::8]]
    found = embed_clips(some, mn04, 4.0)
    assert found.vectors.shape == (len(some), 7, 384)
    assert found.tags is not None
    labels = np.array([clip.label.id for clip in some if clip.label])
    assert (found.tags.argmax(1) == labels).mean() > 0.8


def test_folding_the_norms_changes_nothing_audible() -> None:
    torch.manual_seed(0)
    network = mn.MN().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    waves = torch.randn(2, 32_000)
    with torch.inference_mode():
        before, after = network(waves)[0], network.fuse()(waves)[0]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5)


def test_mn04_has_its_published_size() -> None:
    assert sum(each.numel() for each in mn.MN().parameters()) == 983_599


def test_a_tone_lights_its_own_kaldi_band_and_the_nyquist_bin_none() -> None:
    front_end = mn.KaldiLogMel()
    assert front_end.filters[:, -1].sum() == 0
    edges = np.linspace(0, 1127 * np.log(1 + 15_000 / 700), 130)
    for band in (20, 60, 110):
        hertz = 700 * (np.exp(edges[band + 1] / 1127) - 1)
        mel = front_end(torch.sin(2 * torch.pi * hertz * torch.arange(32_000) / 32_000)[None])
        assert int(mel.mean(-1).argmax()) == band


def test_other_weights_are_not_mn04(tmp_path: Path) -> None:
    torch.save({"features.0.0.weight": torch.zeros(8, 1, 3, 3)}, tmp_path / "mn.pt")
    with pytest.raises(UserError, match="does not hold mn04's published weights"):
        load_embedding("mn04", tmp_path / "mn.pt")


def test_every_label_has_tags_of_its_own() -> None:
    assert set(AUDIOSET) == {label.slug for label in LABELS}
    indices = [index for group in AUDIOSET.values() for index in group]
    assert len(indices) == len(set(indices))
    assert max(indices) < mn.TAGS


# --- VGGish -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGGish weights that are all zeros: shapes and windows, not figures."""
    path = tmp_path_factory.mktemp("weights") / "zeros.pth"
    shapes = {name: each.shape for name, each in vggish.VGGish().state_dict().items()}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, path)
    return path


def test_the_challenges_windows_are_ten_a_clip_and_the_resampled_ones_seven(blank: Path) -> None:
    official, resampled = VGGishEmbedding(blank, official=True), VGGishEmbedding(blank, official=False)
    assert official.windows(88_200) == 10  # 100 clips are the 1,000 embeddings of the challenge's statistics
    assert resampled.windows(64_000) == 7
    assert official.embed(torch.zeros(2, 88_200)).vectors.shape == (2, 10, 128)


def test_vggish_has_its_published_size_and_names() -> None:
    network = vggish.VGGish()
    assert sum(each.numel() for each in network.parameters()) == 72_141_184
    assert {"features.0.weight", "features.13.bias", "embeddings.4.weight"} <= set(network.state_dict())


def test_the_challenge_divides_by_the_signed_maximum() -> None:
    clips = torch.zeros(3, 88_200)
    clips[0, :2] = torch.tensor([0.25, -0.5])
    clips[1, 5] = 1 / 32_768  # one bit of dither
    scaled = vggish.official_scale(clips)
    assert scaled[0, :2].tolist() == [1, -2]  # a negative peak leaves [-1, 1]
    assert scaled[1].max() == 1
    assert scaled[2].abs().max() == 0


def test_vggishs_mel_lights_the_band_of_a_tone_and_is_ln_a_hundredth_in_silence() -> None:
    mel = vggish.LogMel()
    assert mel(torch.zeros(1, 16_000)).shape == (1, 96, 64)
    assert float(mel(torch.zeros(1, 16_000)).max()) == pytest.approx(np.log(0.01))
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    hertz = 700 * (np.exp(edges[31] / 1127) - 1)
    found = mel(torch.sin(2 * torch.pi * hertz * torch.arange(16_000) / 16_000)[None])
    assert int(found[0].mean(0).argmax()) == 30
    assert mel.filters[:, 0].sum() == 0


def test_vggish_passes_its_published_smoke_test() -> None:
    """tensorflow/models, research/audioset/vggish/vggish_smoke_test.py: 3 s of 1 kHz, within 10 %."""
    folders = embeddings.weight_folders()
    path = next(
        (folder / name for folder in folders for name in RELEASES["vggish"].names if (folder / name).is_file()), None
    )
    if path is None:
        pytest.skip(f"no VGGish weights here: put {RELEASES['vggish'].url} into a folder named by FOLEYBOX_WEIGHTS")
    network = VGGishEmbedding(path, official=False).network
    frames = torch.sin(2 * torch.pi * 1000 * torch.arange(48_000, dtype=torch.float64) / 16_000).float()
    log_mel = torch.cat([network.mel(frames[None, start : start + 16_000]) for start in (0, 15_360, 30_720)])
    with torch.inference_mode():
        maps = network.features(log_mel[:, None])
        found = network.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
    assert float(found.std(correction=0)) == pytest.approx(0.343, rel=0.1)
    assert float(found.mean()) == pytest.approx(0.000657, abs=0.002)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold VGGish weights"):
        load_embedding("vggish", tmp_path / "other.pth")


# --- weights ------------------------------------------------------------------------------------------------------


def test_weights_are_taken_from_the_folder_that_the_environment_names(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vggish-10086976.pth").write_bytes(b"x")
    monkeypatch.setenv("FOLEYBOX_WEIGHTS", str(tmp_path))
    assert find_weights("vggish") == tmp_path / "vggish-10086976.pth"


@pytest.mark.parametrize("name", ["mn04", "vggish"])
def test_absent_weights_offline_are_one_clear_line(name: str, nowhere: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_weights(name)
    text = str(caught.value)
    assert "\n" not in text
    assert RELEASES[name].names[0] in text
    assert str(nowhere) in text
    assert "--weights" in text
    assert not [path for path in nowhere.rglob("*") if path.is_file()]


def test_a_download_with_a_wrong_checksum_is_not_kept(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "release.pth").write_bytes(b"not the weights")
    url = (tmp_path / "release.pth").as_uri()
    monkeypatch.setitem(RELEASES, "vggish", Release(("v.pth",), url, "10086976"))
    with pytest.raises(UserError, match="expected 10086976"):
        find_weights("vggish")
    assert not [path for path in nowhere.rglob("*") if path.is_file()]


def test_a_download_with_the_right_checksum_is_kept(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "release.pth").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(RELEASES, "vggish", Release(("v.pth",), (tmp_path / "release.pth").as_uri(), right))
    assert find_weights("vggish").read_bytes() == b"weights"
    (tmp_path / "release.pth").unlink()
    assert find_weights("vggish").read_bytes() == b"weights"


def test_a_given_file_that_is_absent_or_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        find_weights("vggish", tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="cannot read weights"):
        load_state(tmp_path / "text.pth")


def test_the_digest_is_of_the_tensors_and_not_of_the_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"b": torch.arange(3.0), "a": torch.eye(2)}
    torch.save({**state, "n.num_batches_tracked": torch.tensor(5)}, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    assert state_digest(load_state(tmp_path / "a.pt")) == state_digest(load_state(tmp_path / "a.safetensors"))
    assert state_digest({**state, "a": torch.ones(2, 2)}) != state_digest(state)


def test_the_encoder_says_that_its_run_must_be_named() -> None:
    with pytest.raises(UserError, match="name a run of `foleybox train encoder` with --weights"):
        load_embedding("encoder")


# --- clips --------------------------------------------------------------------------------------------------------


def test_frames_are_the_windows_that_fit() -> None:
    assert frame(torch.arange(10)[None], 4, 3).tolist() == [[[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]]


def test_clips_are_embedded_once_and_again_when_they_change(toy: ToyEmbedding, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "real", count=2, labels=2)
    first = embed_clips(find_clips(folder), toy, 1.0)
    calls = toy.calls
    second = embed_clips(find_clips(folder), toy, 1.0)
    assert toy.calls == calls
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert first.rates.tolist() == [RATE] * 4
    assert first.vectors.shape == (4, 3, 8)
    write_wave(folder / "DogBark" / "000.wav", np.zeros(9_000, np.float32), RATE)
    changed = embed_clips(find_clips(folder), toy, 1.0)
    assert toy.calls > calls
    assert changed.peaks[0] == 0


def test_one_piece_is_in_memory_at_a_time_and_together_they_are_the_whole(
    toy: ToyEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_clips(sounds(tmp_path / "real", count=5, labels=2))
    whole = embed_clips(files, toy, 1.0)
    monkeypatch.setattr(embeddings, "PIECE", 3)
    np.testing.assert_array_equal(embed_clips(files, toy, 1.0).vectors, whole.vectors)
    alive: list[weakref.ref] = []
    for piece in embed_stream(files, toy, 1.0):
        alive.append(weakref.ref(piece.vectors))
        del piece
        assert sum(each() is not None for each in alive) <= 1
    assert len(alive) == 4


def test_a_run_that_was_stopped_goes_on_at_the_piece_it_was_at(
    toy: ToyEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_clips(sounds(tmp_path / "real", count=5, labels=2))
    monkeypatch.setattr(embeddings, "PIECE", 3)
    for index, _ in enumerate(embed_stream(files, toy, 1.0)):
        if index == 1:
            break
    assert toy.calls == 2
    assert len(embed_clips(files, toy, 1.0).clips) == 10
    assert toy.calls == 4


def test_a_length_without_a_window_is_refused(toy: ToyEmbedding, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no window"):
        embed_clips(find_clips(sounds(tmp_path, count=1)), toy, 0.1)
