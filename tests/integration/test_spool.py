"""The spool keeps what it took, in order, across any end of the process; batches stay sealed."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from otel_metering.errors import ConfigurationError, SpoolFullError, UnavailableError
from otel_metering.spool import Batch, Spool, open_spool


def seal(
    spool: Spool, token: str = "t", max_entries: int = 100, max_bytes: int = 10**6
) -> Batch | None:
    return spool.seal(token, max_entries=max_entries, max_bytes=max_bytes)


def payloads(batch: Batch | None) -> list[bytes]:
    return [entry.payload for entry in batch.entries] if batch else []


class SpoolMachine(RuleBasedStateMachine):
    """A spool and a list behave alike, whatever is called in whatever order, with restarts between."""

    def __init__(self) -> None:
        super().__init__()
        # A folder that no other machine had: a spool whose file went away from beside its lock, which
        # says what waited in it, is refused, and must be.
        folder = tempfile.mkdtemp(dir=os.environ["PYTEST_SPOOL_DIR"])
        self.path = Path(folder) / "spool.db"
        self.spool = open_spool(self.path, max_bytes=60)
        self.waiting: list[bytes] = []
        self.sealed: tuple[str, int] | None = None
        self.number = 0

    @rule(new=st.lists(st.binary(max_size=20), min_size=1, max_size=3))
    def append(self, new: list[bytes]) -> None:
        fits = sum(map(len, self.waiting)) + sum(map(len, new)) <= 60
        try:
            self.spool.append([("k", payload) for payload in new])
        except SpoolFullError:
            assert not fits
        else:
            assert fits
            self.waiting += new

    @rule(max_entries=st.integers(1, 4), max_bytes=st.integers(1, 60))
    def seal(self, max_entries: int, max_bytes: int) -> None:
        self.number += 1
        batch = seal(self.spool, f"t{self.number}", max_entries, max_bytes)
        if self.sealed is None and self.waiting:
            count, size = 1, len(self.waiting[0])
            while count < min(max_entries, len(self.waiting)):
                size += len(self.waiting[count])
                if size > max_bytes:
                    break
                count += 1
            self.sealed = (f"t{self.number}", count)
        if self.sealed is None:
            assert batch is None
        else:
            assert batch is not None
            assert (batch.token, payloads(batch)) == (
                self.sealed[0],
                self.waiting[: self.sealed[1]],
            )

    @precondition(lambda self: self.sealed is not None)
    @rule(twice=st.booleans())
    def drop(self, twice: bool) -> None:
        assert self.sealed is not None
        batch = seal(self.spool)
        assert batch is not None
        self.spool.drop(batch)
        if twice:
            self.spool.drop(batch)
        self.waiting = self.waiting[self.sealed[1] :]
        self.sealed = None

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = open_spool(self.path, max_bytes=60)

    @invariant()
    def it_holds_what_it_should(self) -> None:
        assert [entry.payload for entry in self.spool.entries()] == self.waiting
        assert self.spool.entry_count == len(self.waiting)
        assert self.spool.byte_count == sum(map(len, self.waiting))

    def teardown(self) -> None:
        self.spool.close()


def test_a_spool_behaves_like_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SPOOL_DIR", str(tmp_path))
    few = settings(max_examples=60, stateful_step_count=15, suppress_health_check=list(HealthCheck))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(SpoolMachine, settings=few)


APPENDER = """
import sys
from pathlib import Path
from otel_metering.spool import open_spool
spool = open_spool(Path(sys.argv[1]))
number = 0
while True:
    spool.append([("k", str(number).encode())])
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_whatever_was_appended_is_there_after_kill_9(tmp_path: Path, durability: str) -> None:
    path = tmp_path / "spool.db"
    code = APPENDER.replace("sys.argv[1])", f"sys.argv[1]), durability={durability!r}")
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(200)]
    process.kill()
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()

    spool = open_spool(path)
    found = [int(entry.payload) for entry in spool.entries()]
    spool.close()

    acknowledged = [int(line) for line in lines if line.endswith("\n")]
    assert found[: len(acknowledged)] == acknowledged
    assert found == list(range(len(found)))


def test_a_second_process_is_told_that_the_spool_is_taken(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool.db")

    code = "import sys; from pathlib import Path; from otel_metering.spool import open_spool; open_spool(Path(sys.argv[1]))"
    other = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "spool.db"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "belongs to another running process" in other.stderr
    spool.close()


def test_a_file_that_is_no_spool_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_bytes(b"not a database" * 100)

    with pytest.raises(ConfigurationError, match="not usable"):
        open_spool(tmp_path / "spool.db")

    assert (tmp_path / "spool.db").read_bytes() == b"not a database" * 100


def test_a_disk_that_refuses_is_unavailable_and_nothing_was_put(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool.db")
    spool.append([("k", b"before")])
    spool._db.execute("PRAGMA max_page_count = 5")  # a full disk, as SQLite sees it

    with pytest.raises(UnavailableError, match="cannot be written"):
        spool.append([("k", b"a"), ("k", bytes(10**6))])

    assert [entry.payload for entry in spool.entries()] == [b"before"]
    spool._db.execute("PRAGMA max_page_count = 1000000")
    spool.append([("k", b"after")])
    assert [entry.payload for entry in spool.entries()] == [b"before", b"after"]
    spool.close()


def test_each_append_is_synchronized_unless_told_otherwise(tmp_path: Path) -> None:
    for durability, expected in (("full", 2), ("normal", 1)):
        spool = open_spool(tmp_path / f"{durability}.db", durability=durability)  # type: ignore[arg-type]

        assert spool._db.execute("PRAGMA synchronous").fetchone() == (expected,)
        assert spool._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        spool.close()


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=10))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_never_starves_on_a_large_entry(tmp_path: Path, sizes: list[int]) -> None:
    (tmp_path / "spool.db").unlink(missing_ok=True)
    for name in ("spool.db-wal", "spool.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    spool = open_spool(tmp_path / "spool.db")
    spool.append([("k", bytes(size)) for size in sizes])
    found: list[int] = []

    while (batch := seal(spool, max_bytes=10)) is not None:
        found += map(len, payloads(batch))
        spool.drop(batch)

    assert found == sizes
    spool.close()


def test_sqlite_is_new_enough_for_strict_tables() -> None:
    assert sqlite3.sqlite_version_info >= (3, 37)
