"""The numbers that the dashboards about usage show are those of the events, added up in Python."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from grafana.builders import sql as builders_sql
from grafana.builders import usage_sql
from grafana.builders.dashboard import panels_of
from grafana.emulator import run, seed_usage
from grafana.emulator.macros import expand
from grafana.emulator.seed_usage import SeedUsage
from grafana.emulator.time_range import Context, TimeRange, Value
from receiver.store.client import Store
from tests.grafana import usage_oracle as oracle
from tests.grafana.conftest import NOW
from tests.grafana.harness import ALL, FILES, RANGES, load

DASHBOARDS = {path.stem.removeprefix("metering-"): load(path) for path in FILES}
Row = dict[str, Any]
Used = tuple[Store, list[SeedUsage]]

EACH_RANGE = pytest.mark.parametrize("length", RANGES.values(), ids=list(RANGES))
MONTH = timedelta(days=30)


def answer(
    store: Store,
    dashboard: str,
    title: str,
    length: timedelta,
    *,
    end: datetime = NOW,
    scoped: str | None = None,
    ref_id: str = "A",
    **chosen: Value,
) -> run.Answer:
    """Of a query of the panel; `scoped`: in the row that is repeated for this meter."""
    defaults: dict[str, Value] = {
        "tenant": ALL,
        "meter": ALL,
        "text": "",
        "event": "",
        "dimension": "gen_ai.request.model",
    }
    context = Context(time=TimeRange.last(length, end), variables={**defaults, **chosen})
    if scoped is not None:
        context = context.within("meter", scoped)
    (panel,) = [one for one in panels_of(DASHBOARDS[dashboard]) if one["title"] == title]
    (target,) = [one for one in panel["targets"] if one["refId"] == ref_id]
    return run.answer(store, target, context)


def rows(*arguments: Any, **options: Any) -> list[Row]:
    found = answer(*arguments, **options)
    names = [column.name for column in found.columns]
    return [dict(zip(names, map(_plain, row), strict=True)) for row in found.rows]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    return float(value) if isinstance(value, Decimal) else value


def near(expected: Any) -> Any:
    """Decimals are shown as floats."""
    return pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected


@pytest.mark.parametrize(
    ("length", "tenant", "end"),
    [
        (RANGES["1h"], ("acme",), NOW),
        (RANGES["24h"], ("acme", "hooli"), NOW),
        (RANGES["24h"], ALL, NOW),
        (RANGES["30d"], ALL, NOW),
        (RANGES["24h"], ALL, NOW - timedelta(days=10)),
        # Nothing any more: what there was is of the period before.
        (RANGES["1h"], ALL, NOW + timedelta(hours=1, minutes=1)),
    ],
    ids=str,
)
def test_usage_of_each_meter_and_of_the_period_before(
    used: Used, length: timedelta, tenant: tuple[str, ...], end: datetime
) -> None:
    store, events = used
    chosen = [one for one in events if tenant == ALL or one.tenant in tenant]
    now = oracle.groups(oracle.shown(chosen, length, end), lambda one: one.meter)
    past = oracle.groups(oracle.before(chosen, length, end), lambda one: one.meter)

    found = rows(store, "overview", "Usage by meter", length, tenant=tenant, end=end)

    assert [row["meter"] for row in found] == sorted(now | past)
    for row in found:
        meter = row["meter"]
        usage = oracle.usage(now.get(meter, []), meter)
        previous = oracle.usage(past.get(meter, []), meter)
        assert row["usage"] == near(usage), meter
        assert row["previous"] == near(previous), meter
        assert row["tenants"] == len({one.tenant for one in now.get(meter, [])})
        assert row["unit"] == oracle.UNIT.get(meter, "")
        assert row["aggregation"] == (oracle.AGGREGATION[meter] or "sum, no definition")
        if previous and usage is not None:
            assert row["change"] == pytest.approx(row["usage"] / row["previous"] - 1)


def test_a_chosen_meter_is_the_only_one(used: Used) -> None:
    found = rows(used[0], "overview", "Usage by meter", MONTH, meter=("clicks", "llm.tokens"))

    assert [row["meter"] for row in found] == ["clicks", "llm.tokens"]


@EACH_RANGE
def test_the_numbers_at_the_top_are_those_of_both_periods(used: Used, length: timedelta) -> None:
    store, events = used
    now, past = oracle.shown(events, length), oracle.before(events, length)

    def both(title: str) -> list[Any]:
        return [next(iter(row.values())) for row in rows(store, "overview", title, length)]

    assert both("Tenants with usage") == [len({e.tenant for e in of}) for of in (past, now)]
    assert both("Meters with usage") == [len({e.meter for e in of}) for of in (past, now)]
    assert both("Measurements") == [sum(e.observations for e in of) for of in (past, now)]
    newest = max(e.at for e in events).replace(second=0, microsecond=0)
    assert both("Newest usage") == [(NOW - newest).total_seconds()]


@EACH_RANGE
def test_measurements_over_time_are_those_of_each_bar(used: Used, length: timedelta) -> None:
    store, events = used
    bars = oracle.groups(
        oracle.shown(events, length), lambda e: (oracle.bar_of(length, e.at), e.meter)
    )

    found = rows(store, "overview", "Measurements over time", length)

    assert {(row["time"], row["meter"]): row["measurements"] for row in found} == {
        key: sum(e.observations for e in of) for key, of in bars.items()
    }


@EACH_RANGE
def test_top_tenants_are_the_five_largest_and_their_part(used: Used, length: timedelta) -> None:
    store, events = used
    found = rows(store, "overview", "Top tenants of each meter", length)

    for meter, of in oracle.groups(oracle.shown(events, length), lambda e: e.meter).items():
        totals = {
            tenant: oracle.usage(theirs, meter) or 0.0
            for tenant, theirs in oracle.groups(of, lambda e: e.tenant).items()
        }
        listed = [row for row in found if row["meter"] == meter]
        assert {row["tenant"] for row in listed} == set(totals), "there are five tenants"
        for row in listed:
            assert row["usage"] == near(totals[row["tenant"]]), meter
            if meter in oracle.ADDITIVE:
                assert row["share"] == near(totals[row["tenant"]] / sum(totals.values()))
            else:
                assert row["share"] is None
        shown = [row["usage"] for row in listed]
        assert shown == sorted(shown, reverse=True)


def test_the_month_is_projected_from_what_was_used_of_it(used: Used) -> None:
    store, events = used
    begin = datetime(2026, 9, 1, tzinfo=UTC)
    last = datetime(2026, 8, 1, tzinfo=UTC)
    days = (NOW - begin) / timedelta(days=1)

    found = {
        row["meter"]: row for row in rows(store, "overview", "Month to date and projection", MONTH)
    }

    assert set(found) == oracle.ADDITIVE
    for meter, row in found.items():
        of = [e for e in events if e.meter == meter]
        to_date = oracle.usage([e for e in of if e.at >= begin], meter)
        before = oracle.usage([e for e in of if last <= e.at < begin], meter)
        assert to_date
        assert before
        assert row["month_to_date"] == near(to_date)
        assert row["last_month"] == near(before)
        assert row["projected"] == near(to_date / days * 30), "September has thirty days"
        assert row["change"] == pytest.approx(row["projected"] / before - 1)


@EACH_RANGE
@pytest.mark.parametrize(
    "meter", ["llm.tokens", "http.requests", "connections.open", "active.users"]
)
def test_usage_of_a_meter_over_time_by_tenant(used: Used, length: timedelta, meter: str) -> None:
    store, events = used
    of = [e for e in oracle.shown(events, length) if e.meter == meter]
    bars = oracle.groups(of, lambda e: (oracle.bar_of(length, e.at), e.tenant))
    title, is_additive = "Usage by tenant over time", meter in oracle.ADDITIVE

    by_target = {
        ref: rows(store, "overview", title, length, scoped=meter, ref_id=ref) for ref in ("A", "B")
    }

    assert by_target["B" if is_additive else "A"] == []
    found = by_target["A" if is_additive else "B"]
    assert {(row["time"], row["tenant"]): row["usage"] for row in found} == {
        key: near(oracle.usage(theirs, meter)) for key, theirs in bars.items()
    }


def test_usage_of_a_meter_by_a_dimension(used: Used) -> None:
    store, events = used
    meter = "llm.tokens"
    of = [e for e in oracle.shown(events, MONTH) if e.meter == meter]

    found = rows(store, "tenant", "Usage by $dimension", MONTH, scoped=meter)

    totals = oracle.groups(of, lambda e: e.dimensions["gen_ai.request.model"])
    assert {row["value"]: row["usage"] for row in found} == {
        model: near(oracle.usage(theirs, meter)) for model, theirs in totals.items()
    }


def test_beyond_eight_series_the_rest_is_one(used: Used) -> None:
    """Here the series are the days: eight largest, and all others together."""
    store, events = used
    meter = "llm.tokens"
    of = [e for e in oracle.shown(events, MONTH) if e.meter == meter]
    days = {
        f"{day:%Y-%m-%d}": float(sum(e.quantity for e in theirs))
        for day, theirs in oracle.groups(of, lambda e: e.at.date()).items()
    }
    largest = sorted(days, key=lambda day: (-days[day], day))[:8]

    sql = usage_sql.over_time(
        "toString(toDate(window_start))",
        "day",
        kind="additive",
        where=f"{builders_sql.TENANT} AND {usage_sql.ONE_METER}",
    )
    context = Context(time=TimeRange.last(MONTH, NOW), variables={"tenant": ALL, "meter": meter})
    totals: dict[str, float] = defaultdict(float)
    for _, label, usage in run.ask(store, expand(sql, context)).rows:
        totals[label] += usage

    others = sum(quantity for day, quantity in days.items() if day not in largest)
    assert totals == {"others": near(others)} | {day: near(days[day]) for day in largest}


@pytest.mark.parametrize("meter", ["llm.tokens", "active.users", "storage.bytes"])
def test_the_months_of_a_meter(used: Used, meter: str) -> None:
    store, events = used
    of = [e for e in events if e.meter == meter and e.tenant == "globex"]

    found = rows(store, "tenant", "Month over month", MONTH, scoped=meter, tenant="globex")

    assert {row["month"]: row["usage"] for row in found} == {
        month: near(oracle.usage(theirs, meter))
        for month, theirs in oracle.groups(of, lambda e: oracle.month_of(e.at)).items()
    }


def test_the_tenants_dashboard_is_about_one_tenant(used: Used) -> None:
    store, events = used
    of = oracle.groups(
        [e for e in oracle.shown(events, MONTH) if e.tenant == "globex"], lambda e: e.meter
    )

    found = rows(store, "tenant", "Usage by meter", MONTH, tenant="globex")

    assert {row["meter"]: row["usage"] for row in found} == {
        meter: near(oracle.usage(theirs, meter)) for meter, theirs in of.items()
    }
    assert "tenants" not in found[0]


def test_the_last_events_are_the_newest_of_the_tenant(used: Used) -> None:
    store, events = used
    theirs = [e for e in events if e.tenant == "hooli" and e.at >= NOW - timedelta(hours=24)]

    found = rows(store, "tenant", "Last events", timedelta(hours=24), tenant="hooli")

    newest = sorted(theirs, key=lambda e: e.at, reverse=True)[:100]
    assert [row["event"].replace("-", "") for row in found] == [e.event_id.hex() for e in newest]
    assert [row["quantity"] for row in found] == [near(float(e.quantity)) for e in newest]


HOSTILE = (
    "' OR 1=1 -- ",
    "\\' OR 1=1 -- ",
    "tail\\",
    "$__timeFilter()",
    "${tenant}",
    "100%",
    '"); SELECT 1',
    "{}",
    "*/ /* --",
)


@pytest.mark.parametrize("text", ["", "claude", "CLAUDE", "enduser.id=user-7", "gateway"])
def test_the_events_that_are_found_are_those_with_the_text(used: Used, text: str) -> None:
    store, events = used
    length = timedelta(hours=24)
    matching = _matching(events, text, length)

    (count,) = rows(store, "events", "Events", length, text=text)
    bars = rows(store, "events", "Events over time", length, text=text)
    listed = rows(store, "events", "Events, the newest first", length, text=text)

    assert count["events"] == len(matching)
    assert sum(row["events"] for row in bars) == len(matching)
    assert len(listed) == min(200, len(matching))
    wanted = {e.event_id.hex() for e in matching}
    assert {row["event"].replace("-", "") for row in listed} <= wanted


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_text_can_leave_its_place(used: Used, hostile: str) -> None:
    (count,) = rows(used[0], "events", "Events", MONTH, text=hostile)

    assert count["events"] == len(_matching(used[1], hostile, MONTH))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_choice_of_a_variable_can_leave_its_place(used: Used, hostile: str) -> None:
    """Whatever an URL has: nobody is of that name, so nothing is found, and nothing fails."""
    of = {"tenant": (hostile,), "meter": (hostile,), "event": hostile}

    assert rows(used[0], "events", "Events", MONTH, **of) == [{"events": 0}]


def test_neither_can_that_of_a_repeated_row(used: Used) -> None:
    title, hostile = "Usage by $dimension", "\\' OR 1=1 -- "

    assert rows(used[0], "tenant", title, MONTH, scoped=hostile, dimension=hostile) == []


def _matching(events: list[SeedUsage], text: str, length: timedelta) -> list[SeedUsage]:
    """Of the chosen time, with the text in the service's name or in a name=value."""
    return [
        e
        for e in events
        if e.at >= NOW - length
        and (
            text.lower() in e.service
            or any(text.lower() in f"{k}={v}".lower() for k, v in e.attributes.items())
        )
    ]


def test_an_event_that_is_chosen_is_shown_whole(used: Used) -> None:
    store, events = used
    one = next(e for e in reversed(events) if e.meter == "llm.tokens")
    listed = rows(
        store, "events", "Events, the newest first", timedelta(hours=1), meter=("llm.tokens",)
    )
    chosen = listed[0]["event"]

    found = {
        row["field"]: row["value"]
        for row in rows(store, "events", "All of one event", timedelta(hours=1), event=chosen)
    }

    assert chosen.replace("-", "") == one.event_id.hex()
    assert found["event id"] == chosen
    assert found["tenant"] == one.tenant
    assert Decimal(found["quantity"]) == one.quantity
    assert found["status"] == "counts"
    for name, value in one.dimensions.items():
        assert found[f"dimension {name}"] == value
    for name, value in one.attributes.items():
        assert found[f"attribute {name}"] == value


def test_values_of_variables_are_what_was_used(used: Used) -> None:
    store, events = used
    context = Context(
        time=TimeRange.last(timedelta(hours=24), NOW),
        variables={"tenant": ("acme",), "meter": ALL},
    )
    listed = {v["name"]: v for v in DASHBOARDS["tenant"]["templating"]["list"]}

    tenants = run.options_of(store, listed["tenant"], context)
    meters = run.options_of(store, listed["meter"], context)
    dimensions = run.options_of(store, listed["dimension"], context)

    assert [value for value, _ in tenants] == sorted(seed_usage.TENANTS)
    assert [value for value, _ in meters] == sorted(oracle.AGGREGATION)
    assert ("llm.tokens", "llm.tokens (token)") in meters
    assert ("clicks", "clicks") in meters
    assert {value for value, _ in dimensions} == {n for e in events for n in e.dimensions}
