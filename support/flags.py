"""Settings as a frozen dataclass whose fields are flags of a command line.

Knows no particular setting. A field is made by `flag`; its type says how its text is read.
"""

import argparse
import difflib
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import Field, field, fields
from typing import Any, NamedTuple, NoReturn

from support.errors import UserError

LARGEST = 1e38  # a float beyond it is no 32-bit number
Weight = float | dict[str, float]  # one number for all names, or a number by name


METAVARS: dict[Any, str] = {int: "N", float: "X", tuple[str, ...]: "NAME", Weight: "X or NAME=X,..."}


class Rule(NamedTuple):
    """What a setting's value must fulfil, and the words that say so, or a function from the value to them."""

    holds: Callable[[Any], bool]
    words: str | Callable[[Any], str]


AT_LEAST_0 = Rule(lambda value: value >= 0, "must be at least 0")
AT_LEAST_1 = Rule(lambda value: value >= 1, "must be at least 1")
ABOVE_0 = Rule(lambda value: value > 0, "must be above 0")
FROM_0_TO_BELOW_1 = Rule(lambda value: 0 <= value < 1, "must be at least 0 and below 1")


def flag(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    choices: tuple[str, ...] | None = None,
    rule: Rule | None = None,
    derive: Callable[[Any], Any] | None = None,
    needs: str | None = None,
    repeated: bool = False,
    only: Callable[[str], bool] | None = None,
) -> Any:
    """A field of the settings that is also a flag.

    group: opens a group of the help; the fields that follow belong to it, too. derive: gives the value from
    the other settings where the flag is left out. needs: the switch without which a weight counts as 0.
    repeated: the flag may be given several times, each time with one text of a tuple. only: for which names a
    weight can be other than 0.
    """
    metadata = {"help": help, "group": group, "choices": choices, "rule": rule, "derive": derive}
    return field(default=default, metadata=metadata | {"needs": needs, "repeated": repeated, "only": only})


def flags(settings: Any) -> list["Field[Any]"]:
    """The fields made by `flag`, in order; of a dataclass or one of its objects."""
    return [item for item in fields(settings) if "help" in item.metadata]


def check_values(settings: Any) -> None:
    """Check each setting alone. Raises UserError that names the flag."""
    for setting in flags(settings):
        value = getattr(settings, setting.name)
        choices = setting.metadata["choices"]
        rule = setting.metadata["rule"]
        check_text(setting.name, value)
        if isinstance(value, float) and setting.type is float and not abs(value) < LARGEST:
            raise UserError(f"--{setting.name} {value}: must be a finite number below 1e38")
        if value is None:
            continue
        if choices and value not in choices:
            hint = did_you_mean(str(value), choices)
            raise UserError(f"--{setting.name} {value}: must be one of {', '.join(choices)}{hint}")
        if rule and not rule.holds(value):
            words = rule.words if isinstance(rule.words, str) else rule.words(value)
            raise UserError(f"--{setting.name} {as_text(value)}: {words}")


def did_you_mean(word: str, names: Iterable[str], dashes: str = "") -> str:
    """`; did you mean NAME?` with the name that is nearest to the word, or nothing where none is near.

    dashes: what stands before the name in the message.
    """
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word[:100].lower(), by_lower, n=1)
    return f"; did you mean {dashes}{by_lower[near[0]]}?" if near else ""


def check_text(name: str, value: object) -> None:
    """Raises UserError for an empty text: an unset variable of the shell, more often than not."""
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise UserError(f"--{name}: must not be empty or hold a NUL")


def fits(setting: "Field[Any]", value: object) -> bool:
    """Whether a value that was read from a file may be this setting's. None stands for a derived default."""
    return (value is None and setting.default is None) or _is_of(value, setting.type)


def _is_of(value: object, hint: Any) -> bool:
    """Whether the value is of a field's type, where an int is a float but no bool is a number."""
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if typing.get_origin(hint) is dict:
        _, of_value = typing.get_args(hint)
        return isinstance(value, dict) and all(
            isinstance(key, str) and _is_of(part, of_value) for key, part in value.items()
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def as_text(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(settings: Any, defaults: Any, everything: bool = False) -> str:
    """The settings as flags, a group a line of 100 columns: those that are not the defaults, or all."""
    groups: dict[str, list[str]] = {}
    group = ""
    for setting in flags(settings):
        group = setting.metadata["group"] or group
        value = getattr(settings, setting.name)
        if everything or value != getattr(defaults, setting.name):
            text = "" if value is True else f" {as_text(value)}"
            groups.setdefault(group, []).append(f"--{setting.name}{text}")
    lines = []
    for group, words in groups.items():
        indent = f"  {group:<16}"
        wrapped = textwrap.TextWrapper(
            100, indent, " " * len(indent), break_long_words=False, break_on_hyphens=False
        )
        lines += wrapped.wrap(" ".join(words))
    return "\n".join(lines)


# ------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """A parser of flags by their whole names that raises UserError where argparse would exit."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Raises UserError that answers an unknown flag with the nearest one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            name = word.lstrip("-\u2013\u2014")  # a text editor may join two dashes
            what = f"{word[:60]!r} belongs to no flag" if name == word else f"unknown flag {word[:60]}"
            names = [text.lstrip("-") for text in self._option_string_actions]
            hint = did_you_mean(name.replace("-", "_"), names, "--") or "; --help lists all flags"
            raise UserError(what + hint)
        return known

    def add_flags(self, settings: Any) -> None:
        """A flag for each field of the settings, in groups."""
        group: Any = self
        for setting in flags(settings):
            if setting.metadata["group"]:
                group = self.add_argument_group(setting.metadata["group"])
            _add_flag(group, setting)


def _add_flag(group: Any, setting: "Field[Any]") -> None:
    words = setting.metadata["help"].replace("%", "%%")
    if setting.type is bool:
        group.add_argument(f"--{setting.name}", action="store_true", default=argparse.SUPPRESS, help=words)
        return
    if setting.metadata["repeated"]:
        group.add_argument(
            f"--{setting.name}", action="append", default=argparse.SUPPRESS, metavar="TEXT", help=words
        )
        return
    kind: Any = setting.type
    if isinstance(kind, types.UnionType) and kind != Weight:  # X | None
        kind = typing.get_args(kind)[0]
    choices = setting.metadata["choices"]
    several = {"nargs": "+", "action": _Names} if typing.get_origin(kind) is tuple else {}
    if setting.default is not None:
        words += f" (default: {setting.default})"
    group.add_argument(
        f"--{setting.name}",
        type=_weight if kind == Weight else str if several else kind,
        default=argparse.SUPPRESS,
        metavar="{" + ",".join(choices) + "}" if choices else METAVARS.get(kind, "NAME"),
        help=words,
        **several,
    )


class _Names(argparse.Action):
    """Names separated by commas, spaces or both: `sst,para`, `sst para`, `sst, para`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        names = re.split(r"\s*,\s*|\s+", " ".join(values).strip())
        setattr(namespace, self.dest, tuple(names))


def _weight(text: str) -> Weight:
    """One number for all names, or `NAME=NUMBER` with commas between."""
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        if "=" not in text:
            return float(text)
        weights = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        wanted = "neither a number nor NAME=NUMBER with commas between"
        raise argparse.ArgumentTypeError(f"{text!r} is {wanted}") from None
    if len(weights) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names a task twice")
    return weights
