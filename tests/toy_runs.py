"""Run folders of tiny untrained parts: their sounds are noise, and as reproducible as any."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from helpers_lab import configured

from foleybox.lab.baseline.codes import Codes
from foleybox.lab.baseline.pixelsnail import PixelSnail, PixelSnailConfig
from foleybox.lab.baseline.train_pixelsnail import Settled
from foleybox.lab.baseline.train_vqvae import TrainVqvae
from foleybox.lab.baseline.vqvae import Vqvae, VqvaeConfig
from foleybox.lab.cmu.mhifigan import Mhifigan
from foleybox.lab.cmu.mvqvae import Mvqvae, MvqvaeConfig
from foleybox.lab.cmu.runs import mhifigan_config
from foleybox.lab.cmu.train_mhifigan import TrainMhifigan
from foleybox.lab.cmu.train_mvqvae import TrainMvqvae
from foleybox.lab.core.mel import MELS
from foleybox.lab.core.runs import fingerprint, open_run, save_state
from foleybox.lab.kt.sagan import Generator, SaganConfig
from foleybox.lab.kt.train_sagan import TrainSagan
from foleybox.lab.patches.autoencoder import SIZES as AUTOENCODERS
from foleybox.lab.patches.autoencoder import Autoencoder
from foleybox.lab.patches.train_autoencoder import TrainAutoencoder
from foleybox.lab.patches.train_patches import TrainPatches
from foleybox.lab.patches.transformer import SIZES as PATCHES
from foleybox.lab.patches.transformer import Patches
from foleybox.lab.vocoders.hifigan import Hifigan
from foleybox.lab.vocoders.runs import hifigan_config, vocos_config
from foleybox.lab.vocoders.train_hifigan import TrainHifigan
from foleybox.lab.vocoders.train_vocos import TrainVocoder
from foleybox.lab.vocoders.vocos import Vocos, VocosConfig

VQ = VqvaeConfig(channels=4, residual=2, width=3, size=8)
SNAIL = PixelSnailConfig(20, 4, 8, channels=16, inner=12, kernel=3, blocks=1, gates=1, heads=2, label_width=6)
VOCOS = VocosConfig(width=16, inner=32, layers=2)
MVQVAE = MvqvaeConfig(channels=4, residual=2, width=3, size=8, components=31, stride=16)
GAN = SaganConfig(plan="S", width=4)


def vqvae_run(out: Path, seed: int = 0, **changes: Any) -> str:
    """Write a VQ-VAE's run; return its fingerprint."""
    config = replace(VQ, **changes)
    open_run(out, "vqvae", configured(TrainVqvae, model=config, head="none"), [])
    torch.manual_seed(seed)
    vqvae = Vqvae(config)
    with torch.no_grad():
        vqvae.codebook.initialise(vqvae.encode(torch.randn(2, 80, 16)))
        vqvae.codebook.vectors.normal_(std=10)  # so that other codes make another wave, in 16 bits too
    save_state(out / "state.pt", 3, {"vqvae": vqvae})
    return fingerprint(vqvae)


def snail_run(out: Path, vqvae: str, seed: int = 0, **changes: Any) -> PixelSnail:
    """Write the run of a PixelSNAIL for the codes of that VQ-VAE."""
    config = replace(SNAIL, **changes)
    open_run(out, "pixelsnail", Settled(Path("codes.npz"), model=config, vqvae=vqvae), [])
    torch.manual_seed(seed)
    snail = PixelSnail(config)
    with torch.no_grad():
        for weight in snail.parameters():
            weight.mul_(2)  # so that labels and seeds matter
    save_state(out / "state.pt", 5, {"pixelsnail": snail})
    return snail.eval()


def vocoder_run(out: Path, **changes: Any) -> None:
    """Write a vocoder's run of the size `small`."""
    config = configured(TrainVocoder, size="small", **changes)
    open_run(out, "vocoder", config, [])
    torch.manual_seed(0)
    save_state(out / "state.pt", 7, {"average": Vocos(vocos_config(MELS[config.mel], "small"))})


def hifigan_run(out: Path) -> None:
    """Write the run of a narrow HiFi-GAN V2."""
    open_run(out, "vocoder", configured(TrainHifigan, vocoder="hifigan-v2", width=16), [])
    save_state(out / "state.pt", 2, {"generator": Hifigan(hifigan_config(MELS["dcase"], "hifigan-v2", 16))})


def mhifigan_run(out: Path) -> None:
    """Write the run of a narrow MHiFiGAN."""
    open_run(out, "mhifigan", configured(TrainMhifigan, width=16), [])
    save_state(out / "state.pt", 2, {"generator": Mhifigan(mhifigan_config("mhifigan", 16))})


def mvqvae_run(out: Path) -> None:
    """Write the run of a small MVQVAE."""
    open_run(out, "mvqvae", configured(TrainMvqvae, model=MVQVAE, head="none"), [])
    save_state(out / "state.pt", 2, {"mvqvae": Mvqvae(MVQVAE)})


def gan_run(out: Path) -> None:
    """Write the run of a GAN whose labels differ; those of an untrained one are equal."""
    open_run(out, "sagan", configured(TrainSagan, model=GAN), [])
    torch.manual_seed(0)
    generator = Generator(GAN)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_state(out / "state.pt", 9, {"average": generator, "generator": generator})


def autoencoder_run(out: Path) -> str:
    """Write an autoencoder's run; return the fingerprint of its components, which runs of patches record."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODERS["tiny"])
    open_run(out, "autoencoder", configured(TrainAutoencoder, model=autoencoder.config), [])
    save_state(out / "state.pt", 4, {"average": autoencoder})
    return fingerprint(autoencoder.components)


def patches_run(out: Path, autoencoder: str) -> None:
    """Write the run of a patches model for the latents of that autoencoder, with labels that differ."""
    config = replace(PATCHES["tiny"], latent=AUTOENCODERS["tiny"].latent)
    open_run(out, "patches", configured(TrainPatches, model=config, autoencoder=Path(autoencoder)), [])
    torch.manual_seed(0)
    model = Patches(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_state(out / "state.pt", 6, {"average": model})


def toy_codes(vqvae: str, count: int = 14) -> Codes:
    """Return codes of that VQ-VAE that depend on their label."""
    torch.manual_seed(3)
    labels = torch.arange(count) % 7
    codes = (labels[:, None, None] + torch.arange(80).view(1, 20, 4) // 3 + torch.randint(2, (count, 20, 4))) % 8
    names = [f"a/{take:03d}.wav" for take in range(count)]
    rows = [{"clip": name, "label": "DogBark", "tier": "", "licence": "", "source": ""} for name in names]
    return Codes(codes, labels, names, names, rows, 8, vqvae, 3)
