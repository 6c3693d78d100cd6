"""Train the encoder E: first supervised contrastive, then a linear classifier on the frozen backbone.

The classifier does not move the backbone (SupContrast's linear stage), so that the head's embeddings stay those that
the contrastive stage made. Both stages are ranges of one clock: steps 0 to `contrastive_steps`, then `classifier_steps`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.core.augment import NEPER_PER_DB, cut
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, split_by_recording, training_rows
from foleybox.lab.core.loop import Log, accelerator_for, at_least, balanced_indices, due, seed_step
from foleybox.lab.core.mel import DCASE, SILENCE
from foleybox.lab.core.runs import RunConfig, open_run, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.kt.encoder import Encoder, EncoderConfig, encode_mels
from foleybox.lab.kt.losses import supervised_contrastive
from foleybox.labels import LABELS

# --- the encoder's views ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """What makes a view of a clip for the encoder: fades and time masks, a draw for each item (KT report, encoder)."""

    fade: float = 0.4
    "longest fade in and longest fade out, of the clip"
    fade_depth: float = 60.0
    "dB below at the outer end of a fade; the way there is straight in dB"
    masks: int = 2
    "most time masks; at least one is drawn"
    mask: float = 0.15
    "longest time mask, of the clip"


def fade(image: Tensor, head: Tensor, tail: Tensor, depth: float, floor: float) -> Tensor:
    """Fade each item [B, 1, M, T] in over `head` [B] frames and out over `tail` [B], from `depth` below, not below floor."""
    T = image.shape[3]
    place = torch.arange(T, device=image.device)
    into = (1 - place / head.clamp(min=1)[:, None]).clamp(min=0) * (head > 0)[:, None]  # [B, T] 1 at the outer end
    out = (1 - (T - 1 - place) / tail.clamp(min=1)[:, None]).clamp(min=0) * (tail > 0)[:, None]
    return (image - depth * (into + out)[:, None, None]).clamp(min=floor)


def draw_view(image: Tensor, views: Views, floor: float) -> Tensor:
    """Return a view of log-mels [B, 1, M, T]: fade in, fade out, time masks. Draws from torch's global generator."""
    B, T = len(image), image.shape[3]
    head, tail = (torch.rand(2, B, device=image.device) * views.fade * T).floor()
    image = fade(image, head, tail, views.fade_depth * NEPER_PER_DB, floor)
    wanted = torch.randint(1, max(views.masks, 1) + 1, (B,), device=image.device)
    for mask in range(views.masks):
        length = (torch.rand(B, device=image.device) * views.mask * T).floor() * (mask < wanted)
        start = (torch.rand(B, device=image.device) * (T - length + 1)).floor()
        image = cut(image, start, length, 3, floor)
    return image


@dataclass(frozen=True)
class TrainEncoder:
    """Train the encoder that C-SupCon, `evaluate --embedding encoder` and `select` listen with. The same command resumes.

    Example: foleybox train encoder my_sounds/ -o runs/encoder
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/encoder")
    "the run folder: checkpoint, log, a sheet of views"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (open, open-clip, nc, unclear); default all"
    held_out: float = 0.1
    "share of the recordings never trained on; the held-out accuracy is theirs"
    model: EncoderConfig = field(default_factory=EncoderConfig)
    views: Views = field(default_factory=Views)
    contrastive_steps: int = 1000
    "steps of the first stage; the learning rate falls to 0 over them, so a resumed run cannot change this"
    classifier_steps: int = 200
    "steps of the second stage"
    batch: int = 256
    "clips a step, every label equally often; the contrastive stage sees two views of each"
    tau: float = 0.1
    "temperature of the contrastive loss"
    lr: float = 0.05
    "of SGD in the contrastive stage, falling as a cosine; SupContrast's, as are momentum and decay"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    classifier_lr: float = 0.01
    "of Adam in the classifier stage, falling as a cosine"
    run: RunConfig = field(default_factory=lambda: RunConfig(log_every=20, save_every=100))


def main(config: TrainEncoder) -> int:
    """Find the clips and train; Ctrl-C stops at the last checkpoint."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train encoder sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips, config.out)
    return 0


def cosine(peak: float, step: int, steps: int) -> float:
    """Return the learning rate of a stage's step: `peak` at 0, 0 at the end."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


def train(config: TrainEncoder, clips: list[ClipFile], out: Path) -> Encoder:
    """Train on `clips` without those held out, writing to `out`; return the encoder in eval mode.

    Raises UserError for fewer than two clips of a label to train on, more than one process, or a run folder of another
    configuration.
    """
    at_least(config, batch=len(LABELS), contrastive_steps=1, classifier_steps=1, log_every=1, save_every=1)
    at_least(config, held_out=0)
    kept, held = split_by_recording(clips, config.held_out)
    for label in LABELS:
        count = sum(clip.label == label for clip in kept)
        if count < 2:  # no positive pair of different clips, and nothing to call by that name
            raise UserError(
                f"{label.name} has {count} clip(s) to train on, {sum(clip.label == label for clip in held)} held out: "
                "expected at least 2 of each of the seven labels; add recordings or lower --held-out"
            )
    accelerator = accelerator_for(config.run, "bf16", out)
    if accelerator.num_processes > 1:  # batch statistics and pairs would be those of a part of the batch
        raise UserError(f"{accelerator.num_processes} processes: the encoder trains in one; start it without torchrun")
    device = accelerator.device
    open_run(out, "encoder", config, clips=training_rows(kept))
    mels, held_mels = load_mels(kept, DCASE), load_mels(held, DCASE) if held else None  # [N, 80, 344]
    labels = label_ids(kept)

    torch.manual_seed(config.run.seed)
    encoder = Encoder(config.model).to(device)
    # Narrower ones crash in torch 2.13 without AVX-512: backwards through a strided 1 x 1 convolution.
    if config.model.width >= 8:
        encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    contrasted = [*encoder.backbone.parameters(), *encoder.head.parameters()]
    optimizer = torch.optim.SGD(contrasted, config.lr, config.momentum, weight_decay=config.weight_decay)
    classifier_optimizer = torch.optim.Adam(encoder.classifier.parameters(), config.classifier_lr)
    optimizer, classifier_optimizer = accelerator.prepare(optimizer, classifier_optimizer)
    parts = {"encoder": encoder, "optimizer": optimizer, "classifier_optimizer": classifier_optimizer}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # fp16: part of the state that a resumed run must have
    start = resume(out / "state.pt", parts)
    if not start:
        sheet_of_views(out / "samples" / "views.png", mels, labels, config.views)

    steps = config.contrastive_steps + config.classifier_steps
    with Log(out, accelerator, start, steps) as log:
        for step in range(start, steps):
            seed_step(config.run.seed, step)
            indices = balanced_indices(step, config.batch, labels, config.run.seed)
            mel, label = mels[indices].to(device), labels[indices].to(device)
            numbers: dict[str, Tensor] = {}

            if step < config.contrastive_steps:  # pull the views of a label together, push the labels apart
                chosen = optimizer
                rate = cosine(config.lr, step, config.contrastive_steps)
                encoder.train()
                seen = torch.cat([draw_view(mel[:, None], config.views, SILENCE)[:, 0] for _ in range(2)])
                with accelerator.autocast():
                    embedding = encoder(seen).embedding
                terms = {"supcon": supervised_contrastive(embedding, label.repeat(2), config.tau)}
            else:  # learn to name the label from the features of a backbone that stays as it is
                chosen = classifier_optimizer
                rate = cosine(config.classifier_lr, step - config.contrastive_steps, config.classifier_steps)
                encoder.eval()
                with torch.no_grad(), accelerator.autocast():
                    feature = encoder(draw_view(mel[:, None], config.views, SILENCE)[:, 0]).feature
                logits = encoder.classifier(feature.float())
                terms = {"cross_entropy": F.cross_entropy(logits, label)}
                numbers = {"batch_accuracy": (logits.argmax(1) == label).float().mean()}

            loss = sum(terms.values(), torch.zeros((), device=device))
            finite = bool(torch.isfinite(loss))
            chosen.param_groups[0]["lr"] = rate
            chosen.zero_grad()
            if finite:
                accelerator.backward(loss)
                chosen.step()
            log.add({**terms, **numbers, "rate": rate, "skipped": float(not finite)})

            done = step + 1
            log.advance(done)
            if done == steps:
                log.write(done, measure(encoder, mels, labels, held, held_mels))
            elif due(done, config.contrastive_steps, config.run.log_every):
                log.write(done)
            if due(done, steps, config.run.save_every):
                save_state(out / "state.pt", done, parts)
    return encoder.eval()


def measure(
    encoder: Encoder, mels: Tensor, labels: Tensor, held: list[ClipFile], held_mels: Tensor | None
) -> dict[str, float]:
    """Return the share of clips, seen without fades or masks, whose label the classifier names: train, held out, by label.

    Held-out clips are those of recordings that were not trained on; the report could give only the accuracy in training.
    """

    def right(mels: Tensor, labels: Tensor) -> Tensor:
        feature = encode_mels(encoder, mels).feature.to(encoder.classifier.weight.device)
        return (encoder.classifier(feature).argmax(1).cpu() == labels).float()

    numbers = {"train_accuracy": float(right(mels, labels).mean())}
    if held_mels is not None:
        held_labels = label_ids(held)
        hits = right(held_mels, held_labels)
        numbers["held_out_accuracy"] = float(hits.mean())
        numbers["held_out_clips"] = len(held)
        for label in LABELS:
            if (held_labels == label.id).any():
                numbers[f"held_out_{label.slug}"] = float(hits[held_labels == label.id].mean())
    return numbers


def sheet_of_views(path: Path, mels: Tensor, labels: Tensor, views: Views) -> None:
    """Draw the first clip of each label and two views of it."""
    torch.manual_seed(0)
    first = torch.tensor([int(torch.nonzero(labels == label.id)[0]) for label in LABELS])
    shown = torch.stack([mels[first], *(draw_view(mels[first, None], views, SILENCE)[:, 0] for _ in range(2))], 1)
    mel_sheet(path, shown.flatten(0, 1), labels[first].repeat_interleave(3), columns=6)
