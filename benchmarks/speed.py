"""Speed and memory of the parts: a record in results/speed.json, tables in results/speed.md.

OMP_NUM_THREADS=1 python benchmarks/speed.py studio vocoder sagan vqvae pixelsnail zen evaluation

Each part that is named is measured and replaces its record; without any the page is written from the record. Models have
random weights: speed does not depend on them. Seconds are processor time of this process, which other work on the machine
hardly changes, unless they say clock. Training steps take turns with the plain or published arithmetic in one process; the
best of each counts.
"""

import json
import multiprocessing
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from foleybox.audio import write_wave
from foleybox.files import write_text
from foleybox.lab.baseline.losses import commitment
from foleybox.lab.baseline.pixelsnail import PUBLISHED, SMALL, Attention, PixelSnail
from foleybox.lab.baseline.sampling import PLAIN, memory_needed, sample, sample_naive
from foleybox.lab.baseline.vqvae import Codebook, Vqvae, VqvaeConfig
from foleybox.lab.cmu.zen import make_pixelsnail
from foleybox.lab.core.clips import find_clips, load_waves
from foleybox.lab.core.mel import DCASE
from foleybox.lab.evaluation import embeddings, evaluate
from foleybox.lab.evaluation.embeddings import Embedded, embed_clips, load_embedding
from foleybox.lab.evaluation.measures import MeasureConfig, measure, reference_of
from foleybox.lab.evaluation.originality import MEL, Sounds, compare
from foleybox.lab.evaluation.report import write_keeping_notes
from foleybox.lab.evaluation.tables import table
from foleybox.lab.kt import sagan
from foleybox.lab.kt.losses import conditional_contrastive, hinge_discriminator, hinge_generator
from foleybox.lab.vocoders.hifigan import V1, V2, Hifigan
from foleybox.lab.vocoders.vocos import MEDIUM, Vocos
from foleybox.labels import LABELS
from foleybox.studio.seeds import noise
from foleybox.studio.synth import Synth
from foleybox.version import commit

Part = Literal["studio", "vocoder", "sagan", "vqvae", "pixelsnail", "zen", "evaluation"]
CLIPS = 64
SECONDS = 4.0


@dataclass(frozen=True)
class Speed:
    """Measure parts, keep the record, write the page."""

    parts: tyro.conf.Positional[tuple[Part, ...]] = ()
    instrument: str | None = None
    "folder or name, of studio and vocoder; default: the default instrument"
    data: str = "../shared/data/foley:train"
    "real clips, of evaluation"
    batch: int = 8
    "clips in a training step"
    repeats: int = 3
    "timed runs of each; the best counts"
    out: Path = Path("results/speed.md")


class Row(NamedTuple):
    """A measurement."""

    what: str
    value: float
    unit: str
    target: str = ""


class Spent(NamedTuple):
    """Seconds by the clock and of this process's processor time."""

    clock: float
    process: float


def timed(function: Callable[[], Any]) -> tuple[Spent, Any]:
    """Return the time of one call, and what it returned."""
    clock, process = time.perf_counter(), time.process_time()
    made = function()
    return Spent(time.perf_counter() - clock, time.process_time() - process), made


def best(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Spent]:
    """Return the shortest times of functions that take turns, after one call of each that is not counted."""
    for function in functions.values():
        function()
    turns = [{name: timed(function)[0] for name, function in functions.items()} for _ in range(repeats)]
    return {name: Spent(*(min(each) for each in zip(*(turn[name] for turn in turns)))) for name in functions}


def ratio(spent: dict[str, Spent], ours: str, theirs: str) -> float:
    return spent[theirs].process / spent[ours].process


def peak() -> float:
    """Return the most memory that this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss may start at the parent's
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a new process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# --- studio -------------------------------------------------------------------------------------------------------


def studio(config: Speed) -> list[Row]:
    """Start, rendering and `jobs` of an instrument."""
    source = ["--instrument", config.instrument] if config.instrument else []
    synth = Synth.load(config.instrument)
    rows = [Row("`import foleybox`, new process, clock", process_time("-c", "import foleybox"), "s", "under 0.3")]
    rows.append(
        Row("`foleybox --help`, new process, clock", process_time("-m", "foleybox", "--help"), "s", "under 0.3")
    )
    with tempfile.TemporaryDirectory() as folder:
        cold = ["-m", "foleybox", "generate", "dog_bark", "-o", folder, "--force", *source]
        rows.append(Row("`foleybox generate dog_bark`, new process, clock", process_time(*cold), "s", "under 2"))
    for batch in (1, 8, CLIPS):
        speed, memory = alone(render, config.instrument, batch)
        rows.append(Row(f"{CLIPS} clips of all labels, {batch} at once, clock", speed, "x real time", "20"))
        rows.append(Row("its peak memory", memory, "MB", "under 1,000"))
    latent = np.stack([noise(seed, synth.instrument.latent) for seed in range(8)])
    labels = [synth.labels[0]] * 8
    mel = synth.mel(labels, latent)
    found = best({"mel": lambda: synth.mel(labels, latent), "wave": lambda: list(synth.vocode(mel))}, config.repeats)
    rows.append(Row("noise to mel, 8 clips at once, clock", 8 * SECONDS / found["mel"].clock, "x real time"))
    rows.append(Row("mel to wave, 8 clips at once, clock", 8 * SECONDS / found["wave"].clock, "x real time", "100"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.csv"
        path.write_text("label,count\n" + "".join(f"{label},15\n" for label in synth.labels), encoding="utf-8")
        seconds = process_time("-m", "foleybox", "jobs", str(path), "-o", f"{folder}/out", "--lufs", "-23", *source)
        rows.append(Row("105 clips through `foleybox jobs`, clock", 105 * SECONDS / seconds, "x real time", "20"))
    return rows


def process_time(*arguments: str) -> float:
    """Return the clock seconds of a new Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def render(source: str | None, batch: int) -> tuple[float, float]:
    """Return (x real time, peak MB) of 64 clips."""
    synth = Synth.load(source)
    synth.render(synth.labels[0], 0)  # the first run makes plans and buffers
    pairs = [(synth.labels[seed % len(synth.labels)], seed) for seed in range(CLIPS)]
    spent, _ = timed(lambda: [None for _ in synth.render_many(pairs, batch=batch)])
    return CLIPS * synth.instrument.seconds / spent.clock, peak()


# --- vocoder ------------------------------------------------------------------------------------------------------


def vocoder(config: Speed) -> list[Row]:
    """ONNX graphs of vocoders of random weights, one clip of 4 s, in ONNX Runtime."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in {
            "Vocos medium": Vocos(MEDIUM),
            "HiFi-GAN V1": Hifigan(V1),
            "HiFi-GAN V2": Hifigan(V2),
        }.items():
            if isinstance(model, Hifigan):
                model.remove_weight_norm()
            path = Path(folder) / "vocoder.onnx"
            example = (torch.randn(2, DCASE.bands, 64),)
            shapes = ({0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("frames", min=4, max=9999)},)
            torch.onnx.export(
                model.eval(), example, path, input_names=["mel"], output_names=["wave"], dynamic_shapes=shapes,
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            mel = np.random.default_rng(0).normal(-6, 3, (1, DCASE.bands, 344)).astype(np.float32)
            spent = best({name: lambda session=session, mel=mel: session.run(None, {"mel": mel})}, config.repeats)[name]
            rows.append(Row(f"{name}, {path.stat().st_size / 1e6:.1f} MB", SECONDS / spent.process, "x real time"))
    return rows


# --- KT's GAN -----------------------------------------------------------------------------------------------------


class PlainAttention(sagan.SelfAttention):
    """SAGAN's attention as its equations have it: the whole matrix of weights in memory."""

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key, value = (F.max_pool2d(part(x), 2).flatten(2) for part in (self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        return x + self.gamma * self.out((value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


class PlainBlock(sagan.GeneratorBlock):
    """The shortcut's convolution after upsampling."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        y = self.conv1(self.upsample(F.relu(self.norm1(x, label))))
        return self.conv2(F.relu(self.norm2(y, label))) + self.shortcut(self.upsample(x))


def gan_step(batch: int, plain: bool) -> Callable[[], None]:
    """Return a training step of kt-2c, plan S of width 16.

    Plain: float32, contiguous, attention with its matrix, shortcuts after upsampling, new fakes for the generator's step.
    """
    torch.manual_seed(0)
    config = sagan.SaganConfig("S", 16)
    networks = (sagan.Generator(config), sagan.Discriminator(config))
    generator, discriminator = networks
    swaps = {sagan.SelfAttention: PlainAttention, sagan.GeneratorBlock: PlainBlock}
    for part in [each for network in networks for each in network.modules()] if plain else []:
        part.__class__ = swaps.get(type(part), type(part))
    if not plain:
        for network in networks:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = [torch.optim.Adam(network.parameters(), 1e-4, (0.5, 0.999)) for network in networks]
    real, label = torch.rand(batch, 1, 80, 344) * 1.8 - 0.9, torch.arange(batch) % 7

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=not plain):
            fake = generator(torch.randn(batch, 128), label)
            on_real, on_fake = discriminator(real, label), discriminator(fake.detach(), label)
            loss = hinge_discriminator(on_real.logit.float(), on_fake.logit.float())
            loss = loss + conditional_contrastive(on_real.embedding, on_real.proxy)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        with torch.autocast("cpu", torch.bfloat16, enabled=not plain):
            made = discriminator(generator(torch.randn(batch, 128), label) if plain else fake, label)
            loss = hinge_generator(made.logit.float()) + conditional_contrastive(made.embedding, made.proxy)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()

    return step


def kt(config: Speed) -> list[Row]:
    """A training step, ours against plain arithmetic; the contrastive loss."""
    found = best({name: gan_step(config.batch, name == "plain") for name in ("plain", "ours")}, config.repeats)
    rows = [
        Row(f"training, {name}, batch {config.batch}", config.batch / spent.process, "clips/s")
        for name, spent in found.items()
    ]
    rows.append(Row("training, ours over plain", ratio(found, "ours", "plain"), "times as fast"))
    for count in (64, 1024):
        torch.manual_seed(0)
        data, proxy = (F.normalize(torch.randn(count, 128), dim=1).requires_grad_() for _ in range(2))
        label = torch.arange(count) % 7

        def loss(data: Tensor = data, proxy: Tensor = proxy, label: Tensor = label) -> None:
            conditional_contrastive(data, proxy, labels=label).backward()

        spent = best({"loss": loss}, config.repeats)["loss"]
        rows.append(Row(f"contrastive loss of {count} clips, forward and backward", 1000 * spent.process, "ms"))
    return rows


# --- VQ-VAE and PixelSNAIL ----------------------------------------------------------------------------------------


class PublishedCodebook(Codebook):
    """The published arithmetic: full squared distances, and one-hot matrices for counts and sums."""

    def forward(self, latent: Tensor) -> Tensor:
        points, embed = latent.permute(0, 2, 3, 1).flatten(0, 2), self.vectors.T
        distance = points.pow(2).sum(1, keepdim=True) - 2 * points @ embed + embed.pow(2).sum(0, keepdim=True)
        return (-distance).max(1)[1].view(latent.shape[0], *latent.shape[2:])

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor, step: int) -> int:
        points = latent.permute(0, 2, 3, 1).flatten(0, 2)
        one_hot = F.one_hot(codes.flatten(), self.config.size).type(points.dtype)
        self.counts.mul_(self.DECAY).add_(one_hot.sum(0), alpha=1 - self.DECAY)
        self.sums.mul_(self.DECAY).add_((points.T @ one_hot).T, alpha=1 - self.DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + self.EPS) / (total + self.config.size * self.EPS) * total
        self.vectors.copy_(self.sums / smoothed[:, None])
        return 0


def vqvae_step(batch: int, published: bool) -> Callable[[], None]:
    """Return a training step of the VQ-VAE of the published size; ours in bfloat16 and channels-last."""
    torch.manual_seed(0)
    model = Vqvae(VqvaeConfig())
    if published:
        model.codebook.__class__ = PublishedCodebook
    else:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    mel = torch.randn(batch, 80, 344) * 2.9 - 6.4  # mean and deviation of real log-mels
    with torch.no_grad():
        model.codebook.initialise(model.encode(mel))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=not published):
            made = model(mel)
        loss = F.mse_loss(made.output, mel) + 0.25 * commitment(made.latent, made.quantised)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.codebook.update(made.latent.detach(), made.codes, 1)

    return step


def vqvae(config: Speed) -> list[Row]:
    """A training step of the published size, ours against the published arithmetic."""
    return against_published(vqvae_step, config)


def against_published(step: Callable[[int, bool], Callable[[], None]], config: Speed) -> list[Row]:
    found = best({name: step(config.batch, name == "published") for name in ("published", "ours")}, config.repeats)
    rows = [
        Row(f"training, {name}, batch {config.batch}", config.batch / spent.process, "clips/s")
        for name, spent in found.items()
    ]
    return [*rows, Row("training, ours over published", ratio(found, "ours", "published"), "times as fast")]


class PublishedAttention(Attention):
    """The matrix of all positions by all positions, -1e4 for later ones, the first row times 0."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        q, k, v = (self._heads(part) for part in (self.query(query), self.key(key), self.value(key)))
        n = q.shape[2]
        weights = (q @ k.transpose(2, 3)) / q.shape[3] ** 0.5
        weights = weights.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(-1), -1e4).softmax(3)
        weights = F.dropout(weights * (torch.arange(n) > 0)[:, None], 0.1, self.training)
        return (weights @ v).transpose(2, 3).flatten(1, 2).unflatten(2, query.shape[2:])


def pixelsnail_step(batch: int, published: bool) -> Callable[[], None]:
    """Return a training step of the small PixelSNAIL on 20 x 86 codes; published: its network and arithmetic, float32."""
    torch.manual_seed(0)
    model = PixelSnail(replace(SMALL, cond_resnet=published))
    for part in model.modules() if published else []:
        if type(part) is Attention:
            part.__class__ = PublishedAttention
    if not published:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 3e-4)
    codes, label = torch.randint(SMALL.codes, (batch, SMALL.height, SMALL.width)), torch.arange(batch) % 7

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=not published):
            logits = model(codes, label)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), codes).backward()
        optimizer.step()

    return step


def pixelsnail(config: Speed) -> list[Row]:
    """Training of the small size; incremental against naive sampling of the small size; sampling of the published size."""
    rows = against_published(pixelsnail_step, config)
    for grid in ((10, 10), (10, 40)):
        rows += sampling(PixelSnail(replace(SMALL, height=grid[0], width=grid[1])), grid, naive=True)
    return rows + sampling(PixelSnail(PUBLISHED), (PUBLISHED.height, PUBLISHED.width), naive=False, size="published")


def sampling(model: nn.Module, grid: tuple[int, int], naive: bool, size: str = "small") -> list[Row]:
    """Return the speed of the incremental sampler on a grid, and how much faster it is than the naive one."""
    assert isinstance(model, PixelSnail)
    tokens, name = grid[0] * grid[1], f"{size}, {grid[0]} x {grid[1]} codes, one clip"
    fast, drawn = timed(lambda: sample(model.eval(), [3], [7]))
    rows = [Row(f"sampling, {name}", tokens / fast.process, "codes/s")]
    rows.append(Row("its memory in addition to the model", memory_needed(model, 1) / 1e6, "MB"))
    if naive:
        slow, codes = timed(lambda: sample_naive(model, [3], [7], PLAIN))
        rows.append(Row(f"incremental over naive sampling, {name}", slow.process / fast.process, "times as fast"))
        rows.append(Row("codes that differ between the two", float((drawn != codes).sum()), "", "0"))
    return rows


def zen(config: Speed) -> list[Row]:
    """A training step and sampling of the small PixelSNAIL with plain attention and with Zen attention."""
    rows, plain = [], None
    for halvings in (0, 1, 2):
        name = f"{halvings} halvings" if halvings != 1 else "1 halving"
        seconds, memory = alone(zen_step, halvings, config.repeats)
        plain = plain or (seconds, memory)
        rows.append(Row(f"training step, 72 x 75 codes, {name}", seconds, "s"))
        rows.append(Row("its memory in addition to the model", memory, "MB"))
        if halvings:
            rows.append(Row(f"{name} over plain attention: time", plain[0] / seconds, "times less"))
            rows.append(Row(f"{name} over plain attention: memory", plain[1] / memory, "times less"))
        rows += sampling(zen_model(halvings, (144, 75)), (144, 75), naive=False, size=f"small, {name}")
    return rows


def zen_model(halvings: int, grid: tuple[int, int]) -> nn.Module:
    torch.manual_seed(0)
    return make_pixelsnail(replace(SMALL, height=grid[0], width=grid[1], codes=1024), halvings)


def zen_step(halvings: int, repeats: int) -> tuple[float, float]:
    """Return seconds of processor of the best training step, and the MB that steps take in addition to the model."""
    torch.set_num_threads(1)
    model = zen_model(halvings, (72, 75)).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    codes, label, idle = torch.randint(1024, (1, 72, 75)), torch.tensor([3]), peak()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(codes, label), codes).backward()
        optimizer.step()

    return best({"step": step}, repeats)["step"].process, peak() - idle


# --- evaluation ---------------------------------------------------------------------------------------------------


class Cheap:
    """As wide as mn04, with as many windows, and no work: what grows with the clips is the evaluation's own."""

    name, rate, width, rule, weights = "cheap", 8_000, 384, "seven projections of 0.1 s", "none"

    def __init__(self) -> None:
        self.matrix = torch.randn(800, 7 * self.width, generator=torch.Generator().manual_seed(0))

    def windows(self, samples: int) -> int:
        return 7

    def embed(self, waves: Tensor) -> Embedded:
        return Embedded((waves @ self.matrix).unflatten(1, (7, self.width)), waves[:, : len(LABELS)])


def evaluation(config: Speed) -> list[Row]:
    """Embedding, metrics and audit of 350 real clips; memory of sets of any size."""
    found = find_clips(config.data)
    clips = [found[i * len(found) // 350] for i in range(350)]
    embedding = load_embedding("mn04")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FOLEYBOX_CACHE"] = folder
        first, embedded = timed(lambda: embed_clips(clips, embedding, SECONDS))
    reference, others = reference_of(embedded.of(range(175))), embedded.of(range(175, 350))
    plain, _ = timed(lambda: measure(others, reference, MeasureConfig(bootstrap=0)))
    interval, _ = timed(lambda: measure(others, reference, MeasureConfig(bootstrap=50)))
    waves, vectors = load_waves(clips, MEL.rate, 4 * MEL.rate), torch.from_numpy(embedded.vectors.mean(1))
    recordings = tuple(clip.recording for clip in clips)
    known, some = Sounds(waves, vectors, recordings), Sounds(waves[:32], vectors[:32], recordings[:32])
    audit, _ = timed(lambda: compare(some, known, 16, apart=True))
    rows = [
        Row("read, resample, embed with mn04", 1000 * first.process / len(clips), "ms a clip"),
        Row("every metric of 175 clips against 175, no interval", plain.process, "s"),
        Row("a bootstrap replicate of 175 clips", 1000 * (interval.process - plain.process) / 50, "ms"),
        Row("audit of a clip against 350", 1000 * audit.process / 32, "ms a clip"),
    ]
    for count in (7_000, 28_000):
        rows.append(Row(f"evaluate {count:,} clips, 200 of a set kept: peak memory", alone(evaluate_many, count), "MB"))
    return rows


def evaluate_many(count: int) -> float:
    """Evaluate clips of 0.1 s, a thousand at a time; return the peak memory in MB."""
    torch.set_num_threads(1)
    embeddings.PIECE = 1_000
    evaluate.load_embedding = lambda *_: Cheap()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FOLEYBOX_CACHE"] = f"{folder}/cache"
        for name, clips in (("real", 700), ("many", count)):
            for label in LABELS:
                place = Path(folder) / name / label.name
                place.mkdir(parents=True)
                for index in range(clips // len(LABELS)):
                    path = place / f"{index:06d}.wav"
                    if index < 50:
                        wave = np.random.default_rng([label.id, index]).normal(0, 0.1, 800)
                        write_wave(path, wave.astype(np.float32), 8_000)
                    else:
                        path.hardlink_to(place / f"{index % 50:06d}.wav")
        question = evaluate.Evaluate(
            (f"{folder}/many",), f"{folder}/real", seconds=0.1, measure=MeasureConfig(0, 5, keep=200)
        )
        evaluate.run(question)
    return peak()


# --- the page -----------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Speed], list[Row]]] = {
    **{"studio": studio, "vocoder": vocoder, "sagan": kt, "vqvae": vqvae, "pixelsnail": pixelsnail, "zen": zen},
    "evaluation": evaluation,
}


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{torch.get_num_threads()} thread(s) of {name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def page(record: dict[str, Any]) -> str:
    """Return the page without its notes."""
    parts = [
        "# Speed and memory",
        "Written by `python benchmarks/speed.py` from [speed.json](speed.json); each table names the command and commit of its "
        "measurement. Seconds are processor time of one process, unless they say clock. Models have random weights, except "
        "the instrument of `studio`.",
    ]
    for name in PARTS:
        if name in record:
            found = record[name]
            rows = [
                [each["what"], f"{rounded(each['value'])} {each['unit']}", each["target"]] for each in found["rows"]
            ]
            title = (PARTS[name].__doc__ or "").strip()
            parts += [f"## {name}", f"{title} `{found['command']}` at commit {found['commit']}: {found['machine']}."]
            parts.append(table(["what", "measured", "target"], rows))
    return "\n\n".join(parts) + "\n"


def main(config: Speed) -> None:
    path = config.out.with_suffix(".json")
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in config.parts:
        about = {"commit": commit() or "unknown", "machine": machine()}
        flags = [word for word in sys.argv[1:] if word not in PARTS]
        about["command"] = shlex.join(["python", "benchmarks/speed.py", name, *flags])
        record[name] = {**about, "rows": [row._asdict() for row in PARTS[name](config)]}
        write_text(path, json.dumps(record, indent=1) + "\n")
    write_keeping_notes(config.out, page(record))


if __name__ == "__main__":
    main(tyro.cli(Speed))
