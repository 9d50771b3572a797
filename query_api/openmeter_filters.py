"""`filterGroupBy` and `advancedMeterGroupByFilters` in every form that clients send."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import TypeAdapter, ValidationError

from otel_metering.errors import InvalidUsageError
from query_api.openmeter_schemas import AdvancedFilter

MAX_FILTERS: Final = 16
"""Names that may be filtered by at once."""

MAX_LENGTH: Final = 8_192
"""Characters of a filter."""

NAME: Final = "filterGroupBy"

Filters = dict[str, list[str]]

_ADVANCED: Final = TypeAdapter(dict[str, AdvancedFilter])


def read_filters(parameters: Sequence[tuple[str, str]]) -> Filters:
    """Filters of a query string: `filterGroupBy[region]=eu`, or one object as its value.

    The published Python client writes the object as Python does, in single quotes; JSON is taken as well.

    Raises:
        InvalidUsageError: One cannot be read, or there are too many.
    """
    found: Filters = {}
    for name, value in parameters:
        if name == NAME:
            for key, text in _object(value).items():
                found.setdefault(key, []).append(text)
        elif name.startswith(f"{NAME}[") and name.endswith("]"):
            found.setdefault(name[len(NAME) + 1 : -1], []).append(value)
    return checked(found)


def read_advanced(text: str | None) -> Mapping[str, AdvancedFilter]:
    """The conditions of `advancedMeterGroupByFilters`, JSON.

    Raises:
        InvalidUsageError: It cannot be read.
    """
    if text is None:
        return {}
    try:
        return _ADVANCED.validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise InvalidUsageError(
            f"advancedMeterGroupByFilters {place}: {fault['msg']}; only $eq and $in are supported"
        ) from None


def joined(simple: Mapping[str, Sequence[str]], advanced: Mapping[str, AdvancedFilter]) -> Filters:
    """Both together: an event must pass all of them.

    Raises:
        InvalidUsageError: A condition says not exactly one thing, or there are too many.
    """
    found = {name: list(values) for name, values in simple.items()}
    for name, condition in advanced.items():
        if (condition.eq is None) == (condition.in_ is None):
            raise InvalidUsageError(
                f"advancedMeterGroupByFilters {name[:128]}: give either $eq or $in"
            )
        values = [condition.eq] if condition.eq is not None else list(condition.in_ or ())
        found[name] = [one for one in found.get(name, values) if one in values]
    return checked(found)


def checked(filters: Filters) -> Filters:
    """Return `filters` if there are not too many.

    Raises:
        InvalidUsageError: There are.
    """
    if len(filters) > MAX_FILTERS:
        raise InvalidUsageError(f"{len(filters)} names are filtered by; at most {MAX_FILTERS} may")
    return filters


def _object(text: str) -> dict[str, str]:
    problem = InvalidUsageError(
        f"{NAME} is no object of names and texts; write {NAME}[region]=eu for each name"
    )
    if len(text) > MAX_LENGTH:
        raise problem
    try:
        value = json.loads(text) if '"' in text[:2] else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise problem from None
    if not isinstance(value, dict):
        raise problem
    if not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise problem
    return value
