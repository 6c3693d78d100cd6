"""Licence tiers of training clips, and the terms that follow for an instrument trained on them.

    free        any use, most of them with attribution: CC0, CC BY, MIT, public domain, Pixabay and the like
    copyleft    any use, but works made of the clip may have to have its licence: GPL, GFDL, CC BY-SA, Free Art License
    open        free or copyleft, in manifests and instruments that do not tell them apart
    open-clip   a free clip from a collection that is CC BY-NC as a whole
    nc          non-commercial use only
    unclear     the source states no licence

The rules are applied to what each source states about its clips. They are a record for the user's own judgement, not legal
advice.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingClips:
    """The training clips that have a label, tier, stated licence and source in common."""

    label: str
    tier: str  # free, copyleft, open, open-clip, nc, unclear
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
    ("copyleft", "CC-BY-4.0", "clips under GPL, GFDL, CC BY-SA or the Free Art License"),
    ("open", "CC-BY-4.0", "clips free for any use, most of them with attribution: CARD.md lists the sources"),
    ("free", "CC-BY-4.0", "clips free for any use, most of them with attribution: CARD.md lists the sources"),
)
COPYLEFT = ("GPL", "GFDL", "BY-SA", "FREE-ART", "ARTISTIC")
"mentions in a stated licence that make an open clip copyleft, also if the source states another licence too"
# (substring of a stated licence, condition that is reported with the terms)
CONDITIONS = (
    ("GPL", "GPL: it is unsettled whether weights are a derivative of the recordings they were trained on"),
    ("BY-SA", "share-alike: as for GPL"),
    ("SAMPLING+", "Sampling+: no use in advertising"),
    ("PIXABAY", "Pixabay: the clips may not be redistributed unchanged; the weights contain no clips"),
)


def tier_of(tier: str, licence: str) -> str:
    """Return the tier of a clip: `open` becomes `copyleft` or `free` by the stated licence; others stay as they are."""
    if tier != "open":
        return tier
    return "copyleft" if any(mention in _plain(licence) for mention in COPYLEFT) else "free"


def in_tiers(tier: str, tiers: Collection[str]) -> bool:
    """Return whether a clip of `tier` is among those asked for; `open` asks for both `free` and `copyleft`."""
    return tier in tiers or (tier in ("free", "copyleft") and "open" in tiers)


def _plain(licence: str) -> str:
    return licence.upper().replace("CC BY", "BY").replace(" ", "-")


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
        stated = (row for row in rows if mention in _plain(row.licence))
        if count := sum(row.clips for row in stated):
            reasons.append(f"{count:,} clips under {condition}")
    return Licence(found[0][0], tuple(reasons))
