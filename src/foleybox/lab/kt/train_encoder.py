"""Train KT's encoder E: first with the supervised contrastive loss, then a linear classifier on the frozen backbone.

The classifier stage leaves the backbone and the head as they are (as SupContrast's linear stage), so that the embeddings
remain those of the contrastive stage. Both stages have one clock: `contrastive_steps`, then `classifier_steps`.

Letters: N clips, M mel bands, T frames.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, label_ids, split_by_recording, training_rows
from foleybox.lab.core.loop import Log, accelerator_for, at_least, balanced_indices, due, seed_step
from foleybox.lab.core.mel import DCASE, SILENCE
from foleybox.lab.core.runs import RunConfig, open_run, resume, save_state
from foleybox.lab.core.sheets import mel_sheet
from foleybox.lab.kt.augment import draw_view
from foleybox.lab.kt.encoder import Encoder, EncoderConfig, encode_mels
from foleybox.lab.kt.losses import supervised_contrastive
from foleybox.labels import LABELS

TAU = 0.1  # temperature of the contrastive loss
LR = 0.05  # of SGD in the contrastive stage; SupContrast's, as are momentum and weight decay
CLASSIFIER_LR = 0.01  # of Adam in the classifier stage


@dataclass(frozen=True)
class TrainEncoder:
    """Train the encoder of C-SupCon, `evaluate --embedding encoder` and `select`. The same command resumes.

    Example: foleybox train encoder my_sounds/ -o runs/encoder
    """

    REMOVED: ClassVar[dict[str, Any]] = {
        "views": {"fade": 0.4, "fade_depth": 60.0, "masks": 2, "mask": 0.15},
        "tau": 0.1,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "classifier_lr": 0.01,
    }

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    "folders of class folders, or folders with manifest.csv; `folder:split` for one split"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/encoder")
    "run folder: config.json, state.pt, log.jsonl, samples/"
    tiers: tuple[str, ...] = ()
    "keep clips of these licence tiers only (free, copyleft, open-clip, nc, unclear); default all"
    held_out: float = 0.0
    "share of the recordings that is not trained on, to measure the accuracy on them; 0: train on all, as the report"
    model: EncoderConfig = field(default_factory=EncoderConfig)
    contrastive_steps: int = 1000
    "steps of the first stage; the learning rate falls to 0 over them, so they cannot be changed on resume"
    classifier_steps: int = 200
    "steps of the second stage"
    batch: int = 256
    "clips per step, every label equally often; the contrastive stage draws two views of each"
    run: RunConfig = field(default_factory=lambda: RunConfig(log_every=20, save_every=100))


def main(config: TrainEncoder) -> int:
    """`foleybox train encoder`."""
    if not config.data:
        raise UserError("no data: name one or more folders of recordings, such as `foleybox train encoder sounds/`")
    clips = [clip for source in config.data for clip in find_clips(source, tiers=config.tiers or None)]
    train(config, clips)
    return 0


def cosine(peak: float, step: int, steps: int) -> float:
    """Return the learning rate of a stage's step: `peak` at step 0, 0 at `steps`, a half cosine between."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


def train(config: TrainEncoder, clips: list[ClipFile]) -> Encoder:
    """Train on `clips` without those held out; return the encoder in eval mode.

    Raises UserError for fewer than two clips of a label to train on, more than one process, or a run folder of another
    configuration.
    """
    at_least(config, batch=len(LABELS), contrastive_steps=1, classifier_steps=1, held_out=0)
    kept, held = split_by_recording(clips, config.held_out)
    for label in LABELS:
        count = sum(clip.label == label for clip in kept)
        if count < 2:  # the contrastive loss needs pairs of different clips
            raise UserError(
                f"{label.name} has {count} clip(s) to train on, {sum(clip.label == label for clip in held)} held out: "
                "expected at least 2 of each of the seven labels; add recordings or lower --held-out"
            )
    accelerator = accelerator_for(config.run, "bf16", config.out)
    if accelerator.num_processes > 1:  # batch statistics and pairs would be those of a share of the batch
        raise UserError(
            f"{accelerator.num_processes} processes: the encoder is trained in one; start it without torchrun"
        )
    device = accelerator.device
    open_run(config.out, "encoder", config, clips=training_rows(kept))
    mels, held_mels = load_mels(kept, DCASE), load_mels(held, DCASE) if held else None  # [N, 80, 344]
    labels = label_ids(kept)

    torch.manual_seed(config.run.seed)
    encoder = Encoder(config.model).to(device)
    # Below width 8 the backward pass of a strided 1 x 1 convolution crashes in torch 2.13 on CPUs without AVX-512.
    if config.model.width >= 8:
        encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    contrasted = [*encoder.backbone.parameters(), *encoder.head.parameters()]
    optimizer = torch.optim.SGD(contrasted, LR, momentum=0.9, weight_decay=1e-4)
    classifier_optimizer = torch.optim.Adam(encoder.classifier.parameters(), CLASSIFIER_LR)
    optimizer, classifier_optimizer = accelerator.prepare(optimizer, classifier_optimizer)
    parts = {"encoder": encoder, "optimizer": optimizer, "classifier_optimizer": classifier_optimizer}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler  # of fp16
    start = resume(config.out / "state.pt", parts)
    if not start:
        sheet_of_views(config.out / "samples" / "views.png", mels, labels)

    steps = config.contrastive_steps + config.classifier_steps
    with Log(config.out, accelerator, start, steps) as log:
        for step in range(start, steps):
            seed_step(config.run.seed, step)
            indices = balanced_indices(step, config.batch, labels, config.run.seed)
            mel, label = mels[indices].to(device), labels[indices].to(device)
            numbers: dict[str, Tensor] = {}

            if step < config.contrastive_steps:  # views of one label together, labels apart
                chosen = optimizer
                rate = cosine(LR, step, config.contrastive_steps)
                encoder.train()
                views = torch.cat([draw_view(mel[:, None], SILENCE)[:, 0] for _ in range(2)])
                with accelerator.autocast():
                    embedding = encoder(views).embedding
                terms = {"supcon": supervised_contrastive(embedding, label.repeat(2), TAU)}
            else:  # a linear classifier of the frozen backbone's features
                chosen = classifier_optimizer
                rate = cosine(CLASSIFIER_LR, step - config.contrastive_steps, config.classifier_steps)
                encoder.eval()
                with torch.no_grad(), accelerator.autocast():
                    feature = encoder(draw_view(mel[:, None], SILENCE)[:, 0]).feature
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
                save_state(config.out / "state.pt", done, parts)
    return encoder.eval()


def measure(
    encoder: Encoder, mels: Tensor, labels: Tensor, held: list[ClipFile], held_mels: Tensor | None
) -> dict[str, float]:
    """Return the classifier's accuracy on clips without augmentation: training clips, held-out clips, those by label."""

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


def sheet_of_views(path: Path, mels: Tensor, labels: Tensor) -> None:
    """Draw the first clip of each label and two views of it."""
    torch.manual_seed(0)
    first = torch.tensor([int(torch.nonzero(labels == label.id)[0]) for label in LABELS])
    shown = torch.stack([mels[first], *(draw_view(mels[first, None], SILENCE)[:, 0] for _ in range(2))], 1)
    mel_sheet(path, shown.flatten(0, 1), labels[first].repeat_interleave(3), columns=6)
