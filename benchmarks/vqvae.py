"""Speed of the VQ-VAE's training step.

python benchmarks/vqvae.py [--channels 128] [--batch 4] [--steps 4]

Clips per second of a training step, ours beside the published arithmetic (float32, contiguous, the codebook's
statistics by one-hot matrices), turn by turn in one run, the best of each.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from foleybox.lab.baseline.losses import commitment
from foleybox.lab.baseline.vqvae import Codebook, Vqvae, VqvaeConfig


@dataclass(frozen=True)
class Benchmark:
    """Print clips per second of a training step."""

    channels: int = 128
    batch: int = 4
    steps: int = 4


class PublishedCodebook(Codebook):
    """The published arithmetic: full squared distances, and one-hot matrices for counts and sums."""

    def forward(self, before: Tensor) -> Tensor:
        points, embed = before.permute(0, 2, 3, 1).flatten(0, 2), self.vectors.T
        distance = points.pow(2).sum(1, keepdim=True) - 2 * points @ embed + embed.pow(2).sum(0, keepdim=True)
        return (-distance).max(1)[1].view(before.shape[0], *before.shape[2:])

    @torch.no_grad()
    def follow(self, before: Tensor, codes: Tensor, step: int) -> int:
        points = before.permute(0, 2, 3, 1).flatten(0, 2)
        one_hot = F.one_hot(codes.flatten(), self.config.size).type(points.dtype)
        self.counts.mul_(self.DECAY).add_(one_hot.sum(0), alpha=1 - self.DECAY)
        self.sums.mul_(self.DECAY).add_((points.T @ one_hot).T, alpha=1 - self.DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + self.EPS) / (total + self.config.size * self.EPS) * total
        self.vectors.copy_(self.sums / smoothed[:, None])
        return 0


def trainer(config: Benchmark, device: torch.device, published: bool) -> Callable[[int], None]:
    """Return a function that makes the training step of a number."""
    torch.manual_seed(0)
    vqvae = Vqvae(VqvaeConfig(channels=config.channels)).to(device)
    if published:
        vqvae.codebook.__class__ = PublishedCodebook
    else:
        vqvae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(vqvae.parameters(), 3e-4)
    mel = torch.randn(config.batch, 80, 344, device=device) * 2.9 - 6.4  # mean and deviation of real log-mels
    with torch.no_grad():
        vqvae.codebook.start(vqvae.encode(mel))

    def step(number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=not published):
            made = vqvae(mel)
        loss = F.mse_loss(made.mel, mel) + 0.25 * commitment(made.before, made.after)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        vqvae.codebook.follow(made.before.detach(), made.codes, number)

    return step


def main(config: Benchmark) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{config.channels} channels, batch {config.batch}, {where}, torch {torch.__version__}")
    steps = {"published": trainer(config, device, published=True), "ours": trainer(config, device, published=False)}
    best = {name: float("inf") for name in steps}
    for turn in range(config.steps + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step(turn)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first of each warms up
                best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        print(f"{name:10} {config.batch / seconds:8.2f} clips/s {1 / seconds:8.3f} steps/s")
    print(f"ours is {best['published'] / best['ours']:.2f} times as fast")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
