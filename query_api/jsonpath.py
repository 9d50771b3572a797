"""The part of JSONPath (RFC 9535) that leads to one value: `$.a.b`, `$['x.y']`, `$.list[0]`.

Whatever may stand for several values (wildcards, slices, filters, `..`) is refused, because a meter takes
one value of an event.
"""

import re
from collections.abc import Mapping
from typing import Final

from otel_metering.errors import InvalidUsageError

MAX_LENGTH: Final = 256
"""Characters of a path."""

_SEGMENT: Final = re.compile(
    r"""
      \.(?P<name>[A-Za-z_\u0080-\U0010FFFF][A-Za-z0-9_\u0080-\U0010FFFF-]*)
    | \[\s*(?P<index>0|[1-9][0-9]{0,8})\s*\]
    | \[\s*'(?P<single>(?:[^'\\]|\\['\\/])*)'\s*\]
    | \[\s*"(?P<double>(?:[^"\\]|\\["\\/])*)"\s*\]
    """,
    re.VERBOSE,
)
_UNSUPPORTED: Final = (
    ("..", "descendants (..)"),
    (".*", "wildcards (*)"),
    ("[*", "wildcards (*)"),
    ("[?", "filters (?)"),
    ("[-", "indexes from the end"),
    (":", "slices (:)"),
    (",", "several selectors (,)"),
)

Path = tuple[str | int, ...]
"""Names of members and places in lists, from the root."""


def parse_path(text: str) -> Path:
    """Read a path.

    Raises:
        InvalidUsageError: It is none, or could lead to several values.
    """
    if not 0 < len(text) <= MAX_LENGTH:
        raise InvalidUsageError(
            f"the JSONPath has {len(text)} characters; 1 to {MAX_LENGTH} are allowed"
        )
    if not text.startswith("$"):
        raise InvalidUsageError(
            f"the JSONPath {text!r} does not begin with $; write it like $.tokens"
        )
    path: list[str | int] = []
    position = 1
    while position < len(text):
        match = _SEGMENT.match(text, position)
        if match is None:
            raise _refusal(text, position)
        path.append(_selector(match))
        position = match.end()
    return tuple(path)


def find(path: Path, document: object) -> object:
    """The value at `path`; None: there is none, or it is null."""
    for part in path:
        if isinstance(part, str):
            document = document.get(part) if isinstance(document, Mapping) else None
        else:
            is_there = isinstance(document, list) and part < len(document)
            document = document[part] if is_there and isinstance(document, list) else None
    return document


def place(path: Path, document: dict[str, object], value: object) -> None:
    """Put `value` into `document` at `path`, for the inverse of `find`; members of lists are left out."""
    if not path or not all(isinstance(part, str) for part in path):
        return
    inner: dict[str, object] = document
    *parents, last = (str(part) for part in path)
    for name in parents:
        below = inner.setdefault(name, {})
        if not isinstance(below, dict):
            return
        inner = below
    inner.setdefault(last, value)


def _selector(match: re.Match[str]) -> str | int:
    if match["index"] is not None:
        return int(match["index"])
    if match["name"] is not None:
        return match["name"]
    quoted = match["single"] if match["single"] is not None else match["double"]
    return re.sub(r"\\(.)", r"\1", quoted)


def _refusal(text: str, position: int) -> InvalidUsageError:
    rest = text[position:]
    for sign, name in _UNSUPPORTED:
        if rest.startswith(sign) or (rest.startswith("[") and sign in rest.partition("]")[0]):
            return InvalidUsageError(
                f"the JSONPath {text!r} has {name}, and a meter takes one value; "
                "name each member, like $.usage.tokens"
            )
    return InvalidUsageError(
        f"the JSONPath {text!r} cannot be read at character {position + 1}; write it like "
        "$.usage.tokens, $['a name'] or $.list[0]"
    )
