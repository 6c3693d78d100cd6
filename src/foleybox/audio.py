"""Sound files and the few measurements that everything shares: read, write, mono, resample, fit, peak, loudness.

A wave is float32 [L], mono, full scale at 1.0.
"""

import io
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from foleybox.errors import UserError
from foleybox.files import atomic_path

Wave = NDArray[np.float32]
Subtype = Literal["PCM_16", "PCM_24", "FLOAT"]

# --- reading ------------------------------------------------------------------------------------------------------


def read_wave(path: str | Path, rate: int | None = None) -> tuple[Wave, int]:
    """Read a sound file as (wave float32 [L], rate in Hz): the mean of its channels, resampled when `rate` is given.

    Any format of libsndfile is read (WAV, FLAC, OGG, MP3, AIFF ...), of any depth, rate and length.

    Raises UserError for a file that is missing, empty, cut short, not audio, or holds NaN or infinite samples. A cut
    is seen in WAV, AIFF, FLAC and OGG; an MP3 does not know its own length.
    """
    path = Path(path)
    missing = _missing(path)
    try:
        with soundfile.SoundFile(named(path)) as file:
            promised, found_rate = file.frames, file.samplerate
            channels = cast(NDArray[np.float32], file.read(dtype="float32", always_2d=True))  # [L, channels]
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a .raw file, which states no rate
        if missing:
            raise UserError(f"{path} is cut short: {missing}; get a whole copy of it") from None
        reason = getattr(error, "error_string", "no header").rstrip(".")
        raise UserError(
            f"{path} is not a sound file that can be read, or is cut short (libsndfile: {reason})"
        ) from None
    if not missing and len(channels) < promised:
        missing = f"{len(channels):,} of {promised:,} samples are there"
    if missing:
        raise UserError(f"{path} is cut short: {missing}; get a whole copy of it")
    if not len(channels):
        raise UserError(f"{path} holds no samples: expected a recording")
    if not np.isfinite(channels).all():
        bad = int(np.count_nonzero(~np.isfinite(channels).all(axis=1)))
        raise UserError(f"{path} holds {bad:,} samples that are NaN or infinite: expected numbers; export it again")
    wave = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
    if rate is None or rate == found_rate:
        return np.ascontiguousarray(wave), found_rate
    return resample(wave, found_rate, rate), rate


def _missing(path: Path) -> str:
    """Say what a file lacks at its end by its own header, "" if nothing; raise UserError if it cannot be opened.

    libsndfile reads a WAV whose header promises more than the file holds, and an OGG without its end, as if whole.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise UserError(f"{path} is empty (0 bytes): expected a sound file")
            kind = file.read(4)
            if kind in (b"RIFF", b"FORM"):
                return _missing_in_chunks(file, size, ">" if kind == b"FORM" else "<")
            return _missing_in_ogg(file, size) if kind == b"OggS" else ""
    except FileNotFoundError:
        raise UserError(f"no file {path}: expected a sound file") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


STREAMED = 0x7FFF_0000  # sizes from here up are what programs write into a pipe, where they cannot know


def _missing_in_chunks(file: BinaryIO, size: int, order: str) -> str:
    """Walk the chunks of a WAV or AIFF up to its samples."""
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack(order + "4sI", file.read(8))
        if name in (b"data", b"SSND"):
            there = size - at - 8
            cut = there < length < STREAMED
            return f"{there:,} of {length:,} bytes of samples are there" if cut else ""
        at += 8 + length + length % 2
    return "its header ends before the samples"


def _missing_in_ogg(file: BinaryIO, size: int) -> str:
    """Look whether the last page of an OGG is whole and says that it is the last."""
    file.seek(max(0, size - 2 * 65_536))  # a page is at most 65,307 bytes
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26] or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "its last page is not whole"
    return "" if page[5] & 4 else "its last page is not there"


# --- writing ------------------------------------------------------------------------------------------------------

SUFFIXES = (".wav", ".flac", ".ogg")
HIGHEST = {"ogg": 200_000, "flac": 655_350}
"Hz that libsndfile writes; above, its Vorbis encoder ends the whole process"
BITS = {"PCM_16": 16, "PCM_24": 24, "FLOAT": 32}
INFO = {"title": b"INAM", "comment": b"ICMT", "license": b"ICOP", "software": b"ISFT"}


def named(path: Path) -> str:
    """Return a path as libsndfile takes it: soundfile alone fails on a name that is not of the locale's encoding.

    It takes bytes too, which its types do not say.
    """
    return cast(str, os.fsencode(path)) if os.name == "posix" else str(path)


def check_format(format: str, subtype: Subtype, flag: str = "--", rate: int | None = None) -> None:
    """Raise UserError for a kind of file that cannot hold such samples, or at such a rate."""
    if rate is not None and rate > HIGHEST.get(format, rate):
        raise UserError(f"{flag}rate {rate} {flag}format {format}: expected {HIGHEST[format]:,} Hz or less, or wav")
    if format == "flac" and subtype == "FLOAT":
        raise UserError(
            f"{flag}format flac {flag}subtype FLOAT: FLAC holds whole numbers; expected PCM_16 or PCM_24, or wav"
        )
    if format == "ogg" and subtype != "PCM_16":
        raise UserError(
            f"{flag}format ogg {flag}subtype {subtype}: OGG is Vorbis, which counts no bits; drop the subtype"
        )


# --- what every verb that writes sounds shares --------------------------------------------------------------------


def write_wave(
    path: str | Path,
    wave: Wave,  # [L]
    rate: int,  # Hz
    subtype: Subtype = "PCM_16",
    tags: Mapping[str, str] | None = None,
    chunks: Mapping[bytes, bytes] | None = None,
) -> float:
    """Write a wave as WAV, FLAC or OGG (by the suffix), whole or not at all; return the gain it was written with.

    The gain is 1.0, unless the wave exceeds full scale where the format cannot: then the whole wave is scaled down to
    full scale, never clipped, and the gain says by how much. 16 and 24 bits are rounded without dither: reading back
    gives `round(wave * 2**15) / 2**15` (or 2**23). The same arguments give the same bytes. OGG is Vorbis whatever the
    `subtype`. `tags` may hold title, comment, license, software; `chunks` are RIFF chunks of a WAV by four-byte name.

    Raises UserError for an unknown suffix or subtype, a wave with NaN, and OSError (with the file's name) for the disk.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot write {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if subtype not in BITS or (suffix == ".flac" and subtype == "FLOAT"):
        expected = "PCM_16 or PCM_24" if suffix == ".flac" else ", ".join(BITS)
        raise UserError(f"cannot write {path} as {subtype}: a {suffix} file here holds {expected}")
    if not np.isfinite(wave).all():
        raise UserError(f"cannot write {path}: the wave holds NaN or infinite samples")
    peak = float(np.abs(wave).max(initial=0.0))
    gain = 1 / peak if peak > 1 and not (suffix == ".wav" and subtype == "FLOAT") else 1.0
    if gain != 1:
        wave = (wave * gain).astype(np.float32)
    if suffix == ".wav":
        data = _wav(wave, rate, subtype, tags or {}, chunks or {})
    else:
        data = _encoded(suffix, wave, rate, subtype, tags or {})
    with atomic_path(path) as beside:
        beside.write_bytes(data)
    return gain


def _quantised(wave: Wave, bits: int) -> NDArray[np.int32]:
    """Return round(wave * full scale) as integers; +1.0 itself lands one step lower, on the highest there is."""
    full, block = 2 ** (bits - 1), 2**20
    steps = np.empty(len(wave), np.int32)
    for start in range(0, len(wave), block):  # minutes at once, in double precision, would fill the memory
        exact = wave[start : start + block].astype(np.float64) * full
        steps[start : start + block] = np.clip(np.rint(exact), -full, full - 1)
    return steps


def _wav(wave: Wave, rate: int, subtype: str, tags: Mapping[str, str], chunks: Mapping[bytes, bytes]) -> bytes:
    """Return a WAV. Ours, because libsndfile stamps float files with the time of day and knows no private chunks."""
    bits = BITS[subtype]
    if subtype == "FLOAT":
        samples = wave.astype("<f4").tobytes()
    else:
        little = _quantised(wave, bits).astype("<i4").view(np.uint8).reshape(-1, 4)
        samples = little[:, : bits // 8].tobytes()
    width = bits // 8
    parts = [_chunk(b"fmt ", struct.pack("<HHIIHH", 3 if bits == 32 else 1, 1, rate, rate * width, width, bits))]
    if bits == 32:
        parts.append(_chunk(b"fact", struct.pack("<I", len(wave))))
    parts.append(_chunk(b"data", samples))
    if tags:
        listed = b"".join(_chunk(INFO[name], text.encode() + b"\0") for name, text in tags.items())
        parts.append(_chunk(b"LIST", b"INFO" + listed))
    parts += [_chunk(name, content) for name, content in chunks.items()]
    body = b"".join(parts)
    if len(body) >= STREAMED:
        raise UserError(f"a wave of {len(wave):,} samples is too long for a WAV file: expected under 2 GB")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def wav_chunk(path: Path, wanted: bytes) -> bytes | None:
    """Return the content of the first RIFF chunk of that four-byte name, None if the file is no WAV or has none."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != b"RIFF":
            return None
        at = 12
        while at + 8 <= size:
            file.seek(at)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == wanted:
                return file.read(length)
            at += 8 + length + length % 2
    return None


def _encoded(suffix: str, wave: Wave, rate: int, subtype: str, tags: Mapping[str, str]) -> bytes:
    memory = io.BytesIO()
    kind, coding = ("OGG", "VORBIS") if suffix == ".ogg" else ("FLAC", subtype)
    if rate > HIGHEST[suffix[1:]]:
        raise UserError(f"cannot write {kind} at {rate} Hz: expected {HIGHEST[suffix[1:]]:,} Hz or less, or .wav")
    try:
        with soundfile.SoundFile(memory, "w", rate, 1, coding, format=kind) as file:
            for name, text in tags.items():
                setattr(file, name, text)
            if suffix == ".ogg":
                for start in range(
                    0, len(wave), rate
                ):  # libsndfile's Vorbis encoder overruns its stack on minutes at once
                    file.write(wave[start : start + rate])
            else:
                file.write(_quantised(wave, BITS[subtype]) << (32 - BITS[subtype]))  # int32 carries its depth on top
    except soundfile.SoundFileError as error:
        raise UserError(f"cannot encode {kind} at {rate} Hz (libsndfile: {error})") from None
    return _same_serial(memory.getvalue()) if suffix == ".ogg" else memory.getvalue()


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _same_serial(ogg: bytes) -> bytes:
    """Give an OGG stream the serial number 1 in place of a random one, so that equal sounds are equal files."""
    pages, at = [], 0
    while at < len(ogg):
        count = ogg[at + 26]
        end = at + 27 + count + sum(ogg[at + 27 : at + 27 + count])
        page = bytearray(ogg[at:end])
        page[14:18], page[22:26] = struct.pack("<I", 1), bytes(4)
        # OGG's checksum is zlib's with the bits of every byte, and of the result, in mirror order and no inversion.
        mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
        page[22:26] = struct.pack(">I", mirrored).translate(_MIRRORED)
        pages.append(bytes(page))
        at = end
    return b"".join(pages)


# --- shaping ------------------------------------------------------------------------------------------------------


def resample(wave: Wave, rate: int, new_rate: int) -> Wave:
    """Return the wave at `new_rate` Hz (soxr, very high quality): `round(L * new_rate / rate)` samples."""
    if new_rate < 1:
        raise UserError(f"a rate of {new_rate} Hz: expected a positive number such as 44100")
    if rate == new_rate:
        return wave
    return fit(soxr.resample(wave, rate, new_rate, quality="VHQ"), round(len(wave) * new_rate / rate))


def fit(wave: Wave, samples: int) -> Wave:
    """Cut the wave, or pad it with zeros, at the end, to [samples]."""
    if len(wave) >= samples:
        return wave[:samples]
    return np.pad(wave, (0, samples - len(wave)))


# --- measuring ----------------------------------------------------------------------------------------------------


def peak_db(wave: Wave) -> float:
    """Return the highest sample in dBFS, -inf for silence."""
    return _db(float(np.abs(wave).max(initial=0.0)))


def rms_db(wave: Wave) -> float:
    """Return the root mean square in dBFS (a full-scale sine has -3.01), -inf for silence."""
    return _db(float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))) if len(wave) else -np.inf


def true_peak_db(wave: Wave) -> float:
    """Return the highest point, between samples too, in dBTP: the peak after 4x oversampling (BS.1770-4, annex 2)."""
    edge = np.zeros(256, np.float32)  # the resampler's own edges
    # Only the ratio of the two rates matters here.
    return max(peak_db(wave), peak_db(soxr.resample(np.concatenate([edge, wave, edge]), 1.0, 4.0, quality="VHQ")))


def _db(amplitude: float) -> float:
    return 20 * float(np.log10(amplitude)) if amplitude > 0 else -np.inf


def loudness(wave: Wave, rate: int) -> float:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4, one channel); silence is -inf.

    A clip shorter than the standard's gating block of 0.4 s is one block as long as the clip.
    """
    energy = np.concatenate([[0.0], np.cumsum(np.square(_k_weighted(wave, rate)))])
    block = min(round(0.4 * rate), len(wave))
    if not block:
        return -np.inf
    starts = np.rint(np.arange(0, len(wave) - block + 1, 0.1 * rate)).astype(int)  # blocks overlap by three quarters
    power = (energy[starts + block] - energy[starts]) / block
    power = power[power > 10 ** ((-70 + 0.691) / 10)]  # the absolute gate: -70 LUFS
    if not len(power):
        return -np.inf
    loud = power[power > 0.1 * power.mean()]  # the relative gate: 10 LU below the mean
    return float(-0.691 + 10 * np.log10(loud.mean()))


def _k_weighted(wave: Wave, rate: int) -> NDArray[np.float64]:
    """Filter a wave as BS.1770 does (a head's high shelf, a 38 Hz high-pass), exactly, as products of spectra.

    The standard prints coefficients for 48 kHz; these are the analogue filters behind them (B. De Man, 2018), placed
    at any rate. In pieces, each led in by a second of what came before: both filters have died away by then.
    """
    lead, piece = rate, min(2**18, max(1, len(wave)))
    size = 2 ** int(np.ceil(np.log2(lead + piece)))
    z: NDArray[np.complex128] = np.exp(-2j * np.pi * np.fft.rfftfreq(size))

    def biquad(b: tuple[float, float, float], a: tuple[float, float, float]) -> NDArray[np.complex128]:
        return (b[0] + b[1] * z + b[2] * z**2) / (a[0] + a[1] * z + a[2] * z**2)

    k, q, high = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    mid = high**0.4996667741545416
    response = biquad(
        (high + mid * k / q + k * k, 2 * (k * k - high), high - mid * k / q + k * k),
        (1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k),
    )
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    low = 1 + k / q + k * k
    response *= biquad((1, -2, 1), (1, 2 * (k * k - 1) / low, (1 - k / q + k * k) / low))

    led = np.concatenate([np.zeros(lead), wave.astype(np.float64)])
    filtered = np.empty(len(wave))
    for start in range(0, len(wave), piece):
        segment = led[start : start + lead + piece]
        weighted = np.fft.irfft(np.fft.rfft(segment, size) * response, size)
        filtered[start : start + piece] = weighted[lead : len(segment)]
    return filtered
