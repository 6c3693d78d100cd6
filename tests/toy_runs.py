"""Run folders of tiny parts that never learned: what they make is noise, and just as reproducible."""

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
from foleybox.lab.core.mel import MELS
from foleybox.lab.core.runs import fingerprint, open_run, save_state
from foleybox.lab.kt.sagan import Generator, SaganConfig
from foleybox.lab.kt.train_sagan import TrainSagan
from foleybox.lab.vocoders.runs import vocos_config
from foleybox.lab.vocoders.train_vocos import TrainVocoder
from foleybox.lab.vocoders.vocos import Vocos, VocosConfig

VQ = VqvaeConfig(channels=4, residual=2, width=3, size=8)
SNAIL = PixelSnailConfig(20, 4, 8, channels=16, inner=12, kernel=3, blocks=1, gates=1, heads=2, label_width=0)
VOCOS = VocosConfig(width=16, inner=32, layers=2)
GAN = SaganConfig(plan="S", width=4)


def vqvae_run(out: Path, seed: int = 0, **changes: Any) -> str:
    """Write a VQ-VAE's run; return its fingerprint."""
    config = replace(VQ, **changes)
    open_run(out, "vqvae", configured(TrainVqvae, model=config, head="none"), [])
    torch.manual_seed(seed)
    vqvae = Vqvae(config)
    with torch.no_grad():
        vqvae.codebook.start(vqvae.encode(torch.randn(2, 80, 16)))
        vqvae.codebook.vectors.normal_(std=10)  # other codes are heard, in 16 bits too
    save_state(out / "state.pt", 3, {"vqvae": vqvae})
    return fingerprint(vqvae)


def snail_run(out: Path, vqvae: str, seed: int = 0, **changes: Any) -> PixelSnail:
    """Write the run of a PixelSNAIL that learnt the codes of that VQ-VAE."""
    config = replace(SNAIL, **changes)
    open_run(out, "pixelsnail", Settled(Path("codes.npz"), model=config, vqvae=vqvae), [])
    torch.manual_seed(seed)
    snail = PixelSnail(config)
    with torch.no_grad():
        for weight in snail.parameters():
            weight.mul_(2)  # labels and seeds speak up
    save_state(out / "state.pt", 5, {"pixelsnail": snail})
    return snail.eval()


def vocoder_run(out: Path, **changes: Any) -> None:
    """Write a vocoder's run, of the tiny size that `small` is while a test uses `tiny`."""
    config = configured(TrainVocoder, size="small", **changes)
    open_run(out, "vocoder", config, [])
    torch.manual_seed(0)
    save_state(out / "state.pt", 7, {"average": Vocos(vocos_config(MELS[config.mel], "small"))})


def gan_run(out: Path) -> None:
    """Write the run of a GAN whose labels differ, as they do not at its start."""
    open_run(out, "sagan", configured(TrainSagan, model=GAN), [])
    torch.manual_seed(0)
    generator = Generator(GAN)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_state(out / "state.pt", 9, {"average": generator, "generator": generator})


def toy_codes(vqvae: str, count: int = 14) -> Codes:
    """Return codes of that VQ-VAE that follow from their label."""
    torch.manual_seed(3)
    labels = torch.arange(count) % 7
    codes = (labels[:, None, None] + torch.arange(80).view(1, 20, 4) // 3 + torch.randint(2, (count, 20, 4))) % 8
    names = [f"a/{take:03d}.wav" for take in range(count)]
    rows = [{"clip": name, "label": "DogBark", "tier": "", "licence": "", "source": ""} for name in names]
    return Codes(codes, labels, names, names, rows, 8, vqvae, 3)
