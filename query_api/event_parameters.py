"""Conditions on attributes of events, from query parameters.

`filter[region]=eu` (repeated: any of them), `filter[region][prefix]=eu-` (any of them),
`filter[region][not]=eu` (none of them); `attribute[region]` says the same.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request
from pydantic import BaseModel

from otel_metering.errors import InvalidUsageError
from query_api.filters import Filter, Operator
from query_api.parameters import MAX_FILTERS, check_names, names_of

MAX_VALUES: Final = 100
"""Values of one condition."""

_CONDITION: Final = re.compile(r"(?:filter|attribute)\[(.*?)\](?:\[(prefix|not)\])?", re.DOTALL)


def conditions_beside(
    model: type[BaseModel],
) -> Callable[[Request], Awaitable[tuple[Filter, ...]]]:
    """A dependency: the conditions of a request whose other parameters are the fields of `model`."""
    known = names_of(model)

    async def read(request: Request) -> tuple[Filter, ...]:
        found: dict[tuple[str, Operator], list[str]] = {}
        others: list[str] = []
        for parameter, value in request.query_params.multi_items():
            match = _CONDITION.fullmatch(parameter)
            if match is None:
                others.append(parameter)
                continue
            if "][" in match[1]:
                raise InvalidUsageError(
                    f"parameter {parameter[:128]!r} has an unknown operator; it may be [prefix] or [not]"
                )
            found.setdefault((match[1], Operator(match[2] or Operator.IS)), []).append(value)
        check_names(others, known, "filter[name]")
        _check_counts({name: values for (name, _), values in found.items()}, len(found))
        return tuple(
            Filter(name=name, values=tuple(values), operator=operator)
            for (name, operator), values in found.items()
        )

    return read


def conditions_doc() -> dict[str, object]:
    """OpenAPI of what `conditions_beside` reads."""
    return {
        "parameters": [
            {
                "name": "filter",
                "in": "query",
                "style": "deepObject",
                "explode": True,
                "description": "`filter[region]=eu`: only events with this attribute. Repeated: any of the "
                "values. `filter[region][prefix]=eu-`: one that begins so. `filter[region][not]=eu`: none "
                "of these. Several names: all of them.",
                "schema": {"type": "object", "additionalProperties": {"type": "string"}},
                "example": {"region": "eu"},
            }
        ]
    }


def _check_counts(values: dict[str, list[str]], count: int) -> None:
    if count > MAX_FILTERS:
        raise InvalidUsageError(f"{count} names are filtered by; at most {MAX_FILTERS} may")
    for name, given in values.items():
        if len(given) > MAX_VALUES:
            raise InvalidUsageError(
                f"filter[{name[:128]}] has {len(given)} values; at most {MAX_VALUES} may be given"
            )
