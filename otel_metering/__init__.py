"""Usage metering native to OpenTelemetry: exact totals per tenant and meter.

`configure` once, then `record` usage, decorate functions with `meter`, or measure blocks with
`meter.measure`; `tenant` says who uses. `otel_metering.testing` captures usage in tests.

`MeteringClient` and `AsyncMeteringClient` ask the query API. They need the extra `client`, and are imported
when they are first named; everything else of theirs is in `otel_metering.client`.
"""

from typing import TYPE_CHECKING

from otel_metering._context import current_tenant, set_tenant, tenant
from otel_metering._forms import meter
from otel_metering._guard import Stats
from otel_metering._lifecycle import configure, flush, shutdown, stats
from otel_metering._record import record
from otel_metering.errors import QuotaExceededError

if TYPE_CHECKING:
    # Named twice, so that a type checker takes them for exported; not in __all__, as an import of
    # everything must not need the extra.
    from otel_metering.client import AsyncMeteringClient as AsyncMeteringClient
    from otel_metering.client import MeteringClient as MeteringClient

__all__ = [
    "QuotaExceededError",
    "Stats",
    "configure",
    "current_tenant",
    "flush",
    "meter",
    "record",
    "set_tenant",
    "shutdown",
    "stats",
    "tenant",
]


def __getattr__(name: str) -> object:
    if name not in {"AsyncMeteringClient", "MeteringClient"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import otel_metering.client  # noqa: PLC0415 - the SDK installs without httpx

    return getattr(otel_metering.client, name)
