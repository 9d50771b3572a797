"""meters.yaml may change under load: no request fails, and what a meter counts follows the file."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.up import KEY, Up, run
from tests.otlp import NOON, logs_request, post, spans_request
from tests.waiting import eventually

OLD = """\
meters:
  - slug: old
    source: {signal: span, name: "GET *"}
    aggregation: count
"""
BAD = OLD + "    agregation: sum\n"


def with_meter(slug: str) -> str:
    return OLD + f"  - slug: {slug}\n    source: {{signal: span, kind: server}}\n"


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class Load:
    """Spans and log records without end; each request must succeed."""

    def __init__(self, up: Up) -> None:
        self._up = up
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(2)]
        self.sent = 0
        self.failed: list[object] = []
        self._lock = threading.Lock()

    def _send(self, number: int) -> None:
        one = number << 48
        while not self._stopping.is_set():
            one += 2
            attributes = {"tenant.id": "tenant_a"}
            spans = spans_request([attributes, attributes], first_id=one)
            try:
                status, body, _ = post(self._up.http, "/v1/traces", spans.SerializeToString(), KEY)
            except OSError as error:
                status, body = 0, repr(error).encode()
            with self._lock:
                if (status, body) == (200, b""):
                    self.sent += 2
                else:
                    self.failed.append((status, body))

    @contextmanager
    def running(self) -> Iterator["Load"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "meters.yaml"
    path.write_text(OLD)
    return path


@pytest.fixture
def up(tmp_path: Path, path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "data", f"--meters={path}")
    running.start()
    try:
        yield running
    finally:
        if running.is_running:
            running.kill()


def count(up: Up, meter: str) -> int:
    answer = up.get(
        "/v1/meter/aggregates",
        meter=meter,
        window="total",
        aggregation="count",
        **{"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"},
    )
    return sum(int(row["value"]) for row in answer["data"])


def health(up: Up) -> Any:
    return up.get("/v1/meter/health")


def hang_up(up: Up) -> None:
    assert up._process is not None
    up._process.send_signal(signal.SIGHUP)


def by_itself(up: Up) -> None:
    """The file is looked at once a second."""


@pytest.mark.parametrize("nudge", [hang_up, by_itself])
def test_a_changed_file_takes_effect_under_load_and_no_request_fails(
    up: Up, path: Path, nudge: Callable[[Up], None]
) -> None:
    with Load(up).running() as load:
        eventually(lambda: count(up, "old"), lambda found: found > 0)
        for slug in ("new.1", "new.2"):
            replace(path, with_meter(slug))
            nudge(up)
            eventually(lambda slug=slug: count(up, slug), lambda found: found > 0)  # type: ignore[misc]

        replace(path, BAD)
        nudge(up)
        detail = eventually(
            lambda: health(up)["checks"]["meters"]["detail"], lambda found: "wrong" in found
        )
        seen = count(up, "new.2")
        eventually(lambda: count(up, "new.2"), lambda found: found > seen)

        replace(path, OLD)
        nudge(up)
        eventually(
            lambda: health(up)["checks"]["meters"]["detail"], lambda found: "wrong" not in found
        )

    assert load.failed == []
    # Each span is counted once by the meter that was there all the time, and at most once by others.
    eventually(lambda: count(up, "old"), lambda found: found == load.sent)
    assert 0 < count(up, "new.1") + count(up, "new.2") < load.sent
    assert f"{path}:5: meters[0].agregation is no field" in detail
    assert detail.startswith("2 meters, read at 20")
    assert health(up)["status"] == "ok"
    assert up.stop() == 0
    printed = "".join(up.printed)
    assert "Meters read: added new.1" in printed
    assert "Meters read: added new.2; removed new.1" in printed
    assert f"Meters stay as they were, 2 meters: {path}:5: meters[0].agregation" in printed
    assert "Meters read: removed new.2" in printed


def test_log_records_and_the_list_of_meters_follow_the_file(up: Up, path: Path) -> None:
    def send(at_ns: int) -> None:
        request = logs_request([{"tenant.id": "tenant_a"}], event_name="mail.sent", at_ns=at_ns)
        assert post(up.http, "/v1/logs", request.SerializeToString(), KEY)[0] == 200

    hang_up(up)
    eventually(lambda: "".join(up.printed), lambda printed: "Meters unchanged" in printed)
    send(NOON)
    replace(path, "meters:\n- slug: mails\n  source: {signal: log, name: mail.sent}\n")
    hang_up(up)
    eventually(
        lambda: [one["slug"] for one in up.get("/v1/meter/meters")["data"]],
        lambda found: found == ["mails"],
    )
    send(NOON + 1)

    eventually(lambda: count(up, "mails"), lambda found: found == 1)


def test_a_bad_file_stops_the_start_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "meters.yaml"
    path.write_text("meters:\n  - slug: a\n    source:\n      signal: span\n      kind: serverr\n")

    done = run("up", f"--data-dir={tmp_path / 'data'}", "--api-port=0", f"--meters={path}")

    assert done.returncode == 1
    assert done.stderr == (
        f"error: {path}:5: meters[0].source.kind is 'serverr'; "
        "it must be one of internal, server, client, producer, consumer\n"
    )
    assert not (tmp_path / "data").exists()


def test_the_check_command_says_how_many_meters_or_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(BAD)

    here = run("meters", "check")
    by_setting = run("meters", "check", METERING_METERS_FILE=str(path))
    bad = run("meters", "check", str(path))
    missing = run("meters", "check", str(tmp_path / "none.yaml"))

    assert (here.returncode, here.stdout) == (0, "2 meters\n")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith(f"error: {path}:5: meters[0].agregation is no field; known here")
    assert by_setting.stderr == bad.stderr
    assert missing.returncode == 1
    assert "there is no such file; create it or name another" in missing.stderr
