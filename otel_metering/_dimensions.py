"""Attributes, as an application gives them, as dimensions: checked, typed, in one order.

No attribute may cost its usage, or its neighbours in a request: what cannot be sent as it is, is sent
as near to it as possible.
"""

import math
from collections.abc import Mapping
from typing import Final

from otel_metering._guard import Problem, problems
from otel_metering._shared import shared
from otel_metering.contract.attributes import EVENT_ID, QUANTITY, QUANTITY_SCALE, TENANT_ID

Value = str | bool | int | float

Dimension = tuple[str, str, Value]
"""(name, type, value). The type keeps apart what Python holds equal: True, 1 and 1.0."""

Dimensions = tuple[Dimension, ...]
"""Sorted by name; names are unique."""

MAX_ATTRIBUTES: Final = 64
"""More than any price list has, few enough for 2,000 points in one request."""

MAX_TEXT_LENGTH: Final = 1024
"""Characters of a value; the rest is cut off."""

_OURS = frozenset({TENANT_ID, EVENT_ID, QUANTITY, QUANTITY_SCALE})
_INT64 = 2**63


def dimensions_of(attributes: Mapping[str, object] | None) -> Dimensions:
    """Return what `attributes` mean, the same for every order they can be in.

    str, bool, int and float keep their type. None is left out. Other values become text, as do integers
    beyond 64 bits and NaN.
    """
    if not attributes:
        return ()
    named = {_text(str(name)): value for name, value in attributes.items() if value is not None}
    kept = {name: named[name] for name in sorted(named) if name and name not in _OURS}
    if len(kept) < len(named) or len(kept) > MAX_ATTRIBUTES:
        problems.report(
            Problem.IGNORED_ATTRIBUTES,
            f"attributes may be {MAX_ATTRIBUTES}, without {', '.join(sorted(_OURS))}",
        )
    found = [_dimension(name, kept[name]) for name in list(kept)[:MAX_ATTRIBUTES]]
    return shared(tuple(map(shared, found)))


def _dimension(name: str, value: object) -> Dimension:
    if isinstance(value, bool):
        return name, "bool", value
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return name, "int", int(value)
    if isinstance(value, float) and not math.isnan(value):
        return name, "float", float(value)
    # str.__str__, because str() of an enum member is its name.
    return name, "str", _text(str.__str__(value) if isinstance(value, str) else str(value))


def _text(text: str) -> str:
    if type(text) is str and len(text) <= MAX_TEXT_LENGTH and text.isascii():
        return text  # no copy: thousands of series share their values
    # A lone surrogate cannot be encoded, and would make the whole request impossible to build.
    return text[:MAX_TEXT_LENGTH].encode("utf-8", "replace").decode()
