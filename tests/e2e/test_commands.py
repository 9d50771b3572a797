"""The commands that a newcomer types first."""

from collections import Counter
from decimal import Decimal
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from query_api import demo
from tests.e2e.up import Up, run


def test_the_demo_counts_what_it_sent() -> None:
    done = run("demo", "--exit", "--requests=300", METERING_ADMIN_KEY="not for the demo")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 20 totals are equal, to the last digit." in done.stdout


def test_the_demo_says_when_totals_differ() -> None:
    console = Console(file=StringIO())
    sent = Counter({("acme", "api.calls"): Decimal(3)})

    assert demo._compare(console, sent, Counter(sent))
    for reported in ({}, {("acme", "api.calls"): 2}, {**sent, ("other", "api.calls"): 1}):
        assert not demo._compare(console, sent, Counter(reported))


def test_migrate_shows_then_applies_then_has_nothing_to_do(tmp_path: Path) -> None:
    shown, applied, again = (
        run("migrate", *options, METERING_DATA_DIR=str(tmp_path))
        for options in (["--dry-run"], [], ["--dry-run"])
    )

    assert "CREATE TABLE IF NOT EXISTS metering.events" in shown.stdout
    assert "-- 0002_events.sql" in applied.stdout
    assert again.stdout == "The database is up to date.\n"
    assert [shown.returncode, applied.returncode, again.returncode] == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({"METERING_API_PORT": "many"}, [], "METERING_API_PORT"),
        ({"METERING_ADMIN_KEY": "secret"}, [], "METERING_ADMIN_KEY"),
        ({}, ["--meters=no such file"], "no such file"),
    ],
)
def test_a_bad_setting_stops_the_start_and_is_named(
    tmp_path: Path, settings: dict[str, str], arguments: list[str], said: str
) -> None:
    ports = ["--otlp-grpc-port=0", "--otlp-http-port=0", "--api-port=0"]
    if "METERING_API_PORT" in settings:
        ports.pop()

    done = run("up", f"--data-dir={tmp_path}", *ports, *arguments, **settings)

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        ("migrate", {"METERING_SECRETS_DIR": "/no such directory"}, "METERING_SECRETS_DIR"),
        ("receiver", {"METERING_CLICKHOUSE_URL": "clickhouse://127.0.0.1:1/metering"}, "database"),
        ("api", {"METERING_CLICKHOUSE_URL": ""}, "METERING_CLICKHOUSE_URL names no server"),
        ("api", {"METERING_RECEIVER_URL": "receiver:8081"}, "METERING_RECEIVER_URL"),
    ],
)
def test_separate_processes_say_what_they_lack(
    tmp_path: Path, command: str, settings: dict[str, str], said: str
) -> None:
    done = run(command, METERING_DATA_DIR=str(tmp_path), **settings)

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_receiver_does_not_share_an_embedded_engine(new_up: Up) -> None:
    new_up.start()
    engine = f"chdb://{new_up.data_dir / 'clickhouse'}"

    done = run(
        "receiver",
        f"--data-dir={new_up.data_dir / 'other'}",
        "--api-port=0",
        METERING_CLICKHOUSE_URL=engine,
    )

    assert done.returncode == 1
    assert "no other process may have it" in done.stderr
    assert "Traceback" not in done.stderr
    assert new_up.stop() == 0


def test_a_second_process_on_the_same_data_is_refused_and_the_first_goes_on(new_up: Up) -> None:
    new_up.start()

    done = run("up", f"--data-dir={new_up.data_dir}", "--api-port=0")

    assert done.returncode == 1
    assert "belongs to another running process" in done.stderr
    assert new_up.get("/v1/meter/health")["status"] == "ok"
    assert new_up.stop() == 0


def test_the_first_start_makes_an_admin_key_and_prints_it_once(new_up: Up) -> None:
    up = new_up
    up.start(admin_key=None)
    (line,) = [line for line in up.printed if line.startswith("admin key")]
    key = line.split()[2]

    status, made = up.post("/v1/meter/keys", {"name": "n", "scopes": ["ingest"]}, key)
    up.stop()
    up.start(admin_key=None)
    again, _ = up.post("/v1/meter/keys", {"name": "n", "scopes": ["ingest"]}, key)

    assert (status, again) == (201, 201)
    assert made["key"].startswith("otm_")
    assert sum(line.startswith("admin key") for line in up.printed) == 1
    stored = b"".join(path.read_bytes() for path in up.data_dir.rglob("*") if path.is_file())
    assert key.split("_")[2].encode() not in stored
    up.stop()
