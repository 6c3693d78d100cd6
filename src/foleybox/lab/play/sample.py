"""Trained parts -> waves, in torch: a label and a seed become a mel, and the mel a wave; `foleybox generate` of a run.

A PixelSNAIL run draws codes, which the very VQ-VAE that it learnt from turns into a mel; a GAN run makes the mel itself.
Any vocoder run that reads such mels makes the wave. Every clip is decoded by itself, so that what else is in the batch
does not touch its last bit.

Letters: N clips, M mel bands, T frames, L samples.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from foleybox.audio import write_wave
from foleybox.errors import UserError
from foleybox.lab.baseline.codes import check_vqvae, decode_codes
from foleybox.lab.baseline.pixelsnail import PixelSnail
from foleybox.lab.baseline.runs import load_pixelsnail, load_vqvae
from foleybox.lab.baseline.sampling import PLAIN, Drawing, check_drawing
from foleybox.lab.baseline.sampling import sample as sample_codes
from foleybox.lab.baseline.vqvae import Vqvae
from foleybox.lab.cmu.mhifigan import Mhifigan, waves_of_cembeds
from foleybox.lab.cmu.mvqvae import Mvqvae
from foleybox.lab.cmu.runs import load_mhifigan, load_mvqvae
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import read_run_config
from foleybox.lab.kt.runs import load_generator
from foleybox.lab.kt.sagan import Generator, refresh_batch_norm, to_mel
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.labels import LABELS, Label, parse_label
from foleybox.version import __version__

SECONDS = 4.0
SAMPLES = round(SECONDS * DCASE.rate)  # 88,200, as the challenge wants them
SEEDS = 2**53  # as the studio's: JSON carries whole numbers exactly up to here
SETTLING = 50  # batches from which a GAN's batch statistics are re-estimated, as `export` does
PARTS = ("pixelsnail", "sagan")  # what a run that can be played trains


class System(NamedTuple):
    """Trained parts, ready to play."""

    mels: Callable[[Sequence[int], Sequence[int]], Tensor]
    "(labels, seeds) -> log-mels [N, M, T] on the CPU; for an MHiFiGAN, CEmbeds"
    vocoder: nn.Module
    about: str
    "what it is made of, for the files' comments"

    def waves(self, labels: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Return the waves [N, 88200] at 22,050 Hz of labels and their seeds: each a function of its own two alone."""
        made = self.mels(labels, seeds)
        return (
            waves_of_cembeds(self.vocoder, made) if isinstance(self.vocoder, Mhifigan) else vocode(self.vocoder, made)
        )


# --- the steps ----------------------------------------------------------------------------------------------------


def mels_of_codes(
    snail: PixelSnail,
    vqvae: Vqvae | Mvqvae,
    labels: Sequence[int],
    seeds: Sequence[int],
    drawing: Drawing = PLAIN,
    batch: int = 16,
    watched: bool = True,
) -> Tensor:
    """Draw codes for labels and seeds, and return their log-mels [N, M, T] (an MVQVAE's: CEmbeds) on the CPU."""
    return decode_codes(vqvae, sample_codes(snail, labels, seeds, drawing, batch, watched), batch=1)


@torch.no_grad()
def mels_of_noise(
    generator: Generator, labels: Sequence[int], seeds: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """Return the log-mels [N, M, T] that KT's generator in eval mode makes, on the CPU.

    A seed's noise is torch's; the exported instrument has noise that other languages can make too, and so other sounds
    at the same seeds.
    """
    device = next(generator.parameters()).device
    mels = []
    for label, seed in zip(labels, seeds, strict=True):
        z = temperature * torch.randn(1, generator.config.latent, generator=torch.Generator().manual_seed(seed))
        made = generator(z.to(device), torch.tensor([label], device=device))
        mels.append(to_mel(made, generator.config).cpu())
    return torch.cat(mels)


@torch.no_grad()
def vocode(vocoder: nn.Module, mels: Tensor, samples: int = SAMPLES) -> Tensor:
    """Return the waves [N, samples] of log-mels [N, M, T], on the CPU, one by one.

    344 frames are 88,064 samples; the 136 to four seconds are zeros, as in the challenge's baseline.
    """
    device = next(vocoder.parameters()).device
    waves = torch.cat([vocoder(mel[None].to(device)).cpu() for mel in mels])[:, :samples]
    return F.pad(waves, (0, samples - waves.shape[1]))


# --- the parts ----------------------------------------------------------------------------------------------------


def read_vocoder(run: Path) -> nn.Module:
    """Return the vocoder of a run. Raises UserError for one that reads other mels than the systems make."""
    vocoder, mel, _ = load_vocoder(run)
    if mel != DCASE:
        raise UserError(
            f"the vocoder {run} reads the mel {read_run_config(run)['mel']}, the systems make dcase: name one of "
            "`foleybox train vocoder --mel dcase`"
        )
    return vocoder


def read_vqvae(run: Path, expected: str, what: str) -> Vqvae:
    """Return the VQ-VAE of a run. Raises UserError unless its codes are those that `what` draws."""
    vqvae, _ = load_vqvae(run)
    check_vqvae(vqvae, expected, what)
    return vqvae


def check_rows(rows: int, what: str) -> None:
    """Raise UserError unless grids of so many rows decode to the mels that vocoders read."""
    if 4 * rows != DCASE.bands:
        raise UserError(
            f"{what} has codes of {rows} rows, mels of {4 * rows} bands: expected {DCASE.bands // 4}, for {DCASE.bands}"
        )


def codes_system(run: Path, vqvae_run: Path | None, vocoder: nn.Module, drawing: Drawing, batch: int) -> System:
    """Return a PixelSNAIL run with the VQ-VAE whose codes it draws. Raises UserError for another VQ-VAE."""
    snail, fingerprint, step = load_pixelsnail(run)
    if vqvae_run is None:
        raise UserError(
            f"{run} draws codes of the VQ-VAE {fingerprint[:12]}: name its run with --vqvae (the one that `foleybox "
            "encode` was given)"
        )
    vqvae = read_vqvae(vqvae_run, fingerprint, str(run))
    check_rows(snail.config.height, str(run))
    device = next(vocoder.parameters()).device
    snail.to(device)
    vqvae.to(device)
    return System(
        lambda labels, seeds: mels_of_codes(snail, vqvae, labels, seeds, drawing, batch),
        vocoder,
        f"{read_run_config(run)['system']}, PixelSNAIL at step {step}, VQ-VAE {fingerprint[:12]}",
    )


def cembed_system(run: Path, mvqvae_run: Path, vocoder_run: Path, drawing: Drawing, batch: int, device: str) -> System:
    """Return a PixelSNAIL run with the MVQVAE whose codes it draws and an MHiFiGAN: CMU's track A.

    Raises UserError for another MVQVAE, and for an MHiFiGAN that learnt from another encoder.
    """
    snail, expected, step = load_pixelsnail(run)
    mvqvae, features, _ = load_mvqvae(mvqvae_run)
    check_vqvae(mvqvae, expected, str(run))
    vocoder, vocoder_features, _ = load_mhifigan(vocoder_run)
    if features != vocoder_features:
        raise UserError(
            f"{vocoder_run} reads CEmbeds of {vocoder_features}, {mvqvae_run} makes those of {features}: train it on these"
        )
    if device == "auto" and torch.cuda.is_available():
        for model in (snail, mvqvae, vocoder):
            model.cuda()
    return System(
        lambda labels, seeds: mels_of_codes(snail, mvqvae, labels, seeds, drawing, batch),
        vocoder,
        f"{read_run_config(run)['system']}, PixelSNAIL at step {step}, MVQVAE {expected[:12]}"
        + (", stand-in encoder (random weights, not MERT)" if features.stand_in else ""),
    )


def gan_system(run: Path, weights: Literal["average", "last"], vocoder: nn.Module, drawing: Drawing) -> System:
    """Return a run of KT's GAN. An average of weights gets batch statistics of its own first, as in `export`."""
    if (drawing.top_k, drawing.top_p) != (0, 1.0):
        raise UserError(f"{run} is a GAN and draws no codes: drop --top-k and --top-p")
    generator, step = load_generator(run, weights)
    if weights == "average":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            refresh_batch_norm(generator, SETTLING)
    generator.to(next(vocoder.parameters()).device)
    return System(
        lambda labels, seeds: mels_of_noise(generator, labels, seeds, drawing.temperature),
        vocoder,
        f"{read_run_config(run)['system']}, GAN at step {step}, {weights} weights",
    )


# --- foleybox generate --instrument RUN -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Make sounds with a training run, without exporting an instrument.

    OUT/<Label>/<Label>_s<seed>.wav for the seeds S to S+N-1 of every label.

    The same run, label and seed always make the same sound.

    Example: foleybox sample runs/pixelsnail dog_bark --vqvae runs/vqvae --vocoder runs/vocoder -o out
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    "a run of `foleybox train pixelsnail` or `train sagan`"
    labels: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="LABEL...")]
    "what to make, in any spelling (dog_bark, DogBark, 0); `all` for all seven"
    vqvae: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "the run of `foleybox train vqvae` (or `train mvqvae`) whose codes a PixelSNAIL has learnt"
    vocoder: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "a run of `foleybox train vocoder` (of `train mhifigan` with an MVQVAE)"
    count: Annotated[int, tyro.conf.arg(aliases=["-n"], metavar="N")] = 1
    "sounds of each label"
    seed: Annotated[int, tyro.conf.arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first sound"
    temperature: float = 1.0
    "below 1: nearer to the typical sound of the label; above 1: further out; 1 is the model's own distribution"
    top_k: int = 0
    "draw every code among this many of the likeliest only; 0: all, as published"
    top_p: float = 1.0
    "draw every code among the likeliest that together have this probability; 1: all, as published"
    weights: Literal["average", "last"] = "average"
    "a GAN's moving average, or its last weights"
    batch: int = 16
    "sounds drawn at once"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = Path("out")
    "folder to write to"
    force: bool = False
    "overwrite existing files"
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 0
    "CPU threads; 0 is torch's choice"


def sample(config: Sample) -> int:
    """Check everything, then draw and write batch by batch; a file is whole or absent, whenever it stops.

    Raises UserError before the first draw for labels, numbers, runs that do not fit each other, and existing files.
    """
    labels = chosen_labels(config.labels)
    check_numbers(config)
    pairs = [(label, seed) for label in labels for seed in range(config.seed, config.seed + config.count)]
    paths = [config.out / label.name / f"{label.name}_s{seed}.wav" for label, seed in pairs]
    there = [path for path in paths if path.exists()]
    if there and not config.force:
        others = f" and {len(there) - 1:,} more exist" if there[1:] else " exists"
        raise UserError(f"{there[0]}{others} already: add --force to overwrite, or use another --seed or -o")
    if config.threads:
        torch.set_num_threads(config.threads)
    system = load_system(config)
    for label in labels:
        (config.out / label.name).mkdir(parents=True, exist_ok=True)

    done = lowered = 0
    try:
        for start in range(0, len(pairs), config.batch):
            part = pairs[start : start + config.batch]
            waves = system.waves([label.id for label, _ in part], [seed for _, seed in part])
            for (label, seed), path, wave in zip(part, paths[start:], waves.numpy()):
                tags = {"title": f"{label.name} seed {seed}", "comment": system.about}
                tags["software"] = f"foleybox {__version__}"
                lowered += write_wave(path, wave, DCASE.rate, tags=tags) < 1
                done += 1
            if sys.stderr.isatty() and len(pairs) > config.batch:
                print(f"{done:,} of {len(pairs):,} sounds", file=sys.stderr)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {done:,} of {len(pairs):,} files; those in {config.out} are whole"
        ) from None
    if lowered:
        print(f"foleybox: {lowered:,} of {done:,} sounds went above full scale and were turned down", file=sys.stderr)
    print(f"wrote {done:,} sound{'s' * (done > 1)} of {SECONDS:g} s to {config.out}/ (the first: {paths[0]})")
    return 0


def load_system(config: Sample) -> System:
    """Read a run's parts, see that they belong together, and put them on the device. Raises UserError if not."""
    part = read_part(config.run)
    drawing = Drawing(config.temperature, config.top_k, config.top_p)
    if config.vocoder is None:
        raise UserError(f"{config.run} makes mels: name a run of `foleybox train vocoder` with --vocoder")
    if part == "sagan" and config.vqvae is not None:
        raise UserError(f"{config.run} is a GAN and draws no codes: drop --vqvae")
    if config.vqvae is not None and read_run_config(config.vqvae).get("part") == "mvqvae":
        return cembed_system(config.run, config.vqvae, config.vocoder, drawing, config.batch, config.device)
    vocoder = read_vocoder(config.vocoder)
    if config.device == "auto" and torch.cuda.is_available():
        vocoder.cuda()
    if part == "sagan":
        return gan_system(config.run, config.weights, vocoder, drawing)
    return codes_system(config.run, config.vqvae, vocoder, drawing, config.batch)


def read_part(run: Path) -> str:
    """Return what a run trains. Raises UserError unless it can be played."""
    if (run / "instrument.json").is_file():
        raise UserError(f"{run} is an instrument: play it with `foleybox generate --instrument`")
    part = read_run_config(run).get("part")
    if part not in PARTS:
        advice = {"vqvae": ": it belongs to --vqvae", "vocoder": ": it belongs to --vocoder"}.get(str(part), "")
        raise UserError(
            f"{run} is a run of {part!r}{advice}; expected one of `foleybox train pixelsnail` or `train sagan`"
        )
    return part


def chosen_labels(texts: Sequence[str]) -> list[Label]:
    """Return the asked labels, each once. Raises UserError for none, and for one that there is not."""
    if not texts:
        raise UserError(f"no label: expected one or more of {', '.join(label.slug for label in LABELS)}, or `all`")
    return list(dict.fromkeys(LABELS if "all" in texts else [parse_label(text) for text in texts]))


def check_numbers(config: Sample) -> None:
    """Raise UserError for numbers that make no sense."""
    check_drawing(Drawing(config.temperature, config.top_k, config.top_p))
    for name, lowest in (("count", 1), ("seed", 0), ("batch", 1), ("threads", 0)):
        if getattr(config, name) < lowest:
            raise UserError(f"--{name} {getattr(config, name)}: expected {lowest} or more")
    if config.seed + config.count > SEEDS:
        raise UserError(f"--seed {config.seed} --count {config.count}: the last seed would exceed {SEEDS - 1}")
