"""Usage metering native to OpenTelemetry: exact totals per tenant and meter.

`configure` once, then `record` usage or decorate functions with `meter`; `tenant` says who uses.
"""

from otel_metering._context import current_tenant, set_tenant, tenant
from otel_metering._guard import Stats
from otel_metering._lifecycle import configure, flush, shutdown, stats
from otel_metering._record import meter, record

__all__ = [
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
