"""`foleybox page`: the page as a folder for any web host, where it renders in the browser (see `web/site.py`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from foleybox.commands.output import check_folder
from foleybox.errors import UserError
from foleybox.web.site import CONFIG, load_instruments, write_site

Instruments = Annotated[
    tuple[str, ...], arg(metavar="NAME|FOLDER...", help_behavior_hint="(default: all that `foleybox info` lists)")
]


@dataclass(frozen=True)
class Page:
    """Write the page as a folder of files for any web host (GitHub Pages, itch.io): sounds are rendered in the browser.

    Open it through a web host; browsers do not run it from a file:// address.

    Example: foleybox page -o page
    """

    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("page")
    "folder to write to"
    instrument: Instruments = ()
    "instruments to include"
    force: bool = False
    "overwrite the files of an earlier page"


def page(config: Page) -> None:
    """Write the page. Raises UserError for an instrument that cannot be used, and for a folder that holds other files."""
    synths = load_instruments(config.instrument)
    check_folder(config.out)
    earlier = (config.out / CONFIG).is_file()
    if config.out.is_dir() and any(config.out.iterdir()) and not (earlier and config.force):
        advice = "add --force to overwrite it" if earlier else "name a new folder"
        raise UserError(f"{config.out} {'holds an earlier page' if earlier else 'holds other files'}: {advice}")
    size = write_site(config.out, synths)
    names = ", ".join(synth.instrument.name for synth in synths)
    print(f"wrote the page with {names} to {config.out}/ ({size / 1e6:.0f} MB): copy it to a web host")
