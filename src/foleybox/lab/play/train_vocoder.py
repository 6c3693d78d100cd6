"""The vocoders' commands: a vocoder may read mels that another model made of its training clips.

`foleybox train vocoder`, `foleybox train hifigan`.
"""

import hashlib
import itertools
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.baseline.codes import decode_codes, encode_features
from foleybox.lab.baseline.runs import load_vqvae
from foleybox.lab.baseline.vqvae import Vqvae
from foleybox.lab.core.cache import cached, load_mels, load_wave_cache
from foleybox.lab.core.clips import ClipFile, label_ids, training_rows
from foleybox.lab.core.mel import DCASE, MELS, WIDE, MelConfig
from foleybox.lab.core.runs import fingerprint, read_run_config
from foleybox.lab.patches.autoencoder import Autoencoder
from foleybox.lab.patches.runs import check_not_distilled, load_autoencoder, load_patches_and_autoencoder
from foleybox.lab.patches.transformer import GUIDANCE, GUIDED_FROM, TEMPERATURE, redraw
from foleybox.lab.vocoders import train_hifigan, train_vocos
from foleybox.lab.vocoders.runs import band_factor
from foleybox.lab.vocoders.train_hifigan import TrainHifigan
from foleybox.lab.vocoders.train_vocos import TrainVocoder
from foleybox.lab.vocoders.waves import Decoded, Redrawing, find_sources
from foleybox.labels import LABELS


def main(config: TrainVocoder) -> int:
    """`foleybox train vocoder`: find the clips and the mels that the vocoder reads, and train."""
    if config.redrawing.redrawn_by and (config.mels_from is None or MELS[config.mel] != WIDE):
        raise UserError("--redrawn-by needs --mel wide and --mels-from: name the autoencoder whose latents it draws")
    kept, waves, held_waves, decoded = load_clips(config)
    if config.redrawing.redrawn_by:
        assert decoded is not None
        assert config.mels_from is not None
        decoded = redraw_clips(config.redrawing, decoded, config.mels_from, kept, config.seconds)
    train_vocos.train(config, waves, held_waves, training_rows(kept), decoded)
    return 0


def main_hifigan(config: TrainHifigan) -> int:
    """`foleybox train hifigan`: find the clips and the mels that the vocoder reads, and train."""
    kept, waves, held_waves, decoded = load_clips(config)
    train_hifigan.train(config, waves, held_waves, training_rows(kept), decoded)
    return 0


def load_clips(config: TrainVocoder | TrainHifigan) -> tuple[list[ClipFile], Tensor, Tensor, Decoded | None]:
    """Return (the training clips, their waves and those held out, int16 [N, L], the mels of `mels_from` if given)."""
    if config.run.threads:  # also for the mels that are computed before the first step
        torch.set_num_threads(config.run.threads)
    kept, held = find_sources(config.data, config.tiers, config.held_out)
    mel = MELS[config.mel]
    print(f"{len(kept)} clips to train on, {len(held)} held out, into {config.out}")
    factor = band_factor(vars(config))
    waves, held_waves = (load_wave_cache(clips, mel.rate * factor, config.seconds) for clips in (kept, held))
    decoded = None
    if config.mels_from:
        decoded = decode_clips(config.mels_from, kept, held, mel, config.seconds, config.run.device)
    elif factor > 1:
        decoded = Decoded(load_mels(kept, mel, config.seconds), load_mels(held, mel, config.seconds), "")
    return kept, waves, held_waves, decoded


def decode_clips(
    run: Path, kept: list[ClipFile], held: list[ClipFile], mel: MelConfig, seconds: float, device: str
) -> Decoded:
    """Return the reconstructions of the clips by the VQ-VAE or autoencoder of `run`, cached.

    Raises UserError for a bad run, and for a mel or a length that it does not read.
    """
    ours = read_run_config(run).get("part") == "autoencoder"
    model, _ = load_autoencoder(run) if ours else load_vqvae(run)
    patch = model.config.patch if isinstance(model, Autoencoder) else 4
    frames, expected = mel.frames(round(seconds * mel.rate)), WIDE if ours else DCASE
    if mel != expected or frames % patch:
        raise UserError(
            f"--mels-from {run}: it reads the mel {expected} in multiples of {patch} frames, here are {frames} frames "
            f"of {mel}; give --mel {'wide' if ours else 'dcase'}"
        )
    name = fingerprint(model)
    if device == "auto" and torch.cuda.is_available():
        model.cuda()

    def reconstruct(mels: Tensor) -> Tensor:
        if isinstance(model, Vqvae):
            return decode_codes(model, encode_features(model, mels))
        torch.manual_seed(0)  # of the fine structure
        return model.reconstruct(mels)

    def load(clips: list[ClipFile]) -> Tensor:
        return cached("decoded", clips, f"{name} {seconds}", lambda: reconstruct(load_mels(clips, mel, seconds)))

    return Decoded(load(kept), load(held), name)


def redraw_clips(config: Redrawing, decoded: Decoded, mels_from: Path, kept: list[ClipFile], seconds: float) -> Decoded:
    """Return `decoded` with the mels of some labelled clips as redrawn by the patches model, cached.

    Raises UserError for patches of another autoencoder's latents, settings out of range, and clips without labels.
    """
    assert config.redrawn_by is not None
    low, high = config.redrawn_since
    if not (0 <= low <= high < 1 and 0 < config.redrawn_share < 1 and config.redrawn_clips > 0):
        raise UserError(
            f"redrawn_since {low:g} {high:g}, redrawn_share {config.redrawn_share:g}, redrawn_clips "
            f"{config.redrawn_clips}: expected times from 0 to below 1, a share between 0 and 1, and 1 clip or more"
        )
    check_not_distilled(config.redrawn_by, "redraw clips")
    model, autoencoder, _ = load_patches_and_autoencoder(config.redrawn_by, mels_from)
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0)).tolist()
    by_label = [[i for i in order if kept[i].label == label][: config.redrawn_clips] for label in LABELS]
    redrawn = torch.tensor(sorted(itertools.chain(*by_label)), dtype=torch.int64)
    if not len(redrawn):
        raise UserError("--redrawn-by: none of the clips has one of the seven labels, which patches draw")
    clips = [kept[i] for i in redrawn.tolist()]

    def compute() -> Tensor:
        mels, labels = load_mels(clips, WIDE, seconds), label_ids(clips)
        parts, console = [], Console(stderr=True)
        torch.manual_seed(0)
        batches = list(zip(mels.split(16), labels.split(16)))
        for mel, label in track(batches, "redrawn", console=console, disable=not console.is_terminal):
            start_time = torch.empty(len(mel)).uniform_(low, high)
            guidance, temperature = (torch.tensor(each)[label] for each in (GUIDANCE, TEMPERATURE))
            latents = redraw(
                model,
                autoencoder.encode(mel),
                label,
                start_time,
                guidance=guidance,
                guided_from=GUIDED_FROM,
                temperature=temperature,
            )
            parts.append(autoencoder.decode(latents).detach())
        return torch.cat(parts)

    how = f"{low} {high} {GUIDANCE} {GUIDED_FROM} {TEMPERATURE} {seconds}"
    key = f"{fingerprint(model)} {decoded.fingerprint} {how}"
    mels = cached("redrawn", clips, key, compute)
    name = hashlib.sha256(key.encode()).hexdigest()
    return Decoded(torch.cat([decoded.mels, mels]), decoded.held, name, redrawn)
