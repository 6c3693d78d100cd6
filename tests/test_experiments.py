"""The record of experiments is well formed, and its page asks the same questions and decides them alike."""

import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "experiments.jsonl"
PAGE = ROOT / "docs" / "experiments.md"
TEXT = ("date", "commit", "topic", "question", "command", "changed", "data", "seed", "budget", "decision")
OPTIONAL = ("measure", "recorded_at")  # what the metrics are; the commit at which an experiment was written down
DECISIONS = ("kept", "rejected", "undecided", "superseded")


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


def questions() -> dict[str, dict[str, list[str]]]:
    """Return the page as topic -> question -> its lines that are not empty."""
    found: dict[str, dict[str, list[str]]] = {}
    topic = question = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            topic, question = line[3:], ""
            found[topic] = {}
        elif line.startswith("### "):
            question = line[4:]
            assert question not in found[topic], question
            found[topic][question] = []
        elif line.strip() and question:
            found[topic][question].append(line)
    return found


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, part in value.items():
            assert isinstance(key, str)
            assert key
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        yield value


@pytest.mark.parametrize("record", records(), ids=lambda record: record.get("question", "")[:60])
def test_a_record_has_its_keys_with_the_right_types(record: dict[str, Any]) -> None:
    assert set(TEXT) | {"metrics"} <= set(record) <= set(TEXT) | {"metrics"} | set(OPTIONAL)
    for key in set(record) - {"metrics"}:
        assert isinstance(record[key], str), key
    for key in ("topic", "question", "decision"):
        assert record[key], key
    assert datetime.date.fromisoformat(record["date"]).isoformat() == record["date"]
    for key in ("commit", "recorded_at"):
        assert re.fullmatch(r"([0-9a-f]{7,40})?", record.get(key, "")), key
    word, _, why = record["decision"].partition(": ")
    assert word in DECISIONS
    assert why.endswith(".")
    assert isinstance(record["metrics"], dict)
    assert record["metrics"]
    for leaf in leaves(record["metrics"]):
        assert isinstance(leaf, (int, float, str)), leaf
        assert leaf != ""


def test_no_record_is_written_twice() -> None:
    lines = RECORD.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines))


def test_every_question_of_the_record_is_on_the_page_under_its_topic_and_no_other() -> None:
    asked: dict[str, set[str]] = {}
    for record in records():
        asked.setdefault(record["topic"], set()).add(record["question"])
    assert {topic: set(found) for topic, found in questions().items()} == asked


def test_a_question_has_one_result_and_one_decision_that_the_record_holds_too() -> None:
    decisions: dict[str, list[str]] = {}
    for record in records():
        decisions.setdefault(record["question"], []).append(record["decision"])
    for found in questions().values():
        for question, lines in found.items():
            assert 2 <= len(lines) <= 3, question
            assert lines[0].startswith("* Result: "), question
            word, _, why = lines[-1].removeprefix("* ").partition(": ")
            assert word.lower() in {decision.partition(": ")[0] for decision in decisions[question]}, question
            if len(decisions[question]) == 1:
                assert decisions[question][0] == f"{word.lower()}: {why}", question
