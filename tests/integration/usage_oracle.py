"""What an answer about usage has to be, in plain Python: nothing of the product is used here.

Zones are asked through `zoneinfo` by PEP 495: a time that is shown twice is found by its fold, one that is
left out by halving the gap.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

SECOND = 1_000_000_000
STEPS = {"minute": 60, "15m": 900, "hour": 3_600}

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    start: int
    end: int
    window: str = "total"
    aggregation: str = "sum"
    zone: str = "UTC"
    tenant_id: str | None = None
    group_by: tuple[str, ...] = ()
    filters: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(`filter[name]` or `attribute[name]`, operator) -> values"""
    is_filled: bool = False


def offset(at: int, zone: ZoneInfo) -> int:
    shift = datetime.fromtimestamp(at, zone).utcoffset()
    assert shift is not None
    return int(shift.total_seconds())


def change(low: int, high: int, zone: ZoneInfo) -> int:
    """When, in (low, high], the offset of `low` ends."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(middle, zone) == offset(low, zone) else (low, middle)
    return high


def day_start(day: date, zone: ZoneInfo) -> int:
    local = datetime.combine(day, time())
    early, late = (local.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if datetime.fromtimestamp(early, zone).replace(tzinfo=None, fold=0) == local:
        return int(early)
    return change(int(late), int(early), zone)


def calendar_window(at: int, window: str, zone: ZoneInfo) -> tuple[int, int]:
    today = datetime.fromtimestamp(at, zone).date()
    days = [today + timedelta(days=i) for i in range(-40, 41)]
    if window != "day":
        days = [d for d in days if (d.day == 1 if window == "month" else d.weekday() == 0)]
    starts = [day_start(day, zone) for day in days]
    return max(i for i in starts if i <= at), min(i for i in starts if i > at)


def clock_window(at: int, step: int, zone: ZoneInfo) -> tuple[int, int]:
    start = at - (at + offset(at, zone)) % step
    end = start + step
    if offset(start, zone) != offset(at, zone):
        start = change(start, at, zone)
    if offset(end - 1, zone) != offset(at, zone):
        end = change(at, end - 1, zone)
    return start, end


def bounds(ns: int, asked: Question) -> tuple[int, int]:
    if asked.window == "total":
        return asked.start, asked.end
    at, zone = ns // SECOND, ZoneInfo(asked.zone)
    start, end = (
        clock_window(at, STEPS[asked.window], zone)
        if asked.window in STEPS
        else calendar_window(at, asked.window, zone)
    )
    return max(start * SECOND, asked.start), min(end * SECOND, asked.end)


def all_windows(asked: Question) -> Iterator[tuple[int, int]]:
    at = asked.start
    while at < asked.end:
        window = bounds(at, asked)
        yield window
        at = window[1]


def shown(value: Decimal | int) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def instant(ns: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ns // SECOND)
    fraction = f".{ns % SECOND:09d}".rstrip("0") if ns % SECOND else ""
    return f"{at:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def nanos_text(nanos: int) -> str:
    whole, rest = divmod(abs(nanos), 10**9)
    return ("-" if nanos < 0 else "") + f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


def aggregated(events: Sequence[Event], aggregation: str) -> str | None:
    quantities = [event["quantity"] for event in events]
    total = sum(map(Fraction, quantities)) * 10**9
    count = sum(event["observations"] for event in events)
    if aggregation == "avg":
        return nanos_text(round(total / count)) if count else None
    if aggregation == "sum":
        return nanos_text(int(total))
    if aggregation == "latest":
        # ClickHouse orders UUIDs by their second half first.
        newest = max(
            events, key=lambda e: (e["timestamp"], e["event_id"].int % 2**64, e["event_id"].int)
        )
        return shown(newest["quantity"])
    if aggregation == "unique_count":
        return str(len({event["unique_key"] for event in events} - {""}))
    return {"count": str(count), "min": shown(min(quantities)), "max": shown(max(quantities))}[
        aggregation
    ]


def percentile_bounds(events: Sequence[Event], percent: int) -> tuple[float, float]:
    """Between which measurements a percentile of few lies, whatever way one interpolates."""
    values = sorted(float(event["quantity"]) for event in events)
    place = percent / 100 * len(values)
    low, high = values[max(int(place) - 1, 0)], values[min(int(place) + 1, len(values) - 1)]
    # A digest holds floats of 32 bits: 24 bits of them are digits.
    return low - abs(low) * 2**-22, high + abs(high) * 2**-22


def fulfils(event: Event, parameter: str, operator: str, values: list[str]) -> bool:
    kind, _, name = parameter.rstrip("]").partition("[")
    value = event["attributes" if kind == "attribute" else "dimensions"].get(name, "")
    if operator == "prefix":
        return any(value.startswith(prefix) for prefix in values)
    return (value in values) != (operator == "not")


def grouped(
    events: Sequence[Event], asked: Question
) -> dict[tuple[tuple[int, int], tuple[str, ...]], list[Event]]:
    """(window, groups) -> its events; those that were corrected do not count."""
    groups = defaultdict(list)
    for event in events:
        if (
            asked.start <= event["timestamp"] < asked.end
            and not event["is_corrected"]
            and asked.tenant_id in {None, event["tenant_id"]}
            and all(fulfils(event, name, op, given) for (name, op), given in asked.filters.items())
        ):
            names = tuple(
                event["tenant_id"] if name == "tenant_id" else event["dimensions"].get(name, "")
                for name in asked.group_by
            )
            groups[bounds(event["timestamp"], asked), names].append(event)
    return groups


def answer(events: Sequence[Event], asked: Question) -> list[dict[str, Any]]:
    groups = grouped(events, asked)
    values = {key: aggregated(found, asked.aggregation) for key, found in groups.items()}
    if asked.is_filled:
        nothing = "0" if asked.aggregation in {"sum", "count", "unique_count"} else None
        found: set[tuple[str, ...]] = {names for _, names in groups}
        shown_groups = found if asked.group_by else {()}
        values = {(i, k): nothing for i in all_windows(asked) for k in shown_groups} | values
    rows = []
    for ((start, end), names), value in sorted(values.items(), key=lambda item: item[0]):
        by = dict(zip(asked.group_by, names, strict=True))
        tenant_id = by.pop("tenant_id", asked.tenant_id)
        row = {
            "window_start": instant(start),
            "window_end": instant(end),
            "dimensions": by,
            "value": value,
        }
        rows.append(row if tenant_id is None else {**row, "tenant_id": tenant_id})
    return rows
