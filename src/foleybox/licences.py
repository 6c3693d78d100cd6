"""Licence tiers of training clips, and the terms that follow for an instrument trained on them.

The rules are applied to what each source states about its clips. They are a record for the user's own judgement, not legal
advice.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingClips:
    """The training clips that have a label, tier, stated licence and source in common."""

    label: str
    tier: str  # open, open-clip, nc, unclear; see TERMS
    licence: str  # as the source states it
    clips: int
    source: str = ""  # whom to credit: the repository or data set that the clips came in


NOT_FOR_DISTRIBUTION = "not for distribution"
# (tier, terms, reason), strictest first. An instrument has the terms of the first tier that any of its training clips has.
# A tier that is not listed counts as "unclear".
TERMS = (
    ("unclear", NOT_FOR_DISTRIBUTION, "clips whose source states no licence: no use of them is permitted"),
    ("nc", "CC-BY-NC-4.0", "clips licensed for non-commercial use only: the weights inherit this condition"),
    ("open-clip", "CC-BY-4.0", "free clips (CC0, CC BY) from a collection that is CC BY-NC as a whole"),
    ("open", "CC-BY-4.0", "clips free for any use, most of them with attribution: CARD.md lists the sources"),
)
# (substring of a stated licence, condition that is reported with the terms)
CONDITIONS = (
    ("GPL", "GPL: it is unsettled whether weights are a derivative of the recordings they were trained on"),
    ("BY-SA", "share-alike: as for GPL"),
    ("SAMPLING+", "Sampling+: no use in advertising"),
    ("PIXABAY", "Pixabay: the clips may not be redistributed unchanged; the weights contain no clips"),
)


@dataclass(frozen=True)
class Licence:
    """The terms of an instrument, and the reasons for them, one line each."""

    terms: str
    reasons: tuple[str, ...]


def licence_of(training_clips: Iterable[TrainingClips]) -> Licence:
    """Return the licence that follows from the clips an instrument was trained on, by the rules TERMS and CONDITIONS."""
    rows = list(training_clips)
    known = {tier for tier, _, _ in TERMS}
    counts = dict.fromkeys(known, 0)
    for row in rows:
        counts[row.tier if row.tier in known else "unclear"] += row.clips
    found = [(terms, f"{counts[tier]:,} {reason}") for tier, terms, reason in TERMS if counts[tier]]
    if not found:
        return Licence(NOT_FOR_DISTRIBUTION, ("the training clips are not stated",))
    reasons = [reason for _, reason in found]
    for mention, condition in CONDITIONS:
        stated = (row for row in rows if mention in row.licence.upper().replace("CC BY", "BY").replace(" ", "-"))
        if count := sum(row.clips for row in stated):
            reasons.append(f"{count:,} clips under {condition}")
    return Licence(found[0][0], tuple(reasons))
