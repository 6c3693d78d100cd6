"""VGGish (Hershey et al., arXiv 1609.09430; AudioSet release): the embedding of the challenge's own score.

Letters: B windows, L = 16,000 samples, T = 96 frames, M = 64 mel bands, C channels.

The weights are those of the public torchvggish release (converted there from the TensorFlow checkpoint); parameter
names follow that file. The 128 numbers are taken before the last ReLU, with no PCA and no quantisation, as the
challenge's tool takes them.
"""

import math

import torch
from torch import Tensor, nn

WINDOW = 16_000  # samples of one window, whatever the rate they were recorded at
HOP = 8_000
FRAMES = 96
INT16 = 32_768


class VGGish(nn.Module):
    """Waves [B, 16,000] -> embedding [B, 128]."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in ((64,), (128,), (256, 256), (512, 512)):
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )
        self.mel = LogMel()

    def forward(self, waves: Tensor) -> Tensor:
        maps = self.features(self.mel(waves)[:, None])  # [B, 512, 6, 4]
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # channels last: the TensorFlow order


class LogMel(nn.Module):
    """Waves [B, 16,000] -> ln(mel + 0.01) [B, 96, 64]; its constants are those of 16 kHz at any rate."""

    filters: Tensor
    window: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.register_buffer("filters", htk_filters(64, 512, 16_000, 125.0, 7_500.0), persistent=False)

    def forward(self, waves: Tensor) -> Tensor:
        frames = waves.unfold(1, 400, 160)[:, :FRAMES] * self.window  # [B, 96, 400]
        return (torch.fft.rfft(frames, 512).abs() @ self.filters.T + 0.01).log()


def htk_filters(bands: int, n_fft: int, rate: int, low: float, high: float) -> Tensor:
    """Return HTK mel filters [bands, n_fft / 2 + 1]: triangles in mel = 1127 ln(1 + f / 700), bin 0 left out."""
    hertz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate / n_fft
    mel = 1127 * (1 + hertz / 700).log()
    first, last = (1127 * math.log(1 + end / 700) for end in (low, high))
    edges = torch.linspace(first, last, bands + 2, dtype=torch.float64)[:, None]
    rising, falling = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    filters[:, 0] = 0
    return filters.float()


def official_scale(waves: Tensor) -> Tensor:
    """Divide waves [N, L] (full scale = 1) as the challenge's tool does: by max(0.1, signed maximum), in int16 units.

    The signed maximum is not the peak: a clip whose largest excursion is negative leaves [-1, 1], and a clip of
    one-bit dither comes out at full scale. Both are kept, since the published figures were made so.
    """
    samples = (waves * INT16).round()
    return samples / samples.amax(1, keepdim=True).clamp(min=0.1)
