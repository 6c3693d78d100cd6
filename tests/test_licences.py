"""Licence tiers: what a stated licence makes of an open clip."""

import pytest

from foleybox.licences import TrainingClips, in_tiers, licence_of, tier_of


@pytest.mark.parametrize(
    ("licence", "tier"),
    [
        ("ESC-10 subset: CC BY 3.0; clip: CC0", "free"),
        ("kbsim LICENSE.md: MIT", "free"),
        ("moodist README: Pixabay Content License or CC0", "free"),
        ("put-kbd-thesis-datasets LICENSE: GPL-3.0", "copyleft"),
        ("lincity-ng COPYING-data.txt: GPL and CC-BY-SA-2.0", "copyleft"),
        ("Debian hedgewars-data copyright: Sounds/* GFDL-1.3", "copyleft"),
        ("mods/default/license.txt: CC BY-SA 3.0 / CC BY 3.0", "copyleft"),
        ("TORCS README: GPL / Free Art License", "copyleft"),
    ],
)
def test_an_open_clip_is_free_or_copyleft_by_its_stated_licence(licence: str, tier: str) -> None:
    assert tier_of("open", licence) == tier
    assert in_tiers(tier, ["open"])
    assert in_tiers(tier, [tier])
    assert not in_tiers(tier, ["free" if tier == "copyleft" else "copyleft", "nc"])


@pytest.mark.parametrize("tier", ["open-clip", "nc", "unclear", "free", ""])
def test_other_tiers_do_not_depend_on_the_stated_licence(tier: str) -> None:
    assert tier_of(tier, "GPL-3.0") == tier


def test_copyleft_clips_are_counted_apart() -> None:
    rows = [TrainingClips("Rain", "copyleft", "GPL-3.0", 2), TrainingClips("Rain", "free", "CC0", 5)]
    licence = licence_of(rows)
    assert licence.terms == "CC-BY-4.0"
    assert licence.reasons[0].startswith("2 clips under GPL")
    assert licence.reasons[1].startswith("5 clips free for any use")
