"""Autoregressive sampling: the loop around the "next" graph of a "patches" instrument.

Letters: N clips, R rows, P positions, D numbers of a latent, W window, H heads, E numbers of a head.

The graph attends to earlier positions through a cache of keys and values for each layer (`foleybox.instrument` describes
its inputs). The cache is kept in arrays here and passed to the graph in place, since copying it at every position would
take longer than the arithmetic. With classifier-free guidance a clip has two rows, the second without its label; labels
without guidance, such as rain, have one. The graph consists of many small products, which two threads speed up and more
do not: a clip takes half the time with two. Several clips are distributed over further threads.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Floats = NDArray[np.float32]
MAX_CLIPS = 64
"""in one call of the graph

A clip has up to two rows. The product with `mix` sums over all rows, most of them times zero, and onnxruntime splits a sum
of more than 128 terms: in larger calls, the two rows of a clip might be added with another rounding.
"""


def draw(
    session: "InferenceSession",
    labels: NDArray[np.int64],
    noise: Floats,
    threads: int = 1,
    followed: Floats | None = None,
    follow: Floats | None = None,
) -> Floats:
    """Return latents [N, P, D] from standard normal noise [N, P, D] and label numbers [N].

    A latent depends on the noise up to its position, so that a longer clip begins as the shorter one. With the latents
    `followed` [N, P, D] of other clips, what the graph gets as the latent before is a mean of its own and theirs, with the
    weight `follow` [N] (0 to 1) of theirs, so that a clip with nearly the same noise keeps to the other one.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    guidance, temperature = (np.array(metadata[key].split(), np.float32)[labels] for key in ("guidance", "temperature"))
    noise = noise * temperature[:, None, None]
    workers = min(len(labels), max(1, threads - 1))  # the session's own second thread helps each of them
    groups = max(workers, -(-len(labels) // MAX_CLIPS))
    if followed is None or follow is None:
        followed, follow = noise, np.zeros(len(labels), np.float32)
    arrays = (labels, guidance, noise, followed, follow[:, None])
    if groups == 1:
        return _draw(session, *arrays)
    parts = zip(*(np.array_split(each, groups) for each in arrays))
    with ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(lambda part: _draw(session, *part), parts)))


def guidance_rows(labels: NDArray[np.int64], guidance: Floats) -> tuple[NDArray[np.intp], NDArray[np.int64], Floats]:
    """Return the clip [R] and the label [R] of each row, and the mixing matrix [R, R], from labels and guidance [N].

    The first N rows are the clips. For each clip whose guidance g is not 1, a row without a label (-1) follows; the two
    rows of the clip are mixed with the weights g and 1 - g (classifier-free guidance).
    """
    guided = np.flatnonzero(guidance != 1)
    clip = np.concatenate([np.arange(len(labels)), guided])
    label = np.concatenate([labels, np.full(len(guided), -1)])
    weight = np.where(label < 0, 1 - guidance[clip], guidance[clip])
    return clip, label, ((clip[:, None] == clip) * weight).astype(np.float32)


def _draw(
    session: "InferenceSession",
    labels: NDArray[np.int64],
    guidance: Floats,
    noise: Floats,
    followed: Floats,
    follow: Floats,  # [N, 1]
) -> Floats:
    clip, label, mix = guidance_rows(labels, guidance)
    inputs = session.get_inputs()  # passed by position: their names differ between format 1 and 2
    cache = {each.name: np.zeros((len(clip), *each.shape[1:]), np.float32) for each in inputs[5:]}
    window = inputs[5].shape[2]
    latents = np.empty_like(noise)
    previous = np.zeros_like(noise[clip, 0])
    for position in range(noise.shape[1]):
        values = (previous, label, mix, np.array(position), noise[clip, position])
        feeds = {each.name: value for each, value in zip(inputs, values)}
        previous, *new = (np.asarray(each) for each in session.run(None, feeds | cache))
        latents[:, position] = previous[: len(labels)]
        if follow.any():
            previous = (previous + follow[clip] * (followed[clip, position] - previous)).astype(np.float32)
        for slots, each in zip(cache.values(), new, strict=True):
            slots[:, :, position % window] = each
    return latents
