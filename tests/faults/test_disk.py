"""Full and read-only disks: loud, nothing acknowledged falsely, nothing lost, and it recovers."""

import contextlib
import errno
import http.client
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.up import KEY, Up
from tests.faults.namespaces import ISOLATION, Isolated
from tests.oracle import FORMATS, Usage, totals
from tests.otlp import NOON, Point, metrics_request, post
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(ISOLATION is None, reason="mounts are not permitted here")

RETRYABLE = {429, 502, 503, 504}
DISK = "32m"


class Sender:
    """Sends one request after another; keeps what was acknowledged, and what was not yet."""

    def __init__(self, up: Up, tenant: str) -> None:
        self._up, self._tenant, self._number = up, tenant, 0
        self.acknowledged: list[Usage] = []
        self.waiting: list[list[Point]] = []
        self.slowest = 0.0

    def send(self, count: int = 200) -> int:
        """One new request; returns the status of its answer."""
        points = []
        for _ in range(count):
            self._number += 1
            # A series each: much to store, so that a small disk is soon full.
            attributes: dict[str, Any] = {"id": f"{self._number:0200}"}
            points.append(
                Point(self._tenant, self._number, at_ns=NOON + self._number, attributes=attributes)
            )
        return self.offer(points)

    def offer(self, points: list[Point]) -> int:
        """A request; kept for later if it is not acknowledged."""
        body = metrics_request(points).SerializeToString()
        began = time.monotonic()
        status, _, headers = post(self._up.http, "/v1/metrics", body, KEY, timeout=20)
        self.slowest = max(self.slowest, time.monotonic() - began)
        if status == 200:
            self.acknowledged += [point.usage for point in points]
        else:
            assert status in RETRYABLE, status
            assert headers["retry-after"] == "1"
            self.waiting.append(points)
        return status

    def send_again(self) -> None:
        """What was not acknowledged, until it is."""
        while self.waiting:
            points = self.waiting.pop()
            eventually(
                lambda points=points: self.offer(points),  # type: ignore[misc]
                lambda status: status == 200,
                seconds=60,
                every=0.2,
            )
            self.waiting = [each for each in self.waiting if each is not points]

    def expect_exact_totals(self) -> None:
        for window in FORMATS:
            expected = totals(self.acknowledged, window)
            eventually(
                lambda window=window: {  # type: ignore[misc]
                    key: value
                    for key, value in self._up.totals(["api.calls"], window).items()
                    if key[0] == self._tenant
                },
                lambda found, expected=expected: found == expected,  # type: ignore[misc]
                seconds=90,
                every=0.5,
            )


def health(up: Up) -> tuple[int, Any]:
    """Status and body of the health route."""
    connection = http.client.HTTPConnection(up.api, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/meter/health", headers={"authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        return response.status, response.read()


def fill(folder: Path) -> Path:
    """Take what is free of a disk, to the last byte."""
    ballast = folder / "ballast"
    size = 2**20
    with ballast.open("ab", buffering=0) as file:
        while size:
            try:
                if file.write(bytes(size)) < size:
                    size //= 2
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return ballast


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    for name in ("spool", "clickhouse"):
        (made / name).mkdir(parents=True)
    return made


@contextlib.contextmanager
def running(up: Isolated) -> Iterator[Isolated]:
    try:
        up.start()
        yield up
    except BaseException as error:
        error.add_note("the receiver printed last:\n" + "".join(up.printed[-60:]))
        raise
    finally:
        if up.is_running:
            up.kill()


@pytest.fixture(autouse=True)
def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disks here are small, and are to be full to the last byte."""
    monkeypatch.setenv("METERING_MIN_FREE_DISK_BYTES", "0")


@pytest.mark.parametrize("floor", [0, 8 * 2**20])
def test_a_full_disk_of_the_spool_is_retryable_at_once_and_recovers(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, floor: int
) -> None:
    monkeypatch.setenv("METERING_MIN_FREE_DISK_BYTES", str(floor))
    spool = data_dir / "spool"
    with running(Isolated(data_dir, f"mount -t tmpfs -o size={DISK} tmpfs {spool}")) as up:
        sender = Sender(up, "full.spool")
        assert sender.send() == 200

        ballast = fill(up.inside(spool))
        answers = [sender.send(1_000) for _ in range(12)]
        assert not set(answers) <= {200}
        assert sender.slowest < 5
        ballast.unlink()

        sender.send_again()
        assert sender.send() == 200
        sender.expect_exact_totals()
        assert up.stop() == 0


def test_a_full_disk_of_the_engine_is_loud_holds_everything_and_recovers(data_dir: Path) -> None:
    engine = data_dir / "clickhouse"
    with running(Isolated(data_dir, f"mount -t tmpfs -o size=256m tmpfs {engine}")) as up:
        sender = Sender(up, "full.engine")
        assert sender.send() == 200
        sender.expect_exact_totals()

        ballast = fill(up.inside(engine))
        for _ in range(5):
            sender.send(500)
        status, body = eventually(lambda: health(up), lambda answer: answer[0] != 200)
        assert b"not stored yet" in body, (status, body)
        ballast.unlink()

        sender.send_again()
        sender.expect_exact_totals()
        eventually(lambda: health(up)[0], lambda status: status == 200)
        assert up.stop() == 0


def test_a_full_disk_of_both_holds_everything_and_recovers(
    data_dir: Path,
) -> None:
    with running(
        Isolated(data_dir, "true")
    ) as up:  # on the common disk, to make the engine's files
        assert up.stop() == 0
    copy = data_dir.with_name("copy")
    data_dir.rename(copy)
    data_dir.mkdir()
    set_up = f"mount -t tmpfs -o size=256m tmpfs {data_dir}; cp -a {copy}/. {data_dir}"
    with running(Isolated(data_dir, set_up)) as up:
        sender = Sender(up, "full.both")
        ballast = fill(up.inside(data_dir))
        while sender.send(2_000) == 200:
            pass
        ballast.unlink()

        sender.send_again()
        sender.expect_exact_totals()


def test_a_start_on_a_read_only_folder_says_which_and_what_to_do(data_dir: Path) -> None:
    for name in ("spool", "clickhouse"):
        folder = data_dir / name
        up = Isolated(
            data_dir, f"mount --bind {folder} {folder}; mount -o remount,ro,bind {folder}"
        )

        run = subprocess.run(up.command(), check=False, timeout=60, text=True, capture_output=True)

        assert run.returncode == 1, run
        assert "Traceback" not in run.stderr
        said = next(line for line in run.stderr.splitlines() if line.startswith("error: "))
        assert str(folder) in said
        assert "can be written" in said or "must be writable" in said


def test_an_engine_that_becomes_read_only_loses_nothing_and_recovers(data_dir: Path) -> None:
    engine = data_dir / "clickhouse"
    with running(Isolated(data_dir, "true")) as up:
        sender = Sender(up, "read.only")
        assert sender.send() == 200
        sender.expect_exact_totals()

        # Over the folder: what is open for writing would forbid to change the mount itself.
        up.enter(["mount", "--bind", str(engine), str(engine)])
        up.enter(["mount", "-o", "remount,ro,bind", str(engine)])
        for _ in range(5):
            assert sender.send() == 200  # it is in the spool
        status, body = eventually(lambda: health(up), lambda answer: answer[0] != 200)
        assert b"not stored yet" in body, (status, body)
        up.enter(["umount", "--lazy", str(engine)])

        sender.expect_exact_totals()
        eventually(lambda: health(up)[0], lambda status: status == 200)
        assert up.stop() == 0
