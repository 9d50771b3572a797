"""Patterns for names, and conditions on attributes, as `meters.yaml` writes them.

Attributes are compared as the text that the receiver shows of them: text as it is, `true` and `false`,
numbers in decimal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from otel_metering.contract.fields import FieldPath, mapping, shown, wrong

_EXACT_BELOW: Final = 2**53
"""Integers below it are the same number as a double."""


def matches_pattern(text: str, pattern: str) -> bool:
    """Whether `text` is `pattern`, in which `*` stands for any text and `?` for any character."""
    # Brackets, which fnmatch takes for a set of characters, are just themselves here.
    return fnmatchcase(text, pattern.replace("[", "[[]"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What one attribute has to be.

    Attributes:
        attribute: Its name.
        patterns: It may be any of these.
        may_be_absent: Whether it may also be missing; with no patterns, it must be.
    """

    attribute: str
    patterns: tuple[str, ...] = ()
    may_be_absent: bool = False

    def holds(self, text: str | None) -> bool:
        """Whether it holds for an attribute shown as `text`; None: the attribute is missing."""
        if text is None:
            return self.may_be_absent
        return any(matches_pattern(text, pattern) for pattern in self.patterns)


def parse_conditions(value: object, path: FieldPath) -> tuple[Condition, ...]:
    """Check a `where`: attribute name -> what it has to be. Sorted by attribute.

    Raises:
        DefinitionError: It is no such mapping, or says nothing.
    """
    found = mapping(value, path)
    if not found:
        raise wrong(path, "has no conditions; write some or remove it")
    return tuple(_condition(name, found[name], (*path, name)) for name in sorted(found))


def _condition(attribute: str, value: object, path: FieldPath) -> Condition:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        allowed = [(value, path)]
    elif value:
        allowed = [(item, (*path, position)) for position, item in enumerate(value)]
    else:
        raise wrong(path, "is an empty list, which nothing fits; list what it may be")
    return Condition(
        attribute=attribute,
        patterns=tuple(
            pattern
            for item, where in allowed
            if item is not None
            for pattern in _texts(item, where)
        ),
        may_be_absent=any(item is None for item, _ in allowed),
    )


def _texts(value: object, path: FieldPath) -> tuple[str, ...]:
    """The texts that an attribute of this value can be shown as."""
    match value:
        case bool():
            return (str(value).lower(),)
        case str():
            return (value,)
        case int():
            return _texts_of_int(value)
        case float() if math.isfinite(value):
            # 200 and 200.0 are one number, and whether a sender has it as an integer is chance.
            return _texts_of_int(int(value)) if value.is_integer() else (repr(value),)
        case _:
            raise wrong(
                path,
                f"is {shown(value)}; it must be a text, a number, true, false, null (absent), "
                "or a list of these",
            )


def _texts_of_int(value: int) -> tuple[str, ...]:
    if abs(value) < _EXACT_BELOW:
        return (str(value), repr(float(value)))
    return (str(value),)
