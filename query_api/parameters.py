"""Query parameters beyond what a model can say: no unknown or double names, and `filter[name]=value`.

A misspelt `tenant_id` must not become an answer about all tenants.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import Request
from pydantic import BaseModel

from otel_metering.errors import InvalidUsageError

MAX_FILTERS: Final = 16
"""Names that may be filtered by at once."""

_REPEATABLE: Final = frozenset({"group_by"})

Filters = Mapping[str, list[str]]
"""Name → the values it may have."""


def only(model: type[BaseModel]) -> Callable[[Request], Awaitable[None]]:
    """A dependency: the request has no parameters beside the fields of `model`."""
    known = names_of(model)

    async def check(request: Request) -> None:
        check_names([name for name, _ in request.query_params.multi_items()], known)

    return check


def filters_beside(model: type[BaseModel]) -> Callable[[Request], Awaitable[Filters]]:
    """A dependency: the filters of a request whose other parameters are the fields of `model`."""
    known = names_of(model)

    async def read(request: Request) -> Filters:
        filters: dict[str, list[str]] = {}
        others: list[str] = []
        for name, value in request.query_params.multi_items():
            if name.startswith("filter[") and name.endswith("]"):
                filters.setdefault(name[len("filter[") : -1], []).append(value)
            else:
                others.append(name)
        check_names(others, known, "filter[name]")
        if len(filters) > MAX_FILTERS:
            raise InvalidUsageError(
                f"{len(filters)} names are filtered by; at most {MAX_FILTERS} may"
            )
        return filters

    return read


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


def names_of(model: type[BaseModel]) -> frozenset[str]:
    """The parameters that are the fields of `model`."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def check_names(names: list[str], known: frozenset[str], *also: str) -> None:
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
