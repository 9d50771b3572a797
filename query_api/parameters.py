"""Query parameters beyond what a model can say: no unknown or double names, and `filter[name]=value`.

A misspelt `tenant_id` must not become an answer about all tenants.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request
from pydantic import BaseModel

from otel_metering.errors import InvalidUsageError
from query_api.filters import Filter, Operator

MAX_FILTERS: Final = 16
"""Names that may be filtered by at once."""

MAX_VALUES: Final = 100
"""Values of one condition."""

_REPEATABLE: Final = frozenset({"group_by"})

_CONDITION: Final = re.compile(r"(filter|attribute)\[(.*?)\](?:\[(prefix|not)\])?", re.DOTALL)


def only(model: type[BaseModel]) -> Callable[[Request], Awaitable[None]]:
    """A dependency: the request has no parameters beside the fields of `model`."""
    known = _names_of(model)

    async def check(request: Request) -> None:
        _check_names([name for name, _ in request.query_params.multi_items()], known)

    return check


def conditions_beside(
    model: type[BaseModel],
) -> Callable[[Request], Awaitable[tuple[Filter, ...]]]:
    """A dependency: all filters of a request whose other parameters are the fields of `model`.

    They are `filter[name]=value` and `attribute[name]=value`, the same with `[prefix]` or `[not]` behind.
    """
    known = _names_of(model)

    async def read(request: Request) -> tuple[Filter, ...]:
        found: dict[tuple[str, str, Operator], list[str]] = {}
        others: list[str] = []
        for parameter, value in request.query_params.multi_items():
            match = _CONDITION.fullmatch(parameter)
            if match is None:
                others.append(parameter)
                continue
            kind, name, operator = match[1], match[2], Operator(match[3] or Operator.IS)
            if "][" in name:
                raise InvalidUsageError(
                    f"parameter {parameter[:128]!r} has an unknown operator; it may be [prefix] or [not]"
                )
            found.setdefault((kind, name, operator), []).append(value)
        _check_names(others, known, "filter[name]", "attribute[name]")
        if len(found) > MAX_FILTERS:
            raise InvalidUsageError(f"there are {len(found)} filters; at most {MAX_FILTERS} may be")
        for (kind, name, _), values in found.items():
            if len(values) > MAX_VALUES:
                raise InvalidUsageError(
                    f"{kind}[{name[:128]}] has {len(values)} values; at most {MAX_VALUES} may be given"
                )
        return tuple(
            Filter(
                name=name,
                values=tuple(values),
                operator=operator,
                is_attribute=kind == "attribute",
            )
            for (kind, name, operator), values in found.items()
        )

    return read


def conditions_doc(*, of_events: bool = False) -> dict[str, object]:
    """OpenAPI of what `conditions_beside` reads; `of_events`: `filter` is about attributes as well."""
    what = "attribute" if of_events else "dimension"
    about = {
        "filter": f"`filter[region]=eu`: only usage with this {what}. Repeated: any of the values. "
        "`filter[region][prefix]=eu-`: one that begins so. `filter[region][not]=eu`: none of these. "
        "Several filters: all of them.",
        "attribute": "The same as filter."
        if of_events
        else "The same with attributes as they were sent; the answer is then read from the events.",
    }
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "style": "deepObject",
                "explode": True,
                "description": description,
                "schema": {"type": "object", "additionalProperties": {"type": "string"}},
                "example": {"region": "eu"},
            }
            for name, description in about.items()
        ]
    }


def _names_of(model: type[BaseModel]) -> frozenset[str]:
    """The parameters that are the fields of `model`."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _check_names(names: list[str], known: frozenset[str], *also: str) -> None:
    """Refuse names that are not known, or stand twice.

    Raises:
        InvalidUsageError: Names the parameter, and those that are known.
    """
    for name in names:
        if name not in known:
            raise InvalidUsageError(
                f"parameter {name!r} is unknown; known are {', '.join([*sorted(known), *also])}"
            )
        if name not in _REPEATABLE and names.count(name) > 1:
            raise InvalidUsageError(f"parameter {name} is given twice; give it once")
