"""Mutations of bytes and of JSON."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

WHOLE = (
    0,
    1,
    -1,
    2,
    7,
    8,
    127,
    255,
    1_000,
    44_100,
    65_535,
    2**31 - 1,
    2**31,
    2**32,
    2**53 - 1,
    2**53,
    2**63,
    -(2**31),
    10**9,
    10**30,
)
ODD: tuple[Any, ...] = (
    *WHOLE, None, True, False, 0.5, -0.0, 1e9, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), "", "x", "1,5", "nan",
    "\ud800", "a\0b", "\x1b[2J", "../x", "CON", "é" * 300, [], {}, [[]], {"do": "render"}, [1e308, 1], "Rain", "render", "=1+1",
)  # fmt: skip
TOKENS = [
    str(each).encode()
    for each in (*WHOLE, "NaN", "Infinity", "-", "1e999", "\\ud800", "null", "true", "[", "]", "{", "}", ",", '"', "\0", "\n",
                 "\r", ";", "\t", "=", "--", ":", "../", "9" * 5_000, "[" * 3_000, "rain", "all", "x" * 1_000)
]  # fmt: skip


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return bytes with one to four mutations; JSON is mutated as JSON every second time."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if rng.random() < 0.5 and (found := _as_json(data, rng)) is not None:
            data = found
        else:
            data = rng.choice(MUTATIONS)(data, others, rng)
    return data[: 1 << 20]


def _as_json(data: bytes, rng: random.Random) -> bytes | None:
    head, start = b"", data.find(b"{") if b"{" in data[:40] else data.find(b"[") if b"[" in data[:40] else -1
    if start < 0:
        return None
    head, text = data[:start], data[start:]
    seal = text.rfind(b', "checksum": "')
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    sealed = isinstance(content, dict) and "checksum" in content and seal > 0
    if sealed:
        del content["checksum"]
    mutated = json.dumps(_changed(content, rng), ensure_ascii=rng.random() < 0.5).encode(errors="replace")
    if sealed and mutated.endswith(b"}"):
        mutated = mutated[:-1] + b', "checksum": ""}'
    return head + mutated


def _changed(value: Any, rng: random.Random) -> Any:
    """Return JSON with one place changed."""
    places: list[Callable[[], None]] = []
    holder = [value]

    def visit(container: Any, key: Any) -> None:
        def replace() -> None:
            old = container[key]
            container[key] = rng.choice(ODD)
            if (
                isinstance(old, int | float) and abs(old) < 1e100 and rng.random() < 0.4
            ):  # neither NaN nor too large for a float
                container[key] = rng.choice((old + 1, old - 1, -old, old * 2, old / 2, old * 1000, float(old)))

        places.append(replace)
        inner = container[key]
        if isinstance(inner, dict):
            places.append(lambda: inner.pop(rng.choice(list(inner)), None) if inner else None)
            places.append(
                lambda: inner.__setitem__(rng.choice(("zzz", "do", "of", "rate", "label", "")), rng.choice(ODD))
            )
            for each in inner:
                visit(inner, each)
        elif isinstance(inner, list):
            places.append(lambda: inner.append(rng.choice(inner) if inner and rng.random() < 0.5 else rng.choice(ODD)))
            places.append(lambda: inner.pop(rng.randrange(len(inner))) if inner else None)
            for each in range(min(len(inner), 50)):
                visit(inner, each)

    visit(holder, 0)
    rng.choice(places)()
    return holder[0]


def _flip(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _place_number in range(rng.choice((1, 1, 2, 8))):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _place(data: bytes, rng: random.Random) -> int:
    """Return a place, near the beginning every second time, where headers are."""
    size = max(1, len(data))
    return rng.randrange(min(size, 120) if rng.random() < 0.5 else size)


def _set(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at, width = _place(data, rng), rng.choice((1, 2, 4, 8))
    value = (rng.choice(WHOLE) % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    return data[:at] + value + data[at + width :]


def _cut(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] if rng.random() < 0.3 else data[:at] + data[at + rng.choice((1, 2, 4, 16, 100)) :]


def _repeat(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at, length = _place(data, rng), rng.choice((1, 4, 16, 64))
    return data[:at] + data[at : at + length] * rng.choice((1, 2, 3, 50)) + data[at:]


def _token(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice(TOKENS) + data[at + rng.choice((0, 1, 3)) :]


def _splice(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(others)
    return data[: _place(data, rng)] + other[_place(other, rng) :]


MUTATIONS = (_flip, _flip, _set, _set, _cut, _repeat, _token, _splice)
