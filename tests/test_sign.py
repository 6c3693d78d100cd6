"""A signature shows who made an instrument or a recipe, and that neither was changed; a checksum does not."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from helpers import toy_instrument

pytest.importorskip("cryptography")

from foleybox.cli import main
from foleybox.errors import UserError
from foleybox.signature import make_key, sign, signer
from foleybox.studio.recipe import CHUNK
from foleybox.studio.synth import Synth


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an instrument `toy`, a sound out/a.wav, and the keys `mine` and `theirs`."""
    monkeypatch.chdir(tmp_path)
    clip = Synth.load(toy_instrument(tmp_path / "toy"), threads=1).render("rain", 7)
    (tmp_path / "out").mkdir()
    clip.save(tmp_path / "out/a.wav")
    for name in ("mine", "theirs"):
        assert main(["sign", "--new-key", name]) == 0
    return tmp_path


def verified(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["verify", *arguments, "--instrument", "toy"])
    return code, capsys.readouterr().out.splitlines()


def test_what_is_signed_is_verified_with_the_key_of_who_signed_it(here: Path, capsys) -> None:
    assert main(["sign", "out", "toy", "--key", "mine"]) == 0
    key = (here / "mine.pub").read_text().strip()
    code, lines = verified("out", "toy", "--signer", "mine.pub", capsys=capsys)
    assert code == 0
    assert lines == [
        f"identical        out/a.wav  signed by {key}",
        f"whole            toy  instrument toy 1, CC-BY-NC-4.0  signed by {key}",
        "2 files: 1 identical, 1 whole",
    ]
    code, lines = verified("out", "toy", "--signer", (here / "theirs.pub").read_text(), capsys=capsys)
    assert code == 1
    assert all("bad signature" in line and "signed with another key" in line for line in lines[:2])


def test_a_private_key_is_for_its_owner_and_never_overwritten(here: Path) -> None:
    assert (here / "mine").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="exists already"):
        make_key(here / "mine")


def test_without_a_signature_the_named_signer_is_missed_and_otherwise_nothing(here: Path, capsys) -> None:
    assert verified("out", capsys=capsys)[0] == 0
    code, lines = verified("out", "--signer", "mine.pub", capsys=capsys)
    assert (code, lines[0]) == (1, "bad signature    out/a.wav  it is not signed")


def test_a_changed_recipe_and_a_changed_instrument_no_longer_fit_their_signatures(here: Path, capsys) -> None:
    """As a forger would: with checksums that fit."""
    assert main(["sign", "out", "toy", "--key", "mine"]) == 0
    content = (here / "out/a.wav").read_bytes()
    at = content.index(CHUNK) + 8
    text = content[at:].decode().rstrip("\0")
    body = text[: text.rindex(', "checksum"')].replace("0.1.0", "0.0.1")
    forged = f'{body}, "checksum": "{hashlib.sha256(body.encode()).hexdigest()}"}}'
    assert len(forged) == len(text)
    (here / "out/a.wav").write_bytes(content[:at] + forged.encode() + content[at + len(text.encode()) :])
    manifest = json.loads((here / "toy/instrument.json").read_text())
    manifest["version"] = "2"
    del manifest["checksum"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    (here / "toy/instrument.json").write_text(json.dumps(manifest | {"checksum": digest}))
    code, lines = verified("out", "toy", capsys=capsys)
    assert code == 1
    assert (
        "bad signature    out/a.wav  the signature out/a.wav.sig is not of this recipe: one of the two was changed"
        in lines
    )
    assert "bad signature    toy  the signature toy/instrument.sig is not of this instrument" in lines[1]


ABOUT = {"foleybox_signature": 1, "of": "recipe", "key": "0" * 64, "signature": "0" * 128}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps(ABOUT),
        json.dumps({**ABOUT, "key": "0"}),
        json.dumps({**ABOUT, "of": 1}),
        "\xff" * 3_000,
    ],
)
def test_a_file_that_is_no_signature_is_named(here: Path, text: str) -> None:
    (here / "x.sig").write_text(text)
    with pytest.raises(UserError, match=r"x\.sig"):
        signer(here / "x.sig", "recipe", b"")


def test_a_signature_of_an_instrument_is_none_of_a_recipe(here: Path) -> None:
    (here / "x.sig").write_text(sign("instrument", b"same", here / "mine"))
    with pytest.raises(UserError, match="of another kind"):
        signer(here / "x.sig", "recipe", b"same")


def test_a_signed_instrument_is_replaced_without_its_signature(here: Path) -> None:
    assert main(["sign", "toy", "--key", "mine"]) == 0
    toy_instrument(here / "toy")
    assert not (here / "toy/instrument.sig").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out"], "no key: expected --key FILE"),
        (["--key", "mine"], "nothing to sign"),
        (["out", "--key", "mine.pub"], "mine.pub is no private key"),
        (["out", "--key", "absent"], "No such file"),
        (["toy2", "--key", "mine"], "no file toy2"),
        (["out", "--new-key", "x"], "signs nothing"),
        (["bare", "--key", "mine"], "bare/b.wav: it lost its recipe"),
    ],
)
def test_a_mistake_is_one_line(here: Path, capsys, arguments: list[str], words: str) -> None:
    (here / "bare").mkdir()
    shutil.copy(here / "out/a.wav", here / "bare/b.wav")
    (here / "bare/b.wav").write_bytes((here / "bare/b.wav").read_bytes().replace(CHUNK, b"junk"))
    assert main(["sign", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(here.rglob("*.sig"))
