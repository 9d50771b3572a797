"""How results are printed: tables for people, CSV and JSON for programs."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PIPE_WIDTH: Final = 100_000
"""Columns of an output that is no terminal: a number must not be broken over lines."""


class Format(StrEnum):
    """What an answer is printed as."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def print_table(table: Table) -> None:
    """Print to standard output; a pipe gets each row on one line."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def print_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print as RFC 4180, but for the line ends, which are those of the system."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def print_json(value: object) -> None:
    """Print indented JSON; decimals are text, as in the API."""
    print(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Print JSON on one line."""
    print(json.dumps(value, default=_plain, ensure_ascii=False))


def fields(result: "DataclassInstance") -> Mapping[str, Any]:
    """A result as JSON has it."""
    return asdict(result)


def number(value: Decimal | None) -> str:
    """Exact decimals without an exponent or trailing zeros; nothing for None."""
    if value is None:
        return ""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def shown(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def shown_or(moment: datetime | None, otherwise: str = "") -> str:
    """RFC 3339 in UTC, or what stands for None."""
    return otherwise if moment is None else shown(moment)


def pairs(values: Mapping[str, str]) -> str:
    """Names and values on one line, by name."""
    return " ".join(f"{name}={values[name]}" for name in sorted(values))


def _plain(value: object) -> object:
    readers: Mapping[type, Callable[[Any], object]] = {Decimal: number, datetime: shown}
    return readers[type(value)](value)
