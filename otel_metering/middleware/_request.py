"""A request as the sources of tenants see it, the same for every framework."""

from functools import lru_cache
from typing import Any


class Request:
    """One HTTP request or websocket handshake.

    Attributes:
        native: What the framework has: the ASGI scope, the WSGI environ, Flask's or Django's request.
    """

    __slots__ = ("native",)

    def __init__(self, native: Any) -> None:  # noqa: ANN401 -- each framework has its own
        self.native: Any = native

    def header(self, name: str) -> str | None:
        """The value of the header `name`, None if it was not sent; repeated ones are joined by commas."""
        raise NotImplementedError

    @property
    def method(self) -> str:
        """As it was sent, e.g. GET, which a websocket handshake is too."""
        raise NotImplementedError

    @property
    def path(self) -> str:
        """Decoded, from the root of the server on, without the query."""
        raise NotImplementedError

    @property
    def route(self) -> str | None:
        """Template of the route, e.g. /orders/{id}; None: the framework has not found it, or never will."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """The name the client asked for: lower case, without port; empty: it did not say."""
        host = (self.header("host") or "").strip().lower()
        if host.startswith("["):
            return host.partition("]")[0] + "]"
        return host.partition(":")[0].removesuffix(".")


class EnvironRequest(Request):
    """A request by its WSGI environ.

    Attributes:
        environ: Of PEP 3333.
    """

    __slots__ = ("_route", "environ")

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        self.environ = environ
        self._route: str | None = None

    def header(self, name: str) -> str | None:
        """The value of the header `name`, None if it was not sent; servers join repeated ones by commas."""
        value = self.environ.get(_environ_key(name))
        return None if value is None else str(value)

    @property
    def method(self) -> str:
        """As it was sent."""
        return str(self.environ["REQUEST_METHOD"])

    @property
    def path(self) -> str:
        """Decoded, from the root of the server on."""
        path = f"{self.environ.get('SCRIPT_NAME', '')}{self.environ.get('PATH_INFO', '')}"
        # PEP 3333: bytes in the guise of latin-1.
        return path.encode("latin-1", "replace").decode("utf-8", "replace")

    @property
    def route(self) -> str | None:
        """The rule of a werkzeug application, such as one of Flask; other frameworks do not say.

        It is remembered: Flask forgets it when its part is done, before a response is streamed.
        """
        if self._route is None:
            rule = getattr(self.environ.get("werkzeug.request"), "url_rule", None)
            self._route = None if rule is None else str(rule.rule)
        return self._route


@lru_cache(256)
def _environ_key(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"
