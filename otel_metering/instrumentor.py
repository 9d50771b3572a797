"""Metering without code: `opentelemetry-instrument` finds this by its entry point.

It configures metering from the environment, counts from the spans of the global TracerProvider, and adds
the middleware to FastAPI, Starlette, Flask and Django applications. Loaded by nothing else: only here may
`opentelemetry-instrumentation` be imported, which the SDK does not depend on.
"""

import logging
import threading
from collections.abc import Callable, Collection
from functools import wraps
from importlib import import_module
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from opentelemetry.sdk.trace import TracerProvider
from wrapt import register_post_import_hook

from otel_metering._guard import guarded
from otel_metering._instrumentation_config import (
    InstrumentationSettings,
    read_instrumentation_settings,
)
from otel_metering._lifecycle import configure
from otel_metering.errors import ConfigurationError
from otel_metering.spans import MeteringSpanProcessor, meter_spans

_log = logging.getLogger("otel_metering")

_FLASK: Final = "otel_metering.middleware.flask"
_DJANGO: Final = "otel_metering.middleware.django"


class MeteringInstrumentor(BaseInstrumentor):  # type: ignore[misc] # its module is not typed
    """Meters an application that knows nothing of metering.

    Settings are those of `otel_metering.configure`, from the environment, and `METERING_REQUESTS_METER`,
    `METERING_TOKENS_METER`, `METERING_TENANT_HEADER`, `METERING_TRUST_BAGGAGE` (docs/settings.md). One that
    is wrong is logged, and nothing is metered; the application and its traces are not affected.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: each framework is metered where it is installed."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:  # noqa: ANN401 -- as the base class says
        self._undo: list[Callable[[], None]] = []
        try:
            settings = read_instrumentation_settings()
            configure()
        except ConfigurationError:
            _log.exception("metering is off")
            return
        provider = kwargs.get("tracer_provider") or trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            processor = MeteringSpanProcessor(
                settings.requests_meter,
                tokens=settings.tokens_meter,
                trust_baggage=settings.trust_baggage,
            )
            self._undo.append(meter_spans(provider, processor))
        else:
            _log.info("no SDK is set up for traces: spans are not metered, middlewares are")
        self._undo.append(_patch_frameworks(settings))

    def _uninstrument(self, **_kwargs: Any) -> None:  # noqa: ANN401 -- as the base class says
        """Applications that were started keep their middleware; what was recorded is still delivered."""
        while self._undo:
            self._undo.pop()()


class _Patches:
    """Replaced methods of frameworks, each patched when it is imported, and only then.

    Attributes:
        options: What each middleware is given.
        is_active: Whether applications that start now get it.
    """

    def __init__(self, settings: InstrumentationSettings) -> None:
        self.options = _middleware_options(settings)
        self.is_active = True
        self._originals: list[tuple[type, str, Any]] = []

    def when_imported(self, module: str, patch: Callable[["_Patches", Any], None]) -> None:
        """Have `patch` applied to `module` as soon as it is there."""

        def hook(imported: Any) -> None:  # noqa: ANN401 -- a module
            if self.is_active:
                with guarded:
                    patch(self, imported)

        register_post_import_hook(hook, module)

    def replace(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        """Replace the method `name` of the class `owner` by what `make` makes of it."""
        original = owner.__dict__[name]
        self._originals.append((owner, name, original))
        setattr(owner, name, wraps(original)(make(original)))

    def undo(self) -> None:
        self.is_active = False
        for owner, name, original in reversed(self._originals):
            setattr(owner, name, original)
        self._originals.clear()


def _middleware_options(settings: InstrumentationSettings) -> dict[str, Any]:
    return {"tenant_header": settings.tenant_header, "requests": settings.requests_meter}


def _patch_frameworks(settings: InstrumentationSettings) -> Callable[[], None]:
    patches = _Patches(settings)
    patches.when_imported("starlette.applications", _patch_starlette)
    patches.when_imported("fastapi.applications", _patch_fastapi)
    patches.when_imported("flask.app", _patch_flask)
    patches.when_imported("django.core.handlers.base", _patch_django)
    return patches.undo


def _patch_starlette(patches: _Patches, module: Any) -> None:  # noqa: ANN401 -- a module
    _patch_stack(patches, module.Starlette)


def _patch_fastapi(patches: _Patches, module: Any) -> None:  # noqa: ANN401 -- a module
    # Its own class overrides the method of Starlette's, in some versions.
    if "build_middleware_stack" in vars(module.FastAPI):
        _patch_stack(patches, module.FastAPI)


def _patch_stack(patches: _Patches, owner: type) -> None:
    from starlette.middleware.errors import ServerErrorMiddleware  # noqa: PLC0415 -- it is imported

    from otel_metering.middleware.asgi import MeteringMiddleware  # noqa: PLC0415 -- not by everybody

    def make(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def build_middleware_stack(app: Any) -> Any:  # noqa: ANN401 -- an application; the stack
            stack = original(app)
            if any(one.cls is MeteringMiddleware for one in app.user_middleware):
                return stack  # it meters itself, and knows better whose request it is
            with guarded:
                # Inside of the outermost one: the tracing instrumentation looks for that, puts itself
                # around what is in it, and so has its span current when the request gets here.
                if isinstance(stack, ServerErrorMiddleware):
                    stack.app = MeteringMiddleware(stack.app, **patches.options)
                else:
                    stack = MeteringMiddleware(stack, **patches.options)
            return stack

        return build_middleware_stack

    patches.replace(owner, "build_middleware_stack", make)


def _patch_flask(patches: _Patches, module: Any) -> None:  # noqa: ANN401 -- a module
    lock = threading.Lock()

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(app: Any, environ: Any, start_response: Any) -> Any:  # noqa: ANN401 -- WSGI
            # With the first request, not in __init__: an application that meters itself does it later.
            if "otel_metering" not in app.extensions:
                with guarded, lock:
                    # Not sooner: it imports Flask, of which this module is a part.
                    import_module(_FLASK).Metering(app, **patches.options)
            return original(app, environ, start_response)

        return call

    patches.replace(module.Flask, "__call__", make)


def _patch_django(patches: _Patches, module: Any) -> None:  # noqa: ANN401 -- a module
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def load_middleware(handler: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- Django's
            with guarded:
                _add_to_django(patches.options)
            return original(handler, *args, **kwargs)

        return load_middleware

    patches.replace(module.BaseHandler, "load_middleware", make)


def _add_to_django(options: dict[str, Any]) -> None:
    settings = import_module("django.conf").settings
    name = f"{_DJANGO}.MeteringMiddleware"
    middleware = list(settings.MIDDLEWARE)
    if name in middleware:
        return
    # Behind that of the tracing instrumentation, whose span is then current, and before all others.
    place = sum(one.startswith("opentelemetry.") for one in middleware[:1])
    settings.MIDDLEWARE = [*middleware[:place], name, *middleware[place:]]
    settings.OTEL_METERING = {**options, **getattr(settings, "OTEL_METERING", {})}
