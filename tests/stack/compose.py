"""`docker-compose.yml` as a container of it sees it; enough of the specification for this file."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "docker-compose.yml"
EXAMPLE = REPOSITORY / ".env.example"
PROFILES = ("server", "embedded")

_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::-([^}]*))?\}")


def variables() -> dict[str, str]:
    """Each variable that the file takes from `.env`, with its default."""
    found: dict[str, str] = {}
    for match in _VARIABLE.finditer(FILE.read_text()):
        if match[1] is not None:
            assert match[2] is not None, f"{match[1]} has no default"
            assert found.setdefault(match[1], match[2]) == match[2], f"{match[1]} has two defaults"
    return found


def example() -> dict[str, str]:
    """What `.env.example` sets, without what it has as a comment."""
    lines = re.findall(r"^(\w+)=(.*)$", EXAMPLE.read_text(), re.M)
    assert len(dict(lines)) == len(lines), "one is set twice"
    return dict(lines)


def services(profile: str) -> dict[str, dict[str, Any]]:
    """Name -> service, of a profile, with the default of every variable."""
    return {name: one for name, one in _loaded()["services"].items() if profile in one["profiles"]}


def every_service() -> dict[str, dict[str, Any]]:
    """Of both profiles."""
    return {name: one for profile in PROFILES for name, one in services(profile).items()}


def top(kind: str) -> dict[str, Any]:
    """`volumes`, `secrets`: what is declared for all services."""
    declared = _loaded()[kind]
    assert isinstance(declared, dict)
    return declared


def mounts(service: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(source, target) of its volumes."""
    return [tuple(one.split(":")[:2]) for one in service.get("volumes", [])]


@cache
def _loaded() -> dict[str, Any]:
    loaded = _interpolated(yaml.safe_load(FILE.read_text()))
    assert isinstance(loaded, dict)
    return loaded


def _interpolated(value: Any) -> Any:
    """With defaults in the place of variables: in values that are read already, which stay texts."""
    match value:
        case dict():
            return {name: _interpolated(one) for name, one in value.items()}
        case list():
            return [_interpolated(one) for one in value]
        case str():
            return _VARIABLE.sub(lambda one: "$" if one[1] is None else one[2], value)
        case _:
            return value
