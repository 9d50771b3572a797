"""Requests made from the OpenAPI document: every operation, every place where a text can stand."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote

import httpx

from query_api.document import operations

TEXT_PARTS: Final = ("anyOf", "oneOf", "allOf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to one operation.

    Attributes:
        method: In capitals.
        path: With `{names}`.
        places: Of each name in the path, what stands there.
        query: Names and values.
        body: JSON; None: none.
        media_type: Of the body.
    """

    method: str
    path: str
    places: Mapping[str, str] = field(default_factory=dict)
    query: tuple[tuple[str, str], ...] = ()
    body: Any = None
    media_type: str = "application/json"

    def send(self, client: httpx.Client) -> httpx.Response:
        """The answer of `client`'s server."""
        path = self.path
        for name, value in self.places.items():
            path = path.replace("{" + name + "}", quote(value, safe="") or "%20")
        if self.body is None:
            return client.request(self.method, path, params=list(self.query))
        return client.request(
            self.method,
            path,
            params=list(self.query),
            content=as_json(self.body),
            headers={"content-type": self.media_type},
        )

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.places} {self.query} {self.body}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of the document.

    Attributes:
        method: In capitals.
        path: With `{names}`.
        id: Its operation id.
        path_names: Names in the path.
        query_names: Names of query parameters that are texts; `filter[x]` for an object.
        bodies: (media type, example) of each body that it takes.
        body_names: Names of members of its bodies that are texts, at any depth.
    """

    method: str
    path: str
    id: str
    path_names: tuple[str, ...]
    query_names: tuple[str, ...]
    bodies: tuple[tuple[str, Any], ...]
    body_names: frozenset[str]

    def call(self, values: Mapping[str, str]) -> Call:
        """The plainest request: only what it needs; names in the path from `values`."""
        media_type, body = self.bodies[0] if self.bodies else ("application/json", None)
        return Call(
            method=self.method,
            path=self.path,
            places={name: values.get(name, "x") for name in self.path_names},
            body=deepcopy(body),
            media_type=media_type,
        )


def read_operations(document: dict[str, Any]) -> list[Operation]:
    """Every operation of an OpenAPI document."""
    found = []
    for (method, path), item in operations(document).items():
        parameters = item.get("parameters", [])
        content = item.get("requestBody", {}).get("content", {})
        found.append(
            Operation(
                method=method,
                path=path,
                id=item["operationId"],
                path_names=tuple(one["name"] for one in parameters if one["in"] == "path"),
                query_names=tuple(
                    name
                    for one in parameters
                    if one["in"] == "query"
                    for name in _texts(one, document)
                ),
                bodies=tuple(_bodies(content, document)),
                body_names=frozenset(
                    name
                    for one in content.values()
                    for name in _member_names(one["schema"], document, set())
                ),
            )
        )
    return found


def substitutions(body: Any, name: str, value: Any) -> Any:
    """`body` with `value` as each member of this name, also where the example has none at the top."""
    changed = _replaced(body, name, value)
    if changed == body and isinstance(body, dict):
        return {**body, name: value}
    if changed == body and isinstance(body, list) and body and isinstance(body[0], dict):
        return [{**body[0], name: value}, *body[1:]]
    return changed


def variants(operation: Operation, values: Mapping[str, str]) -> Iterator[Call]:
    """The plainest request; one with each of `values` in its place; one with all of them."""
    plain = operation.call(values)
    yield plain
    names = [name for name in operation.query_names if plain_name(name) in values]
    for name in names:
        yield replace(plain, query=((name, values[plain_name(name)]),))
    yield replace(plain, query=tuple((name, values[plain_name(name)]) for name in names))
    for media_type, example in operation.bodies:
        body = deepcopy(example)
        for name in sorted(operation.body_names & values.keys()):
            yield replace(
                plain, media_type=media_type, body=substitutions(example, name, values[name])
            )
            body = substitutions(body, name, values[name])
        yield replace(plain, media_type=media_type, body=body)


def plain_name(name: str) -> str:
    """`filter[x]` → `filter`."""
    return name.partition("[")[0]


def as_json(value: Any) -> bytes:
    """JSON in which any text can stand, half surrogates included."""
    import json

    return json.dumps(value).encode()


def _texts(parameter: dict[str, Any], document: dict[str, Any]) -> list[str]:
    if parameter.get("style") == "deepObject":
        return [f"{parameter['name']}[region]"]
    return [parameter["name"]] if _is_text(parameter["schema"], document, set()) else []


def _is_text(schema: dict[str, Any], document: dict[str, Any], seen: set[str]) -> bool:
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        return name not in seen and _is_text(
            document["components"]["schemas"][name], document, seen | {name}
        )
    if schema.get("type") == "string":
        return "enum" not in schema and "const" not in schema
    if schema.get("type") == "array":
        return _is_text(schema.get("items", {}), document, seen)
    return any(_is_text(one, document, seen) for part in TEXT_PARTS for one in schema.get(part, []))


def _member_names(schema: dict[str, Any], document: dict[str, Any], seen: set[str]) -> set[str]:
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        inner = document["components"]["schemas"][name]
        return set() if name in seen else _member_names(inner, document, seen | {name})
    found: set[str] = set()
    for member, inner in schema.get("properties", {}).items():
        if _is_text(inner, document, set()) or inner.get("type") == "object":
            found.add(member)
        found |= _member_names(inner, document, seen)
    for inner in [schema.get("items", {}), *(one for p in TEXT_PARTS for one in schema.get(p, []))]:
        if isinstance(inner, dict) and inner:
            found |= _member_names(inner, document, seen)
    return found


def _bodies(content: dict[str, Any], document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for media_type, one in content.items():
        examples = one.get("examples", {})
        if "example" in one:
            yield media_type, one["example"]
        for example in examples.values():
            yield media_type, example["value"]
        if "example" not in one and not examples:
            yield from ((media_type, example) for example in _examples(one["schema"], document))


def _examples(schema: dict[str, Any], document: dict[str, Any]) -> list[Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        return _examples(document["components"]["schemas"][name], document)
    if "example" in schema:
        return [schema["example"]]
    if "examples" in schema:
        return list(schema["examples"])
    return [
        found
        for part in TEXT_PARTS
        for one in schema.get(part, [])
        for found in _examples(one, document)
    ]


def _replaced(body: Any, name: str, value: Any) -> Any:
    if isinstance(body, list):
        return [_replaced(one, name, value) for one in body]
    if not isinstance(body, dict):
        return body
    return {
        key: _like(inner, value) if key == name else _replaced(inner, name, value)
        for key, inner in body.items()
    }


def _like(before: Any, value: Any) -> Any:
    """`value` where `before` stood: in a list if that was one, as a member if that was an object."""
    if isinstance(before, list):
        return [value]
    if isinstance(before, dict):
        return {"region": value, **({str(value): "x"} if value else {})}
    return value
