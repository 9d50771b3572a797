"""Filters and attributes as people type them: `region=eu`, `path^=/v1`, `plan!=free`."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import typer

from otel_metering.client import Not, Prefix
from otel_metering.errors import InvalidUsageError

_FILTER: Final = re.compile(r"([^=]+?)(=|\^=|!=)(.*)", re.DOTALL)

FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        help="NAME=VALUE; NAME^=PREFIX; NAME!=VALUE. Repeated: any of the values; every name has to fit.",
    ),
]


def parse_filters(texts: Sequence[str] | None) -> Mapping[str, list[str | Prefix | Not]]:
    """Name -> what it may be.

    Raises:
        InvalidUsageError: One is no filter.
    """
    found: dict[str, list[str | Prefix | Not]] = {}
    for text in texts or ():
        match = _FILTER.fullmatch(text)
        if match is None:
            raise InvalidUsageError(
                f"{text!r} is no filter; write NAME=VALUE, NAME^=PREFIX or NAME!=VALUE"
            )
        name, operator, value = match.groups()
        kinds: Mapping[str, type[Prefix] | type[Not]] = {"^=": Prefix, "!=": Not}
        kind = kinds.get(operator)
        found.setdefault(name, []).append(value if kind is None else kind(value))
    return found


def parse_pairs(texts: Sequence[str] | None) -> dict[str, str]:
    """Name -> value.

    Raises:
        InvalidUsageError: One is not NAME=VALUE, or a name is there twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals) or name in found:
            raise InvalidUsageError(f"{text!r} is no NAME=VALUE, or its name is there twice")
        found[name] = value
    return found


def parse_lists(texts: Sequence[str] | None) -> dict[str, list[str]]:
    """Name -> values.

    Raises:
        InvalidUsageError: One is not NAME=VALUE.
    """
    found: dict[str, list[str]] = {}
    for text in texts or ():
        ((name, value),) = parse_pairs([text]).items()
        found.setdefault(name, []).append(value)
    return found
