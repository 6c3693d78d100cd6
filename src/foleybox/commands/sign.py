"""`foleybox sign`: sign instruments and the recipes of sound files, for `foleybox verify` (see `foleybox.signature`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.commands.verify import find_sounds
from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.instrument import MANIFEST, SIGNATURE, read_instrument, signed_content
from foleybox.signature import SUFFIX, make_key, sign
from foleybox.studio.recipe import find_recipe_text


@dataclass(frozen=True)
class Sign:
    """Sign instruments, and the recipes of sound files, with your private key: instrument.sig, and <sound>.sig next to each.

    `verify` checks signatures. They need the package cryptography (the extra `sign`).

    Example: foleybox sign out --key my.key
    """

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE|FOLDER...")] = ()
    "sound files, folders that contain some, and folders of instruments"
    key: Annotated[Path | None, arg(aliases=["-k"], metavar="FILE")] = None
    "your private key"
    new_key: Annotated[Path | None, arg(metavar="FILE")] = None
    "make a private key, and FILE.pub, the public key to publish"


def sign_paths(config: Sign) -> None:
    """Make a key, or sign. Raises UserError before the first signature for a file that has no recipe."""
    if config.new_key:
        if config.paths or config.key:
            raise UserError("--new-key makes a key and signs nothing: sign with another command")
        print(
            f"wrote {config.new_key} (keep it secret) and {config.new_key}.pub: public key {make_key(config.new_key)}"
        )
        return
    if config.key is None:
        raise UserError("no key: expected --key FILE; `foleybox sign --new-key FILE` makes one")
    signatures: dict[Path, str] = {}
    for path in config.paths:
        if (path / MANIFEST).is_file():
            read_instrument(path)
            content = signed_content(path)
            signatures[path / SIGNATURE] = sign("instrument", content, config.key)
            continue
        for sound in find_sounds((path,)):
            signatures[sound.with_name(sound.name + SUFFIX)] = sign(
                "recipe", find_recipe_text(sound).encode(), config.key
            )
    if not signatures:
        raise UserError("nothing to sign: expected sound files, folders of them, or instruments")
    for path, text in signatures.items():
        write_text(path, text)
    print(f"wrote {len(signatures):,} signature{'s' * (len(signatures) > 1)}, the first {next(iter(signatures))}")
