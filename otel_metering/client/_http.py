"""What both clients ask of httpx: how to connect, and what its errors mean."""

import importlib.metadata
import random
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from otel_metering._config import ClientSettings
from otel_metering.client._answers import Answer
from otel_metering.client._request import Request
from otel_metering.client._retry import Attempts, Failure
from otel_metering.clock import Clock, SystemClock
from otel_metering.errors import ConfigurationError

KEEP_ALIVE_SECONDS: Final = 2.0
"""An idle connection is used again for this long; uvicorn closes one after five seconds, and a request that
meets the closing is lost."""

_NEVER_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


def _new_id() -> str:
    return uuid.uuid4().hex  # noqa: TID251 - where the ids come from that others take as an argument


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """What a client takes from its surroundings; tests give their own.

    Attributes:
        jitter: A random number in [0, 1).
        new_id: Makes ids of events and reservations.
    """

    clock: Clock = field(default_factory=SystemClock)
    jitter: Callable[[], float] = random.random
    new_id: Callable[[], str] = _new_id

    def attempts(self, settings: ClientSettings, request: Request) -> Attempts:
        """The attempts of one call, which sends `request` under `settings` and begins now."""
        return Attempts(settings, request, clock=self.clock, jitter=self.jitter)


EDGES: Final = Edges()


def options(settings: ClientSettings) -> dict[str, Any]:
    """Arguments of an httpx client.

    Raises:
        ConfigurationError: The URL or the certificate file cannot be used.
    """
    try:
        url = httpx.URL(settings.url)
        verify = ssl.create_default_context(cafile=settings.certificate_file)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"url is {settings.url!r}: {error}; correct it") from error
    except OSError as error:
        raise ConfigurationError(
            f"certificate_file is {settings.certificate_file!r}: {error}; it must be a PEM file"
        ) from error
    return {
        "base_url": url,
        "headers": {
            "authorization": f"Bearer {settings.api_key}",
            "user-agent": f"otel-metering/{importlib.metadata.version('otel-metering')}",
        },
        "limits": httpx.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS),
        "verify": verify,
    }


def arguments(request: Request, settings: ClientSettings, seconds: float) -> dict[str, Any]:
    """Arguments of one request of an httpx client."""
    has_body = request.body is not None
    return {
        "method": request.method,
        "url": request.path,
        "params": httpx.QueryParams(tuple(request.parameters)) if request.parameters else None,
        "content": request.body,
        "headers": {"content-type": "application/json"} if has_body else None,
        "timeout": httpx.Timeout(seconds, connect=min(seconds, settings.connect_timeout)),
    }


def answer(response: httpx.Response, content: bytes) -> Answer:
    """What came back."""
    headers = {name.lower(): text for name, text in response.headers.items()}
    return Answer(status=response.status_code, headers=headers, content=content)


def failure(error: httpx.RequestError | UnicodeError, seconds: float) -> Failure:
    """Why nothing came back."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, _NEVER_SENT):
        return too_late(seconds)
    # Not every error of httpx has a text.
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        text = "no connection in time"
    return Failure(was_sent=not isinstance(error, (*_NEVER_SENT, UnicodeError)), text=text)


def too_late(seconds: float) -> Failure:
    """The time of an attempt is up."""
    return Failure(was_sent=True, text=f"no whole answer within {seconds:.3g} s")
