"""Every name that an application may import says what it does, and what each of its parameters means."""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module

import pytest

import otel_metering

NOT_FOR_APPLICATIONS = re.compile(r"otel_metering\.(cli|clock|contract|spool)\b|.*\._")
"""The command, whose interface is the command line; what the receiver shares; what is private."""


def public_modules() -> list[str]:
    modules = pkgutil.walk_packages(otel_metering.__path__, "otel_metering.")
    names = ["otel_metering", *(module.name for module in modules)]
    return [name for name in names if not NOT_FOR_APPLICATIONS.match(name)]


def public_names(module_name: str) -> Iterator[tuple[str, object]]:
    """Functions, classes and callable objects that the module defines, or lists in `__all__`."""
    module = import_module(module_name)
    listed = getattr(module, "__all__", None)
    for name, value in vars(module).items():
        is_offered = (
            name in listed
            if listed is not None
            else getattr(value, "__module__", "") == module_name
        )
        if is_offered and not name.startswith("_") and callable(value):
            if inspect.isclass(value) or inspect.isroutine(value):
                yield f"{module_name}.{name}", value
            elif type(value).__module__.startswith("otel_metering"):  # not an alias of a type
                yield f"{module_name}.{name}", type(value).__call__
                yield from public_members(f"{module_name}.{name}", type(value))


def public_members(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Itself, and the public methods and properties of a class of ours."""
    yield name, value
    if not inspect.isclass(value):
        return
    for member, _ in inspect.getmembers_static(value):
        owners = [base.__module__ for base in value.__mro__ if member in vars(base)]
        # What another package's class has as well is said there.
        is_ours = owners and all(owner.startswith("otel_metering") for owner in owners)
        if not member.startswith("_") and is_ours:
            found = getattr(value, member)
            if callable(found) or isinstance(found, property):
                yield f"{name}.{member}", found


def undocumented(name: str, value: object) -> list[str]:
    text = inspect.getdoc(value) or ""
    own = vars(value).get("__doc__") if inspect.isclass(value) else text
    if not own:
        return [f"{name} has no docstring"]
    return [
        f"{name} does not say what {parameter} is"
        for parameter in _parameters(value)
        if parameter not in ("self", "cls") and not _is_named(parameter, text)
    ]


def _parameters(value: object) -> list[str]:
    if inspect.isclass(value):
        # Not of what is only handed out, which has attributes, nor of dataclasses, whose fields do.
        text = inspect.getdoc(value) or ""
        is_for_us = "Attributes:" in text or is_dataclass(value) or "__init__" not in vars(value)
        if is_for_us and "Args:" not in text:
            return []
        return list(inspect.signature(value).parameters)
    return list(inspect.signature(value).parameters) if inspect.isroutine(value) else []


def _is_named(parameter: str, docstring: str) -> bool:
    """In a line of `Args:` or `Attributes:`, or in the text."""
    line = rf"^\s+\*{{0,2}}{parameter}(?: \([^)]*\))?:"
    return bool(re.search(line, docstring, re.M)) or f"`{parameter}`" in docstring


@pytest.mark.parametrize("module_name", public_modules())
def test_every_public_name_is_documented_with_its_parameters(module_name: str) -> None:
    assert import_module(module_name).__doc__
    missing = [
        line
        for offered in public_names(module_name)
        for member in public_members(*offered)
        for line in undocumented(*member)
    ]

    assert missing == []
