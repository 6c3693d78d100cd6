"""An instrument is whole or refused, with one line that says what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import TRAINING_CLIPS, toy_graphs, toy_manifest
from helpers import toy_instrument as toy_of_kind

from foleybox.errors import UserError
from foleybox.instrument import SHIPPED, _digest, read_instrument, write_instrument
from foleybox.licences import NOT_FOR_DISTRIBUTION, TrainingClips, roll_up


def toy_instrument(folder: Path) -> Path:
    return toy_of_kind(folder, "gan")


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_instrument(folder)
    assert "\n" not in str(caught.value)


def edit(folder: Path, change, mend: bool = True) -> Path:
    """Change the manifest; with `mend`, as someone would who computes the checksum again."""
    path = folder / "instrument.json"
    content = json.loads(path.read_text())
    change(content)
    if mend:
        content.pop("checksum", None)
        content["checksum"] = _digest(content)
    path.write_text(json.dumps(content))
    return folder


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    written = write_instrument(tmp_path / "deep" / "toy", toy_manifest(), toy_graphs(), "# card\n")
    assert read_instrument(tmp_path / "deep" / "toy") == written
    assert set(written.graphs) == {"generator", "vocoder"}
    assert (tmp_path / "deep" / "toy" / "CARD.md").read_text() == "# card\n"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["toy"]


def test_scores_can_be_added_by_writing_an_instrument_onto_itself(tmp_path: Path) -> None:
    folder = toy_instrument(tmp_path / "toy")
    before = read_instrument(folder)
    files = {name: folder / graph.file for name, graph in before.graphs.items()}
    after = write_instrument(folder, replace(before, measured={"fad": 1.5}), files, "# card\n")
    assert read_instrument(folder) == after
    assert after.measured == {"fad": 1.5}
    assert after.fingerprint == before.fingerprint


def test_the_fingerprint_follows_the_graphs_and_not_the_name(tmp_path: Path) -> None:
    first = write_instrument(tmp_path / "a", toy_manifest(), toy_graphs(), "")
    renamed = write_instrument(tmp_path / "b", toy_manifest(name="other"), toy_graphs(), "")
    retrained = write_instrument(tmp_path / "c", toy_manifest(), toy_graphs(seed=1), "")
    assert first.fingerprint == renamed.fingerprint != retrained.fingerprint


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.wav").write_bytes(b"dear to me")
    with pytest.raises(UserError, match="holds other things"):
        toy_instrument(tmp_path / "music")
    assert (tmp_path / "music" / "song.wav").read_bytes() == b"dear to me"


def test_a_write_that_fails_leaves_the_old_instrument_and_nothing_else(tmp_path: Path) -> None:
    folder = toy_instrument(tmp_path / "toy")
    before = read_instrument(folder)
    with pytest.raises(FileNotFoundError):
        write_instrument(folder, toy_manifest(), {"generator": b"x", "vocoder": tmp_path / "absent.onnx"}, "")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_instrument(folder, toy_manifest(measured={"fad": float("nan")}), toy_graphs(), "")
    assert read_instrument(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_graphs_that_the_kind_lacks_or_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected generator, vocoder"):
        write_instrument(tmp_path / "x", toy_manifest(), {"generator": b""}, "")
    with pytest.raises(UserError, match="unknown kind 'flute'"):
        write_instrument(tmp_path / "x", toy_manifest(kind="flute"), toy_graphs(), "")


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_changed_byte_of_a_graph_is_noticed(tmp_path: Path, place: int) -> None:
    path = toy_instrument(tmp_path / "toy") / "vocoder.onnx"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    refused(tmp_path / "toy", r"vocoder graph .* was changed \(sha256")


def test_a_truncated_or_missing_graph_is_noticed(tmp_path: Path) -> None:
    path = toy_instrument(tmp_path / "toy") / "generator.onnx"
    path.write_bytes(path.read_bytes()[:-9])
    refused(tmp_path / "toy", "generator graph .* bytes, expected")
    path.unlink()
    refused(tmp_path / "toy", "generator graph .* is missing")


def test_a_manifest_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    edit(toy_instrument(tmp_path / "toy"), lambda content: content.update(samples=900), mend=False)
    refused(tmp_path / "toy", "was changed after it was written")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_manifest_is_noticed(tmp_path: Path, share: float) -> None:
    path = toy_instrument(tmp_path / "toy") / "instrument.json"
    path.write_text(path.read_text()[: int(share * len(path.read_text()))])
    refused(tmp_path / "toy", "cut short or not JSON")


def test_what_is_no_instrument_is_said_to_be_none(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no instrument at")
    refused(tmp_path, "has no instrument.json")
    (tmp_path / "instrument.json").write_text("[1, 2]")
    refused(tmp_path, "no format number")


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    refused(edit(toy_instrument(tmp_path / "toy"), lambda content: content.update(format=2)), "update foleybox")


def row(content: dict, **changes) -> None:
    content["graphs"]["vocoder"].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("rate"), "lacks rate"),
        (lambda content: content.update(colour="red"), "has the unknown colour"),
        (lambda content: content.update(rate="22050"), "rate is str, expected int"),
        (lambda content: content.update(rate=True), "rate is bool, expected int"),
        (lambda content: content.update(rate=0), "expected positive numbers"),
        (lambda content: content.update(latent=[]), "expected positive whole numbers"),
        (lambda content: content.update(latent=[12.5]), "expected positive whole numbers"),
        (lambda content: content.update(labels=["Rain", "Rain"]), "expected different names"),
        (lambda content: content.update(labels=[["Rain"]]), "expected different names"),
        (lambda content: content.update(kind="flute"), "kind 'flute', expected one of gan"),
        (lambda content: content.update(mel={"hop": "256"}), "mel, expected numbers"),
        (lambda content: content["graphs"].pop("vocoder"), "expected generator, vocoder"),
        (lambda content: row(content, file="../../etc/passwd"), "a graph outside its folder"),
        (lambda content: row(content, bytes="many"), "bytes is str"),
        (lambda content: content["graphs"].update(vocoder="vocoder.onnx"), "graphs vocoder is str"),
        (lambda content: content["heard"][0].pop("tier"), "heard 0 lacks tier"),
        (lambda content: content["licence"].update(terms="CC0-1.0"), "but 'CC-BY-NC-4.0' follows from what it heard"),
    ],
)
def test_a_manifest_that_states_nonsense_is_refused_by_name(tmp_path: Path, change, words: str) -> None:
    refused(edit(toy_instrument(tmp_path / "toy"), change), words)


@pytest.mark.parametrize(
    ("tiers", "terms"),
    [
        (["open"], "CC-BY-4.0"),
        (["open", "open-clip"], "CC-BY-4.0"),
        (["open", "nc", "open-clip"], "CC-BY-NC-4.0"),
        (["open", "nc", "unclear"], NOT_FOR_DISTRIBUTION),
        (["open", ""], NOT_FOR_DISTRIBUTION),
        (["open", "opne"], NOT_FOR_DISTRIBUTION),
        ([], NOT_FOR_DISTRIBUTION),
    ],
)
def test_the_strictest_tier_heard_decides_the_terms(tiers: list[str], terms: str) -> None:
    assert roll_up(TrainingClips("Rain", tier, "somewhere", 2) for tier in tiers).terms == terms


def test_gpl_and_share_alike_are_reported_with_their_counts() -> None:
    licences = [
        "put-kbd LICENSE: GPL-3.0",
        "CC-Sounds (pack CC BY-SA 4.0): CC-BY",
        "mods: CC BY-SA 3.0",
        "CC0",
        "CC BY",
    ]
    why = " ".join(roll_up(TrainingClips("Rain", "open", licence, 3) for licence in licences).why)
    assert "3 clips under GPL" in why
    assert "6 clips under share-alike" in why
    assert "Sampling" not in why


def test_an_instrument_that_heard_unlicensed_clips_cannot_ship() -> None:
    licence = toy_manifest(training_clips=(*TRAINING_CLIPS, TrainingClips("Rain", "unclear", "?", 1))).licence
    assert licence.terms == NOT_FOR_DISTRIBUTION
    assert licence.why[0].startswith("1 clips whose source states no licence")


@pytest.mark.parametrize("folder", sorted(SHIPPED.glob("*/")), ids=lambda folder: folder.name)
def test_what_ships_is_whole_licensed_and_under_30_mb(folder: Path) -> None:
    instrument = read_instrument(folder)
    assert instrument.licence.terms != NOT_FOR_DISTRIBUTION
    assert sum(graph.bytes for graph in instrument.graphs.values()) < 30e6
    assert instrument.licence.terms in (folder / "CARD.md").read_text()
