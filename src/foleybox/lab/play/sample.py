"""`foleybox sample`: trained parts -> waves, in torch, without exporting an instrument.

A PixelSNAIL draws codes, which the VQ-VAE (or MVQVAE) of its training decodes to a mel (or a CEmbed). A GAN makes the
mel itself; a patches model draws latents, which its autoencoder decodes to a mel. A vocoder that reads such mels makes
the wave. Every clip is decoded by itself, so that the other clips of a batch do not change its last bits.

Letters: N clips, M mel bands, T frames, L samples.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from foleybox.audio import write_wave
from foleybox.errors import UserError
from foleybox.lab.baseline.codes import check_fingerprint, decode_codes
from foleybox.lab.baseline.pixelsnail import PixelSnail
from foleybox.lab.baseline.runs import Weights, load_vqvae_of_codes
from foleybox.lab.baseline.sampling import PLAIN, Drawing, check_drawing
from foleybox.lab.baseline.sampling import sample as sample_codes
from foleybox.lab.baseline.vqvae import Vqvae
from foleybox.lab.cmu.mhifigan import Mhifigan, waves_of_cembeds
from foleybox.lab.cmu.mvqvae import Mvqvae
from foleybox.lab.cmu.runs import load_mhifigan, load_mvqvae, load_pixelsnail
from foleybox.lab.core.mel import DCASE, MELS, WIDE, MelConfig
from foleybox.lab.core.runs import read_run_config
from foleybox.lab.kt.runs import load_generator
from foleybox.lab.kt.sagan import Generator, refresh_batch_norm, to_mel
from foleybox.lab.patches.autoencoder import Autoencoder
from foleybox.lab.patches.runs import check_not_distilled, load_patches_and_autoencoder
from foleybox.lab.patches.transformer import GUIDANCE, GUIDED_FROM, TEMPERATURE, Patches, draw
from foleybox.lab.vocoders.hifigan import Hifigan
from foleybox.lab.vocoders.runs import band_factor, hifigan_config, load_vocoder, read_official_hifigan
from foleybox.labels import LABELS, Label, parse_label
from foleybox.version import __version__

SECONDS = 4.0
SAMPLES = round(SECONDS * DCASE.rate)  # 88,200, the challenge's length
SEEDS = 2**53  # as in the studio: JSON holds integers exactly up to this
SETTLING = 50  # batches from which a GAN's batch statistics are estimated again, as in `export`
PARTS = ("pixelsnail", "sagan", "patches")  # of the runs that can be played


class System(NamedTuple):
    """Trained parts, ready to play."""

    mels: Callable[[Sequence[int], Sequence[int]], Tensor]
    "(labels, seeds) -> log-mels [N, M, T] on the CPU; for an MHiFiGAN, CEmbeds"
    vocoder: nn.Module
    about: str
    "the parts and their steps, for the files' comments"

    def waves(self, labels: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Return the waves [N, 88200] at 22,050 Hz of labels and seeds; each depends on its own label and seed alone."""
        made = self.mels(labels, seeds)
        return (
            waves_of_cembeds(self.vocoder, made) if isinstance(self.vocoder, Mhifigan) else vocode(self.vocoder, made)
        )


# --- labels and seeds to waves ------------------------------------------------------------------------------------


def mels_of_codes(
    snail: PixelSnail,
    vqvae: Vqvae | Mvqvae,
    labels: Sequence[int],
    seeds: Sequence[int],
    drawing: Drawing = PLAIN,
    batch: int = 16,
    progress: bool = True,
) -> Tensor:
    """Draw codes for labels and seeds, and return their log-mels [N, M, T] (of an MVQVAE, CEmbeds) on the CPU."""
    return decode_codes(vqvae, sample_codes(snail, labels, seeds, drawing, batch, progress), batch=1)


@torch.no_grad()
def mels_of_noise(
    generator: Generator, labels: Sequence[int], seeds: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """Return the log-mels [N, M, T] of KT's generator in eval mode, on the CPU.

    The noise of a seed is torch's. An exported instrument has another noise, which other languages can compute too, and
    so makes other sounds of the same seeds.
    """
    device = next(generator.parameters()).device
    mels = []
    for label, seed in zip(labels, seeds, strict=True):
        z = temperature * torch.randn(1, generator.config.latent, generator=torch.Generator().manual_seed(seed))
        made = generator(z.to(device), torch.tensor([label], device=device))
        mels.append(to_mel(made, generator.config).cpu())
    return torch.cat(mels)


@torch.no_grad()
def mels_of_patches(
    model: Patches, autoencoder: Autoencoder, labels: Sequence[int], seeds: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """Return the log-mels [N, M, T] that a patches model draws, on the CPU, with the noise of `mels_of_noise`.

    Guidance and temperature of the labels are those with which `export` makes an instrument; `temperature` multiplies
    the latter. T is at least four seconds.
    """
    device, size = next(model.parameters()).device, autoencoder.config
    positions = -(-SAMPLES // (WIDE.hop * size.patch))
    mels = []
    for label, seed in zip(labels, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, positions, size.latent, generator=generator)
        fine = torch.randn(1, positions * size.patch, size.noise, generator=generator)
        latents = draw(
            model, torch.tensor([label], device=device), (temperature * TEMPERATURE[label] * noise).to(device),
            guidance=GUIDANCE[label], guided_from=GUIDED_FROM,
        )  # fmt: skip
        mels.append(autoencoder(latents, fine.to(device)).cpu())
    return torch.cat(mels)


@torch.no_grad()
def vocode(vocoder: nn.Module, mels: Tensor, samples: int = SAMPLES) -> Tensor:
    """Return the waves [N, samples] of log-mels [N, M, T], on the CPU, one by one.

    344 frames are 88,064 samples; the remaining 136 of four seconds are zeros.
    """
    device = next(vocoder.parameters()).device
    waves = torch.cat([vocoder(mel[None].to(device)).cpu() for mel in mels])[:, :samples]
    return F.pad(waves, (0, samples - waves.shape[1]))


# --- the parts ----------------------------------------------------------------------------------------------------


def read_vocoder(run: Path, mel: MelConfig = DCASE) -> nn.Module:
    """Return the vocoder of a run, or of an official HiFi-GAN checkpoint (V1, `g_00935000` of the challenge's baseline).

    Raises UserError for one that reads another mel than `mel`.
    """
    wanted = next(name for name, known in MELS.items() if known == mel)
    if run.is_file():
        if mel != DCASE:
            raise UserError(f"{run}: an official HiFi-GAN reads the mel dcase, this system makes {wanted}")
        official = Hifigan(hifigan_config(mel, "hifigan-v1"))
        read_official_hifigan(run, official)
        official.remove_weight_norm()
        return official.eval()
    vocoder, found, _ = load_vocoder(run)
    if band_factor(read_run_config(run)) > 1:
        raise UserError(f"the vocoder {run} is a full-band one, `sample` writes {DCASE.rate} Hz: use it with `export`")
    if found != mel:
        raise UserError(
            f"the vocoder {run} reads the mel {read_run_config(run)['mel']}, this system makes {wanted}: name one of "
            f"`foleybox train vocoder --mel {wanted}`"
        )
    return vocoder


def read_vqvae(run: Path, expected: str, source: str) -> Vqvae:
    """Return the VQ-VAE of a run. Raises UserError unless its codes are those of `source`."""
    vqvae, _ = load_vqvae_of_codes(run, expected)
    check_fingerprint(vqvae, expected, source)
    return vqvae


def check_rows(rows: int, source: str) -> None:
    """Raise UserError unless grids with this many rows decode to the mels that vocoders read."""
    if 4 * rows != DCASE.bands:
        raise UserError(
            f"{source} has codes of {rows} rows, mels of {4 * rows} bands: expected {DCASE.bands // 4}, for {DCASE.bands}"
        )


def codes_system(config: "Sample", drawing: Drawing, vocoder_run: Path) -> System:
    """Return a PixelSNAIL with the VQ-VAE or MVQVAE of its codes, and a vocoder. Raises UserError for other parts."""
    snail, expected, step = load_pixelsnail(config.run, best_or_last(config))
    if config.vqvae is None:
        raise UserError(
            f"{config.run} draws codes of the VQ-VAE {expected[:12]}: name its run with --vqvae (the one that `foleybox "
            "encode` was given)"
        )
    about = f"{read_run_config(config.run)['system']}, PixelSNAIL at step {step}"
    if read_run_config(config.vqvae).get("part") == "mvqvae":
        return cembed_system(config, snail, expected, about, drawing, vocoder_run)
    vqvae = read_vqvae(config.vqvae, expected, str(config.run))
    check_rows(snail.config.height, str(config.run))
    vocoder = read_vocoder(vocoder_run)
    to_gpu(config, snail, vqvae, vocoder)
    return System(
        lambda labels, seeds: mels_of_codes(snail, vqvae, labels, seeds, drawing, config.batch),
        vocoder,
        f"{about}, VQ-VAE {expected[:12]}",
    )


def cembed_system(
    config: "Sample", snail: PixelSnail, expected: str, about: str, drawing: Drawing, vocoder_run: Path
) -> System:
    """Return a PixelSNAIL with the MVQVAE of its codes and an MHiFiGAN: CMU's track A.

    Raises UserError for another MVQVAE, and for an MHiFiGAN that was trained with another encoder.
    """
    assert config.vqvae is not None
    mvqvae, features, _ = load_mvqvae(config.vqvae)
    check_fingerprint(mvqvae, expected, str(config.run))
    vocoder, vocoder_features, _ = load_mhifigan(vocoder_run)
    if features != vocoder_features:
        raise UserError(
            f"{vocoder_run} reads CEmbeds of {vocoder_features}, {config.vqvae} makes those of {features}: train it on these"
        )
    to_gpu(config, snail, mvqvae, vocoder)
    return System(
        lambda labels, seeds: mels_of_codes(snail, mvqvae, labels, seeds, drawing, config.batch),
        vocoder,
        f"{about}, MVQVAE {expected[:12]}"
        + (", stand-in encoder (random weights, not MERT)" if features.stand_in else ""),
    )


def gan_system(config: "Sample", drawing: Drawing, vocoder_run: Path) -> System:
    """Return KT's GAN and a vocoder. Averaged weights get batch statistics of their own first, as in `export`."""
    weights = "average" if config.weights == "best" else config.weights
    generator, step = load_generator(config.run, weights)
    if weights != "last":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            refresh_batch_norm(generator, SETTLING)
    vocoder = read_vocoder(vocoder_run)
    to_gpu(config, generator, vocoder)
    return System(
        lambda labels, seeds: mels_of_noise(generator, labels, seeds, drawing.temperature),
        vocoder,
        f"{read_run_config(config.run)['system']}, GAN at step {step}, {weights} weights",
    )


def patches_system(config: "Sample", drawing: Drawing, vocoder_run: Path) -> System:
    """Return a patches model with the autoencoder of its latents, and a vocoder. Raises UserError for other parts."""
    if config.weights != "best":
        raise UserError(f"{config.run} is played with its averaged weights: drop --weights {config.weights}")
    if config.autoencoder is None:
        raise UserError(f"{config.run} draws the latents of an autoencoder: name its run with --autoencoder")
    check_not_distilled(config.run, "be sampled from directly (export it)")
    model, autoencoder, (step, _) = load_patches_and_autoencoder(config.run, config.autoencoder)
    vocoder = read_vocoder(vocoder_run, WIDE)
    to_gpu(config, model, autoencoder, vocoder)
    return System(
        lambda labels, seeds: mels_of_patches(model, autoencoder, labels, seeds, drawing.temperature),
        vocoder,
        f"patches at step {step}",
    )


def best_or_last(config: "Sample") -> Weights:
    """Return which weights of a PixelSNAIL are asked for. Raises UserError for others."""
    if config.weights not in ("best", "last"):
        raise UserError(f"--weights {config.weights}: {config.run} is a PixelSNAIL, which has best and last weights")
    return cast(Weights, config.weights)


def to_gpu(config: "Sample", *models: nn.Module) -> None:
    """Move models to a GPU if there is one and `--device` allows it."""
    if config.device == "auto" and torch.cuda.is_available():
        for model in models:
            model.cuda()


# --- foleybox sample ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Make sounds with a training run, without exporting an instrument.

    OUT/<Label>/<Label>_s<seed>.wav for the seeds S to S+N-1 of every label.

    The same run, label and seed always make the same sound.

    Example: foleybox sample runs/pixelsnail dog_bark --vqvae runs/vqvae --vocoder runs/vocoder -o out
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    "a run of `foleybox train pixelsnail`, `train sagan` or `train patches`"
    labels: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="LABEL...")]
    "what to make, in any spelling (dog_bark, DogBark, 0); `all` for all seven"
    vocoder: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE")] = None
    "a run of `foleybox train vocoder` or `train hifigan` (with an MVQVAE: `train mhifigan`), or an official HiFi-GAN file"
    vqvae: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "of a PixelSNAIL: the run of `train vqvae` or `train mvqvae` whose codes it was trained on"
    autoencoder: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    "of patches: the run of `train autoencoder` whose latents they were trained on"
    weights: Annotated[str, tyro.conf.arg(metavar="best|last")] = "best"
    "best: lowest held-out score of a PixelSNAIL, moving average of a GAN or patches; last; or a GAN's snapshot (snapshot_2000)"
    count: Annotated[int, tyro.conf.arg(aliases=["-n"], metavar="N")] = 1
    "sounds of each label"
    seed: Annotated[int, tyro.conf.arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first sound"
    temperature: float = 1.0
    "below 1: more typical sounds of the label; above 1: more unusual ones; 1 is the model's own distribution"
    top_k: int = 0
    "of a PixelSNAIL: draw every code among this many of the likeliest only; 0: all, as published"
    top_p: float = 1.0
    "of a PixelSNAIL: draw every code among the likeliest that together have this probability; 1: all, as published"
    batch: int = 16
    "sounds drawn at once"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = Path("out")
    "folder to write to"
    force: bool = False
    "overwrite existing files"
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 1
    "CPU threads; 0: chosen by torch, which is slow on a busy machine"


def sample(config: Sample) -> int:
    """Check everything, then draw and write batch by batch; files are written atomically.

    Raises UserError before the first draw for labels, numbers, parts that do not fit each other, and existing files.
    """
    labels = chosen_labels(config.labels)
    check_numbers(config)
    pairs = [(label, seed) for label in labels for seed in range(config.seed, config.seed + config.count)]
    paths = [config.out / label.name / f"{label.name}_s{seed}.wav" for label, seed in pairs]
    existing = [path for path in paths if path.exists()]
    if existing and not config.force:
        others = f" and {len(existing) - 1:,} more exist" if existing[1:] else " exists"
        raise UserError(f"{existing[0]}{others} already: add --force to overwrite, or use another --seed or -o")
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
            f"stopped after {done:,} of {len(pairs):,} files; those in {config.out} are complete"
        ) from None
    if lowered:
        print(f"foleybox: {lowered:,} of {done:,} sounds exceeded full scale; their level was lowered", file=sys.stderr)
    print(f"wrote {done:,} sound{'s' * (done > 1)} of {SECONDS:g} s to {config.out}/ (the first: {paths[0]})")
    return 0


def load_system(config: Sample) -> System:
    """Load the parts, check that they belong together, and put them on the device. Raises UserError if they do not."""
    part = read_part(config.run)
    drawing = Drawing(config.temperature, config.top_k, config.top_p)
    ignored = {
        "--vqvae": part != "pixelsnail" and config.vqvae is not None,
        "--autoencoder": part != "patches" and config.autoencoder is not None,
        "--top-k": part != "pixelsnail" and config.top_k != 0,
        "--top-p": part != "pixelsnail" and config.top_p != 1,
    }
    given = [flag for flag, wrong in ignored.items() if wrong]
    if given:
        raise UserError(f"{config.run} is a run of `train {part}`, which does not use {' and '.join(given)}: drop it")
    if config.vocoder is None:
        made_by = "a run of `foleybox train vocoder` (with an MVQVAE: `train mhifigan`)"
        raise UserError(f"{config.run} makes no waves by itself: name {made_by} with --vocoder")
    make = {"pixelsnail": codes_system, "sagan": gan_system, "patches": patches_system}[part]
    return make(config, drawing, config.vocoder)


def read_part(run: Path) -> str:
    """Return which part a run trains. Raises UserError unless it can be played."""
    if (run / "instrument.json").is_file():
        raise UserError(f"{run} is an instrument: play it with `foleybox generate --instrument {run}`")
    part = read_run_config(run).get("part")
    if part not in PARTS:
        flags = {"vqvae": "--vqvae", "mvqvae": "--vqvae", "vocoder": "--vocoder", "mhifigan": "--vocoder"}
        flags["autoencoder"] = "--autoencoder"
        advice = f": it belongs to {flags[part]}" if part in flags else ""
        raise UserError(
            f"{run} is a run of {part!r}{advice}; expected one of `foleybox train pixelsnail`, `train sagan` or "
            "`train patches`"
        )
    return part


def chosen_labels(texts: Sequence[str]) -> list[Label]:
    """Return the labels, each once. Raises UserError for none, and for an unknown one."""
    if not texts:
        raise UserError(f"no label: expected one or more of {', '.join(label.slug for label in LABELS)}, or `all`")
    return list(dict.fromkeys(LABELS if "all" in texts else [parse_label(text) for text in texts]))


def check_numbers(config: Sample) -> None:
    """Raise UserError for numbers out of range."""
    check_drawing(Drawing(config.temperature, config.top_k, config.top_p))
    for name, lowest in (("count", 1), ("seed", 0), ("batch", 1), ("threads", 0)):
        if getattr(config, name) < lowest:
            raise UserError(f"--{name} {getattr(config, name)}: expected {lowest} or more")
    if config.seed + config.count > SEEDS:
        raise UserError(f"--seed {config.seed} --count {config.count}: the last seed would exceed {SEEDS - 1}")
