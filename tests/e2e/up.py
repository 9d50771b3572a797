"""`otel-metering up` as a process of its own, as a user runs it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.waiting import eventually

KEY = "otm_root_" + "0123456789abcdef" * 4
COMMAND = Path(sys.executable).with_name("otel-metering")
REPOSITORY = Path(__file__).parents[2]


class Up:
    """One data directory, and the process that has it, if it runs."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.grpc, self.http, self.api, self.clickhouse = (
            f"127.0.0.1:{port}" for port in free_ports(4)
        )
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self._is_ready = False
        self.printed: list[str] = []

    def command(self) -> list[str]:
        """What is run."""
        return [
            str(COMMAND),
            "up",
            f"--data-dir={self.data_dir}",
            f"--otlp-grpc-port={self.grpc.partition(':')[2]}",
            f"--otlp-http-port={self.http.partition(':')[2]}",
            f"--api-port={self.api.partition(':')[2]}",
            f"--clickhouse-port={self.clickhouse.partition(':')[2]}",
            f"--meters={REPOSITORY / 'meters.yaml'}",
            *self._arguments,
        ]

    def start(self, admin_key: str | None = KEY) -> None:
        """Start it, and wait until it is ready."""
        settings = {} if admin_key is None else {"METERING_ADMIN_KEY": admin_key}
        ready = threading.Event()
        self._is_ready = False
        self._process = subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **settings},
            cwd=REPOSITORY,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process, ready), daemon=True)
        self._reader.start()
        assert ready.wait(60), "not ready after a minute:\n" + "".join(self.printed)
        # Not whether it runs: one that has said why it ends may still be about to.
        assert self._is_ready, "".join(self.printed)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; returns its exit status."""
        return self._end(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it, if there is a process; waits for nothing."""
        if self.is_running and self._process is not None:
            self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended and all it printed was read."""
        assert self._process is not None
        status = self._process.wait(60)
        self._reader.join()
        return status

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON of a GET to the query API."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        request = urllib.request.Request(
            f"http://{self.api}{path}?{query}", headers={"authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def post(self, path: str, body: object, key: str = KEY) -> tuple[int, Any]:
        """Status and JSON of a POST to the query API."""
        request = urllib.request.Request(
            f"http://{self.api}{path}",
            data=json.dumps(body).encode(),
            headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def totals(self, meters: Sequence[str], window: str) -> dict[tuple[str, str, str], Decimal]:
        """What the query API says: (tenant, meter, begin of the window) -> sum."""
        found = {}
        for meter in meters:
            for row in self._usage(meter, window):
                found[row["tenant_id"], meter, row["window_start"]] = Decimal(row["value"])
        return found

    def _usage(self, meter: str, window: str) -> list[dict[str, Any]]:
        def ask(window: str, **bounds: str) -> list[dict[str, Any]]:
            path = "/v1/meter/aggregates"
            limit = "100000"
            answer = self.get(
                path, meter=meter, window=window, group_by="tenant_id", limit=limit, **bounds
            )
            assert answer["next_cursor"] is None
            rows: list[dict[str, Any]] = answer["data"]
            return rows

        bounds = {"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"}
        if window == "minute":
            # Ten years have more minutes than one answer may: those of the days with usage.
            days = ask("day", **bounds)
            if not days:
                return []
            return [
                row
                for start, end in _months(days[0]["window_start"], days[-1]["window_end"])
                for row in ask(window, **{"from": start, "to": end})
            ]
        return ask(window, **bounds)

    def eventually_totals(
        self, expected: dict[tuple[str, str, str], Decimal], window: str, seconds: float = 20
    ) -> None:
        """Wait until the query API says `expected`; fails when it does not."""
        meters = sorted({meter for _, meter, _ in expected})
        eventually(
            lambda: self.totals(meters, window), lambda found: found == expected, seconds=seconds
        )

    def eventually_totals_of(
        self, tenant: str, expected: Mapping[tuple[str, str, str], Decimal | int]
    ) -> None:
        """Wait until the minutes of one tenant are `expected`; fails when they are not."""
        meters = sorted({meter for _, meter, _ in expected})

        def found() -> dict[tuple[str, str, str], Decimal]:
            every = self.totals(meters, "minute")
            return {key: value for key, value in every.items() if key[0] == tenant}

        eventually(found, lambda answer: answer == expected)

    def _read(self, process: "subprocess.Popen[str]", ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.printed.append(line)
                if line.startswith("ready"):
                    self._is_ready = True
                    ready.set()
        ready.set()

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()


def _months(start: str, end: str) -> list[tuple[str, str]]:
    """A range in parts of 60 days: an answer has at most 100,000 windows."""
    first, last = datetime.fromisoformat(start), datetime.fromisoformat(end)
    edges = [first]
    while edges[-1] < last:
        edges.append(min(edges[-1] + timedelta(days=60), last))
    shown = [edge.isoformat() for edge in edges]
    return list(pairwise(shown))


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """One command, run to its end, with these settings in its environment."""
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has, outside of the range that outgoing connections get."""
    taken: list[socket.socket] = []
    try:
        while len(taken) < count:
            one = socket.socket()
            try:
                one.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
                taken.append(one)
            except OSError:
                one.close()
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()
