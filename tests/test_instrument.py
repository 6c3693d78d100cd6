"""An instrument is whole or refused, with one line that says what is wrong."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import TRAINING_CLIPS, toy_graphs, toy_manifest
from helpers import toy_instrument as toy_of_kind
from hypothesis import given
from hypothesis import strategies as st

from foleybox import files
from foleybox.errors import UserError
from foleybox.graphs import graph_problems
from foleybox.instrument import (
    INPUTS_OF_FORMAT_1,
    SHIPPED,
    _digest,
    check_graph_ports,
    read_instrument,
    write_instrument,
)
from foleybox.licences import NOT_FOR_DISTRIBUTION, TrainingClips, licence_of


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
        content["checksum"] = "" if "\ud800" in content["name"] else _digest(content)
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
    (tmp_path / "music" / "song.wav").write_bytes(b"precious")
    with pytest.raises(UserError, match="contains other files"):
        toy_instrument(tmp_path / "music")
    assert (tmp_path / "music" / "song.wav").read_bytes() == b"precious"


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
    refused(tmp_path / "toy", "cut short or not a manifest")


def test_other_folders_and_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no instrument at")
    refused(tmp_path, "has no instrument.json")
    (tmp_path / "instrument.json").write_text("[1, 2]")
    refused(tmp_path, "no format number")


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    refused(edit(toy_instrument(tmp_path / "toy"), lambda content: content.update(format=3)), "update foleybox")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "more than 20 levels of nesting"),
        ('{"format": 2, "rate": ' + "9" * 5_000 + "}", "a number of 5,000 digits"),
        ('{"format": 2, "rate": NaN}', "it contains NaN"),
        ('{"format": 2, "rate": 1e999}', "a number that is too large"),
        (" " * (4 << 20) + "{}", "more than 4,194,304 bytes"),
    ],
)
def test_a_manifest_beyond_the_limits_is_refused_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "instrument.json").write_text(text)
    refused(tmp_path, words)


def test_format_1_is_read_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    """A manifest of format 1, as foleybox 0.1.0 wrote it, of the same instrument."""
    folder = toy_instrument(tmp_path / "toy")
    expected = read_instrument(folder)

    def to_format_1(content: dict) -> None:
        content["format"] = 1
        content["heard"] = content.pop("training_clips")
        content["licence"] = {"terms": content["licence"]["terms"], "why": ["..."]}
        del content["same_sounds_as"]

    assert read_instrument(edit(folder, to_format_1)) == expected


def test_an_instrument_matches_its_own_fingerprint_and_those_of_its_earlier_files(tmp_path: Path) -> None:
    earlier = write_instrument(tmp_path / "a", toy_manifest(), toy_graphs(seed=1), "")
    later = write_instrument(tmp_path / "b", toy_manifest(same_sounds_as=(earlier.fingerprint,)), toy_graphs(), "")
    assert read_instrument(tmp_path / "b") == later
    assert later.matches(later.fingerprint)
    assert later.matches(earlier.fingerprint)
    assert not earlier.matches(later.fingerprint)


def test_weights_outside_the_graph_file_are_refused(tmp_path: Path) -> None:
    import onnx

    folder = toy_instrument(tmp_path / "toy")
    instrument = read_instrument(folder)
    model = onnx.load(str(folder / "vocoder.onnx"))
    onnx.save(
        model, str(tmp_path / "vocoder.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    files = {"generator": folder / "generator.onnx", "vocoder": tmp_path / "vocoder.onnx"}
    with pytest.raises(UserError, match=r"the vocoder graph .* has weights in another file"):
        write_instrument(folder, instrument, files, "")
    assert read_instrument(folder) == instrument


GRAPH = '<ir_version: 8, opset_import: ["": 17]> g (float[A] x) => (float[A] y) { y = Relu (x) }'
LOOP = """y = Loop <body = b (int64 i, bool c, float[A] u) => (bool d, float[A] v) { d = Identity (c)
    v = Relu (u) }> (, , x)"""
OTHERS = {
    "endless": (GRAPH.replace("y = Relu (x)", LOOP), r"contains the operator 'Loop'"),
    "random": (GRAPH.replace("Relu", "RandomNormalLike"), r"contains the operator 'RandomNormalLike'"),
    "of others": (GRAPH.replace('"": 17', '"": 17, "com.microsoft": 1'), r"uses operators of 'com.microsoft'"),
    "newer": (GRAPH.replace('"": 17', '"": 99'), "in version 99: expected ONNX's, versions 13 to"),
    "function": (GRAPH + '<domain: "", opset_import: ["": 17]> f (x) => (y) { y = Relu (x) }', "contains functions"),
}


@pytest.mark.parametrize(("text", "words"), OTHERS.values(), ids=OTHERS)
def test_a_graph_with_operators_that_no_instrument_needs_is_refused(text: str, words: str) -> None:
    parser = pytest.importorskip("onnx").parser
    assert list(graph_problems(parser.parse_model(GRAPH).SerializeToString())) == []
    assert re.search(words, next(graph_problems(parser.parse_model(text).SerializeToString())))


def test_a_scan_in_a_scan_and_tensors_of_nodes_in_other_files_are_refused() -> None:
    onnx = pytest.importorskip("onnx")

    def scan(body):
        node = onnx.helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
        model.opset_import[0].version = 20
        return model

    once = scan(onnx.parser.parse_graph("g (float[A] x) => (float[A] y) { y = Relu (x) }"))
    assert list(graph_problems(once.SerializeToString())) == []
    model = scan(once.graph)
    assert list(graph_problems(model.SerializeToString())) == [
        "contains a graph in 'Scan' in Scan: expected one in Scan at most"
    ]
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Constant", [], ["y"], value=tensor))
    assert "another file" in next(graph_problems(model.SerializeToString()))


@given(st.binary(max_size=200), st.integers(0, 4_000))
def test_bytes_that_are_no_graph_are_refused_or_read_without_an_error(content: bytes, place: int) -> None:
    list(graph_problems(content))
    whole = toy_graphs()["vocoder"]
    list(graph_problems(whole[:place] + content + whole[place + len(content) :]))


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_moment_leaves_a_whole_instrument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """The process is killed at every file operation in turn. Without an exchange, a reader is told where the old one is."""
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    first, second = toy_manifest(version="1"), toy_manifest(version="2")
    write_instrument(tmp_path / "toy", first, toy_graphs(), "")
    absent, done, last = 0, False, 0
    for last in range(100):
        if (child := os.fork()) == 0:
            operations = iter(range(last))

            def kill(event: str, _: object, operations=operations) -> None:
                if event.startswith(("open", "os.", "shutil.")) and next(operations, None) is None:
                    os._exit(9)

            sys.addaudithook(kill)
            write_instrument(tmp_path / "toy", second, toy_graphs(), "")
            os._exit(0)
        done = os.waitpid(child, 0)[1] == 0
        if (tmp_path / "toy").exists():
            assert read_instrument(tmp_path / "toy").version in ("1", "2")
        else:
            absent += 1
            with pytest.raises(UserError, match=r"interrupted and left the earlier one at .*\.old: rename it"):
                read_instrument(tmp_path / "toy")
            next(tmp_path.glob(".toy.*.old")).rename(tmp_path / "toy")
        if done:
            break
    assert done
    assert last > 10
    assert absent == 0 or not exchange
    assert read_instrument(tmp_path / "toy").version == "2"


def test_what_killed_writes_left_is_swept_and_a_running_write_stays(tmp_path: Path) -> None:
    names = (".toy.0123abcd.partial", ".toy.0123abcd.old", ".toys.0123abcd.partial")
    for name in names:
        (tmp_path / name).mkdir()
    with files.atomic_folder(tmp_path / "toy") as running:
        toy_instrument(tmp_path / "toy")
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([names[2], running.name, "toy"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[2], "toy"]


class Tensor(NamedTuple):
    name: str
    type: str
    shape: list


PORTS = {
    "generator": ([("latent", "float", ["N", 8]), ("label", "int64", ["N"])], [("mel", "float", ["N", 6, 12])]),
    "vocoder": ([("mel", "float", ["N", 6, 12])], [("wave", "float", ["N", 1920])]),
    "next": (
        [("previous", "float", ["R", 8]), ("label", "int64", ["R"]), ("mix", "float", ["R", "R"]), ("position", "int64", []),
         ("noise", "float", ["R", 8]), ("keys_0", "float", ["R", 1, 2, 8]), ("values_0", "float", ["R", 1, 2, 8])],
        [("latent", "float", ["R", 8]), ("new_keys_0", "float", ["R", 1, 8]), ("new_values_0", "float", ["R", 1, 8])],
    ),
    "decoder": ([("latents", "float", ["N", 3, 8]), ("noise", "float", ["N", 12, 2])], [("mel", "float", ["N", 6, 12])]),
}  # fmt: skip
"inputs and outputs of the toy instruments: name, type, shape"


def check_ports(graph: str, inputs: list, outputs: list) -> None:
    takes, gives = (
        [Tensor(name, f"tensor({kind})", shape) for name, kind, shape in each] for each in (inputs, outputs)
    )
    manifest = toy_manifest("gan" if graph in ("generator", "vocoder") else "patches")
    check_graph_ports(manifest, graph, takes, gives, Path("x.onnx"))


@pytest.mark.parametrize("graph", PORTS)
def test_graphs_with_the_inputs_of_their_kind_are_accepted(graph: str) -> None:
    inputs, outputs = PORTS[graph]
    check_ports(graph, inputs, outputs)
    old = {new: name for name, new in INPUTS_OF_FORMAT_1.items()}
    check_ports(graph, [(old.get(name, name), *rest) for name, *rest in inputs], outputs)


@pytest.mark.parametrize(
    ("graph", "place", "port", "words"),
    [
        (
            "generator",
            0,
            ("latent", "float", ["N", 9]),
            r"latent \['N', 9\]: that does not fit the manifest's latent \[8\]",
        ),
        ("generator", 0, ("latent", "float", ["N", "Z"]), "does not fit"),
        ("generator", 0, ("latent", "string", ["N", 8]), r"has latent of tensor\(string\): expected tensor\(float\)"),
        ("generator", 1, ("label", "float", ["N"]), r"expected tensor\(int64\)"),
        ("generator", 1, ("class", "int64", ["N"]), "takes latent, class: expected latent, label"),
        ("vocoder", 0, ("mel", "float", ["N", 6]), "does not fit"),
        ("vocoder", -1, ("wave", "string", ["N", 1920]), r"has wave of tensor\(string\)"),
        ("next", 0, ("previous", "float", ["R", 16]), "does not fit"),
        ("next", 4, ("noise", "float", ["R", 7]), "does not fit"),
        ("next", 5, ("keys_0", "float", ["R", 1, 2**40, 8]), "numbers in all at most"),
        ("next", 5, ("keys_0", "float", ["R", 1, "W", 8]), "three fixed sizes"),
        ("next", 5, ("keys_0", "float", ["R", 1, 0, 8]), "three fixed sizes"),
        (
            "next",
            6,
            ("values_1", "float", ["R", 1, 2, 8]),
            "expected previous, label, mix, position, noise, keys_0, values_0",
        ),
        ("decoder", 0, ("latents", "float", ["N", 4, 8]), "does not fit"),
        ("decoder", 1, ("noise", "float", ["N", 12, 3]), "does not fit"),
    ],
)
def test_a_graph_that_does_not_fit_its_manifest_is_refused(graph: str, place: int, port: tuple, words: str) -> None:
    inputs, outputs = (list(each) for each in PORTS[graph])
    (outputs if place < 0 else inputs)[max(place, 0)] = port
    with pytest.raises(UserError, match=words):
        check_ports(graph, inputs, outputs)


def row(content: dict, **changes) -> None:
    content["graphs"]["vocoder"].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("rate"), "lacks rate"),
        (lambda content: content.update(colour="red"), "has the unknown colour"),
        (lambda content: content.update(rate="22050"), "rate is '22050': expected a whole number from 1000 to 768000"),
        (lambda content: content.update(rate=True), "rate is True: expected a whole number"),
        (lambda content: content.update(rate=0), "rate is 0: expected"),
        (lambda content: content.update(latent=[]), "latent has 0 values: expected a list of 1 to 8"),
        (lambda content: content.update(latent=[12.5]), r"latent\[0\] is 12.5: expected a whole number"),
        (lambda content: content.update(labels=["Rain", "Rain"]), "expected different names"),
        (lambda content: content.update(labels=[["Rain"]]), r"labels\[0\] is a list: expected 1 to 100 characters"),
        (lambda content: content.update(labels=["a/b", "a:b"]), r"expected different names \(as file names, too\)"),
        (lambda content: content.update(labels=["Rain\n"]), "expected 1 to 100 characters"),
        (lambda content: content.update(labels=[]), "labels has 0 values: expected a list of 1 to 1,000"),
        (lambda content: content.update(name="=HYPERLINK(1)"), "the first a letter or a digit"),
        (lambda content: content.update(name="\x1b[31mred"), "a control character"),
        (lambda content: content.update(name="\ud800"), "half a character"),
        (lambda content: content.update(latent=[2**20, 17]), "16,777,216 numbers in all at most"),
        (lambda content: content.update(samples=10**9), "3,600 s at most"),
        (lambda content: content.update(rate=2**40), "from 1000 to 768000"),
        (lambda content: content["training_clips"][0].update(clips=-3), r"training_clips\[0\].clips is -3"),
        (lambda content: content.update(same_sounds_as=["abc"]), "a SHA-256 of 64 hexadecimal digits"),
        (lambda content: content["measured"].update(fad=json.loads("[" * 30 + "]" * 30)), "20 levels of nesting"),
        (lambda content: content.update(kind="flute"), "kind is 'flute': expected 'gan' or 'patches'"),
        (lambda content: content.update(mel={"hop": "256"}), "mel.hop is '256': expected a number"),
        (lambda content: content["graphs"].pop("vocoder"), "expected generator, vocoder"),
        (
            lambda content: row(content, file="../../etc/passwd"),
            "vocoder.file is .* expected the name of a file",
        ),
        (lambda content: row(content, bytes="many"), "bytes is 'many'"),
        (lambda content: row(content, bytes=2**40), "bytes is 1099511627776"),
        (
            lambda content: content["graphs"].update(vocoder="vocoder.onnx"),
            "graphs.vocoder is .* expected an object",
        ),
        (lambda content: content["training_clips"][0].pop("tier"), r"training_clips\[0\] lacks tier"),
        (
            lambda content: content["licence"].update(terms="CC0-1.0"),
            "but 'CC-BY-NC-4.0' follows from its training clips",
        ),
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
def test_the_strictest_tier_decides_the_terms(tiers: list[str], terms: str) -> None:
    assert licence_of(TrainingClips("Rain", tier, "somewhere", 2) for tier in tiers).terms == terms


def test_gpl_and_share_alike_are_reported_with_their_counts() -> None:
    licences = [
        "put-kbd LICENSE: GPL-3.0",
        "CC-Sounds (pack CC BY-SA 4.0): CC-BY",
        "mods: CC BY-SA 3.0",
        "CC0",
        "CC BY",
    ]
    why = " ".join(licence_of(TrainingClips("Rain", "open", licence, 3) for licence in licences).reasons)
    assert "3 clips under GPL" in why
    assert "6 clips under share-alike" in why
    assert "Sampling" not in why


def test_an_instrument_trained_on_unlicensed_clips_cannot_ship() -> None:
    licence = toy_manifest(training_clips=(*TRAINING_CLIPS, TrainingClips("Rain", "unclear", "?", 1))).licence
    assert licence.terms == NOT_FOR_DISTRIBUTION
    assert licence.reasons[0].startswith("1 clips whose source states no licence")


@pytest.mark.parametrize("folder", sorted(SHIPPED.glob("*/")), ids=lambda folder: folder.name)
def test_what_ships_is_whole_licensed_and_under_30_mb(folder: Path) -> None:
    instrument = read_instrument(folder)
    assert instrument.licence.terms != NOT_FOR_DISTRIBUTION
    assert sum(graph.bytes for graph in instrument.graphs.values()) < 30e6
    assert instrument.licence.terms in (folder / "CARD.md").read_text()
