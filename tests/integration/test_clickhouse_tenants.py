"""A key bound to one tenant sees that tenant's rows, in whatever form it asks; by an oracle of a few lines."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query_api.clickhouse.policy import TENANT_ROWS
from tests.integration.clickhouse_endpoint import Running, running_endpoint

TENANTS = ["acme", "acme.eu", "a:b@c/d", "globex"]
METERS = ["api.calls", "storage", "llm.tokens"]


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        minute: Of a day in January 2026.
        secret: What stands in unique_key: a number for acme, and a text that is none for all others.
    """

    tenant: str
    meter: str
    quantity: int
    minute: int
    secret: str


def _events() -> list[Event]:
    chance = random.Random(7)
    return [
        Event(
            tenant=(tenant := chance.choice(TENANTS)),
            meter=chance.choice(METERS),
            quantity=chance.randrange(100),
            minute=chance.randrange(1440),
            secret=str(chance.randrange(9)) if tenant == "acme" else f"secret of {tenant}",
        )
        for _ in range(3_000)
    ]


EVENTS = _events()


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_endpoint(tmp_path_factory.mktemp("engine")) as running:
        rows = ", ".join(
            f"(generateUUIDv4(), {_quoted(event.tenant)}, '{event.meter}', {event.quantity}, "
            f"{_quoted(event.secret)}, toDateTime64('2026-01-05 00:00:00', 9, 'UTC') + INTERVAL {event.minute} MINUTE)"
            for event in EVENTS
        )
        running.store.execute(
            f"INSERT INTO metering.events (event_id, tenant_id, meter, quantity, unique_key, timestamp) VALUES {rows}"
        )
        each = f"arrayJoin([{', '.join(map(_quoted, TENANTS))}]) AS tenant"
        for statement in (
            f"quotas (quota_id, tenant_id, meter) SELECT 'q' || tenant, tenant, 'm' FROM (SELECT {each})",
            "quotas (quota_id, meter) SELECT 'default', 'm'",
            f"quota_usage (tenant_id, meter, quota_id) SELECT {each}, 'm', 'q'",
            f"audit_log (at, action, tenant_id) SELECT now64(), 'a', arrayJoin(['', tenant]) FROM (SELECT {each})",
            f"quarantine (tenant_id, reason) SELECT arrayJoin(['', tenant]), 'r' FROM (SELECT {each})",
            f"event_corrections (tenant_id, meter) SELECT {each}, 'm'",
            "pipeline_stats (at, stage) SELECT now64(), 's'",
            "quarantine_resolved (note) SELECT 'n'",
            "api_key_use (key_id) SELECT 'k'",
            "explicit_ids (event_id) SELECT generateUUIDv4()",
            "meters (slug) SELECT 'm'",
            "meter_definitions (meter, origin) SELECT 'm', 'file'",
        ):
            running.store.execute(f"INSERT INTO metering.{statement}")
        for tenant in TENANTS:
            running.key(tenant)
        yield running


OWN_ROWS, ALL_ROWS, NO_ROWS = "tenant_id = {}", "1", "0"

# As docs/clickhouse.md says, and not as the policy does.
SEEN = {
    "events": OWN_ROWS,
    "usage_minute": OWN_ROWS,
    "usage_hour": OWN_ROWS,
    "usage_day": OWN_ROWS,
    "usage_month": OWN_ROWS,
    "event_corrections": OWN_ROWS,
    "quarantine": OWN_ROWS,
    "quota_usage": OWN_ROWS,
    "audit_log": OWN_ROWS,
    "api_keys": OWN_ROWS,
    "quotas": "tenant_id = {} OR tenant_id IS NULL",
    "meters": ALL_ROWS,
    "meter_definitions": ALL_ROWS,
    "api_key_use": NO_ROWS,
    "pipeline_stats": NO_ROWS,
    "quarantine_resolved": NO_ROWS,
    "explicit_ids": NO_ROWS,
    "migrations": NO_ROWS,
}


def test_every_table_is_among_those_whose_rows_are_looked_at() -> None:
    assert {f"metering.{table}" for table in SEEN} == set(TENANT_ROWS)


@pytest.mark.parametrize("table", sorted(SEEN))
@pytest.mark.parametrize("tenant", TENANTS)
def test_of_each_table_a_bound_key_sees_its_own_rows(
    endpoint: Running, table: str, tenant: str
) -> None:
    rows, name = SEEN[table], f"metering.{table}"

    where = rows.format(_quoted(tenant))
    expected = endpoint.store.query(f"SELECT count() FROM {name} WHERE {where}")[0][0]

    assert endpoint.rows(f"SELECT count() FROM {name}", tenant) == [[expected]]
    assert expected or rows == NO_ROWS
    if rows == OWN_ROWS:
        seen = endpoint.rows(f"SELECT DISTINCT tenant_id FROM {name}", tenant)
        assert seen == [[tenant]]
    everything = endpoint.store.query(f"SELECT count() FROM {name}")[0][0]
    assert everything > expected or rows == ALL_ROWS
    assert endpoint.rows(f"SELECT count() FROM {name}") == [[everything]]


def test_a_bound_key_sees_default_quotas_and_its_own(endpoint: Running) -> None:
    found = endpoint.rows("SELECT quota_id FROM metering.quotas FINAL ORDER BY quota_id", "acme")

    assert found == [["default"], ["qacme"]]


OWN = Counter(event.tenant for event in EVENTS)["acme"]
TOTAL = sum(event.quantity for event in EVENTS if event.tenant == "acme")

FORMS = {
    "SELECT count() FROM metering.events": OWN,
    "SELECT count() FROM events": OWN,
    "SELECT count() FROM metering.events AS e": OWN,
    "SELECT count(*) FROM metering.events FORMAT JSONCompactEachRow": OWN,
    "SELECT count() FROM (SELECT * FROM metering.events)": OWN,
    "SELECT count() FROM (SELECT * FROM (SELECT tenant_id FROM metering.events AS x) AS y)": OWN,
    "WITH x AS (SELECT * FROM metering.events) SELECT count() FROM x": OWN,
    "WITH events AS (SELECT * FROM metering.events) SELECT count() FROM events": OWN,
    "WITH RECURSIVE r AS (SELECT 1 AS n, count() AS c FROM metering.events UNION ALL "
    "SELECT n + 1, (SELECT count() FROM metering.events) FROM r WHERE n < 3) SELECT max(c) FROM r": OWN,
    "SELECT (SELECT count() FROM metering.events)": OWN,
    "WITH (SELECT count() FROM metering.events) AS n SELECT n": OWN,
    "SELECT sum(c) FROM (SELECT count() AS c FROM metering.events UNION ALL SELECT 0)": OWN,
    "SELECT count() FROM metering.events UNION DISTINCT SELECT count() FROM metering.events": OWN,
    "SELECT count() FROM (SELECT tenant_id FROM metering.events INTERSECT SELECT tenant_id FROM metering.events)": OWN,
    "SELECT count() FROM (SELECT 'globex' AS t INTERSECT SELECT tenant_id FROM metering.events)": 0,
    "SELECT 'globex' IN (SELECT tenant_id FROM metering.events)": 0,
    "SELECT exists(SELECT 1 FROM metering.events WHERE tenant_id = 'globex')": 0,
    "SELECT count() FROM metering.events WHERE tenant_id = 'globex'": 0,
    "SELECT count() FROM metering.events WHERE tenant_id != 'acme' OR 1": OWN,
    "SELECT count() FROM metering.usage_day WHERE tenant_id IN (SELECT tenant_id FROM metering.events) "
    "AND tenant_id != 'acme'": 0,
    "SELECT uniqExact(tenant_id) FROM metering.events": 1,
    "SELECT length(groupUniqArray(tenant_id)) FROM metering.usage_minute": 1,
    "SELECT toInt64(sum(quantity)) FROM metering.events": TOTAL,
    "SELECT toInt64(sum(quantity_sum)) FROM metering.usage_minute": TOTAL,
    "SELECT toInt64(sum(quantity_sum)) FROM metering.usage_month FINAL": TOTAL,
    "SELECT count() FROM metering.events AS a RIGHT JOIN metering.usage_month AS b ON a.tenant_id = b.tenant_id "
    "AND a.meter = b.meter": OWN + 1,  # the correction has a meter of its own
    "SELECT countIf('globex' IN (a.tenant_id, b.tenant_id)) FROM metering.events AS a FULL JOIN "
    "metering.usage_day AS b USING (meter)": 0,
    "SELECT count() FROM metering.events ASOF JOIN (SELECT meter, min(timestamp) AS timestamp FROM metering.events "
    "GROUP BY meter) AS b USING (meter, timestamp)": OWN,
    "SELECT count() FROM metering.events ARRAY JOIN [1, 2] AS z": 2 * OWN,
    "SELECT max(c) FROM (SELECT count() OVER () AS c FROM metering.events)": OWN,
    "SELECT sum(c) FROM (SELECT count() AS c FROM metering.events GROUP BY tenant_id WITH ROLLUP)": 2
    * OWN,
    "SELECT count() FROM (SELECT * FROM metering.events LIMIT 1 BY tenant_id)": 1,
    "SELECT count() FROM (SELECT DISTINCT tenant_id FROM metering.events ORDER BY tenant_id)": 1,
    "SELECT count() FROM metering.events HAVING count() > 0": OWN,
    "SELECT count() FROM metering.events SETTINGS final = 1": OWN,
    "SELECT countIf(1) FROM metering.events WHERE 1 IN (SELECT 1)": OWN,
    "SELECT count() FROM metering.events, (SELECT 1 AS one) AS o": OWN,
    "SELECT toUInt64(sum(_part_offset >= 0)) FROM metering.events": OWN,
    "SELECT sum(rows) FROM (SELECT _part, count() AS rows FROM metering.events GROUP BY _part)": OWN,
}


@pytest.mark.parametrize("sql", FORMS)
def test_whatever_form_a_statement_has_it_sees_one_tenant(endpoint: Running, sql: str) -> None:
    assert [int(row[0]) for row in endpoint.rows(sql, "acme")] == [FORMS[sql]]


SPIES = [
    # unique_key is a number in every row of acme, and in none of the others.
    "SELECT count() FROM metering.events WHERE toUInt64(unique_key) < 99",
    "SELECT count() FROM metering.events WHERE meter != '' AND toUInt64(unique_key) < 99 AND quantity < 1000",
    "SELECT count() FROM (SELECT * FROM metering.events) WHERE toUInt64(unique_key) < 99",
    "WITH x AS (SELECT * FROM metering.events) SELECT count() FROM x WHERE toUInt64(unique_key) < 99",
    "SELECT count() FROM metering.events WHERE if(tenant_id = 'globex', toUInt8(unique_key), 1) = 1",
    "SELECT max(toUInt64(unique_key)) FROM metering.events",
    "SELECT toUInt64(unique_key) AS n, count() FROM metering.events GROUP BY n ORDER BY n",
    "SELECT toUInt64(unique_key) AS n FROM metering.events ORDER BY n LIMIT 3",
    "SELECT toUInt64(unique_key) FROM metering.events ORDER BY tenant_id, meter, timestamp LIMIT 3",
    "SELECT count() FROM metering.events AS a JOIN metering.events AS b ON toUInt64(a.unique_key) = toUInt64(b.unique_key)",
    "SELECT count() FROM metering.events AS a JOIN metering.usage_day AS b ON a.meter = b.meter WHERE toUInt64(a.unique_key) < 99",
    "SELECT count() FROM metering.events AS a LEFT JOIN (SELECT toString(number) AS k FROM numbers(9)) AS b ON a.unique_key = b.k WHERE toUInt64(a.unique_key) < 99",
    "SELECT count() FROM metering.events WHERE meter IN (SELECT meter FROM metering.events WHERE toUInt64(unique_key) < 99)",
    "SELECT sumIf(1, toUInt64(unique_key) < 99) FROM metering.events",
    "SELECT count() FROM metering.events ARRAY JOIN [toUInt64(unique_key)] AS n WHERE n < 99",
    "SELECT meter, count() FROM metering.events GROUP BY meter HAVING max(toUInt64(unique_key)) < 99",
    "SELECT DISTINCT toUInt64(unique_key) FROM metering.events",
    "SELECT count() OVER (PARTITION BY toUInt64(unique_key)) FROM metering.events",
    "SELECT count() FROM metering.events LIMIT 1 BY toUInt64(any(unique_key))",
    "SELECT 1 FROM metering.events WHERE toUInt64(unique_key) < 99 UNION ALL SELECT 2",
]


@pytest.mark.parametrize("sql", SPIES)
def test_no_error_tells_of_rows_of_another_tenant(endpoint: Running, sql: str) -> None:
    answer = endpoint.ask(sql, tenant="acme")

    assert answer.code == 0, answer.text
    assert "secret" not in answer.text
    # The same fails for one whose rows have no numbers: it is computed.
    assert endpoint.ask(sql, tenant="globex").code != 0


def test_an_error_of_a_bound_key_says_nothing_of_what_was_read(endpoint: Running) -> None:
    answer = endpoint.ask("SELECT toUInt64(unique_key) FROM metering.events", tenant="globex")

    assert answer.code == 6
    assert "secret" not in answer.text
    counted = endpoint.ask(
        "SELECT count() FROM metering.quarantine", tenant="acme", max_rows_to_read=1
    )
    assert counted.code in (0, 158)
    assert not set("0123456789") & set(
        counted.text.partition("Exception:")[2].partition("(version")[0]
    )
    assert endpoint.ask("SELECT * FROM metering.events PREWHERE 1", tenant="acme").code == 497


def test_one_tenant_s_statement_does_not_change_what_the_next_one_finds(endpoint: Running) -> None:
    sql = "SELECT tenant_id, count() FROM metering.events WHERE unique_key LIKE 'secret%' GROUP BY tenant_id"

    for tenant in [*TENANTS, *reversed(TENANTS)] * 2:
        counted = sum(
            event.tenant == tenant for event in EVENTS if event.secret.startswith("secret")
        )
        assert endpoint.rows(sql, tenant) == ([[tenant, counted]] if counted else [])


def test_the_catalog_tells_a_bound_key_nothing_of_all_tenants_together(endpoint: Running) -> None:
    named = "SELECT name, engine FROM system.tables WHERE database = 'metering'"

    assert len(endpoint.rows(named, "acme")) > 10
    for sql in (
        "SELECT total_rows FROM system.tables",
        "SELECT * FROM system.tables",
        "SELECT sum(total_bytes) FROM system.tables",
        "SELECT * FROM system.columns",
        "SELECT data_compressed_bytes FROM system.columns",
        "SELECT data_path FROM system.databases",
    ):
        assert endpoint.ask(sql, tenant="acme").code == 497
        assert endpoint.ask(sql).code == 0


COUNTING = {
    "system.tables": "total_rows total_bytes total_bytes_uncompressed parts active_parts total_marks lifetime_rows "
    "lifetime_bytes data_paths metadata_path",
    "system.databases": "data_path metadata_path",
    "system.columns": "data_compressed_bytes data_uncompressed_bytes marks_bytes",
}


@pytest.mark.parametrize("table", COUNTING)
def test_no_column_of_the_catalog_counts_rows_of_all_tenants_for_a_bound_key(
    endpoint: Running, table: str
) -> None:
    for column in COUNTING[table].split():
        sql = f"SELECT {column} FROM {table}"
        assert (endpoint.ask(sql, tenant="acme").code, endpoint.ask(sql).code) == (497, 0), column


conditions = st.one_of(
    st.sampled_from(METERS).map(lambda meter: (f"meter = '{meter}'", lambda e: e.meter == meter)),
    st.integers(0, 100).map(lambda n: (f"quantity >= {n}", lambda e: e.quantity >= n)),
    st.integers(0, 1440).map(
        lambda n: (
            f"timestamp < toDateTime('2026-01-05 00:00:00', 'UTC') + INTERVAL {n} MINUTE",
            lambda e: e.minute < n,
        )
    ),
    st.sampled_from(TENANTS).map(
        lambda tenant: (f"tenant_id = {_quoted(tenant)}", lambda e: e.tenant == tenant)
    ),
    st.just(("1 = 1", lambda _: True)),
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, Counter[str]]:
    """A condition of several parts, in one of several forms, and how often each meter fits for each tenant."""
    parts = draw(st.lists(conditions, min_size=1, max_size=4))
    glue, every = draw(st.sampled_from([(" AND ", all), (" OR ", any)]))
    where = glue.join(f"({sql})" for sql, _ in parts)
    form = draw(
        st.sampled_from(
            [
                "SELECT meter, count() FROM metering.events WHERE {} GROUP BY meter",
                "SELECT meter, count() FROM (SELECT * FROM metering.events) WHERE {} GROUP BY meter",
                "WITH x AS (SELECT * FROM events WHERE {}) SELECT meter, count() FROM x AS y GROUP BY meter",
                "SELECT meter, sum(c) FROM (SELECT meter, 1 AS c FROM metering.events WHERE {} "
                "UNION ALL SELECT meter, 0 FROM metering.events) GROUP BY meter HAVING sum(c) > 0",
                "SELECT e.meter, count() FROM metering.events AS e WHERE event_id IN "
                "(SELECT event_id FROM metering.events WHERE {}) GROUP BY e.meter",
                "SELECT a.meter, count() FROM metering.events AS a JOIN (SELECT event_id FROM metering.events "
                "WHERE {}) AS b ON a.event_id = b.event_id GROUP BY a.meter",
                "SELECT meter, countIf({}) AS c FROM metering.events GROUP BY meter HAVING c > 0",
            ]
        )
    )
    tenant = draw(st.sampled_from(TENANTS))
    fitting = [
        event
        for event in EVENTS
        if event.tenant == tenant and every(fits(event) for _, fits in parts)
    ]
    return form.format(where) + f"|{tenant}", Counter(event.meter for event in fitting)


@settings(max_examples=40)
@given(questions())
def test_random_questions_of_a_bound_key_count_what_an_oracle_counts(
    endpoint: Running, question: tuple[str, Counter[str]]
) -> None:
    sql, _, tenant = question[0].rpartition("|")

    found = {meter: int(count) for meter, count in endpoint.rows(sql, tenant)}

    assert found == dict(question[1])
