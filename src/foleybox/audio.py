"""Sound files and measurements that every other module uses: read, write, resample, fit, peak, loudness.

A wave is float32 [L]: one channel, L samples, full scale at 1.0. Where it is said, also [L, C] of C channels.
"""

import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from foleybox.errors import UserError
from foleybox.files import atomic_path
from foleybox.schema import HIGHEST_RATE, LOWEST_RATE

Wave = NDArray[np.float32]
Format = Literal["wav", "flac", "ogg"]
Subtype = Literal["PCM_16", "PCM_24", "FLOAT"]

# --- limits -------------------------------------------------------------------------------------------------------

MOST_CHANNELS = 64
MOST_CHUNKS = 100_000  # of a RIFF file
LOUDEST = 1e10  # sample of a float file: far above full scale in 32 bits, and its square is a number yet
MOST_PER_BYTE = 8_192  # samples that the densest format (Vorbis) can hold in a byte
RAISE = "FOLEYBOX_MOST_SAMPLES"
_asked = os.environ.get(RAISE, "")
MOST_SAMPLES = int(_asked) if _asked.isascii() and _asked.isdecimal() and len(_asked) < 16 else 2**28
"""of one sound, all channels counted: 93 minutes at 48 kHz, unless the environment variable RAISE states another number"""


def check_samples(samples: float, what: str) -> None:
    """Raise UserError for a sound of more than MOST_SAMPLES samples, before memory is taken for it."""
    if not samples <= MOST_SAMPLES:
        raise UserError(
            f"{what} has {samples:,.0f} samples: expected {MOST_SAMPLES:,} at most; make it shorter or of a lower rate, or "
            f"set {RAISE} to a higher number (a sound takes up to 30 bytes of memory a sample)"
        )


# --- reading ------------------------------------------------------------------------------------------------------


def read_wave(path: str | Path, rate: int | None = None) -> tuple[Wave, int]:
    """Read a sound file as (wave float32 [L], rate in Hz): the mean of its channels, resampled to `rate` Hz if given.

    Raises UserError as `read_channels` does.
    """
    channels, found_rate = read_channels(path)
    wave = mono(channels)
    if rate is None or rate == found_rate:
        return wave, found_rate
    return resample(wave, found_rate, rate), rate


def read_channels(path: str | Path) -> tuple[Wave, int]:
    """Read a sound file as (wave float32 [L, C], rate in Hz).

    Every format that libsndfile knows is read (WAV, FLAC, OGG, MP3, AIFF ...), at any bit depth, at 1 to 768 kHz, of up to
    64 channels and MOST_SAMPLES samples.

    Raises UserError for a file that is missing, empty, truncated or not audio, and for NaN or infinite samples. The header
    is checked against the size of the file and these limits before memory is taken.
    Truncation is detected in WAV, AIFF, FLAC and OGG; an MP3 does not state its length.
    """
    path = Path(path)
    missing = _missing_data(path)
    try:
        with soundfile.SoundFile(libsndfile_path(path)) as file:
            expected, found_rate = file.frames, file.samplerate
            _check_header(path, file)
            channels = cast(NDArray[np.float32], file.read(dtype="float32", always_2d=True))  # [L, channels]
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a .raw file, which states no rate
        if missing:
            raise UserError(f"{path} is cut short: {missing}; get a whole copy of it") from None
        reason = getattr(error, "error_string", "no header").rstrip(".")
        raise UserError(
            f"{path} is not a sound file that can be read, or is cut short (libsndfile: {reason})"
        ) from None
    if not missing and len(channels) < expected:
        missing = f"{len(channels):,} of {expected:,} samples are present"
    if missing:
        raise UserError(f"{path} is cut short: {missing}; get a whole copy of it")
    if not len(channels):
        raise UserError(f"{path} holds no samples: expected a recording")
    if not np.isfinite(channels).all():
        bad = int(np.count_nonzero(~np.isfinite(channels).all(axis=1)))
        raise UserError(f"{path} holds {bad:,} samples that are NaN or infinite: expected numbers; export it again")
    if (peak := max(float(channels.max()), -float(channels.min()))) > LOUDEST:
        raise UserError(
            f"{path} holds samples up to {peak:.3g}: expected {LOUDEST:g} at most, full scale is 1; export it again"
        )
    return channels, found_rate


def _check_header(path: Path, file: soundfile.SoundFile) -> None:
    """Raise UserError for a header that states more than the file can hold, or more than is read."""
    size = path.stat().st_size
    if file.frames > MOST_PER_BYTE * size:
        raise UserError(
            f"{path} is damaged: it states {file.frames:,} samples, more than its {size:,} bytes can hold; get a whole copy"
        )
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise UserError(
            f"{path} has a rate of {file.samplerate:,} Hz: expected {LOWEST_RATE:,} to {HIGHEST_RATE:,} Hz; resample it"
        )
    if file.channels > MOST_CHANNELS:
        raise UserError(f"{path} has {file.channels:,} channels: expected {MOST_CHANNELS} at most; mix it down")
    check_samples(file.frames * file.channels, str(path))


def check_regular(path: Path) -> None:
    """Raise UserError for a pipe or a device, which might never end, and OSError for a file that is not there."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a pipe or a device: expected a sound file")


def _missing_data(path: Path) -> str:
    """Return what a file lacks at its end according to its own header, "" if nothing.

    libsndfile reads a truncated WAV or OGG without an error. Raises UserError if the file cannot be opened.
    """
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(
            mode
        ):  # opening a pipe might wait for ever
            raise UserError(f"{path} is a pipe or a device: expected a sound file")
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


UNKNOWN_SIZE = 0x7FFF_0000  # programs that write into a pipe state this size or more, since they cannot seek back


def _chunks(file: BinaryIO, size: int, order: str = "<") -> Iterator[tuple[bytes, int, int]]:
    """Yield each RIFF or IFF chunk of a file of `size` bytes: name, offset of its content, stated length in bytes."""
    offset = 12
    for _ in range(MOST_CHUNKS):
        if offset + 8 > size:
            return
        file.seek(offset)
        name, length = struct.unpack(order + "4sI", file.read(8))
        yield name, offset + 8, length
        offset += 8 + length + length % 2


def _missing_in_chunks(file: BinaryIO, size: int, order: str) -> str:
    for name, offset, length in _chunks(file, size, order):
        if name in (b"data", b"SSND"):
            truncated = size - offset < length < UNKNOWN_SIZE
            return f"{size - offset:,} of {length:,} bytes of samples are present" if truncated else ""
    return "its header ends before the samples"


def _missing_in_ogg(file: BinaryIO, size: int) -> str:
    """Check that the last page of an OGG is complete and has the end-of-stream flag."""
    file.seek(max(0, size - 2 * 65_536))  # a page is at most 65,307 bytes
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26] or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "its last page is incomplete"
    return "" if page[5] & 4 else "its last page is missing"


def wav_chunk(path: Path, name: bytes, most: int = 64 << 20) -> bytes | None:
    """Return the content of the first RIFF chunk of that four-byte name; None if the file is no WAV or has none.

    Raises UserError for a chunk of more than `most` bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != b"RIFF":
            return None
        for found, _, length in _chunks(file, size):
            if found == name:
                if length > most:
                    raise UserError(f"its chunk {name.decode()} has {length:,} bytes: expected {most:,} at most")
                return file.read(length)
    return None


def libsndfile_path(path: Path) -> str:
    """Return a path in the form that libsndfile opens, also where the name is not valid in the locale's encoding.

    soundfile encodes text by the locale and fails on such names; it accepts bytes, though its types do not say so.
    """
    return cast(str, os.fsencode(path)) if os.name == "posix" else str(path)


# --- writing ------------------------------------------------------------------------------------------------------

SUFFIXES = (".wav", ".flac", ".ogg")
MAX_RATE = {"ogg": 200_000, "flac": 655_350}
"Hz that libsndfile can write; above it, its Vorbis encoder ends the process"
BITS = {"PCM_16": 16, "PCM_24": 24, "FLOAT": 32}
INFO = {"title": b"INAM", "comment": b"ICMT", "license": b"ICOP", "software": b"ISFT"}


def check_format(format: str, subtype: Subtype, flag: str = "--", rate: int | None = None) -> None:
    """Raise UserError if a file format ("wav", "flac", "ogg") cannot hold samples of a subtype, or a rate in Hz.

    `flag` precedes the names of the settings in the message: "--" on the command line, "" in Python.
    """
    if rate is not None and rate > MAX_RATE.get(format, rate):
        raise UserError(f"{flag}rate {rate} {flag}format {format}: expected {MAX_RATE[format]:,} Hz or less, or wav")
    if format == "flac" and subtype == "FLOAT":
        raise UserError(
            f"{flag}format flac {flag}subtype FLOAT: FLAC holds integers; expected PCM_16 or PCM_24, or wav"
        )
    if format == "ogg" and subtype != "PCM_16":
        raise UserError(
            f"{flag}format ogg {flag}subtype {subtype}: OGG is Vorbis, which has no bit depth; drop the subtype"
        )


def write_wave(
    path: str | Path,
    wave: Wave,  # [L] or [L, C]
    rate: int,  # Hz
    subtype: Subtype = "PCM_16",
    tags: Mapping[str, str] | None = None,
    chunks: Mapping[bytes, bytes] | None = None,
) -> float:
    """Write a wave atomically as WAV, FLAC or OGG (by the suffix); return the gain that was applied to it.

    The gain is 1.0, unless the wave exceeds full scale and the format cannot: then the whole wave is scaled down to
    full scale. It is never clipped. 16 and 24 bits are rounded without dither: reading back gives
    `round(wave * 2**15) / 2**15` (or 2**23). The same arguments give the same bytes. OGG is Vorbis whatever the
    `subtype`. `tags` may hold title, comment, license, software; `chunks` are RIFF chunks of a WAV by four-byte name.

    Raises UserError for a format that cannot hold the subtype or rate and for a wave with NaN, OSError for the disk.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot write {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if subtype not in BITS:
        raise UserError(f"cannot write {path} as {subtype}: expected {', '.join(BITS)}")
    check_format(suffix[1:], "PCM_16" if suffix == ".ogg" else subtype, "", rate)
    if not np.isfinite(wave).all():
        raise UserError(f"cannot write {path}: the wave holds NaN or infinite samples")
    peak = float(np.abs(wave).max(initial=0.0))
    gain = 1 / peak if peak > 1 and not (suffix == ".wav" and subtype == "FLOAT") else 1.0
    if gain != 1:
        wave = (wave * gain).astype(np.float32)
    if suffix == ".wav":
        content = _wav(wave, rate, subtype, tags or {}, chunks or {})
    else:
        content = _encoded(suffix, wave, rate, subtype, tags or {})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return gain


def _quantised(wave: Wave, bits: int) -> NDArray[np.int32]:
    """Return round(wave * 2**(bits - 1)) as integers; +1.0 becomes the highest integer, one step lower."""
    full, block = 2 ** (bits - 1), 2**20
    steps = np.empty(wave.shape, np.int32)
    for start in range(0, len(wave), block):  # in blocks: double precision doubles the memory of a long wave
        exact = wave[start : start + block].astype(np.float64) * full
        steps[start : start + block] = np.clip(np.rint(exact), -full, full - 1)
    return steps


def _wav(wave: Wave, rate: int, subtype: str, tags: Mapping[str, str], chunks: Mapping[bytes, bytes]) -> bytes:
    """Return the content of a WAV file.

    Not by libsndfile, which writes the time of day into float files and cannot write private chunks.
    """
    bits = BITS[subtype]
    if subtype == "FLOAT":
        samples = wave.astype("<f4").tobytes()
    else:
        little_endian = _quantised(wave, bits).astype("<i4").view(np.uint8).reshape(-1, 4)
        samples = little_endian[:, : bits // 8].tobytes()
    channels = channels_of(wave)
    width = channels * bits // 8
    parts = [_chunk(b"fmt ", struct.pack("<HHIIHH", 3 if bits == 32 else 1, channels, rate, rate * width, width, bits))]
    if bits == 32:
        parts.append(_chunk(b"fact", struct.pack("<I", len(wave))))
    parts.append(_chunk(b"data", samples))
    if tags:
        entries = b"".join(_chunk(INFO[name], text.encode() + b"\0") for name, text in tags.items())
        parts.append(_chunk(b"LIST", b"INFO" + entries))
    parts += [_chunk(name, content) for name, content in chunks.items()]
    body = b"".join(parts)
    if len(body) >= UNKNOWN_SIZE:
        raise UserError(f"a wave of {len(wave):,} samples is too long for a WAV file: expected under 2 GB")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _encoded(suffix: str, wave: Wave, rate: int, subtype: str, tags: Mapping[str, str]) -> bytes:
    """Return the content of a FLAC or OGG file, as libsndfile encodes it."""
    memory = io.BytesIO()
    kind, coding = ("OGG", "VORBIS") if suffix == ".ogg" else ("FLAC", subtype)
    try:
        with soundfile.SoundFile(memory, "w", rate, channels_of(wave), coding, format=kind) as file:
            for name, text in tags.items():
                setattr(file, name, text)
            if suffix == ".ogg":
                for start in range(0, len(wave), rate):  # the Vorbis encoder overruns its stack on minutes at once
                    file.write(wave[start : start + rate])
            else:
                file.write(_quantised(wave, BITS[subtype]) << (32 - BITS[subtype]))  # the high bits of an int32 count
    except soundfile.SoundFileError as error:
        raise UserError(f"cannot encode {kind} at {rate} Hz (libsndfile: {error})") from None
    return _with_fixed_serial(memory.getvalue()) if suffix == ".ogg" else memory.getvalue()


_BIT_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _with_fixed_serial(ogg: bytes) -> bytes:
    """Set the random serial number of an OGG stream to 1, so that equal waves give equal files."""
    pages, offset = [], 0
    while offset < len(ogg):
        count = ogg[offset + 26]
        end = offset + 27 + count + sum(ogg[offset + 27 : offset + 27 + count])
        page = bytearray(ogg[offset:end])
        page[14:18], page[22:26] = struct.pack("<I", 1), bytes(4)
        # OGG's checksum is the CRC-32 of zlib with reversed bits in every byte and in the result, without inversion.
        checksum = zlib.crc32(page.translate(_BIT_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
        page[22:26] = struct.pack(">I", checksum).translate(_BIT_REVERSED)
        pages.append(bytes(page))
        offset = end
    return b"".join(pages)


# --- processing ---------------------------------------------------------------------------------------------------


def resample(wave: Wave, rate: int, new_rate: int) -> Wave:
    """Return the wave at `new_rate` Hz (soxr, very high quality): `round(L * new_rate / rate)` samples."""
    if not 1 <= new_rate <= HIGHEST_RATE:
        raise UserError(f"a rate of {new_rate} Hz: expected 1 to {HIGHEST_RATE}, such as 44100")
    if rate == new_rate:
        return wave
    samples = round(len(wave) * new_rate / rate)
    check_samples(samples, f"a sound of {len(wave) / rate:.1f} s at {new_rate:,} Hz")
    return fit(soxr.resample(wave, rate, new_rate, quality="VHQ"), samples)


def fit(wave: Wave, samples: int) -> Wave:
    """Return the wave [L] or [L, C] truncated or zero-padded at its end to [samples]."""
    if len(wave) >= samples:
        return wave[:samples]
    return np.pad(wave, [(0, samples - len(wave)), *[(0, 0)] * (wave.ndim - 1)])


def mono(wave: Wave) -> Wave:
    """Return the mean of the channels of a wave [L] or [L, C] as [L]."""
    if channels_of(wave) == 1:
        return np.ascontiguousarray(wave.reshape(-1))
    return wave.mean(axis=1, dtype=np.float32)


def channels_of(wave: Wave) -> int:
    """Return the number of channels of a wave [L] or [L, C]."""
    return 1 if wave.ndim == 1 else wave.shape[1]


Complex = NDArray[np.complex128]


def filtered(wave: NDArray[np.floating], response: Callable[[Complex], Complex], lead: int) -> NDArray[np.float64]:
    """Return a wave [L] through a causal recursive filter, by multiplication of spectra, which numpy alone can do.

    `response` is the transfer function of z**-1; its impulse response must have decayed after `lead` samples. The wave
    is filtered in pieces, each preceded by the `lead` samples before it, so that memory does not grow with L.
    """
    piece = max(1, min(2**18, len(wave)))
    size = 2 ** math.ceil(math.log2(2 * lead + piece))
    spectrum = response(np.exp(-2j * np.pi * np.fft.rfftfreq(size)))
    output = np.empty(len(wave))
    for start in range(0, len(wave), piece):
        first, stop = max(0, start - lead), min(start + piece, len(wave))
        part = np.fft.irfft(np.fft.rfft(wave[first:stop], size) * spectrum, size)
        output[start:stop] = part[start - first : stop - first]
    return output


# --- measuring ----------------------------------------------------------------------------------------------------


def peak_db(wave: Wave) -> float:
    """Return the highest absolute sample in dBFS, -inf for silence."""
    return _db(float(np.abs(wave).max(initial=0.0)))


def rms_db(wave: Wave) -> float:
    """Return the root mean square in dBFS (a full-scale sine has -3.01), -inf for silence."""
    return _db(float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))) if len(wave) else -np.inf


def true_peak_db(wave: Wave, block: int = 2**20) -> float:
    """Return the true peak of a wave [L] or [L, C] in dBTP, -inf for silence: after 4x oversampling (BS.1770-4, annex 2).

    Oversampled in blocks, since minutes at once would fill the memory.
    """
    lead = 256  # samples in which the resampler's response to a cut decays
    padded = np.pad(wave, [(lead, lead), *[(0, 0)] * (wave.ndim - 1)])
    highest = float(np.abs(wave).max(initial=0.0))
    for start in range(0, max(1, len(wave)), block):
        # Only the ratio of the two rates matters here.
        part = soxr.resample(padded[start : start + block + 2 * lead], 1.0, 4.0, quality="VHQ")
        # At the ends of the wave its ringing counts; between blocks it is an artefact of the cut.
        first = 4 * lead if start else 0
        stop = len(part) if start + block >= len(wave) else 4 * (lead + block)
        highest = max(highest, float(np.abs(part[first:stop]).max(initial=0.0)))
    return _db(highest)


def _db(amplitude: float) -> float:
    return 20 * float(np.log10(amplitude)) if amplitude > 0 else -np.inf


def loudness(wave: Wave, rate: int) -> float:
    """Return the integrated loudness of a wave [L] or [L, C] in LUFS (ITU-R BS.1770-4), -inf for silence.

    A clip shorter than the standard's gating block of 0.4 s is measured as one block of its own length.
    """
    channels = [wave] if wave.ndim == 1 else list(wave.T)
    power = np.sum([np.square(_k_weighted(channel, rate)) for channel in channels], axis=0)
    energy = np.concatenate([[0.0], np.cumsum(power)])
    block = min(round(0.4 * rate), len(wave))
    if not block:
        return -np.inf
    starts = np.rint(np.arange(0, len(wave) - block + 1, 0.1 * rate)).astype(int)  # blocks overlap by three quarters
    starts = np.minimum(starts, len(wave) - block)  # the last one may be rounded up beyond it
    power = (energy[starts + block] - energy[starts]) / block
    power = power[power > 10 ** ((-70 + 0.691) / 10)]  # the absolute gate: -70 LUFS
    if not len(power):
        return -np.inf
    gated = power[power > 0.1 * power.mean()]  # the relative gate: 10 LU below the mean
    return float(-0.691 + 10 * np.log10(gated.mean()))


def _k_weighted(wave: Wave, rate: int) -> NDArray[np.float64]:
    """Apply the K-weighting of BS.1770: a high shelf (the effect of the head) and a high-pass at 38 Hz.

    The standard gives coefficients for 48 kHz; these are the analogue filters behind them (B. De Man, "Evaluation of
    implementations of the EBU R128 loudness measurement", 2018) at any rate. Both decay within a second.
    """
    k, q, high = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    mid = high**0.4996667741545416
    shelf_b = (high + mid * k / q + k * k, 2 * (k * k - high), high - mid * k / q + k * k)
    shelf_a = (1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k)
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    norm = 1 + k / q + k * k
    high_pass_b, high_pass_a = (1, -2, 1), (1, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm)

    def response(z: Complex) -> Complex:
        shelf, high_pass = (
            (b[0] + b[1] * z + b[2] * z**2) / (a[0] + a[1] * z + a[2] * z**2)
            for b, a in ((shelf_b, shelf_a), (high_pass_b, high_pass_a))
        )
        return shelf * high_pass

    return filtered(wave.astype(np.float64), response, lead=rate)
