"""Sample sheets: pictures of log-mels while a model trains."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from foleybox.files import atomic_path
from foleybox.lab.core.mel import SILENCE
from foleybox.labels import LABELS


def mel_sheet(path: Path, mels: Tensor, titles: Tensor | Sequence[str], columns: int = 6) -> None:
    """Draw log-mels [N, M, T] as a grid of pictures in a PNG, `columns` per row, low bands at the bottom.

    `titles`: a text for each, or label ids int64 [N].
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    if isinstance(titles, Tensor):
        titles = [LABELS[label].name for label in titles.tolist()]
    rows, (M, T) = -(-len(mels) // columns), mels.shape[1:]
    tall, wide = round(1.25 * M), round(1.03 * T)  # a panel with space for its title and a gap
    sheet = np.full((rows * tall, columns * wide), np.nan, np.float32)  # one image: separate axes take seconds
    figure = Figure(figsize=(2.4 * columns, 1.5 * rows))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for place, (mel, title) in enumerate(zip(mels.float().cpu().numpy(), titles)):
        bottom, left = place // columns * tall + tall - M, place % columns * wide
        sheet[bottom : bottom + M, left : left + T] = mel[::-1]
        axis.text(left + T / 2, bottom - 0.05 * M, title, fontsize=6, ha="center", va="bottom")
    axis.imshow(sheet, aspect="auto", cmap="magma", vmin=SILENCE, vmax=2.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, pil_kwargs={"compress_level": 1})  # noise hardly compresses; trying is slow
