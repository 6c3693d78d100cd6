"""Contact sheets: the spectrograms of many clips as pages of PNG, rows of one label, a caption above each.

Drawn with numpy and zlib, so that the core needs neither Pillow (7 MB) nor matplotlib.
"""

import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave, mono
from foleybox.errors import UserError
from foleybox.files import write_bytes
from foleybox.studio.synth import Clip

WIDTH, HEIGHT = 200, 96  # pixels of a spectrogram
GAP, STRIP = 4, 16  # pixels between spectrograms, and of the line of text above a row
RANGE_DB = 70.0  # from black to white
FLOOR_DB = -100.0  # dBFS: black, so that silence is not amplified
LOWEST_HZ = 40.0
COLUMNS, ROWS = 12, 50  # of a page
SOFTWARE = b"Software\0foleybox"  # a text in the PNG, by which foleybox knows its own

# The colour map magma at ten even steps: perceptually uniform, also in grey and for the colour-blind.
MAGMA = ("000004", "180f3d", "440f76", "721f81", "9e2f7f", "cd4071", "f1605d", "fd9668", "feca8d", "fcfdbf")

# Characters of 3 x 5 pixels: five rows from the top, each the sum of 4 (left), 2 (middle), 1 (right).
FONT = {
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644", "G": "34553", "H": "55755",
    "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555", "O": "25552", "P": "65644",
    "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247", "0": "75557", "1": "26227", "2": "61247", "3": "61216", "4": "55711", "5": "74616",
    "6": "34757", "7": "71222", "8": "75757", "9": "75716", "_": "00007", "-": "00700", ".": "00002", " ": "00000",
}  # fmt: skip
ADVANCE = 8  # pixels from one character to the next, at twice the size

Image = NDArray[np.uint8]  # [height, width, 3]


def spectrogram(wave: Wave, rate: int) -> Image:
    """Return a log-frequency spectrogram [96, 200, 3]: time to the right, 40 Hz to half the rate upwards, range 70 dB."""
    size = 2 ** round(np.log2(0.046 * rate))  # 46 ms: 1024 samples at 22,050 Hz
    hop = max(1, len(wave) // WIDTH)
    # Columns further apart than a window would miss clicks between them: each is the maximum of several frames.
    several = max(1, -(-2 * hop // size))
    centres = np.arange(WIDTH * several) * hop // several
    padded = np.pad(wave, (size // 2, size + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[np.minimum(centres, len(padded) - size)]
    window = np.hanning(size).astype(np.float32)
    magnitude = np.abs(np.fft.rfft(frames * window)) * (2 / window.sum())
    level = 20 * np.log10(np.maximum(magnitude, 1e-9))
    level = level.reshape(WIDTH, several, -1).max(axis=1)  # [WIDTH, bins]
    edges = np.geomspace(LOWEST_HZ, rate / 2, HEIGHT + 1) / (rate / size)  # in bins
    rows = []
    for low, high in itertools.pairwise(edges):
        if high - low >= 1:
            rows.append(level[:, round(low) : round(high)].max(axis=1))
        else:  # low rows are narrower than a bin: interpolate
            bin, part = divmod((low + high) / 2, 1)
            rows.append((1 - part) * level[:, int(bin)] + part * level[:, int(bin) + 1])
    image = np.stack(rows[::-1])  # [HEIGHT, WIDTH], high frequencies on top
    top = max(float(image.max()), FLOOR_DB + RANGE_DB)
    return colour((image - top) / RANGE_DB + 1)


def colour(value: NDArray[np.floating]) -> Image:
    """Map values 0 to 1 [H, W] to the colours of magma [H, W, 3]."""
    anchors = np.array([list(bytes.fromhex(step)) for step in MAGMA], float)  # [10, 3]
    position = np.clip(value, 0, 1) * (len(MAGMA) - 1)
    channels = [np.interp(position, np.arange(len(MAGMA)), anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def draw_text(image: Image, x: int, y: int, text: str) -> None:
    """Draw text in capitals, 10 pixels high, with its upper left corner at (x, y); unknown characters are blank."""
    for index, character in enumerate(text.upper()):
        rows = [[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in FONT.get(character, FONT[" "])]
        mask = np.kron(np.array(rows, bool), np.ones((2, 2), bool))  # [10, 6]
        left = x + index * ADVANCE
        target = image[y : y + 10, left : left + 6]
        target[mask[:, : target.shape[1]]] = 230


class Sheet:
    """Contact sheets written page by page as clips come in: FILE.png, FILE-2.png, ... Only one page is kept in memory.

    A row has up to COLUMNS clips of one label, with a caption above each; a page has up to ROWS rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.pages = Path(path), list[Path]()  # the pages written so far
        self.rows: list[tuple[str, list[tuple[str, Image]]]] = []
        if self.path.suffix.lower() != ".png":
            raise UserError(f"cannot draw {path}: expected a name that ends in .png")

    def add(self, clip: Clip, caption: str = "") -> None:
        """Add a clip; its caption is its seed unless another is given."""
        if not self.rows or self.rows[-1][0] != clip.label or len(self.rows[-1][1]) == COLUMNS:
            if len(self.rows) == ROWS:
                self._write()
            self.rows.append((clip.label, []))
        self.rows[-1][1].append((caption or str(clip.seed), spectrogram(mono(clip.wave), clip.rate)))

    def close(self) -> list[Path]:
        """Write the last page and return the paths of all. Raises UserError for a sheet of no clips."""
        if self.rows:
            self._write()
        if not self.pages:
            raise UserError("a contact sheet of no clips: expected one or more")
        return self.pages

    def _write(self) -> None:
        page = f"-{len(self.pages) + 1}" if self.pages else ""
        path = self.path.with_name(f"{self.path.stem}{page}{self.path.suffix}")
        write_bytes(path, png(self.image()))
        self.pages.append(path)
        self.rows = []

    def image(self) -> Image:
        """Return the page [H, W, 3]: rows in the order of arrival, captions above the spectrograms."""
        columns = max(len(row) for _, row in self.rows)
        across, down = WIDTH + GAP, STRIP + HEIGHT + GAP
        image = np.full((len(self.rows) * down + GAP, columns * across + GAP, 3), 24, np.uint8)
        for row, (label, spectrograms) in enumerate(self.rows):
            y = row * down + GAP
            for column, (caption, drawn) in enumerate(spectrograms):
                x = column * across + GAP
                image[y + STRIP : y + STRIP + HEIGHT, x : x + WIDTH] = drawn
                free = (WIDTH - (len(label) + 1) * ADVANCE * (column == 0)) // ADVANCE  # the first also has the label
                shown = caption if len(caption) <= free else caption[: free - 1] + "."
                draw_text(image, x + WIDTH - len(shown) * ADVANCE, y + 2, shown)
            draw_text(image, GAP, y + 2, label)
        return image


def is_sheet(path: Path) -> bool:
    """Return whether a file is a contact sheet that foleybox drew."""
    with path.open("rb") as file:
        return SOFTWARE in file.read(100)


def png(image: Image) -> bytes:
    """Return an image [H, W, 3] as the content of a PNG."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = image.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1
    )  # each row begins with filter 0
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    parts = (
        chunk(b"IHDR", header),
        chunk(b"tEXt", SOFTWARE),
        chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
