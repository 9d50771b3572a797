"""The ClickHouse endpoint of `otel-metering up`, and that of the engine alone, as processes."""

import base64
import os
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.up import COMMAND, KEY, REPOSITORY, Up, free_ports, run
from tests.waiting import eventually


def ask(address: str, sql: str, user: str = "grafana_reader", password: str = KEY) -> str:
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        address, data=sql.encode(), headers={"Authorization": f"Basic {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.read().decode())


def test_usage_can_be_read_on_the_port_that_is_printed(tmp_path: Path) -> None:
    up = Up(tmp_path / "data")
    up.start()
    try:
        address = f"http://{up.clickhouse}"
        assert any(line.startswith("ClickHouse") and address in line for line in up.printed)
        event = {"event_id": "1", "tenant_id": "acme", "meter": "orders.items", "quantity": "3"}
        status, answer = up.post("/v1/meter/events", {"events": [event]})
        assert (status, answer["accepted"]) == (202, 1), answer
        eventually(
            lambda: ask(
                address,
                "SELECT tenant_id, toInt64(sum(quantity)) FROM metering.events GROUP BY ALL",
            ),
            lambda found: found == "acme\t3\n",
        )
        other = run("up", f"--data-dir={tmp_path / 'other'}", "--otlp-grpc-port=0", "--otlp-http-port=0",
                    "--api-port=0", f"--clickhouse-port={up.clickhouse.partition(':')[2]}")  # fmt: skip
        assert other.returncode == 1
        assert "--clickhouse-port" in other.stderr
    finally:
        assert up.stop() == 0


def test_it_can_be_off(tmp_path: Path) -> None:
    up = Up(tmp_path / "data", "--clickhouse-port=-1")
    up.start()
    try:
        assert not any(line.startswith("ClickHouse") for line in up.printed)
    finally:
        assert up.stop() == 0


def test_the_engine_runs_alone_for_processes_that_ask_it(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    engine = subprocess.Popen(
        [COMMAND, "clickhouse", f"--data-dir={tmp_path}", f"--port={port}"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "METERING_CLICKHOUSE_ADMIN_PASSWORD": "secret"},
    )
    try:
        assert engine.stdout is not None
        assert [engine.stdout.readline(), engine.stdout.readline()] == [
            f"ClickHouse  http://127.0.0.1:{port}\n",
            "ready\n",
        ]
        url = f"clickhouse://admin:secret@127.0.0.1:{port}/metering"
        migrated = run(
            "migrate", METERING_CLICKHOUSE_URL=url, METERING_DATA_DIR=str(tmp_path / "x")
        )
        assert (migrated.returncode, migrated.stdout) == (0, "The database is up to date.\n")
        counted = ask(
            f"http://127.0.0.1:{port}",
            "SELECT count() > 0 FROM metering.migrations",
            "admin",
            "secret",
        )
        assert counted == "1\n"
    finally:
        engine.send_signal(signal.SIGTERM)
        assert engine.communicate(timeout=60)[0] == "stopped\n"
        assert engine.returncode == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"METERING_CLICKHOUSE_URL": "clickhouse://u:p@127.0.0.1:1/metering"},
        {"METERING_CLICKHOUSE_PORT": "-1"},
    ],
)
def test_there_is_no_endpoint_of_a_server(settings: dict[str, str], tmp_path: Path) -> None:
    ended = run("clickhouse", f"--data-dir={tmp_path}", **settings)

    assert ended.returncode == 1
    assert "no endpoint" in ended.stderr
