"""Templates of routes, out of what Starlette, FastAPI and Litestar leave in the ASGI scope.

Nothing of these frameworks is imported; whatever is not as expected means that the route is not known.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

_MAX_KNOWN: Final = 1024
_REST: Final = "/{path}"
"""How the template of Starlette's `Mount` ends."""

_known: dict[str, tuple[object, str]] = {}
"""Prefix that a request was mounted at -> the router that has it, and its template, which is equal."""


def route_of(scope: Mapping[str, Any]) -> str | None:
    """The template of the route that `scope` was routed to, from the outermost application on.

    None: not routed yet, to nothing (404), or by a framework that does not say. Never the path itself.
    """
    template = scope.get("path_template")  # of Litestar, empty in a mount
    if template:
        return str(template)
    template = _last_template(scope)
    root = scope.get("root_path", "")
    # Set by the first mount; what comes before is the server's.
    server_root = scope.get("app_root_path", root)
    if template is None or root == server_root:
        return template
    prefix = _prefix_template(scope.get("router"), root[len(server_root) :])
    return None if prefix is None else prefix + template


def _last_template(scope: Mapping[str, Any]) -> str | None:
    """The template of the innermost route, without the mounts that led to it."""
    route = scope.get("route")
    context = scope["fastapi"].get("effective_route_context") if "fastapi" in scope else None
    if context is not None:
        # FastAPI: the route of an included router does not know the router's prefix.
        own = getattr(context, "starlette_route", None) or context
        if route is None or getattr(context, "original_route", None) is route:
            return None if _is_mount(own) else getattr(own, "path_format", None)
    if _is_mount(route):
        # What is mounted is opaque, such as static files; else it would have had a route, or had none.
        return None if getattr(route, "routes", None) else _REST
    return getattr(route, "path_format", None)


def _is_mount(route: object) -> bool:
    return str(getattr(route, "path_format", "")).endswith(_REST) and hasattr(route, "app")


def _prefix_template(router: object, prefix: str) -> str | None:
    """The template of the mounts that `prefix` was matched by; None: they cannot be found."""
    known = _known.get(prefix)
    if known is not None and known[0] is router:
        return known[1]
    found = _mounted_at(getattr(router, "routes", ()), prefix)
    # Without parameters in it there are only so many prefixes.
    if found == prefix and len(_known) < _MAX_KNOWN:
        _known[prefix] = (router, found)
    return found


def _mounted_at(routes: Iterable[object], prefix: str) -> str | None:
    if not prefix:
        return ""
    for route in _spread(routes):
        if not _is_mount(route):
            # A sub-application chosen by host adds nothing to the path.
            inside = getattr(route, "routes", ()) if hasattr(route, "host_regex") else ()
            found = _mounted_at(inside, prefix) if inside else None
        else:
            found = _inside(route, prefix)
        if found is not None:
            return found
    return None


def _inside(mount: Any, prefix: str) -> str | None:  # noqa: ANN401 -- of Starlette
    matched = mount.path_regex.match(f"{prefix}/")
    if matched is None:
        return None
    rest = prefix[len(prefix) + 1 - len(matched["path"]) - 1 :]
    found = _mounted_at(mount.routes, rest)
    return None if found is None else mount.path_format.removesuffix(_REST) + found


def _spread(routes: Iterable[object]) -> Iterable[object]:
    """Routes, with those of FastAPI's included routers in their place."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield getattr(context, "starlette_route", None) or context
