"""Flask: an extension that wraps the application in the WSGI middleware."""

from typing import Any, Unpack

from flask import Flask

from otel_metering.middleware._request import EnvironRequest
from otel_metering.middleware.options import MeteringOptions
from otel_metering.middleware.wsgi import MeteringMiddleware


class Metering:
    """Makes the request's tenant current, and counts requests and bytes if meters are named for them.

    `Metering(app, requests="api.requests")`, or `metering.init_app(app)` in an application factory. A
    function given as `tenant` or `attributes` finds a Flask request in `request.native`.

    Args:
        app: The application, or None: `init_app` says it.
        options: See `otel_metering.middleware.options.MeteringOptions`.

    Raises:
        ConfigurationError: An option cannot be used; the message names it.
    """

    def __init__(self, app: Flask | None = None, **options: Unpack[MeteringOptions]) -> None:
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Meter `app`; once, however often this is called for it.

        Raises:
            ConfigurationError: An option cannot be used; the message names it.
        """
        installed = app.extensions.setdefault("otel_metering", [])
        if self in installed:
            return
        middleware = MeteringMiddleware(app.wsgi_app, **self._options)
        middleware._request_class = _request_class(app)
        installed.append(self)
        app.wsgi_app = middleware  # type: ignore[method-assign] # Flask's way to wrap an application


def _request_class(app: Flask) -> type[EnvironRequest]:
    class FlaskRequest(EnvironRequest):
        """A request by its environ; Flask's own is made when somebody asks for it."""

        __slots__ = ("_made",)

        def __init__(self, environ: dict[str, Any]) -> None:
            self._made: object = None
            super().__init__(environ)

        @property
        def native(self) -> Any:  # noqa: ANN401 -- as in Request
            """Flask's request; not the very object that views see, and its body is not to be read."""
            if self._made is None:
                self._made = app.request_class(self.environ, populate_request=False)
            return self._made

        @native.setter
        def native(self, value: object) -> None:
            """Not kept: the environ is."""

    return FlaskRequest
