"""Drawing a clip place by place: the loop around the "next" graph of a "patches" instrument.

Letters: N clips, R rows, P places, D numbers of a latent, W the window, H heads, E numbers each.

A place knows what was drawn before it through the keys and values that every layer keeps (`foleybox.instrument` says what
the graph takes). They are kept here, in arrays that are handed to the graph as they are: copying them in and out at each
place would cost more than the arithmetic. A clip whose label guides it is drawn in two rows, one of them without the
label; the others, rain say, need no second row. The graph is many small products, which two threads share well, and
more do not: a clip alone takes half the time with two. Clips that are drawn together are dealt out to the others.
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
    stamped = session.get_modelmeta().custom_metadata_map
    guidance, temperature = (np.array(stamped[key].split(), np.float32)[labels] for key in ("guidance", "temperature"))
    noise = noise * temperature[:, None, None]
    groups = min(len(labels), max(1, threads - 1))  # one thread is the session's own, and helps each of them
    if groups == 1:
        return _draw(session, labels, guidance, noise)
    parts = zip(*(np.array_split(each, groups) for each in (labels, guidance, noise)))
    with ThreadPoolExecutor(groups) as pool:
        return np.concatenate(list(pool.map(lambda part: _draw(session, *part), parts)))


def rows(labels: NDArray[np.int64], guidance: Floats) -> tuple[NDArray[np.intp], NDArray[np.int64], Floats]:
    """Return of each row its clip [R] and its label [R], and how rows are mixed [R, R], for N labels and guidances.

    The first N rows are the clips; one without a label (-1) follows for each clip whose guidance g is not 1. Its rows are
    mixed g to 1 - g, those of different clips never.
    """
    guided = np.flatnonzero(guidance != 1)
    clip = np.concatenate([np.arange(len(labels)), guided])
    label = np.concatenate([labels, np.full(len(guided), -1)])
    share = np.where(label < 0, 1 - guidance[clip], guidance[clip])
    return clip, label, ((clip[:, None] == clip) * share).astype(np.float32)


def _draw(session: "InferenceSession", labels: NDArray[np.int64], guidance: Floats, noise: Floats) -> Floats:
    clip, label, mix = rows(labels, guidance)
    kept = _empty(session, len(clip))
    window = kept["keys_0"].shape[2]
    latents = np.empty_like(noise)
    before = np.zeros_like(noise[clip, 0])
    for place in range(noise.shape[1]):
        feeds = {"before": before, "label": label, "mix": mix, "place": np.array(place), "noise": noise[clip, place]}
        before, *new = (np.asarray(each) for each in session.run(None, feeds | kept))
        latents[:, place] = before[: len(labels)]
        for slots, each in zip(kept.values(), new, strict=True):
            slots[:, :, place % window] = each
    return latents


def _empty(session: "InferenceSession", count: int) -> dict[str, Floats]:
    """Return what every layer keeps before anything was drawn, by the names and shapes of the graph's inputs."""
    inputs = [each for each in session.get_inputs() if each.name.startswith(("keys_", "values_"))]
    return {each.name: np.zeros((count, *each.shape[1:]), np.float32) for each in inputs}
