"""Train CMU's MHiFiGAN: masked CEmbeds -> waves, by the loop of HiFi-GAN. `foleybox train mhifigan FOLDER -o RUN`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.cmu.cembed import FRAMES, PARTS, CembedConfig, Cembeds, fill_rows, fill_value, load_cembeds
from foleybox.lab.cmu.masks import PartMasks, draw_part_masks
from foleybox.lab.cmu.mhifigan import Mhifigan
from foleybox.lab.cmu.runs import mhifigan_config
from foleybox.lab.core.cache import load_wave_cache
from foleybox.lab.core.clips import training_rows
from foleybox.lab.core.loop import at_least
from foleybox.lab.core.mel import MELS
from foleybox.lab.core.runs import PythonOnly, open_run
from foleybox.lab.vocoders.train_hifigan import AdversarialTraining, train_adversarially
from foleybox.lab.vocoders.waves import find_sources


@dataclass(frozen=True, kw_only=True)
class TrainMhifigan(AdversarialTraining):
    """Train CMU's MHiFiGAN on any recordings: CEmbed in, wave at 24 kHz out. The same command resumes.

    Example: foleybox train mhifigan my_sounds/ --encoder stand-in -o runs/mhifigan-stand-in
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of recordings, `folder:split` for one split; with or without labels"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/mhifigan")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    vocoder: Literal["mhifigan", "mhifigan-even"] = "mhifigan"
    "17.8 million weights; even: 18.3, with a first kernel of 20, which covers all samples equally at its rate of 10"
    width: int | None = None
    "channels before the first upsampling, if not the published 512; 128 is affordable on a CPU"
    features: CembedConfig = field(default_factory=CembedConfig)
    scale: PythonOnly[Literal["rows", "published"]] = "rows"
    "rows: each to mean 0 and deviation 1 over the training clips; published: one pair for the encoder, a raw mel"
    masks: PythonOnly[PartMasks] = field(default_factory=PartMasks)
    fill: PythonOnly[Literal["silence", "zero"]] = "silence"
    "value of masked entries: the mel's floor and the encoder's mean; or 0 on the published scale, a loud noise in a log-mel"
    steps: int = 49_050
    "in total, including those of earlier sittings: the report's 180 epochs of 4,360 clips"
    lr_decay: PythonOnly[float] = 0.99
    "factor of the learning rate after each epoch"


class MaskedSegments:
    """Random segments of clips, int16 [N, L] at 24 kHz, with the same frames of their masked CEmbeds."""

    def __init__(self, waves: Tensor, cembeds: Cembeds, config: TrainMhifigan, reader: Mhifigan) -> None:
        if config.segment > FRAMES:
            raise UserError(f"--segment {config.segment}: expected {FRAMES} or less, the frames of a clip")
        self.waves, self.cembeds, self.config, self.reader = waves, cembeds, config, reader

    def draw(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return (waves [B, frames 320], masked raw CEmbeds [B, 1152, frames]) at random positions of clips int64 [B]."""
        frames, hop = self.config.segment, MELS["cembed"].hop
        masked = draw_part_masks(len(clips), PARTS, FRAMES, self.config.masks)
        first = torch.randint(FRAMES - frames + 1, (len(clips),))
        fill = fill_value(self.reader.rows, self.config.fill)
        read = torch.where(masked.to(fill.device), fill, self.cembeds[clips].to(fill.device))
        positions = (first[:, None] + torch.arange(frames))[:, None].expand(-1, sum(PARTS), -1)
        wave = self.waves[clips[:, None], first[:, None] * hop + torch.arange(frames * hop)]
        return wave.to(fill.device).float() / 32768, read.gather(2, positions.to(fill.device))


def main(config: TrainMhifigan) -> int:
    """`foleybox train mhifigan`."""
    kept, held = find_sources(config.data, config.tiers, config.held_out)
    print(f"{len(kept)} clips to train on, {len(held)} held out, into {config.out}")
    if config.features.stand_in:
        print("stand-in encoder: random weights instead of MERT's; the results say nothing about MERT")
    rate = MELS["cembed"].rate
    waves, held_waves = (load_wave_cache(clips, rate, FRAMES * MELS["cembed"].hop / rate) for clips in (kept, held))
    cembeds, held_cembeds = (load_cembeds(clips, config.features) for clips in (kept, held))
    train(config, waves, held_waves, training_rows(kept), (cembeds, held_cembeds))
    return 0


def train(
    config: TrainMhifigan, waves: Tensor, held: Tensor, clips: list[dict[str, str]], cembeds: tuple[Cembeds, Cembeds]
) -> Mhifigan:
    """Train on `waves`, measure on `held`, both int16 [N, L] at 24 kHz; return the generator.

    `clips` is `clips.training_rows` of the waves, for the run's record; `cembeds` are those of `waves` and of `held`.
    Raises UserError for a segment longer than a clip and a run folder of another configuration.
    """
    at_least(config.masks, mask_frames=0, mask_mel_rows=0, mask_encoder_rows=0)
    torch.manual_seed(config.run.seed)
    generator = Mhifigan(mhifigan_config(config.vocoder, config.width))
    segments = MaskedSegments(waves, cembeds[0], config, generator)
    fill_rows(generator.rows, cembeds[0], config.scale)
    train_adversarially(
        config, generator, segments, len(waves), held, cembeds[1][torch.arange(len(held))], MELS["cembed"],
        open_folder=lambda: open_run(config.out, "mhifigan", config, clips),
        tag="-stand-in" if config.features.stand_in else "",
    )  # fmt: skip
    return generator.eval()
