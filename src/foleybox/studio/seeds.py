"""Standard normal noise as a specified function of a seed: the same bits on every machine and in every language.

It uses integers mod 2**64 and the operations that IEEE 754 rounds exactly (+ - * / sqrt, float64), in a fixed order and
never fused, so that a port agrees to the last bit (tests/test_seeds.py contains one in JavaScript). Logarithm and cosine
are computed here, because those of libraries differ in the last digit between machines.

With G = 0x9E3779B97F4A7C15 and all integers mod 2**64:

    mix(z):    z = (z xor z >> 30) * 0xBF58476D1CE4E5B9;  z = (z xor z >> 27) * 0x94D049BB133111EB;  z xor z >> 31
    start      = mix(seed + stream * 2**53)               0 <= seed < 2**53, 0 <= stream < 2**11
    draw n     = mix(start + (n + 1) * G)                 n = 0, 1, 2 ...: splitmix64 (Steele et al. 2014)
    uniform n  = (draw n >> 11) * 2**-53                  in [0, 1)
    pair k     = radius * cos(2 pi t), radius * sin(2 pi t)
                 with radius = sqrt(-2 ln(1 - uniform 2k)) and t = uniform 2k+1       (Box-Muller, float64)
    noise      = pair 0, pair 1, pair 2 ..., each rounded to float32, in the order of the shape (last axis fastest)

`_log` and `_cos_sin` below are part of the specification: polynomials in Horner form, from the highest power. A longer
noise begins with the numbers of a shorter one.
"""

from collections.abc import Sequence
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray

from foleybox.errors import UserError

SEEDS = 2**53  # JSON and JavaScript represent integers exactly up to here
STREAMS = 2**11  # independent noises of one seed; which is used for what:
LATENT = 0  # a clip's latent; 1 to 7: its latent where the stream before gives silence
VARY = 8  # the direction of a variation; 9 to 15: where the stream before gives silence
WALK = 16  # the directions of a walk, one after the other
ROOM = 17  # the noise of a background

_G = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Doubles = NDArray[np.float64]


def check_seed(seed: int) -> int:
    """Return the seed as an int. Raises UserError unless it is an integer with 0 <= seed < 2**53."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < SEEDS:
        raise UserError(f"seed {seed!r}: expected a whole number from 0 to {SEEDS - 1} (2**53 - 1)")
    return int(seed)


def noise(seed: int, shape: Sequence[int], stream: int = LATENT, skip: int = 0) -> NDArray[np.float32]:
    """Return standard normal noise [*shape] of (seed, stream), after the first `skip` numbers.

    `skip` must be even, since the numbers are generated in pairs. Raises UserError unless 0 <= seed < 2**53.
    """
    check_seed(seed)
    assert 0 <= stream < STREAMS
    assert skip % 2 == 0
    count = prod(shape)
    uniform = _uniform(seed + stream * SEEDS, skip, count + count % 2)
    radius = np.sqrt(-2.0 * _log(1.0 - uniform[0::2]))
    cosine, sine = _cos_sin(uniform[1::2])
    pairs = np.stack([radius * cosine, radius * sine], axis=1)  # [count / 2, 2]
    return pairs.reshape(-1)[:count].astype(np.float32).reshape(shape)


def _uniform(key: int, skip: int, count: int) -> Doubles:
    start = _mix(np.array([key], np.uint64))
    draws = _mix(start + np.arange(skip + 1, skip + count + 1, dtype=np.uint64) * _G)
    return (draws >> _SHIFTS[3]).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> _SHIFTS[0])) * _FACTORS[0]
    z = (z ^ (z >> _SHIFTS[1])) * _FACTORS[1]
    return z ^ (z >> _SHIFTS[2])


def _horner(coefficients: Sequence[float], x: Doubles) -> Doubles:
    """Return a polynomial at x, its coefficients from the highest power: ((c0 * x + c1) * x + c2) ..."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


_LN2, _PI = 0.6931471805599453, 3.141592653589793
_ATANH = [1 / power for power in range(23, 0, -2)]  # 1/23, 1/21 ... 1/1
_COS = [(-1) ** n / factorial(2 * n) for n in range(8, -1, -1)]  # 1/16!, -1/14! ... 1
_SIN = [(-1) ** n / factorial(2 * n + 1) for n in range(8, -1, -1)]  # 1/17!, -1/15! ... 1


def _log(x: Doubles) -> Doubles:
    """Return the natural logarithm of 0 < x <= 1: x = m * 2**e, 0.75 <= m < 1.5, ln m = 2 atanh((m - 1) / (m + 1))."""
    m, e = np.frexp(x)  # 0.5 <= m < 1
    low = m < 0.75
    m, e = np.where(low, 2 * m, m), np.where(low, e - 1, e).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    return e * _LN2 + 2.0 * s * _horner(_ATANH, s * s)


def _cos_sin(t: Doubles) -> tuple[Doubles, Doubles]:
    """Return cosine and sine of 2 pi t, 0 <= t < 1: Taylor series around the nearest quarter turn."""
    quarter = np.floor(4.0 * t + 0.5)  # 0 ... 4
    angle = 2.0 * _PI * (t - quarter / 4.0)  # at most an eighth of a turn, -pi/4 ... pi/4
    cosine = _horner(_COS, angle * angle)
    sine = angle * _horner(_SIN, angle * angle)
    turn = quarter.astype(np.int64) % 4
    return np.choose(turn, [cosine, -sine, -cosine, sine]), np.choose(turn, [sine, cosine, -sine, -cosine])
