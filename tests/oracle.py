"""What usage is, in ten lines: nothing of the product is used here."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

FORMATS = {
    "minute": "%Y-%m-%dT%H:%M:00Z",
    "hour": "%Y-%m-%dT%H:00:00Z",
    "day": "%Y-%m-%dT00:00:00Z",
    "month": "%Y-%m-01T00:00:00Z",
}


class Usage(NamedTuple):
    tenant: str
    meter: str
    at_ns: int
    quantity: Decimal


def totals(usages: Iterable[Usage], window: str) -> dict[tuple[str, str, str], Decimal]:
    """(tenant, meter, begin of the window) -> exact sum."""
    sums: dict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
    for usage in usages:
        start = datetime.fromtimestamp(usage.at_ns // 10**9, UTC).strftime(FORMATS[window])
        sums[usage.tenant, usage.meter, start] += usage.quantity
    return dict(sums)
