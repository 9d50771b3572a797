"""`otel-metering spool`: what waits is shown, sent and repaired without the processes that left it."""

import contextlib
import io
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import otel_metering
from otel_metering import record
from otel_metering.cli.commands import run
from otel_metering.errors import MeteringError
from tests.e2e.up import COMMAND
from tests.integration.sdk_backend import Backend, configured, deliver, running_backend
from tests.waiting import eventually

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    output: str
    error: str = ""


def spool(folder: Path, *arguments: str, typed: str = "") -> Done:
    """Run the command, in this process: starting one takes longer than all that is tested."""
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
    ):
        patch.setattr("sys.stdin", io.StringIO(typed))
        try:
            run(["spool", *arguments, f"--spool-dir={folder}"])
        except SystemExit as end:
            return Done(int(end.code or 0), output.getvalue())
        except MeteringError as error:
            return Done(1, output.getvalue(), str(error))
    raise AssertionError("a command ends with a status")


def said(done: Done) -> str:
    assert done.status == 0, done
    return done.output


def status(folder: Path) -> dict[str, dict[str, object]]:
    files = json.loads(said(spool(folder, "status", "--format=json")))
    return {Path(file["path"]).name: file for file in files}


def leave(backend: Backend, folder: Path, quantity: int, service: str = "shop") -> Path:
    """Usage that a process could not send before it ended; returns its file."""
    before = set(folder.glob("*/*.db"))
    with configured(backend, folder, endpoint=NOWHERE, service_name=service) as configure:
        configure()
        record("api.calls", quantity, tenant="tenant_a")
        otel_metering.flush()
    (path,) = set(folder.glob("*/*.db")) - before
    return path


def refuse(backend: Backend, folder: Path) -> None:
    """A request of 5 that the receiver refused."""
    backend.script = [400]
    with configured(backend, folder) as configure:
        configure()
        record("api.calls", 5, tenant="tenant_a", attributes={"region": "eu"})
        assert not otel_metering.flush(send=True, timeout_seconds=10)


def test_status_tells_every_file_who_has_it_how_much_is_in_it_and_what_is_wrong(
    backend: Backend, tmp_path: Path
) -> None:
    left, damaged = leave(backend, tmp_path, 5), leave(backend, tmp_path, 6, "a/b")
    with closing(sqlite3.connect(damaged)) as db, db:
        db.execute("UPDATE entries SET payload = x'ff'")
    (tmp_path / "shop" / "gone.cells").write_bytes(bytes(4096))
    with configured(backend, tmp_path, endpoint=NOWHERE, service_name="live") as configure:
        configure()
        record("api.calls", tenant="tenant_a")
        otel_metering.flush()

        files = status(tmp_path)
        table = said(spool(tmp_path, "status"))

    assert {(file["service"], file["kind"]) for file in files.values()} == {
        ("shop", "waiting"),
        ("shop", "cells"),
        ("a/b", "waiting"),
        ("live", "waiting"),
    }
    assert [file["is_owned"] for file in files.values() if file["service"] == "live"] == [True]
    assert files[left.name]["requests"] == 1
    assert files[left.name]["bytes"] == left_bytes(left)
    assert isinstance(files[left.name]["oldest_ns"], int)
    assert not files[left.name]["is_owned"]
    assert "the bytes are not those that were written" in str(files[damaged.name]["damage"])
    assert "damaged" in table
    assert "salvage" in table


def left_bytes(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("SELECT length(payload) FROM entries").fetchone()
    return int(size)


def test_drain_sends_what_ended_processes_left_and_says_what_it_could_not(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(backend, tmp_path, 5)
    leave(backend, tmp_path, 6)
    leave(backend, tmp_path, 7, ".other/service")
    assert list(tmp_path.glob("shop/*.db")) != []

    failed = spool(tmp_path, "drain", "--timeout=1", f"--endpoint={NOWHERE}")
    assert failed.status == 1
    assert "shop: 0 sent, 0 refused, 2 left" in failed.output
    assert backend.points == []

    monkeypatch.setenv("METERING_ENDPOINT", backend.endpoint)
    monkeypatch.setenv("METERING_API_KEY", "key_1")
    monkeypatch.setenv("METERING_TRANSPORT_MODE", "memory")  # of the service, not of this command
    assert ".other/service: 1 sent, 0 refused, 0 left" in said(spool(tmp_path, "drain"))

    assert backend.total("api.calls") == 18
    assert {headers["authorization"] for headers in backend.headers} == {"Bearer key_1"}
    assert [path for path in tmp_path.glob("*/*") if path.is_file()] == []


def test_drain_leaves_the_spool_of_a_running_process_alone(
    backend: Backend, tmp_path: Path
) -> None:
    with configured(backend, tmp_path, endpoint=NOWHERE) as configure:
        configure()
        record("api.calls", 5, tenant="tenant_a")
        otel_metering.flush()

        said(spool(tmp_path, "drain", f"--endpoint={backend.endpoint}"))

        assert backend.points == []
        configure(endpoint=backend.endpoint)
        deliver()
    assert backend.total("api.calls") == 5


def test_dead_letters_are_listed_with_their_reason_shown_and_sent_again(
    backend: Backend, tmp_path: Path
) -> None:
    refuse(backend, tmp_path)
    assert "HTTP 400" in said(spool(tmp_path, "dead-letters"))
    shown = said(spool(tmp_path, "dead-letters", "--show=1"))
    assert "HTTP 400" in shown
    assert '"stringValue": "tenant_a"' in shown
    assert "there are 1 requests" in spool(tmp_path, "dead-letters", "--show=2").error

    assert "1 requests wait again" in said(spool(tmp_path, "dead-letters", "--retry"))
    assert list(tmp_path.glob("shop/*.refused.db")) == []
    with configured(backend, tmp_path) as configure:
        configure()
        eventually(lambda: backend.total("api.calls"), lambda total: total == 5)


def test_dead_letters_are_deleted_when_a_person_says_so(backend: Backend, tmp_path: Path) -> None:
    refuse(backend, tmp_path)

    assert spool(tmp_path, "dead-letters", "--delete", typed="n\n").status == 1
    assert len(list(tmp_path.glob("shop/*.refused.db"))) == 1
    assert "1 requests are deleted" in said(
        spool(tmp_path, "dead-letters", "--delete", typed="y\n")
    )
    assert [path for path in tmp_path.glob("shop/*") if path.is_file()] == []


def test_dead_letters_of_a_running_process_are_shown_and_left_to_it(
    backend: Backend, tmp_path: Path
) -> None:
    backend.script = [400]
    with configured(backend, tmp_path) as configure:
        configure()
        record("api.calls", 5, tenant="tenant_a")
        assert not otel_metering.flush(send=True, timeout_seconds=10)

        assert "HTTP 400" in said(spool(tmp_path, "dead-letters"))
        retried = spool(tmp_path, "dead-letters", "--retry")

    assert retried.status == 1
    assert "in use by a running process" in retried.error
    assert len(list(tmp_path.glob("shop/*.refused.db"))) == 1


def test_where_there_is_nothing_nothing_is_said(tmp_path: Path) -> None:
    assert status(tmp_path) == {}
    assert said(spool(tmp_path, "drain")) == ""


def test_the_command_is_there_for_everyone() -> None:
    done = subprocess.run(
        [COMMAND, "spool", "--help"], capture_output=True, text=True, check=True, timeout=60
    )

    for command in ("status", "drain", "dead-letters", "salvage"):
        assert command in done.stdout
