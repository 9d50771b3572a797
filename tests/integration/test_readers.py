"""Grants for a ClickHouse server: what can be checked without one.

The embedded engine has no users, so it parses these statements and refuses to run them. Whether a server does what
they say is not tested here.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from otel_metering.clock import ManualClock
from otel_metering.errors import InvalidUsageError
from receiver import cli
from receiver.store import tables
from receiver.store.client import AccessDeniedError, Store
from receiver.store.migrate import migrate, split
from receiver.store.readers import grant, prepare_readers, reader_sql, tenant_reader_sql

EVERY = {
    value
    for name, value in vars(tables).items()
    if name.isupper() and isinstance(value, str) and "." in value
} | set(tables.ROLLUPS)

SQL = {"reader": reader_sql(), "tenant": tenant_reader_sql("tenant_a", "reader_a")}


class Engine(Store):
    """The embedded engine, which shows its users to nobody, or grafana_reader as a server would."""

    shows_reader = False

    def query(self, sql: str, *given: Any, **named: Any) -> Sequence[Sequence[Any]]:
        if self.shows_reader and "system.users" in sql:
            return [["grafana_reader"]]
        return super().query(sql, *given, **named)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    opened = Engine(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(opened, ManualClock())
    yield opened
    opened.close()


def columns(store: Store, table: str) -> set[str]:
    rows = store.query(
        "SELECT name FROM system.columns WHERE database || '.' || table = {table:String}",
        {"table": table},
    )
    return {str(row[0]) for row in rows}


def grants(sql: str) -> dict[str, set[str] | None]:
    """Table -> the columns that are granted; None: all."""
    found: dict[str, set[str] | None] = {}
    for names, table in re.findall(r"GRANT SELECT(?:\(([^)]*)\))?\s+ON (\S+) TO", sql):
        assert table not in found
        found[table] = {name.strip() for name in names.split(",")} if names else None
    return found


def withheld(sql: str) -> set[str]:
    lines = re.findall(r"withheld: (.+)", sql)
    return {name for line in lines for name in line.split()}


@pytest.mark.parametrize("which", SQL)
def test_every_statement_is_sql_of_the_engine(store: Store, which: str) -> None:
    statements = split(SQL[which])

    for statement in statements:
        formatted = store.query("SELECT formatQuery({sql:String})", {"sql": statement})
        assert formatted[0][0]
    assert len(statements) > 20
    assert "$" not in SQL[which]


@pytest.mark.parametrize("which", SQL)
def test_every_table_is_granted_or_named_as_withheld(store: Store, which: str) -> None:
    granted, kept = grants(SQL[which]), withheld(SQL[which])

    for table in EVERY:
        known = columns(store, table)
        assert known
        if table not in granted:
            assert table in kept, f"{table} is neither granted nor withheld"
            continue
        names = granted[table]
        if names is not None:
            hidden = {name.rpartition(".")[2] for name in kept if name.startswith(f"{table}.")}
            assert names | hidden == known
            assert not names & hidden
    assert set(granted) <= EVERY


def test_no_reader_has_hashes_of_keys_or_what_was_sent() -> None:
    assert withheld(SQL["reader"]) == {
        "metering.api_keys.key_hash",
        "metering.quarantine.payload",
    }
    for sql in SQL.values():
        statements = "\n".join(split(re.sub(r"^--.*$", "", sql, flags=re.M)))
        assert "key_hash" not in statements
        assert "payload" not in statements


def test_what_a_tenants_reader_reads_is_that_tenants(store: Store) -> None:
    sql = SQL["tenant"]
    policies = re.findall(r"POLICY OR REPLACE (\S+) ON (\S+) FOR SELECT USING (.+) AS RES", sql)
    everybody = re.findall(r"metering_everybody ON (\S+) FOR SELECT USING 1 AS PERMISSIVE", sql)

    with_tenants = {table for table in grants(sql) if "tenant_id" in columns(store, table)}
    assert {table for _, table, _ in policies} == set(everybody) == with_tenants
    assert set(grants(sql)) - with_tenants == {"metering.meter_definitions"}
    store.execute(
        "INSERT INTO metering.quotas (quota_id, tenant_id) VALUES "
        "('a', 'tenant_a'), ('b', 'tenant_b'), ('default', NULL)"
    )
    for user, table, condition in policies:
        assert user == "reader_a"
        rows = store.query(f"SELECT count() FROM {table} WHERE {condition}")
        assert rows[0][0] == (2 if table == "metering.quotas" else 0)


def test_the_limits_are_settings_of_the_engine(store: Store) -> None:
    (profile,) = (one for one in split(SQL["reader"]) if "SETTINGS PROFILE IF NOT" in one)
    limits = re.findall(r"^\s+(\w+) = (\S+?)[ ,]?(?:MIN.*|CHANGEABLE.*)?$", profile, flags=re.M)

    assert dict(limits)["readonly"] == "1"
    for name, value in limits:
        assert store.query(
            "SELECT name FROM system.settings WHERE name = {name:String}", {"name": name}
        ), name
        if name != "readonly":
            store.query(f"SELECT 1 SETTINGS {name} = {value.rstrip(',')}")


@pytest.mark.parametrize("tenant", ["a'b", "a\\", "a\nb", "${x}", "$__x", "a b", "", "a" * 129])
def test_a_tenant_that_is_no_name_makes_no_sql(tenant: str) -> None:
    with pytest.raises(InvalidUsageError):
        tenant_reader_sql(tenant, "reader_a")


@pytest.mark.parametrize(
    "user", ["a'b", "a`b", "1a", "", "a-b", "a" * 65, "grafana_reader", "default"]
)
def test_a_user_that_is_no_name_or_another_one_makes_no_sql(user: str) -> None:
    with pytest.raises(InvalidUsageError):
        tenant_reader_sql("tenant_a", user)


def test_who_may_not_make_users_is_told_once_what_to_run(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    # The embedded engine answers as a server does to a user without grants: with code 497.
    with pytest.raises(AccessDeniedError, match="497"):
        store.execute(split(SQL["reader"])[0])

    assert not grant(store)

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "otel-metering grants" in record.getMessage()


def test_where_the_reader_is_there_nobody_is_warned(
    store: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "shows_reader", True)

    assert not grant(store)

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_embedded_engine_is_left_alone(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    prepare_readers(store)

    assert caplog.records == []


def test_the_command_prints_what_an_administrator_is_to_run() -> None:
    app, run = typer.Typer(), CliRunner().invoke
    cli.register(app)

    assert run(app, ["grants"]).stdout.strip() == SQL["reader"].strip()
    printed = run(app, ["grants", "--tenant", "tenant_a", "--user", "reader_a"])
    assert printed.stdout.strip() == SQL["tenant"].strip()
    for wrong in (["--tenant", "tenant_a"], ["--tenant", "a'b", "--user", "x"]):
        failed = run(app, ["grants", *wrong])
        assert failed.exit_code == 1
        assert "error: " in failed.stderr
