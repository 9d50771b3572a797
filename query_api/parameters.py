"""Query parameters beyond what a model can say: no unknown or double names, and `filter[name]=value`.

A misspelt `tenant_id` must not become an answer about all tenants.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import Request
from pydantic import BaseModel

from otel_metering.errors import InvalidUsageError
from query_api.filters import Filter, Operator

MAX_FILTERS: Final = 16
"""Names that may be filtered by at once."""

_REPEATABLE: Final = frozenset({"group_by"})

_CONDITION: Final = re.compile(r"(filter|attribute)\[(.*?)\](?:\[(prefix|not)\])?", re.DOTALL)

Filters = Mapping[str, list[str]]
"""Name → the values it may have."""


def only(model: type[BaseModel]) -> Callable[[Request], Awaitable[None]]:
    """A dependency: the request has no parameters beside the fields of `model`."""
    known = _names(model)

    async def check(request: Request) -> None:
        _check_names([name for name, _ in request.query_params.multi_items()], known)

    return check


def filters_beside(model: type[BaseModel]) -> Callable[[Request], Awaitable[Filters]]:
    """A dependency: the filters of a request whose other parameters are the fields of `model`."""
    known = _names(model)

    async def read(request: Request) -> Filters:
        filters: dict[str, list[str]] = {}
        others: list[str] = []
        for name, value in request.query_params.multi_items():
            if name.startswith("filter[") and name.endswith("]"):
                filters.setdefault(name[len("filter[") : -1], []).append(value)
            else:
                others.append(name)
        _check_names(others, known, "filter[name]")
        if len(filters) > MAX_FILTERS:
            raise InvalidUsageError(
                f"{len(filters)} names are filtered by; at most {MAX_FILTERS} may"
            )
        return filters

    return read


def conditions_beside(
    model: type[BaseModel],
) -> Callable[[Request], Awaitable[tuple[Filter, ...]]]:
    """A dependency: all filters of a request whose other parameters are the fields of `model`.

    They are `filter[name]=value` and `attribute[name]=value`, the same with `[prefix]` or `[not]` behind.
    """
    known = _names(model)

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


def conditions_doc() -> dict[str, object]:
    """OpenAPI of what `conditions_beside` reads."""
    about = {
        "filter": "`filter[region]=eu`: only usage with this dimension. Repeated: any of the values. "
        "`filter[region][prefix]=eu-`: one that begins so. `filter[region][not]=eu`: none of these. "
        "Several filters: all of them.",
        "attribute": "The same with attributes as they were sent; the answer is then read from the events.",
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


def filter_doc(what: str) -> dict[str, object]:
    """OpenAPI of `filter[name]=value`."""
    return {
        "parameters": [
            {
                "name": "filter",
                "in": "query",
                "style": "deepObject",
                "explode": True,
                "description": f"`filter[region]=eu`: only usage with this {what}. Repeated: any of "
                "the values. Several names: all of them.",
                "schema": {"type": "object", "additionalProperties": {"type": "string"}},
                "example": {"region": "eu"},
            }
        ]
    }


def _names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _check_names(names: list[str], known: frozenset[str], *also: str) -> None:
    for name in names:
        if name not in known:
            raise InvalidUsageError(
                f"parameter {name!r} is unknown; known are {', '.join([*sorted(known), *also])}"
            )
        if name not in _REPEATABLE and names.count(name) > 1:
            raise InvalidUsageError(f"parameter {name} is given twice; give it once")
