"""Filters: which dimensions, or attributes, usage must have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Operator(StrEnum):
    """How a value is compared with those of a filter."""

    IS = "is"
    """It is one of them."""
    PREFIX = "prefix"
    """It begins with one of them."""
    NOT = "not"
    """It is none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One condition; usage must fulfil all.

    Attributes:
        name: Of a dimension, or of an attribute; an event without it has the empty text.
        values: What is compared with.
        operator: How.
        is_attribute: Whether `name` is an attribute as it was sent: only events have them.
    """

    name: str
    values: tuple[str, ...]
    operator: Operator = Operator.IS
    is_attribute: bool = False


def condition(operator: Operator, value: str, values: str) -> str:
    """The condition in SQL, of the SQL of a value and of that of the filter's values."""
    if operator is Operator.PREFIX:
        return f"arrayExists(start -> startsWith({value}, start), {values})"
    return f"{'NOT ' if operator is Operator.NOT else ''}has({values}, {value})"


def any_of(values: Mapping[str, Sequence[str]]) -> tuple[Filter, ...]:
    """Filters by dimensions: each must be one of the values given for it."""
    return tuple(Filter(name=name, values=tuple(found)) for name, found in values.items())
