"""Write the training sets of the instrument `foley`: manifests of freely usable recordings, chosen by licence and source.

    python recipes/foley_clips.py ../shared/data runs/foley/data

The folder given must hold foley/, foley2/, full44/ and general/ with their manifests, and retier.csv. Written are
OUT/clips/manifest.csv (seven labels, 22,050 Hz) and OUT/full44/manifest.csv (everything that exists at 44,100 Hz), which name
the recordings through links.
"""

import csv
import random
import sys
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("file", "label", "split", "recording_id", "licence_tier", "licence", "source_repo", "kind")
TIERS = ("open", "open-clip")
GAME_SHOTS = ("Debian", "Hypersomnia", "Red Eclipse", "scpcb", "OpenClonk", "site-echo-7", "Oto")
"sources of gunshots that are processed for games: a training with them was further from recorded shots"
ASSEMBLED = {"Footstep": 8, "Keyboard": 8}
"recordings of foley2 made by repeating single steps or presses that are kept: they sound unlike walking and typing"
REPEATED_MOTORS = "TORCS"
"a source whose assembled motors are engine loops of a racing game"

Row = dict[str, str]


def rows_of(data: Path, name: str) -> Iterator[Row]:
    """Yield the freely usable training clips of a folder, with the tiers that retier.csv corrects."""
    with (data / "retier.csv").open(encoding="utf-8", newline="") as file:
        corrected = {row["file"]: row for row in csv.DictReader(file)}
    with (data / name / "manifest.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if change := corrected.get(f"{name}/{row['file']}"):
                row |= {"licence_tier": change["new_tier"], "licence": change["licence"]}
            if row["split"] == "train" and row["licence_tier"] in TIERS and "SAMPLING+" not in row["licence"].upper():
                yield row


def chosen(rows: list[Row], new: list[Row]) -> Iterator[Row]:
    """Yield the clips of one label to train on: all of foley (`rows`), those of foley2 (`new`) by source and kind."""
    yield from rows
    label = new[0]["label"] if new else ""
    assembled = sorted({row["recording_id"] for row in new if row["kind"] == "assembled"})
    kept = set(assembled)
    if label in ASSEMBLED:
        kept = set(random.Random(0).sample(assembled, min(ASSEMBLED[label], len(assembled))))
    for row in new:
        if row["kind"] == "assembled" and row["recording_id"] not in kept:
            continue
        if label == "GunShot" and any(source in row["licence"] for source in GAME_SHOTS):
            continue
        if row["kind"] == "assembled" and REPEATED_MOTORS in row["licence"]:
            continue
        yield row


def write(out: Path, rows: list[Row], links: dict[str, Path]) -> None:
    """Write a manifest whose files are found through links to the folders of recordings."""
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in links.items():
        if not (out / name).is_symlink():
            (out / name).symlink_to(folder.resolve())
    with (out / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{out}: {len(rows)} clips")


def main(data: Path, out: Path) -> None:
    """Write both manifests."""
    found = {name: list(rows_of(data, name)) for name in ("foley", "foley2", "general")}
    clips = []
    for label in sorted({row["label"] for row in found["foley"]}):
        old, new = ([row for row in found[name] if row["label"] == label] for name in ("foley", "foley2"))
        links = {id(row): name for name, rows in (("foley", old), ("foley2", new)) for row in rows}
        clips += [{**row, "file": f"{links[id(row)]}/{row['file']}"} for row in chosen(old, new)]
    write(out / "clips", clips, {name: data / name for name in ("foley", "foley2")})

    full = []
    for name, rows in found.items():
        for row in rows:
            file = Path("general" if name == "general" else "", row["file"]).with_suffix(".ogg")
            if (data / "full44" / file).is_file():
                full.append({**row, "file": f"full44/{file.as_posix()}"})
    write(out / "full44", full, {"full44": data / "full44"})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
