"""Checks of JSON that comes from outside: limits of the text, and a declared schema of types and ranges.

    EVENT = Record({"time": Number(0, 7_200), "label": Text(100)}, optional={"seed": Whole(0, 2**53 - 1)})
    EVENT(parse_json(text), "event 3")      # raises SchemaError, "event 3.time is NaN: expected a number from 0 to 7200"

A schema is a callable (value, where); it returns nothing and raises `SchemaError` for the first thing that does not fit.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

Schema = Callable[[Any, str], None]
MOST_DIGITS = 18  # of a whole number; Python refuses to convert some thousands with an error of its own
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"characters that no text may contain: terminals act on them, and half a character cannot be encoded"


class SchemaError(ValueError):
    """A value that does not fit. The message is one line: what was found, and what was expected."""


def parse_json(text: str | bytes, most_bytes: int, most_depth: int) -> Any:
    """Return the value of a JSON text (UTF-8).

    Raises SchemaError, or another ValueError, for a text that is longer than `most_bytes` or nested deeper than `most_depth`,
    is not JSON, states a name twice in one object, or contains NaN, infinity, a number of more than 18 digits, a control
    character or half a character.
    """
    if len(text) > most_bytes:
        raise SchemaError(f"it has more than {most_bytes:,} bytes")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, parse_int=_whole, parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise SchemaError(f"it has more than {most_depth} levels of nesting") from None
    _check_values(value, most_depth)
    return value


def _whole(digits: str) -> int:
    return int(digits) if len(digits) <= MOST_DIGITS else _refuse(f"a number of {len(digits):,} digits")


def _refuse(what: str) -> NoReturn:
    raise SchemaError(f"it contains {what}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _refuse("a name twice in one object")


def _check_values(value: Any, most_depth: int, depth: int = 1) -> None:
    if isinstance(value, dict | list):
        if depth > most_depth:
            raise SchemaError(f"it has more than {most_depth} levels of nesting")
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_values(each, most_depth, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse("a number that is too large")
    elif isinstance(value, str) and CONTROL.search(value):
        _refuse(f"a control character or half a character: {value[:40]!a}")


def _differs(value: Any, where: str, expected: str) -> NoReturn:
    kind = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else ""
    text = kind or repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    raise SchemaError(f"{where} is {text.encode('ascii', 'backslashreplace').decode()}: expected {expected}")


@dataclass(frozen=True)
class Whole:
    """An integer from `low` to `high`; a boolean is none."""

    low: int
    high: int

    def __call__(self, value: Any, where: str) -> None:
        if type(value) is not int or not self.low <= value <= self.high:
            _differs(value, where, f"a whole number from {self.low} to {self.high}")


@dataclass(frozen=True)
class Number:
    """An integer or a finite float from `low` to `high`."""

    low: float
    high: float

    def __call__(self, value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            _differs(value, where, f"a number from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Text:
    """A text of `least` to `most` characters that can be printed."""

    most: int
    least: int = 1
    pattern: str = ""  # that all of it matches
    expected: str = ""  # what the pattern describes

    def __call__(self, value: Any, where: str) -> None:
        if (
            not isinstance(value, str)
            or not self.least <= len(value) <= self.most
            or CONTROL.search(value)
            or (self.pattern and not re.fullmatch(self.pattern, value))
        ):
            _differs(value, where, self.expected or f"a text of {self.least} to {self.most} characters")


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]

    def __call__(self, value: Any, where: str) -> None:
        if not any(type(value) is type(each) and value == each for each in self.values):
            _differs(value, where, " or ".join(map(repr, self.values)))


def _check_list(value: Any, least: int, most: int, where: str) -> None:
    expected = f"a list of {least:,}{f' to {most:,}' * (most > least)} values"
    if not isinstance(value, list | tuple):
        _differs(value, where, expected)
    if not least <= len(value) <= most:
        raise SchemaError(f"{where} has {len(value):,} values: expected {expected}")


@dataclass(frozen=True)
class Items:
    """A list of `least` to `most` values of one kind."""

    each: Schema
    most: int
    least: int = 0

    def __call__(self, value: Any, where: str) -> None:
        _check_list(value, self.least, self.most, where)
        for index, each in enumerate(value):
            self.each(each, f"{where}[{index}]")


class Row:
    """A list with one value for each of some schemas."""

    def __init__(self, *columns: Schema) -> None:
        self.columns = columns

    def __call__(self, value: Any, where: str) -> None:
        _check_list(value, len(self.columns), len(self.columns), where)
        for index, (column, each) in enumerate(zip(self.columns, value)):
            column(each, f"{where}[{index}]")


@dataclass(frozen=True)
class Record:
    """An object with these names and no others; those in `optional` may be absent."""

    names: Mapping[str, Schema]
    optional: Mapping[str, Schema] = field(default_factory=dict)

    def __call__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _differs(value, where, "an object with " + ", ".join(self.names))
        for problem, keys in (
            ("lacks", self.names.keys() - value.keys()),
            ("has the unknown", value.keys() - self.names.keys() - self.optional.keys()),
        ):
            if keys:
                known = ", ".join([*self.names, *(f"[{name}]" for name in self.optional)])
                shown = ", ".join(sorted(map(str, keys)))[:60].encode("ascii", "backslashreplace").decode()
                raise SchemaError(f"{where} {problem} {shown}: expected {known}")
        for name, each in value.items():
            (self.names.get(name) or self.optional[name])(each, f"{where}.{name}" if where else name)


@dataclass(frozen=True)
class Table:
    """An object with any names, and values of one kind."""

    each: Schema

    def __call__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _differs(value, where, "an object")
        for name, each in value.items():
            self.each(each, f"{where}.{name[:40]}")


class Anything:
    """Any JSON value."""

    def __call__(self, value: Any, where: str) -> None:
        pass


@dataclass(frozen=True)
class Choice:
    """An object of one of several kinds, which the value of `key` names."""

    key: str
    kinds: Mapping[str, Schema]

    def __call__(self, value: Any, where: str) -> None:
        kind = value.get(self.key) if isinstance(value, dict) else None
        if not isinstance(kind, str):
            _differs(value, where, f"an object that states what to {self.key!r}")
        if kind not in self.kinds:
            raise SchemaError(f"{where} says to {kind[:40]!a}, which this foleybox does not know: update foleybox")
        self.kinds[kind]({name: each for name, each in value.items() if name != self.key}, where)


@dataclass(frozen=True)
class Either:
    """An object of one kind if it has the name `key`, else of the other kind."""

    key: str
    one: Schema
    other: Schema

    def __call__(self, value: Any, where: str) -> None:
        (self.one if isinstance(value, dict) and self.key in value else self.other)(value, where)


# --- limits that several formats share ----------------------------------------------------------------------------

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz
RATE = Whole(LOWEST_RATE, HIGHEST_RATE)
FINGERPRINT = Text(64, pattern="[0-9a-f]{64}", expected="a SHA-256 of 64 hexadecimal digits")
