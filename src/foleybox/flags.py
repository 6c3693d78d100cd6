"""Command-line flags: tyro makes a dataclass of them; a mistake becomes one line that says what was expected.

tyro reports mistakes as boxes of text and has no public API for their parts. Therefore the arguments are compared with
the types of the dataclass first; tyro itself then finds nothing to report.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from foleybox.errors import UserError

Config = TypeVar("Config")
STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag or positional argument of a command."""

    name: str  # as the help shows it
    flags: tuple[str, ...]  # none: a positional argument
    kind: Any  # int, float, str, Path or a Literal: of one value
    values: float  # how many it takes: 0 for a switch, infinity for a list
    required: bool


def parse(
    config_type: type[Config], arguments: Sequence[str], verb: str, moved: Mapping[str, str] | None = None
) -> Config:
    """Return the config that the arguments of `foleybox VERB` describe.

    `moved` maps flags of earlier versions to the advice that is printed for them. Raises UserError for arguments that
    do not fit the config, and SystemExit(0) after printing the help.
    """
    if not {"-h", "--help"} & set(arguments):
        try:
            check(arguments, options_of(config_type), moved or {})
        except UserError as error:
            if str(error).endswith("?") or str(error) in (moved or {}).values():
                raise
            raise UserError(f"{error}; `foleybox {verb} --help` shows the flags") from None
    return tyro.cli(config_type, args=arguments, prog=f"foleybox {verb}", config=STYLE, registry=_registry())


def options_of(config_type: type) -> list[Option]:
    """Return the options of a config, those of nested dataclasses included."""
    found: list[Option] = []
    hints = get_type_hints(config_type, include_extras=True)
    for field in dataclasses.fields(config_type):
        kind, marks = hints[field.name], ()
        if get_origin(kind) is Annotated:
            kind, *marks = get_args(kind)
        if tyro.conf.Fixed in marks:  # a setting for Python alone
            continue
        if dataclasses.is_dataclass(kind):
            found += options_of(kind)  # pyright: ignore[reportArgumentType]
            continue
        settings = [mark for mark in marks if hasattr(mark, "aliases")]  # of tyro.conf.arg
        aliases = [alias for each in settings for alias in each.aliases or ()]
        metavar = next((each.metavar for each in settings if each.metavar), field.name.upper())
        flag = f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}"
        positional = tyro.conf.Positional in marks
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found.append(Option(metavar, () if positional else (flag, *aliases), *_value_of(kind), required))
    return found


def _value_of(kind: Any) -> tuple[Any, float]:
    """Return the type of one value of an annotation, and how many values it takes."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return inner[0], math.inf if inner[-1] is Ellipsis else len(inner)
    return kind, 0 if kind is bool else 1


def check(arguments: Sequence[str], options: Sequence[Option], moved: Mapping[str, str]) -> None:
    """Raise UserError for an unknown flag, a value of the wrong type, and a missing or superfluous argument."""
    flags = {flag: option for option in options for flag in option.flags}
    positional = [option for option in options if not option.flags]
    required = sum(option.required and math.isfinite(option.values) for option in positional)
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        token = waiting.pop(0)
        if token == "--":
            rest += waiting
            break
        if not _is_flag(token):
            rest.append(token)
            continue
        flag, equals, attached = token.partition("=")
        flag = f"--{flag[2:].replace('_', '-')}" if flag.startswith("--") else flag
        if flag not in flags and flag[:2] in flags:  # -n3
            flag, equals, attached = flag[:2], "=", token[2:].removeprefix("=")
        option = flags.get(flag)
        if option is None:
            near = difflib.get_close_matches(flag, flags, 1)
            raise UserError(moved.get(flag) or f"unknown flag {flag}" + (f": did you mean {near[0]}?" if near else ""))
        values = [attached] if equals else []
        kept = max(0, required - len(rest)) if option.values == math.inf else 0  # for the positional arguments
        while len(values) < option.values and len(waiting) > kept and not _is_flag(waiting[0]):
            values.append(waiting.pop(0))
        if not option.values and values:
            raise UserError(f"{token}: {flag} takes no value")
        if math.isfinite(option.values) and len(values) < option.values:
            raise UserError(f"{flag}: expected {'a value' if option.values == 1 else f'{option.values:.0f} values'}")
        for value in values:
            if wanted := _wanted(option.kind, value):
                raise UserError(moved.get(flag) or f"{flag} {value}: expected {wanted}")
    for option in positional:
        if option.values == math.inf:
            rest = []
        elif not rest and option.required:
            raise UserError(f"{option.name} is missing")
        rest = rest[1:]
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}")


def _is_flag(token: str) -> bool:
    return token.startswith("-") and token != "-" and (token == "--" or bool(_wanted(float, token)))  # -5 is a value


def _wanted(kind: Any, value: str) -> str:
    """Return what is expected instead of a value, "" where it fits."""
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        return "" if value in choices else " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    if kind in (int, float):
        try:
            if not math.isfinite(kind(value)):  # OverflowError: an integer of hundreds of digits
                return "a number"
        except (ValueError, OverflowError):
            return "a whole number" if kind is int else "a number"
    return ""


def _registry() -> ConstructorRegistry:
    """Return rules for the help: an optional flag shows the type of its value, and `none` where that is its default."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
        if info.type_origin not in (Union, UnionType) or len(kinds) != 1:
            return None
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
        if not isinstance(spec, PrimitiveConstructorSpec):  # an optional dataclass, which is no flag
            return None
        return dataclasses.replace(
            spec,
            is_instance=lambda value: value is None or spec.is_instance(value),
            str_from_instance=lambda value: ["none"] if value is None else spec.str_from_instance(value),
        )

    return registry
