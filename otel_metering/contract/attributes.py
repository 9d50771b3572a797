"""Wire names: attributes, scope and headers that both ends of OTLP agree on.

A literal of one of these anywhere else is a bug.
"""

from typing import Final

TENANT_ID: Final = "tenant.id"
"""The tenant that pays: on the point, span or log record, else on the resource."""

EVENT_ID: Final = "metering.event.id"
"""An idempotency key chosen by the sender: one (tenant, meter, id) counts once, for ever."""

QUANTITY: Final = "metering.quantity"
"""How much, on a span or log record; makes it usage of the meter it is named after."""

QUANTITY_SCALE: Final = "metering.quantity.scale"
"""Decimal places of an integer point: quantity = value / 10**scale, so decimals stay exact."""

UNIQUE_KEY: Final = "metering.unique_key"
"""What a unique count counts."""

RESERVATION_ID: Final = "metering.reservation.id"
"""The reservation that this usage settles: its units are then counted as used, and held no longer."""

RESERVED: Final = frozenset(
    {TENANT_ID, EVENT_ID, QUANTITY, QUANTITY_SCALE, UNIQUE_KEY, RESERVATION_ID}
)
"""Attributes that steer metering and are never dimensions of a meter."""

SCOPE_NAME: Final = "otel_metering"
"""Instrumentation scope of this SDK: each metric of it is a meter without further configuration."""

SERVICE_NAME: Final = "service.name"

API_KEY_HEADER: Final = "x-api-key"
"""Alternative to `Authorization: Bearer <key>`."""
