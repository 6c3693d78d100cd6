"""Speed of KT's GAN: a training step against the same networks written the plain way, and the contrastive loss.

python benchmarks/sagan.py [--plan S] [--width 16] [--batch 32] [--steps 4] [--compile]

"Plain": float32, contiguous, attention with its softmax written out, shortcuts after upsampling, and new fakes for the
generator's step. Ours: bfloat16 where the processor or GPU has it, channels-last, one fused attention, shortcuts
before upsampling, the discriminator's fakes serve both steps. Both in this one run, turn by turn; the best of each.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from foleybox.lab.kt import sagan
from foleybox.lab.kt.losses import conditional_contrastive, hinge_discriminator, hinge_generator


@dataclass(frozen=True)
class Benchmark:
    """Print clips per second of a training step, and time and memory of the contrastive loss."""

    plan: Literal["A", "B", "C", "S"] = "S"
    width: int = 16
    batch: int = 32
    steps: int = 4
    compile: bool = False
    "torch.compile ours"


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
        y = self.conv1(self._upsample(F.relu(self.norm1(x, label))))
        return self.conv2(F.relu(self.norm2(y, label))) + self.shortcut(self._upsample(x))


def networks(config: sagan.SaganConfig, device: torch.device) -> tuple[sagan.Generator, sagan.Discriminator]:
    torch.manual_seed(0)
    return sagan.Generator(config).to(device), sagan.Discriminator(config).to(device)


def trainer(config: Benchmark, device: torch.device, plain: bool) -> Callable[[], None]:
    """Return a function that makes one training step of kt-2c."""
    generator, discriminator = networks(sagan.SaganConfig(config.plan, config.width), device)
    if plain:
        for part in [*generator.modules(), *discriminator.modules()]:
            if type(part) in (sagan.SelfAttention, sagan.GeneratorBlock):
                part.__class__ = PlainAttention if type(part) is sagan.SelfAttention else PlainBlock  # type: ignore[assignment]
    else:
        for network in (generator, discriminator):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            if config.compile:
                network.compile(dynamic=False)
    optimizers = [torch.optim.Adam(network.parameters(), 1e-4, (0.5, 0.999)) for network in (generator, discriminator)]
    real = torch.rand(config.batch, 1, 80, 344, device=device) * 1.8 - 0.9
    label = torch.arange(config.batch, device=device) % 7

    def draw() -> Tensor:
        return generator(torch.randn(config.batch, 128, device=device), label)

    def step() -> None:
        optimizer_g, optimizer_d = optimizers
        with torch.autocast(device.type, torch.bfloat16, enabled=not plain):
            fake = draw()
            if plain:
                on_real, on_fake = discriminator(real, label), discriminator(fake.detach(), label)
            else:
                judged = discriminator(torch.cat([real, fake.detach()]), torch.cat([label, label]))
                on_real, on_fake = (sagan.Judgement(*(part.chunk(2)[half] for part in judged)) for half in (0, 1))
            loss = hinge_discriminator(on_real.logit.float(), on_fake.logit.float())
            loss = loss + conditional_contrastive(on_real.embedding, on_real.proxy)
        optimizer_d.zero_grad()
        loss.backward()
        optimizer_d.step()
        discriminator.requires_grad_(False)
        with torch.autocast(device.type, torch.bfloat16, enabled=not plain):
            judged = discriminator(draw() if plain else fake, label)
            loss = hinge_generator(judged.logit.float()) + conditional_contrastive(judged.embedding, judged.proxy)
        optimizer_g.zero_grad()
        loss.backward()
        optimizer_g.step()
        discriminator.requires_grad_(True)

    return step


def timed(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(config: Benchmark) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"plan {config.plan}, width {config.width}, batch {config.batch}, {where}, torch {torch.__version__}")
    for count in (64, 1024):  # first: the peak memory of a process never falls
        print(contrastive_cost(count, device))
    steps = {"plain": trainer(config, device, plain=True), "ours": trainer(config, device, plain=False)}
    best = {name: float("inf") for name in steps}
    for turn in range(config.steps + 1):
        for name, step in steps.items():
            seconds = timed(step, device)
            if turn:  # the first of each warms up, and compiles
                best[name] = min(best[name], seconds)
    for name, seconds in best.items():
        print(f"{name:6} {config.batch / seconds:8.1f} clips/s {1 / seconds:8.2f} steps/s")
    print(f"ours is {best['plain'] / best['ours']:.2f} times as fast")


def contrastive_cost(count: int, device: torch.device) -> str:
    """Time the contrastive loss of a batch of `count`, forward and backward."""
    torch.manual_seed(0)
    data, proxy = (F.normalize(torch.randn(count, 128, device=device), dim=1).requires_grad_() for _ in range(2))
    label = torch.arange(count, device=device) % 7
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [timed(lambda: conditional_contrastive(data, proxy, labels=label).backward(), device) for _ in range(5)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return (
        f"contrastive loss, N = {count}: {1000 * min(times):.2f} ms forward and backward, peak memory grew by "
        f"{grown:.0f} MB; an [N, N, 128] tensor would be {count**2 * 128 * 4 / 2**20:.0f} MB"
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
