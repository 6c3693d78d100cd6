"""Times in text: seconds, minutes:seconds, frames, and SMPTE timecode (HH:MM:SS:FF, with a semicolon for drop-frame).

With the nominal rate N (30 for 29.97), a timecode counts (3600 H + 60 M + S) N + F frames. Drop-frame omits the first N / 15
numbers of every minute but each tenth, so that the count follows the clock at 29.97 and 59.94 frames a second.
"""

import math
import re

from foleybox.errors import UserError
from foleybox.studio.table import parse_number

NTSC = 1000 / 1001  # of the nominal rate: 23.976, 29.97, 47.952, 59.94, 119.88
TIMECODE = re.compile(r"(\d+):(\d\d):(\d\d)([:;])(\d+)")
FRAMES = re.compile(r"(\d+) ?f")


def frame_rate(fps: float) -> float:
    """Return the exact number of frames a second: 30000 / 1001 for 29.97. Raises UserError for an unusual one."""
    nominal = round(fps)
    if 1 <= nominal <= 240 and abs(fps - nominal) < 1e-6:
        return float(nominal)
    if nominal in (24, 30, 48, 60, 120) and abs(fps - nominal * NTSC) < 0.006:
        return nominal * NTSC
    raise UserError(f"fps {fps:g}: expected a whole number from 1 to 240, or 23.976, 29.97, 47.952, 59.94, 119.88")


def parse_time(text: str, fps: float | None = None) -> float | None:
    """Return the seconds of a time, None for a text that is none.

    "1.25", "1,25", "1:02.5" and "1:00:02.5" are seconds, minutes and hours; "01:00:02:12", "01:00:02;12" and "120f" are
    frames of `fps` frames a second. Raises UserError for frames without `fps`, and for a timecode that does not exist.
    """
    text = text.strip()
    if match := FRAMES.fullmatch(text):
        return int(match[1]) / _rate(text, fps)
    if match := TIMECODE.fullmatch(text):
        return _timecode(text, [int(match[index]) for index in (1, 2, 3, 5)], match[4] == ";", _rate(text, fps))
    *clock, last = text.split(":")
    try:
        found = parse_number(last)
    except UserError:
        return None
    if clock and not (0 <= found < 60 and all(part.isdecimal() and len(part) < 9 for part in clock)):
        return None
    if clock[2:] or any(int(part) >= 60 for part in clock[1:]):  # only the first part may be any number
        return None
    return found + sum(60**power * int(part) for power, part in enumerate(reversed(clock), 1))


def _rate(text: str, fps: float | None) -> float:
    if fps is None:
        raise UserError(f"time {text!r} counts frames: add --fps, the number of frames a second")
    return frame_rate(fps)


def _timecode(text: str, parts: list[int], drop_frame: bool, rate: float) -> float:
    hours, minutes, seconds, frames = parts
    nominal = math.ceil(rate - 1e-6)
    if minutes >= 60 or seconds >= 60 or frames >= nominal:
        raise UserError(f"time {text!r}: expected HH:MM:SS:FF with fewer than 60, 60 and {nominal} at {rate:.5g} fps")
    count = (3600 * hours + 60 * minutes + seconds) * nominal + frames
    if drop_frame:
        dropped = nominal // 15
        if nominal not in (30, 60, 120) or nominal == rate:
            raise UserError(
                f"time {text!r} is drop-frame at {rate:.5g} fps: expected 29.97, 59.94 or 119.88, or a colon"
            )
        if not seconds and minutes % 10 and frames < dropped:
            raise UserError(f"time {text!r} does not exist in drop-frame: the minute begins with frame {dropped}")
        count -= dropped * (60 * hours + minutes - (60 * hours + minutes) // 10)
    return count / rate
