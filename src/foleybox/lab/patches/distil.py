"""Distil the flow head of trained patches into few steps without guidance: one visible loop. `foleybox train distilled RUN`.

With the same context, the flow turns noise into one latent. The student, a copy of the head, learns that function in
`flow_steps` steps (regression on noise and sample pairs: Luhman & Luhman 2021, arXiv 2101.02388), with the guidance of each
label included (Meng et al. 2023, arXiv 2210.03142). The transformer is unchanged. No recordings are read: the contexts are
those of sounds that the teacher draws.

Letters: B batch, N latents of a sequence, D latent width, C width of the transformer, R rows.
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.core.loop import Log, accelerator_for, at_least, due, seed_step, update_average
from foleybox.lab.core.runs import (
    PythonOnly,
    RunConfig,
    fingerprint,
    open_run,
    read_clips,
    read_run_config,
    resume,
    save_state,
)
from foleybox.lab.patches.runs import check_not_distilled, load_patches
from foleybox.lab.patches.transformer import (
    GUIDANCE,
    GUIDED_FROM,
    TEMPERATURE,
    FlowHead,
    Patches,
    PatchesConfig,
    Stream,
    flow,
)
from foleybox.labels import LABELS


@dataclass(frozen=True)
class DistilPatches:
    """Distil trained patches: the same sounds, drawn in a few steps without guidance. The same command resumes.

    Example: foleybox train distilled runs/patches -o runs/fast
    """

    teacher: tyro.conf.Positional[Path]
    "a run of `train patches`"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/distilled")
    "run folder: config.json, state.pt, log.jsonl"
    flow_steps: int = 3
    "steps of the student's flow for each latent"
    guidance: tuple[float, ...] = GUIDANCE
    "classifier-free guidance of each label that the student learns, in their order"
    guided_from: float = GUIDED_FROM
    "time of the flow from which it acts"
    temperature: tuple[float, ...] = TEMPERATURE
    "factor of the noise of each label, in their order"
    teacher_steps: int = 12
    "steps of the teacher's flow"
    sounds: int = 70
    "sounds of each label whose contexts are used"
    rows: int = 1024
    "R: latents per step"
    lr: float = 1e-3
    half_life: int = 1000
    "steps after which the learning rate has halved"
    steps: int = 5000
    "in total, including those of earlier sittings"
    positions: PythonOnly[int] = 87
    "N: latents of a sound"
    temperatures: PythonOnly[tuple[float, float]] = (0.7, 1.2)
    "range of a further factor of the noise, so that `generate --temperature` works"
    held_out: PythonOnly[float] = 0.05
    "share of the contexts that is not trained on"
    decay: PythonOnly[float] = 0.999
    "of the moving average of the weights, which is what is used"
    model: PythonOnly[PatchesConfig | None] = None
    "recorded in the run: the teacher's sizes"
    autoencoder: PythonOnly[str] = ""
    "recorded in the run: the fingerprint of the latents"
    tiers: PythonOnly[tuple[str, ...]] = ()
    "recorded in the run: the licence tiers of the teacher's training clips"
    run: RunConfig = field(default_factory=RunConfig)


class Contexts(NamedTuple):
    """What the head is conditioned on, of R rows, and their labels."""

    labelled: Tensor
    "[R, C]"
    unlabelled: Tensor
    "[R, C]: of the same sequences without their label"
    label: Tensor
    "int64 [R]"


def main(config: DistilPatches) -> int:
    """`foleybox train distilled`."""
    train(config)
    return 0


@torch.no_grad()
def draw_contexts(model: Patches, config: DistilPatches, clips: int = 32) -> Contexts:
    """Return the contexts of all positions of sounds that the teacher draws, `clips` at a time, in random order."""
    labels = torch.arange(len(LABELS)).repeat_interleave(config.sounds)
    guidance, temperature = torch.tensor(config.guidance), torch.tensor(config.temperature)
    parts = []
    for label in labels[torch.randperm(len(labels))].split(clips):
        streams = [Stream(model, each) for each in (label, torch.full_like(label, model.no_label))]
        for _ in range(config.positions):
            labelled, unlabelled = (stream.context() for stream in streams)
            noise = torch.randn(len(label), model.config.latent) * temperature[label, None]
            latent = teach(model.head, noise, Contexts(labelled, unlabelled, label), guidance, config)
            for stream in streams:
                stream.add(latent)
            parts.append(Contexts(labelled, unlabelled, label))
    order = torch.randperm(len(labels) * config.positions)
    return Contexts(*(torch.cat(each)[order] for each in zip(*parts, strict=True)))


def teach(head: FlowHead, noise: Tensor, contexts: Contexts, guidance: Tensor, config: DistilPatches) -> Tensor:
    """Return the latents [R, D] that the teacher makes of noise [R, D]."""
    weight = guidance[contexts.label, None]
    return flow(
        head,
        noise,
        contexts.labelled,
        contexts.unlabelled,
        weight,
        config.teacher_steps,
        guided_from=config.guided_from,
    )


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the part of the teacher's variance that the student does not explain: mean |s - t|^2 / mean variance of t.

    Both [R, D]. 0 is a perfect student, 1 one that knows the mean only.
    """
    return (student - teacher).square().mean() / teacher.var(0).mean()


def train(config: DistilPatches) -> Patches:
    """Distil a head; return the averaged student in eval mode.

    Raises UserError for settings out of range, a teacher that is a student itself, or a run folder of another configuration.
    """
    at_least(config, flow_steps=1, teacher_steps=1, sounds=1, rows=2, steps=1, half_life=1, positions=1)
    if any(len(numbers) != len(LABELS) or min(numbers) <= 0 for numbers in (config.guidance, config.temperature)):
        raise UserError(f"guidance and temperature: expected {len(LABELS)} numbers of each, all above 0")
    check_not_distilled(config.teacher, "be distilled again")
    teacher, latents_of, _ = load_patches(config.teacher)
    accelerator = accelerator_for(config.run, "no", config.out)
    device = accelerator.device
    student = copy.deepcopy(teacher).requires_grad_(False).to(device)
    student.head.requires_grad_(True)
    average = copy.deepcopy(student).eval().requires_grad_(False)
    name = Path(fingerprint(teacher))  # the teacher's weights instead of a path
    tiers = tuple(read_run_config(config.teacher).get("tiers", ()))
    record = replace(config, teacher=name, model=teacher.config, autoencoder=latents_of, tiers=tiers)
    open_run(config.out, "patches", record, read_clips(config.teacher), config.teacher)
    torch.manual_seed(config.run.seed)
    contexts = Contexts(*(each.to(device) for each in draw_contexts(teacher, config)))
    teacher.to(device)
    guidance, temperature = (torch.tensor(each, device=device) for each in (config.guidance, config.temperature))
    n_held = max(1, round(config.held_out * len(contexts.label)))
    held, kept = (Contexts(*(each[part] for each in contexts)) for part in (slice(n_held), slice(n_held, None)))

    optimizer = torch.optim.AdamW(student.head.parameters(), config.lr, (0.9, 0.98), weight_decay=0.0)
    parts = {"patches": student, "average": average, "optimizer": optimizer}
    start = resume(config.out / "state.pt", parts)
    head, optimizer = accelerator.prepare(student.head, optimizer)

    with Log(config.out, accelerator, start, config.steps) as log:
        for step in range(start, config.steps):
            seed_step(config.run.seed, step, accelerator.process_index)
            optimizer.param_groups[0]["lr"] = config.lr * min(1.0, (step + 1) / 100) * 0.5 ** (step / config.half_life)
            chosen = torch.randint(len(kept.label), (config.rows // accelerator.num_processes,), device=device)
            batch = Contexts(*(each[chosen] for each in kept))
            scale = torch.empty(len(chosen), 1, device=device).uniform_(*config.temperatures)
            noise = (
                torch.randn(len(chosen), teacher.config.latent, device=device) * scale * temperature[batch.label, None]
            )
            with accelerator.autocast():
                with torch.no_grad():
                    target = teach(teacher.head, noise, batch, guidance, config)
                made = flow(head, noise, batch.labelled, steps=config.flow_steps)
                loss = distillation(made.float(), target.float())

            optimizer.zero_grad()
            accelerator.backward(loss)
            norm = nn.utils.clip_grad_norm_(student.head.parameters(), 1.0)
            if torch.isfinite(norm):  # a step that is not finite is skipped and counted, and never reaches a checkpoint
                optimizer.step()
                update_average(average, student, config.decay, step)

            done = step + 1
            log.add({"unexplained": loss, "norm": norm, "skipped": (~torch.isfinite(norm)).float()})
            log.advance(done)
            extra = {}
            if due(done, config.steps, config.run.sample_every) and accelerator.is_main_process:
                extra = measure(average.head, teacher.head, held, guidance, temperature, config)
            if due(done, config.steps, config.run.log_every, config.run.sample_every):
                log.write(done, extra)
            if accelerator.is_main_process and due(done, config.steps, config.run.save_every):
                save_state(config.out / "state.pt", done, parts)
    return average


@torch.no_grad()
def measure(
    student: FlowHead, teacher: FlowHead, held: Contexts, guidance: Tensor, temperature: Tensor, config: DistilPatches
) -> dict[str, float]:
    """Return, for held-out contexts and the same noise each time, the unexplained share and the ratio of the spreads."""
    torch.manual_seed(0)
    device = held.label.device
    noise = torch.randn(len(held.label), student.embed.in_features, device=device)
    noise = noise * temperature[held.label, None]
    target = teach(teacher, noise, held, guidance, config)
    made = flow(student, noise, held.labelled, steps=config.flow_steps)
    spread = made.std(0).mean() / target.std(0).mean()
    return {"held_out_unexplained": float(distillation(made, target)), "held_out_spread": float(spread)}
