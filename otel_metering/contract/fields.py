"""Checked reading of a parsed document: each error says where, what is there, and what may be there."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from otel_metering.errors import DefinitionError

_E = TypeVar("_E", bound=StrEnum)

FieldPath = tuple[str | int, ...]
"""Keys and positions that lead to a value, from the top of the document."""

_MAX_SHOWN: Final = 64
"""Characters of a wrong value that an error repeats."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Fields:
    """One mapping of a document, with known keys only; a key that is there has a value.

    Attributes:
        values: What the mapping holds.
        path: Where it is.
    """

    values: Mapping[str, object]
    path: FieldPath

    @classmethod
    def of(cls, value: object, path: FieldPath, known: Collection[str]) -> "Fields":
        """Take `value` as a mapping of `known` keys.

        Raises:
            DefinitionError: It is no mapping, or a key is unknown or has no value.
        """
        for key, held in mapping(value, path).items():
            if key not in known:
                listed = ", ".join(sorted(known))
                raise wrong((*path, key), f"is no field; known here are {listed}")
            if held is None:
                raise wrong((*path, key), "has no value; give it one or remove it")
        return cls(mapping(value, path), path)

    def has(self, name: str) -> bool:
        """Whether `name` is there."""
        return name in self.values

    def get(self, name: str) -> object:
        """The value of `name`; None: it is not there."""
        return self.values.get(name)

    def text(self, name: str) -> str | None:
        """The text of `name`; None: it is not there.

        Raises:
            DefinitionError: It is no text, or empty.
        """
        value = self.get(name)
        return None if value is None else text(value, (*self.path, name))

    def choice(self, kind: type[_E], name: str) -> _E | None:
        """The member of `kind` that `name` holds; None: it is not there.

        Raises:
            DefinitionError: It is no member.
        """
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in list(kind):
            raise self.wrong(name, f"is {shown(value)}; it must be one of {', '.join(kind)}")
        return kind(value)

    def names(self, name: str) -> tuple[str, ...] | None:
        """The list of different texts that `name` holds, sorted; None: it is not there.

        Raises:
            DefinitionError: It is no list, an item is no text, or is there twice.
        """
        value = self.get(name)
        if value is None:
            return None
        path = (*self.path, name)
        found: list[str] = []
        for position, item in enumerate(sequence(value, path)):
            one = text(item, (*path, position))
            if one in found:
                raise wrong((*path, position), f"is {shown(one)} a second time; remove it")
            found.append(one)
        return tuple(sorted(found))

    def wrong(self, name: str, problem: str) -> DefinitionError:
        """An error about `name`."""
        return wrong((*self.path, name), problem)


def mapping(value: object, path: FieldPath) -> Mapping[str, object]:
    """Return `value` if it is a mapping whose keys are texts.

    Raises:
        DefinitionError: It is not.
    """
    if not isinstance(value, Mapping):
        raise wrong(path, f"is {shown(value)}; it must be a mapping, `name: value` on each line")
    for key in value:
        if not isinstance(key, str) or not key:
            raise wrong(path, f"has the name {shown(key)}, which is no text; put it in quotes")
    return value


def sequence(value: object, path: FieldPath) -> Sequence[object]:
    """Return `value` if it is a list.

    Raises:
        DefinitionError: It is not.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise wrong(path, f"is {shown(value)}; it must be a list, `- item` on each line")
    return value


def text(value: object, path: FieldPath) -> str:
    """Return `value` if it is text, and not empty.

    Raises:
        DefinitionError: It is not.
    """
    if isinstance(value, str) and value:
        return value
    raise wrong(path, f"is {shown(value)}; it must be text" + (", in quotes" if value else ""))


def wrong(path: FieldPath, problem: str) -> DefinitionError:
    """An error that says where, and `problem`."""
    return DefinitionError(path, f"{_show_path(path)} {problem}")


def shown(value: object) -> str:
    """`value` as an error repeats it: briefly, on one line."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            return repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "...")
        case int() | float():
            return f"the number {value}"
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def _show_path(path: FieldPath) -> str:
    parts = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif _PLAIN_KEY.fullmatch(part):
            parts.append(f".{part}")
        else:
            parts.append(f"[{shown(part)}]")
    return "".join(parts).removeprefix(".") or "the document"
