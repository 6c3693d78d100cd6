"""A codes file is complete or refused, names its VQ-VAE, is split by recording, and decodes to what was encoded."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_lab import configured, toy_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.baseline.codes import (
    Codes,
    check_fingerprint,
    decode_codes,
    encode_features,
    read_codes,
    split_codes,
    write_codes,
)
from foleybox.lab.baseline.runs import load_vqvae
from foleybox.lab.baseline.train_vqvae import TrainVqvae
from foleybox.lab.baseline.vqvae import Vqvae, VqvaeConfig
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips, label_ids, split_by_recording, training_rows
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import fingerprint, open_run, save_state

TINY = VqvaeConfig(channels=4, residual=2, width=3, size=8)


def toy_codes(count: int = 5, **changes: Any) -> Codes:
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "codes": torch.randint(8, (count, 2, 3), generator=generator),
        "labels": torch.arange(count) % 7,
        "recordings": [f"é{index // 2}" for index in range(count)],
        "names": [f"Rain/{index:03d}.wav" for index in range(count)],
        "rows": [{"clip": f"Rain/{index:03d}.wav 9", "licence": "CC0 “x”"} for index in range(count)],
        "size": 8,
        "fingerprint": "ab" * 32,
        "step": 3,
    }
    return Codes(**{**values, **changes})


def same(mine: Codes, theirs: Codes) -> bool:
    return all(
        torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        for value, other in zip(vars(mine).values(), vars(theirs).values(), strict=True)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield toy_folder(tmp_path_factory.mktemp("sounds"), per_label=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an untrained VQ-VAE."""
    out = tmp_path_factory.mktemp("runs") / "vqvae"
    open_run(out, "vqvae", configured(TrainVqvae, model=TINY, head="pre"), [])
    torch.manual_seed(0)
    vqvae = Vqvae(TINY, "pre")
    vqvae.codebook.initialise(vqvae.encode(torch.randn(2, 80, 344)))
    save_state(out / "state.pt", 3, {"vqvae": vqvae})
    return out


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_codes_file_gives_back_what_was_written(tmp_path: Path) -> None:
    codes = toy_codes()
    write_codes(tmp_path / "deep" / "codes.npz", codes)
    assert same(read_codes(tmp_path / "deep" / "codes.npz"), codes)
    with np.load(tmp_path / "deep" / "codes.npz") as file:
        assert (file["codes"].dtype, file["codes"].shape) == (np.uint16, (5, 2, 3))
        assert set(file.files) == {"codes", "labels", "recordings", "names", "about"}


def test_the_largest_code_of_the_largest_codebook_fits(tmp_path: Path) -> None:
    codes = toy_codes(codes=torch.full((5, 2, 3), 65_535), size=65_536)
    write_codes(tmp_path / "codes.npz", codes)
    assert same(read_codes(tmp_path / "codes.npz"), codes)


def test_the_same_codes_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_codes(tmp_path / f"{name}.npz", toy_codes())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


WHOLE = io.BytesIO()


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_harmless(
    place: float, change: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A byte flipped or the end cut off anywhere: one line, or the same codes, and never others."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    if not WHOLE.getvalue():
        write_codes(path, toy_codes())
        WHOLE.write(path.read_bytes())
    content = bytearray(WHOLE.getvalue())
    at = int(place * len(content))
    if cut:
        content = content[:at]
    else:
        content[at] ^= change
    path.write_bytes(content)
    try:
        assert same(read_codes(path), toy_codes())
    except UserError as error:
        assert "is damaged or not a codes file" in str(error)  # noqa: PT017 (either outcome is right)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": 5}, "codes 0 to 7 of a codebook of 5"),
        ({"labels": torch.tensor([0, 1, 2, 3, 7])}, "label 7 of 7"),
        ({"labels": torch.arange(4)}, r"codes \[5, 2, 3\], columns of 4, 5 clips"),
        ({"names": ["one"]}, "columns of 1, 5 clips"),
        ({"codes": torch.zeros(5, 6, dtype=torch.int64)}, r"codes \[5, 6\]"),
    ],
)
def test_codes_that_do_not_hold_together_are_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    write_codes(tmp_path / "codes.npz", toy_codes(**changes))
    with pytest.raises(UserError, match=complaint):
        read_codes(tmp_path / "codes.npz")


def test_a_codes_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It had the rows about its clips under another name."""
    write_codes(tmp_path / "codes.npz", toy_codes())
    with np.load(tmp_path / "codes.npz") as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    about["heard"] = about.pop("clips")
    np.savez(tmp_path / "old.npz", **{**arrays, "about": np.array(json.dumps(about))})
    assert same(read_codes(tmp_path / "old.npz"), toy_codes())


def test_negative_codes_are_refused(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes.npz", toy_codes())
    with np.load(tmp_path / "codes.npz") as file:
        arrays = dict(file)
    arrays["codes"] = arrays["codes"].astype(np.int16) - 1
    np.savez(tmp_path / "negative.npz", **arrays)
    with pytest.raises(UserError, match="codes -1 to"):
        read_codes(tmp_path / "negative.npz")


def test_what_is_no_codes_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no codes file .*foleybox encode RUN DATA -o"):
        read_codes(tmp_path / "nothing.npz")
    np.savez(tmp_path / "other.npz", wave=np.zeros(3))
    with pytest.raises(UserError, match=r"is damaged or not a codes file .*about"):
        read_codes(tmp_path / "other.npz")
    np.savez(tmp_path / "newer.npz", about=np.array(json.dumps({"format": "foleybox codes 2"})))
    with pytest.raises(UserError, match="its format is 'foleybox codes 2', not 'foleybox codes 1'"):
        read_codes(tmp_path / "newer.npz")
    np.savez(tmp_path / "pickle.npz", about=np.array({"format": 1}, dtype=object))
    with pytest.raises(UserError, match="is damaged or not a codes file"):
        read_codes(tmp_path / "pickle.npz")


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "codes.npz"
    write_codes(path, toy_codes())
    before, opened = path.read_bytes(), Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", **rest: opened(Path("/dev/full") if "w" in mode else self, mode, **rest)
    )
    with pytest.raises(OSError, match="No space left on device"):
        write_codes(path, toy_codes(count=3))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["codes.npz"]


def test_codes_split_by_recording_on_the_sides_that_their_clips_have(folder: Path) -> None:
    clips = [replace(clip, recording=f"r{index // 2}") for index, clip in enumerate(find_clips(folder) * 3)]
    codes = toy_codes(
        len(clips), recordings=[clip.recording for clip in clips], names=[str(i) for i in range(len(clips))]
    )
    for share in (0.0, 0.3, 1.0):
        kept, held = split_codes(codes, share)
        sides = split_by_recording(clips, share)
        assert [kept.recordings, held.recordings] == [[clip.recording for clip in side] for side in sides]
        assert not set(kept.recordings) & set(held.recordings)
        for side in (kept, held):
            places = [int(name) for name in side.names]
            assert torch.equal(side.codes, codes.codes[places])
            assert torch.equal(side.labels, codes.labels[places])
            assert side.rows == [codes.rows[place] for place in places]
            assert (side.size, side.fingerprint, side.step) == (codes.size, codes.fingerprint, codes.step)


# --- to codes and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_decoded_codes_are_the_reconstruction_whatever_the_batch(run: Path, batch: int) -> None:
    vqvae, _ = load_vqvae(run)
    mels = torch.randn(4, 80, 344)
    made = vqvae(mels)
    codes = encode_features(vqvae, mels, batch)
    assert (codes.dtype, codes.shape) == (torch.int64, (4, 20, 86))
    assert (codes == made.codes).float().mean() > 0.999  # a tie may fall the other way
    torch.testing.assert_close(decode_codes(vqvae, made.codes, batch), made.output, atol=1e-4, rtol=1e-4)


def test_encoding_leaves_the_model_in_its_mode_and_its_statistics_alone() -> None:
    vqvae = Vqvae(replace(TINY, norm=True)).train()
    before = {name: value.clone() for name, value in vqvae.state_dict().items()}
    mels = torch.randn(4, 16, 16)
    codes = encode_features(vqvae, mels, batch=4)
    assert vqvae.training
    assert all(torch.equal(value, before[name]) for name, value in vqvae.state_dict().items())
    assert torch.equal(codes, vqvae.eval()(mels).codes)


def test_codes_of_another_codebook_are_refused(run: Path) -> None:
    vqvae, _ = load_vqvae(run)
    with pytest.raises(UserError, match="codes 0 to 8 for a codebook of 8: they were made with another VQ-VAE"):
        decode_codes(vqvae, torch.arange(9).view(1, 3, 3))
    with pytest.raises(UserError, match="codes -1 to 0"):
        decode_codes(vqvae, torch.tensor([[[-1, 0]]]))
    for wrong in (torch.zeros(1, 2, 3), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(UserError, match=r"expected integers of shape \[N, H, W\]"):
            decode_codes(vqvae, wrong)


def test_a_swapped_or_further_trained_vqvae_is_refused(run: Path) -> None:
    vqvae, _ = load_vqvae(run)
    theirs = fingerprint(vqvae)
    check_fingerprint(vqvae, theirs, "codes.npz")
    with torch.no_grad():
        vqvae.narrow.weight[0, 0] += 1e-6
    with pytest.raises(UserError, match=rf"codes.npz was made with the VQ-VAE of fingerprint {theirs[:12]}, this one"):
        check_fingerprint(vqvae, theirs, "codes.npz")


# --- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb_encodes_every_clip_and_writes_what_is_known_of_it(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "codes.npz"
    command = ["encode", str(run), str(folder), "-o", str(out), "--device", "cpu", "--threads", "1"]
    assert cli.main(command) == 0
    assert "7 clips, 20 x 86 codes each" in capsys.readouterr().out
    codes, clips, (vqvae, _) = read_codes(out), find_clips(folder), load_vqvae(run)
    assert torch.equal(codes.codes, encode_features(vqvae, load_mels(clips, DCASE)))
    assert torch.equal(codes.labels, label_ids(clips))
    assert codes.recordings == [clip.recording for clip in clips]
    assert codes.names == [f"{clip.path.parent.name}/{clip.path.name}" for clip in clips]
    assert codes.rows == training_rows(clips)
    assert (codes.size, codes.fingerprint, codes.step) == (8, fingerprint(vqvae), 3)

    before = out.read_bytes()
    assert cli.main(command) == 2
    assert "add --force to replace it" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0
    assert out.read_bytes() == before


def test_mistakes_are_one_line_and_write_nothing(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "partial"
    open_run(partial, "vqvae", configured(TrainVqvae, model=TINY, head="none"), [])
    save_state(partial / "state.pt", 3, {"vqvae": Vqvae(TINY, "pre")})
    other, empty = tmp_path / "other", tmp_path / "empty"
    open_run(other, "sagan", TrainVqvae(), [])
    open_run(empty, "vqvae", TrainVqvae(), [])
    for words, complaint in (
        ([str(partial), str(folder)], "Unexpected key(s) in state_dict"),
        ([str(other), str(folder)], "is a run of 'sagan': expected one of `foleybox train vqvae`"),
        ([str(empty), str(folder)], "holds no state.pt yet"),
        ([str(tmp_path / "none"), str(folder)], "is not a run folder"),
        ([str(run), str(tmp_path / "none")], "no folder"),
        ([str(run)], "no data"),
    ):
        assert cli.main(["encode", *words, "-o", str(tmp_path / "codes.npz")]) == 2
        said = capsys.readouterr().err
        assert complaint in said
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "codes.npz").exists()
