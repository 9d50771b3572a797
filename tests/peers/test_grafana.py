"""Grafana's own libraries against the endpoint: clickhouse-go over HTTP, sqlds and the plugin SDK.

The plugin itself is no Go module that can be had; what it adds to these libraries is its macros, which are
expanded here by the emulator, and its converters, which are written out in `grafana/frames.go`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from grafana.emulator import run, seed_operations, seed_usage
from grafana.emulator.alert_source import Source
from grafana.emulator.macros import expand, expand_backend
from grafana.emulator.sickness import Sickness
from grafana.emulator.time_range import TimeRange
from otel_metering.clock import ManualClock
from receiver.store.client import Store
from receiver.store.keys import ApiKeys, Scope
from receiver.store.migrate import migrate
from tests.e2e.separate import Engine
from tests.grafana import harness
from tests.grafana.alerts.files import RULES
from tests.grafana.conftest import NOW
from tests.peers.grafana.build import ask, build
from tests.peers.install import UnavailableError

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

TYPES = {
    "'text'": ("String", "text"),
    "CAST('low', 'LowCardinality(String)')": ("LowCardinality(String)", "low"),
    "CAST(NULL, 'Nullable(String)')": ("Nullable(String)", None),
    "CAST('there', 'Nullable(String)')": ("Nullable(String)", "there"),
    "toFloat64(0.1)": ("Float64", "0.1"),
    "CAST(NULL, 'Nullable(Float64)')": ("Nullable(Float64)", None),
    "toDecimal128('12.345678901', 9)": ("Decimal(38, 9)", "12.345678901"),
    "toUInt8(255)": ("UInt8", "255"),
    "toUInt32(4294967295)": ("UInt32", "4294967295"),
    "toUInt64(18446744073709551615)": ("UInt64", "18446744073709551615"),
    "toInt64(-9223372036854775808)": ("Int64", "-9223372036854775808"),
    "true": ("Bool", True),
    "toDate('2026-09-17')": ("Date", "2026-09-17T00:00:00Z"),
    "toDateTime(1789641432)": ("DateTime", "2026-09-17T10:37:12Z"),
    # The zone is no part of the type in the protocol's first revision, and the moment is the same.
    "toDateTime(1789641432, 'Asia/Tokyo')": ("DateTime", "2026-09-17T10:37:12Z"),
    "fromUnixTimestamp64Milli(1789641432123)": ("DateTime64(3)", "2026-09-17T10:37:12.123Z"),
    "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')": (
        "UUID",
        "61f0c404-5cb3-11e7-907b-a6006ad3dba0",
    ),
    "['a', 'b']": ("Array(String)", '["a","b"]'),
    "map('k', 'v')": ("Map(String, String)", '{"k":"v"}'),
}
"""Expression -> its type, and its value as Go shows it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the emulator says to one query."""

    where: str
    query: dict[str, object]
    frame: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Grafana:
    """The program, the endpoint that it asks, and what it shall answer."""

    program: Path
    server: Mapping[str, object]
    asked: list[Asked]

    def ask(self, *statements: str, timeout_ms: int = 0) -> list[dict[str, Any]]:
        questions = [{"sql": one, "timeoutMs": timeout_ms} for one in statements]
        found: list[dict[str, Any]] = ask(self.program, self.server, questions=questions)["answers"]
        return found


@pytest.fixture(scope="module")
def grafana(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grafana]:
    try:
        program = build()
    except UnavailableError as error:
        pytest.skip(f"Grafana's libraries cannot be built: {error}")
    engine = Engine(tmp_path_factory.mktemp("grafana"))
    store = Store(f"chdb://{engine.data_dir / 'clickhouse'}")
    migrate(store, ManualClock())
    seed_usage.seed(store, NOW)
    # Whatever an alert can be about.
    seed_operations.seed_operations(store, NOW, sick=list(Sickness))
    _, key = ApiKeys(store, ManualClock()).create(name="grafana", scopes=[Scope.QUERY])
    asked = [*emulated(store), *alerting(store)]
    store.close()
    engine.start()
    host, _, port = engine.clickhouse.partition(":")
    server = {
        "host": host,
        "port": int(port),
        "database": "metering",
        "username": "grafana_reader",
        "password": key,
    }
    try:
        yield Grafana(program=program, server=server, asked=asked)
    finally:
        engine.kill()


def emulated(store: Store) -> Iterator[Asked]:
    """Every query of every dashboard, and its frame."""
    for path in harness.FILES:
        dashboard = harness.load(path)
        context = harness.context_of(store, dashboard, "24h", "many")
        for number, one in enumerate(harness.queries(dashboard, context)):
            sql = expand(one.target["rawSql"], one.context)
            is_series = one.target.get("format") == 0
            frame = run.ask(store, sql, is_series=is_series).frame()
            yield Asked(
                where=f"{path.stem}: {one.where}",
                query={
                    "refId": f"{path.stem}-{number}",
                    "rawSql": sql,
                    "format": 0 if is_series else 1,
                    "fromMs": context.time.begin_ms,
                    "toMs": context.time.end_ms,
                },
                frame=frame.to_json() if frame else None,
            )


def alerting(store: Store) -> Iterator[Asked]:
    """Every query of every alert rule, and its frame."""
    source = Source(store)
    for uid, rule in RULES.items():
        for one in rule["data"]:
            if "rawSql" not in one["model"]:
                continue
            window = one["relativeTimeRange"]
            begin, end = (NOW - timedelta(seconds=window[name]) for name in ("from", "to"))
            shown = TimeRange(begin, end)
            frame = source(one, NOW)
            yield Asked(
                where=f"{uid} {one['refId']}",
                query={
                    "refId": f"{uid}-{one['refId']}",
                    "rawSql": expand_backend(
                        one["model"]["rawSql"], shown, one["model"]["intervalMs"]
                    ),
                    "format": one["model"]["format"],
                    "fromMs": shown.begin_ms,
                    "toMs": shown.end_ms,
                },
                frame=frame.to_json() if frame else None,
            )


def test_it_opens_a_connection_and_is_well(grafana: Grafana) -> None:
    query = {"refId": "A", "rawSql": "SELECT 1", "format": 1, "fromMs": 0, "toMs": 1}

    found = ask(grafana.program, grafana.server, queries=[query])

    assert found["ping"] == ""
    assert found["health"] == {"status": "OK", "message": "Data source is working"}


def test_a_wrong_key_is_said_with_the_number_that_clickhouse_has_for_it(grafana: Grafana) -> None:
    found = ask(grafana.program, {**grafana.server, "password": "otm_wrong_" + "0" * 64})

    assert "516" in found["ping"]
    assert "AUTHENTICATION_FAILED" in found["ping"]


def test_every_type_that_dashboards_use_arrives_as_it_is(grafana: Grafana) -> None:
    answers = grafana.ask(*(f"SELECT {one} AS value FROM numbers(2)" for one in TYPES))

    assert {
        one: (answer["columns"], answer["rows"], answer["error"])
        for one, answer in zip(TYPES, answers, strict=True)
    } == {
        one: ([{"name": "value", "type": kind}], [[value], [value]], "")
        for one, (kind, value) in TYPES.items()
    }


def test_an_answer_without_rows_is_no_error(grafana: Grafana) -> None:
    (answer,) = grafana.ask("SELECT tenant_id FROM events WHERE tenant_id = 'nobody'")

    assert (answer["rows"], answer["error"]) == ([], "")


def test_an_answer_of_many_blocks_is_whole(grafana: Grafana) -> None:
    (answer,) = grafana.ask("SELECT number, toString(number) AS text FROM numbers(200000)")

    assert answer["error"] == ""
    assert answer["rows"] == [[str(number), str(number)] for number in range(200_000)]


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("SELECT nothing FROM events", 47),  # UNKNOWN_IDENTIFIER
        ("SELECT FROM WHERE", 62),  # SYNTAX_ERROR
        ("SELECT * FROM system.query_log", 497),  # ACCESS_DENIED
        ("INSERT INTO events SELECT * FROM events", 164),  # READONLY
    ],
)
def test_an_error_has_the_number_of_clickhouse(grafana: Grafana, statement: str, code: int) -> None:
    (answer,) = grafana.ask(statement)

    assert f"Code: {code}. DB::Exception: " in answer["error"]


def test_a_deadline_ends_a_query(grafana: Grafana) -> None:
    statement = "SELECT count() FROM numbers(900000000) WHERE NOT ignore(SHA512(toString(number)))"

    (late,) = grafana.ask(statement, timeout_ms=500)

    assert late["isLate"], late


def test_every_query_of_dashboards_and_alerts_gets_the_frames_that_the_emulator_says(
    grafana: Grafana,
) -> None:
    found = ask(grafana.program, grafana.server, queries=[one.query for one in grafana.asked])

    assert len(found["responses"]) == len(grafana.asked) > 150
    assert sum(one.frame is not None for one in grafana.asked) > 120
    faults = {
        one.where: fault
        for one in grafana.asked
        if (fault := difference(one, found["responses"][str(one.query["refId"])]))
    }
    assert faults == {}


def difference(asked: Asked, response: Mapping[str, Any]) -> str | None:
    """How the answer differs from what the emulator says; None: not at all."""
    if response["error"]:
        return str(response["error"])
    frames = [one for one in response["frames"] if one["schema"].get("fields")]
    if asked.frame is None or not frames:
        has_rows = any(any(one["data"]["values"]) for one in frames)
        return None if asked.frame is None and not has_rows else "one of them has no rows"
    (frame,) = frames
    shown = [
        {name: one[name] for name in ("name", "type", "labels") if one.get(name)}
        for one in frame["schema"]["fields"]
    ]
    if shown != asked.frame["schema"]["fields"]:
        return f"fields {shown} instead of {asked.frame['schema']['fields']}"
    for one, own, other in zip(
        shown, frame["data"]["values"], asked.frame["data"]["values"], strict=True
    ):
        if not is_equal(own, other):
            return f"{one}: {own[:5]} instead of {other[:5]}"
    return None


def is_equal(one: object, other: object) -> bool:
    """Equal, but for the last digits of a number that is not whole."""
    match one, other:
        case list(), list():
            return len(one) == len(other) and all(map(is_equal, one, other))
        case (float() | int(), float() | int()):
            return math.isclose(one, other, rel_tol=1e-12)
        case _:
            return one == other
