"""What a read of aggregates costs: it finds its rows by the key, and ends with its client."""

import asyncio
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from fastapi import Request

from otel_metering.contract.meter import Aggregation, MeterDefinition
from query_api.aggregates import Question, Row, finish, page, usage
from query_api.filters import any_of
from query_api.periods import Range
from query_api.queries import AggregateRequest, ReadFrom, Statement
from query_api.reading import read
from query_api.windows import Window
from query_api.zones import Zone
from receiver.store.client import ReadLimits
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api
from tests.waiting import eventually

SECOND = 1_000_000_000
JANUARY = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
METER = MeterDefinition(slug="m")
DAY = 86_400


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("reading")) as running:
        # Nothing ends by itself while a test waits for its end.
        limits = ReadLimits(seconds=60, rows=10**15)
        running.app.state.services = replace(running.app.state.services, limits=limits)
        # 200,000 events of 20 tenants over 60 days.
        running.store.execute(
            "INSERT INTO metering.events (event_id, tenant_id, meter, quantity, timestamp, dimensions) "
            "SELECT reinterpretAsUUID(toFixedString(reinterpretAsString(number + 1), 16)), "
            "'t' || toString(number % 20), 'm', 1, "
            f"toDateTime64({JANUARY} + intDiv(number, 20) * 518, 9, 'UTC'), map('region', 'eu') "
            "FROM numbers(200000) SETTINGS max_partitions_per_insert_block = 0"
        )
        # One part a partition, as it is after a while.
        for table in ("events", "usage_minute", "usage_hour", "usage_day", "usage_month"):
            running.store.execute(f"OPTIMIZE TABLE metering.{table} FINAL")
        yield running


def request(start_s: float, end_s: float, **others: Any) -> AggregateRequest:
    within = Range(int(start_s * SECOND), int(end_s * SECOND))
    return AggregateRequest(
        meter=METER, aggregation=Aggregation.SUM, range=within, tenant_id="t7", **others
    )


def done(api: Api, asked: AggregateRequest) -> tuple[Sequence[Row], list[Statement]]:
    statements = []

    def query(statement: Statement) -> Sequence[Sequence[Any]]:
        statements.append(statement)
        return api.store.query(statement.sql, statement.parameters)

    return finish(usage(asked), query).rows, statements


def granules(api: Api, statement: Statement) -> dict[str, tuple[int, int, str]]:
    """Table -> how many granules are read, how many it has, and the keys they are found by."""
    explained = api.store.query(f"EXPLAIN indexes = 1 {statement.sql}", statement.parameters)
    found: dict[str, tuple[int, int, str]] = {}
    text = re.sub("[^\\w\\s().:/]", " ", "\n".join(row[0] for row in explained))
    for part in text.split("ReadFromMergeTree (")[1:]:
        table = part.partition(")")[0]
        counts = [(int(a), int(b)) for a, b in re.findall(r"Granules: (\d+)/(\d+)", part)]
        keys = re.search(r"PrimaryKey\s+Keys:\s+(.*?)\s+Condition", part, re.DOTALL)
        assert keys, part
        found[table] = (counts[-1][0], counts[0][1], " ".join(keys[1].split()))
    return found


@pytest.mark.parametrize(
    ("asked", "tables"),
    [
        # Days in UTC; ragged edges; hours and minutes of a quarter-hour zone.
        (request(JANUARY, JANUARY + 31 * DAY, window=Window.DAY), {"day"}),
        (
            request(JANUARY + 1.5, JANUARY + 40 * DAY + 3_661.5, window=Window.TOTAL),
            {"day", "hour", "minute", "events"},
        ),
        (
            request(JANUARY, JANUARY + 30 * DAY, window=Window.DAY, zone=Zone("Asia/Kathmandu")),
            {"hour", "minute"},
        ),
        (request(JANUARY, JANUARY + DAY, window=Window.DAY, source=ReadFrom.EVENTS), {"events"}),
    ],
)
def test_rows_are_found_by_tenant_meter_and_time(
    api: Api, asked: AggregateRequest, tables: set[str]
) -> None:
    rows, statements = done(api, asked)

    assert rows
    found = granules(api, statements[-1])
    assert {name.removeprefix("metering.").removeprefix("usage_") for name in found} == tables
    for name, (is_read, there_are, keys) in found.items():
        time = "timestamp" if name == "metering.events" else "window_start"
        assert keys == f"tenant_id meter {time}"
        # A tenant's rows are a twentieth; in each month they may begin and end within a granule.
        assert is_read <= max(2, there_are // 4), (name, is_read, there_are)


def test_events_of_one_corrected_minute_are_read_and_no_others(api: Api) -> None:
    # The first event of t7 is in the first second of the year.
    event = {"event_id": UUID(int=2**64 * 8), "tenant_id": "t7", "meter": "m"}
    api.correct([{**event, "timestamp": JANUARY * SECOND + 5}])

    rows, statements = done(api, request(JANUARY, JANUARY + 31 * DAY))

    assert len(rows) == 1
    found = granules(api, statements[-1])
    assert {"metering.usage_day", "metering.usage_hour", "metering.events"} <= found.keys()
    assert found["metering.events"][0] <= 1


def test_usage_is_had_without_a_server_too(api: Api) -> None:
    # What quotas ask: one total, of one tenant, by dimensions.
    rows, _ = done(
        api, request(JANUARY + 10 * DAY, JANUARY + 11 * DAY, filters=any_of({"region": ["eu"]}))
    )

    # Every 518 seconds one: 864,000 / 518 is 1667.95, 950,400 / 518 is 1834.7.
    assert rows == [Row(window=0, groups=(), value=Decimal(1834 - 1667))]


def slow() -> Statement:
    return Statement("SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(rand())", {})


def running_reads(api: Api) -> int:
    return int(
        api.store.query(
            "SELECT count() FROM system.processes WHERE Settings['log_comment'] LIKE 'read-%'"
        )[0][0]
    )


def test_a_read_ends_when_its_client_goes(api: Api) -> None:
    # Where the table was, a view that takes for ever; the route and its statements are the real ones.
    api.store.execute("RENAME TABLE metering.usage_month TO metering.usage_month_kept")
    api.store.execute(
        "CREATE VIEW metering.usage_month AS SELECT 't7' AS tenant_id, 'm' AS meter, "
        "map('region', 'eu') AS dimensions, toDecimal128(number, 9) AS quantity_sum, "
        f"toDateTime({JANUARY + 31 * DAY}, 'UTC') AS window_start FROM numbers(1000000000000)"
    )
    address = ("127.0.0.1", int(api.url.rpartition(":")[2]))
    asked = (
        "GET /v1/meter/aggregates?meter=m&from=2026-02-01&to=2026-03-01 HTTP/1.1\r\n"
        f"Host: localhost\r\nx-api-key: {api.key(Scope.QUERY)}\r\n\r\n"
    )
    try:
        with socket.create_connection(address) as client:
            client.sendall(asked.encode())
            eventually(lambda: running_reads(api), lambda count: count == 1)
        eventually(lambda: running_reads(api), lambda count: count == 0, seconds=10)
    finally:
        api.store.execute("DROP VIEW metering.usage_month")
        api.store.execute("RENAME TABLE metering.usage_month_kept TO metering.usage_month")


def test_a_read_ends_when_an_answer_is_given_up_in_the_middle(api: Api) -> None:
    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        request = Request({"type": "http"}, receive=never)
        reading = asyncio.create_task(read(request, api.app.state.services, slow()))
        while await asyncio.to_thread(running_reads, api) != 1:
            assert not reading.done()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(main())

    eventually(lambda: running_reads(api), lambda count: count == 0, seconds=10)


def test_a_page_reads_only_the_windows_behind_its_cursor(api: Api) -> None:
    asked = request(JANUARY, JANUARY + 31 * DAY, window=Window.DAY)
    statements = []

    def query(statement: Statement) -> Sequence[Sequence[Any]]:
        statements.append(statement)
        return api.store.query(statement.sql, statement.parameters)

    after = Row(window=29, groups=(), value=None)
    found = finish(page(Question(request=asked), limit=10, after=after), query)

    assert [row.window for row in found.rows] == [30]
    assert JANUARY + 29 * DAY in statements[-1].parameters.values()
    assert JANUARY not in [v for k, v in statements[-1].parameters.items() if k == "p3"]
