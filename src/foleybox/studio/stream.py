"""Drawing a clip place by place: the loop around the "next" graph of a "patches" instrument.

Letters: N clips, P places, D numbers of a latent, G numbers of a place's grain, W the window, H heads, E numbers each.

A place knows what was drawn before it through the keys and values that every layer keeps (`foleybox.instrument` says what
the graph takes). They are kept here, in arrays that are handed to the graph as they are: copying them in and out at each
place would cost more than the arithmetic. The graph is many small products, which threads cannot share: it runs on one,
and clips that are drawn together are dealt out to several.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Floats = NDArray[np.float32]


def draw(session: "InferenceSession", labels: NDArray[np.int64], noise: Floats, threads: int = 1) -> Floats:
    """Return the latents [N, P, D] that `noise` [N, P, D] becomes, for the label numbers [N].

    What is drawn at a place follows from the noise up to there: a longer clip begins as the shorter one.
    """
    if threads == 1 or len(labels) == 1:
        return _draw(session, labels, noise)
    parts = zip(np.array_split(labels, threads), np.array_split(noise, threads))
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(lambda part: _draw(session, *part), parts)))


def _draw(session: "InferenceSession", labels: NDArray[np.int64], noise: Floats) -> Floats:
    count, places, _ = noise.shape
    kept = _empty(session, count)
    window = kept["keys_0"].shape[2]
    latents = np.empty_like(noise)
    before = np.zeros_like(noise[:, 0])
    for place in range(places):
        feeds = {
            "before": before,
            "label": labels,
            "place": np.array(place),
            "noise": np.ascontiguousarray(noise[:, place]),
        }
        before, keys, values = (np.asarray(each) for each in session.run(None, feeds | kept))
        latents[:, place] = before
        for layer in range(len(keys)):
            kept[f"keys_{layer}"][:, :, place % window] = keys[layer]
            kept[f"values_{layer}"][:, :, place % window] = values[layer]
    return latents


def _empty(session: "InferenceSession", count: int) -> dict[str, Floats]:
    """Return what every layer keeps before anything was drawn, by the names and shapes of the graph's inputs."""
    inputs = [each for each in session.get_inputs() if each.name.startswith(("keys_", "values_"))]
    return {each.name: np.zeros((count, *each.shape[1:]), np.float32) for each in inputs}
