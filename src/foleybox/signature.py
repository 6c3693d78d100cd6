"""Signatures of instruments and recipes: who made this, and is it as they made it? Ed25519 (RFC 8032).

A checksum shows that nothing was changed by accident; anyone who changes a file can also write a fitting checksum. A signature
can only be made with the private key, and everyone can check it with the public key, 64 hexadecimal digits. It proves
nothing about whose key that is: publish your public key where people find it, and give `verify` the key of those you trust.

A signature is a file of JSON next to what it signs: `<sound>.sig` for the recipe in a sound file (so a copy in another
format needs no new one), `instrument.sig` in the folder of an instrument.
"""

import json
import os
from pathlib import Path

from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.schema import FINGERPRINT, OneOf, Record, Text, parse_json

SUFFIX = ".sig"
INSTALL = "in a checkout of foleybox, pip install -c constraints.txt '.[sign]'"
SCHEMA = Record(
    {"foleybox_signature": OneOf((1,)), "of": OneOf(("instrument", "recipe")), "key": FINGERPRINT,
     "signature": Text(128, pattern="[0-9a-f]{128}", expected="128 hexadecimal digits")}
)  # fmt: skip


def check_installed() -> None:
    """Raise UserError if the package `cryptography` is absent."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"signatures need the package cryptography, which is not installed: {INSTALL}") from None


def make_key(path: Path) -> str:
    """Write a new private key to `path` (PEM, readable by its owner alone) and its public key to `<path>.pub`; return that.

    Raises UserError if one of them exists.
    """
    check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    public = path.with_name(f"{path.name}.pub")
    key = Ed25519PrivateKey.generate()
    try:
        if public.exists():
            raise FileExistsError
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except FileExistsError:
        raise UserError(f"{path} or {public} exists already: keys are never overwritten; name another file") from None
    digits = key.public_key().public_bytes_raw().hex()
    write_text(public, digits + "\n")
    return digits


def sign(kind: str, content: bytes, key: Path) -> str:
    """Return the JSON of a signature of `content`, of the kind "instrument" or "recipe", with the private key in a file."""
    check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key} is no private key ({error}): `foleybox sign --new-key {key}` makes one") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise UserError(f"{key} is a key of another kind: expected Ed25519; `foleybox sign --new-key FILE` makes one")
    about = {"foleybox_signature": 1, "of": kind, "key": private.public_key().public_bytes_raw().hex()}
    return json.dumps(about | {"signature": private.sign(_message(kind, content)).hex()}) + "\n"


def signer(path: Path, kind: str, content: bytes) -> str | None:
    """Return the public key that signed `content`, by the signature in the file `path`; None if there is no such file.

    Raises UserError for a file that is no signature, and for a signature of anything else.
    """
    if not path.is_file():
        return None
    check_installed()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        with path.open("rb") as file:
            about = parse_json(file.read(2_000), 1_999, 2)
        SCHEMA(about, "")
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(about["key"]))
        public.verify(bytes.fromhex(about["signature"]), _message(about["of"], content))
    except InvalidSignature:
        raise UserError(f"the signature {path} is not of this {kind}: one of the two was changed") from None
    except ValueError as error:
        raise UserError(f"{path} is no signature ({error}): get it again, or remove it") from None
    if about["of"] != kind:
        raise UserError(f"{path} is the signature of another kind of file, not of this {kind}")
    return about["key"]


def _message(kind: str, content: bytes) -> bytes:
    return f"foleybox {kind} 1\n".encode() + content


def read_public_key(text: str) -> str:
    """Return a public key, given as 64 hexadecimal digits or as the file that contains them."""
    path = Path(text)
    try:
        key = path.read_text(encoding="ascii").strip() if path.is_file() else text.strip().lower()
        FINGERPRINT(key, "key")
    except ValueError:
        raise UserError(
            f"{text} is no public key: expected 64 hexadecimal digits, or the .pub file with them"
        ) from None
    return key
