"""Licence tiers of training clips, and the terms that follow for an instrument made from them."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingClips:
    """So many training clips of one label, tier, stated licence and source."""

    label: str
    tier: str  # open, open-clip, nc, unclear; see TERMS
    licence: str  # as its source states it
    clips: int
    source: str = ""  # the collection, for credit: a repository, a data set


# --- licences -----------------------------------------------------------------------------------------------------

NOT_FOR_DISTRIBUTION = "not for distribution"
# The terms of an instrument: those of the first row whose tier it heard. A tier that is not here counts as unclear.
TERMS = (
    (
        "unclear",
        NOT_FOR_DISTRIBUTION,
        "clips whose source states no licence: nobody has allowed what they would be used for",
    ),
    ("nc", "CC-BY-NC-4.0", "clips licensed for non-commercial use only: weights made from them pass that on"),
    ("open-clip", "CC-BY-4.0", "free clips (CC0, CC BY) taken out of a collection whose compilation is CC BY-NC"),
    ("open", "CC-BY-4.0", "clips free for any use, most of them asking for credit: CARD.md names the collections"),
)
# Conditions that are reported beside the terms, by what a stated licence mentions.
MENTIONS = (
    ("GPL", "GPL: whether weights derive from the recording they heard is unsettled; named so that you can judge"),
    ("BY-SA", "share-alike: see GPL"),
    ("SAMPLING+", "Sampling+: no use in advertising"),
    ("PIXABAY", "Pixabay: the clips may not be handed on as they are; weights hold none"),
)


@dataclass(frozen=True)
class Licence:
    """The terms that follow from what was heard, and why. Evidence laid out by rule, not legal advice."""

    terms: str
    why: tuple[str, ...]


def roll_up(heard: Iterable[TrainingClips]) -> Licence:
    """Return the licence that follows from what an instrument heard, by the rules TERMS and MENTIONS."""
    heard = list(heard)
    tiers = {tier for tier, _, _ in TERMS}
    clips = {
        tier: sum(row.clips for row in heard if (row.tier if row.tier in tiers else "unclear") == tier)
        for tier in tiers
    }
    rows = [(terms, f"{clips[tier]:,} {reason}") for tier, terms, reason in TERMS if clips[tier]]
    why = [reason for _, reason in rows]
    for mention, reason in MENTIONS:
        count = sum(
            row.clips for row in heard if mention in row.licence.upper().replace("CC BY", "BY").replace(" ", "-")
        )
        if count:
            why.append(f"{count:,} clips under {reason}")
    return Licence(rows[0][0], tuple(why)) if rows else Licence(NOT_FOR_DISTRIBUTION, ("nothing is stated",))
