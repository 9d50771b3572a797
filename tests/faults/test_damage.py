"""A spool whose file is damaged is never read as if it were whole, and what is whole of it can be saved."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from otel_metering.errors import ConfigurationError, UnavailableError
from otel_metering.spool import Batch, Spool, open_spool
from tests.e2e.up import COMMAND, KEY, Up
from tests.otlp import Point, metrics_request, post

ENTRIES = 200
"""Some 3 kB each: less than a checkpoint, so that all is in the WAL until the file is closed."""

SEALED, TOKEN = 5, "first"

KILLED = """
import os, sys
from pathlib import Path
from tests.faults.test_damage import fill
fill(Path(sys.argv[1]))
os.kill(os.getpid(), 9)
"""


def payload(number: int) -> bytes:
    return number.to_bytes(4, "big") * 800


def fill(path: Path) -> Spool:
    """Entries 1 to ENTRIES, the first ones sealed; entry and state of a number say the same."""
    spool = open_spool(path)
    for number in range(1, ENTRIES + 1):
        spool.append(
            [("k", payload(number))], [(f"key {number % 50}".encode(), payload(number)[:40])]
        )
    spool.seal(TOKEN, max_entries=SEALED, max_bytes=10**9)
    return spool


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a process that was killed left behind: nearly all of it in the WAL."""
    folder = tmp_path_factory.mktemp("left")
    subprocess.run([sys.executable, "-c", KILLED, folder / "spool.db"], check=False)
    return folder


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a process that ended left behind: all of it in the file."""
    folder = tmp_path_factory.mktemp("closed")
    fill(folder / "spool.db").close()
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    def copied(folder: Path) -> Path:
        shutil.copytree(folder, tmp_path / "copy")
        return tmp_path / "copy" / "spool.db"

    return copied


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def content_of(folder: Path) -> dict[str, bytes]:
    # The -shm file is an index that SQLite makes anew whenever it likes; an empty log says nothing.
    files = (path for path in folder.iterdir() if not path.name.endswith("-shm"))
    return {path.name: path.read_bytes() for path in files if path.stat().st_size}


def numbers(spool: Spool) -> list[int]:
    found = []
    for entry in spool.entries():
        number = int.from_bytes(entry.payload[:4], "big")
        assert entry.payload == payload(number)
        found.append(number)
    return found


def refused(path: Path) -> str:
    """Why it is not opened; and it was not touched."""
    before = content_of(path.parent)
    with pytest.raises(ConfigurationError) as raised:
        open_spool(path)
    assert content_of(path.parent) == before
    assert str(path) in str(raised.value)
    return str(raised.value)


def salvaged(path: Path) -> tuple[list[int], str]:
    """What is left after the command for it, and what it printed."""
    run = subprocess.run(
        [COMMAND, "spool", "salvage", path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with closing(open_spool(path)) as spool:
        return numbers(spool), run.stdout


def test_what_a_killed_process_left_is_whole(
    copy: Callable[[Path], Path], left: Path, closed: Path
) -> None:
    assert (left / "spool.db-wal").stat().st_size > 10**6

    with closing(open_spool(copy(left))) as spool:
        assert numbers(spool) == list(range(1, ENTRIES + 1))
        assert spool.states([b"key 7"]) == {b"key 7": payload(157)[:40]}
    with closing(open_spool(closed / "spool.db")) as spool:
        assert numbers(spool) == list(range(1, ENTRIES + 1))


def cut_off(wal: Path) -> None:
    os.truncate(wal, wal.stat().st_size // 2)


def flip_in_the_middle(wal: Path) -> None:
    flip(wal, wal.stat().st_size // 2)


def remove(wal: Path) -> None:
    wal.unlink()


@pytest.mark.parametrize("damage", [cut_off, flip_in_the_middle, remove])
def test_a_log_that_lost_its_end_is_noticed_and_what_is_before_it_can_be_saved(
    copy: Callable[[Path], Path], left: Path, damage: Callable[[Path], None]
) -> None:
    path = copy(left)
    damage(Path(f"{path}-wal"))

    message = refused(path)

    found, printed = salvaged(path)
    assert found == list(range(1, len(found) + 1))
    if damage is remove:
        assert "is gone" in message
        assert found == []
    else:
        assert f"the entries {len(found) + 1} to {ENTRIES}" in message
        assert f"{len(found)} entries wait and are whole" in message
        assert 30 < len(found) < 170
        assert f"lost entries: {len(found) + 1}, " in printed
    assert Path(f"{path}.damaged").exists()


def test_without_the_mark_sqlite_would_have_said_nothing(
    copy: Callable[[Path], Path], left: Path
) -> None:
    """The control: this is why there is a mark."""
    path = copy(left)
    cut_off(Path(f"{path}-wal"))
    Path(f"{path}.lock").unlink()

    with closing(open_spool(path)) as spool:
        assert 30 < len(numbers(spool)) < 170


def test_a_torn_commit_that_was_never_acknowledged_is_nothing(
    copy: Callable[[Path], Path], left: Path
) -> None:
    path = copy(left)
    wal = Path(f"{path}-wal")
    # A crash in the middle of a commit: frames behind the last commit, without an end.
    frame = wal.read_bytes()[-4120 * 2 :]
    with wal.open("ab") as log:
        log.write(frame[:5000])

    with closing(open_spool(path)) as spool:
        assert numbers(spool) == list(range(1, ENTRIES + 1))


@pytest.mark.parametrize("number", [3, 100, ENTRIES])
def test_a_byte_that_changed_in_an_entry_is_noticed_and_costs_only_that_entry(
    copy: Callable[[Path], Path], closed: Path, number: int
) -> None:
    path = copy(closed)
    flip(path, path.read_bytes().index(payload(number)[:400]) + 200)

    message = refused(path)

    assert f"entries {number}: the bytes are not those that were written" in message
    found, printed = salvaged(path)
    assert found == [each for each in range(1, ENTRIES + 1) if each != number]
    assert f"lost entries: {number}\n" in printed
    with closing(open_spool(path)) as spool:
        batch = spool.seal("other", max_entries=10**6, max_bytes=10**9)
    assert batch is not None
    # The batch that was sealed keeps its token: it may be in the database already.
    assert batch.token == TOKEN
    assert len(batch.entries) == SEALED - (number <= SEALED)


def test_a_byte_that_changed_while_the_spool_is_open_is_noticed_when_it_is_read(
    copy: Callable[[Path], Path], closed: Path
) -> None:
    with closing(open_spool(copy(closed))) as spool:
        spool._db.execute("UPDATE entries SET payload = ? WHERE id = 2", (payload(2)[:-1] + b"x",))
        spool._db.execute("UPDATE states SET value = zeroblob(10) WHERE key = ?", (b"key 7",))

        with pytest.raises(UnavailableError, match="entry 2: the bytes are not those"):
            spool.seal("t", max_entries=10, max_bytes=10**9)
        with pytest.raises(UnavailableError, match="damaged"):
            spool.states([b"key 7"])


def test_states_that_changed_are_noticed(copy: Callable[[Path], Path], closed: Path) -> None:
    path = copy(closed)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE states SET value = zeroblob(10) WHERE key = ?", (b"key 7",))

    assert "1 states: the bytes are not those" in refused(path)
    found, printed = salvaged(path)
    assert found == list(range(1, ENTRIES + 1))
    assert "lost states of cumulative streams: 1;" in printed


def test_a_broken_page_is_noticed(copy: Callable[[Path], Path], closed: Path) -> None:
    path = copy(closed)
    content = bytearray(path.read_bytes())
    inside = content.index(payload(120)[:100]) // 4096
    content[4096 * inside : 4096 * inside + 16] = b"\xff" * 16
    path.write_bytes(content)

    message = refused(path)

    assert "damaged" in message or "malformed" in message
    found, _ = salvaged(path)
    assert len(found) > ENTRIES // 2


def test_entries_that_are_missing_in_the_middle_are_noticed(
    copy: Callable[[Path], Path], closed: Path
) -> None:
    path = copy(closed)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM entries WHERE id BETWEEN 20 AND 22")

    assert "entries 20 to 22 are missing" in refused(path)
    found, printed = salvaged(path)
    assert len(found) == ENTRIES - 3
    assert "lost entries: 20, 21, 22\n" in printed


def test_what_was_delivered_does_not_come_back_with_a_log_that_lost_its_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool.db"
    fill(path).close()
    code = """
import os, sys
from pathlib import Path
from otel_metering.spool import open_spool
spool = open_spool(Path(sys.argv[1]))
spool.drop(spool.seal("t", max_entries=1, max_bytes=1))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, path], check=False)
    Path(f"{path}-wal").unlink()  # the DELETE is gone with it

    with closing(open_spool(path)) as spool:
        assert numbers(spool) == list(range(SEALED + 1, ENTRIES + 1))
        batch = spool.seal("next", max_entries=1, max_bytes=1)
        assert batch is not None
        assert (batch.token, batch.entries[0].id) == ("next", SEALED + 1)


def test_a_spool_that_is_gone_is_missed_only_if_something_waited_in_it(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    fill(path).close()
    path.unlink()
    assert f"is gone, and {ENTRIES} acknowledged entries waited" in refused(path)

    Path(f"{path}.lock").unlink()
    with closing(open_spool(path)) as spool:
        spool.append([("k", b"one")])
        batch = spool.seal("t", max_entries=1, max_bytes=1)
        assert isinstance(batch, Batch)
        spool.drop(batch)
    path.unlink()
    with closing(open_spool(path)) as spool:
        assert spool.entry_count == 0


def test_a_spool_of_a_release_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(
            "CREATE TABLE entries (id INTEGER PRIMARY KEY AUTOINCREMENT, "
            "key TEXT NOT NULL, payload BLOB NOT NULL) STRICT"
        )
        db.execute(
            "CREATE TABLE sealed (token TEXT NOT NULL PRIMARY KEY, last_id INTEGER NOT NULL) STRICT"
        )
        db.execute("INSERT INTO entries (key, payload) VALUES ('k', ?)", (payload(1),))

    with closing(open_spool(path)) as spool:
        spool.append([("k", payload(2))])
        assert numbers(spool) == [1, 2]
    with closing(open_spool(path)) as spool:
        assert numbers(spool) == [1, 2]


def test_salvage_leaves_a_spool_alone_that_is_in_use_or_not_there(
    copy: Callable[[Path], Path], closed: Path, tmp_path: Path
) -> None:
    path = copy(closed)
    with closing(open_spool(path)):
        run = subprocess.run(
            [COMMAND, "spool", "salvage", path], capture_output=True, text=True, check=False
        )
        assert run.returncode == 1
        assert "belongs to a running process" in run.stderr
    missing = subprocess.run(
        [COMMAND, "spool", "salvage", tmp_path / "none.db"], capture_output=True, check=False
    )
    assert missing.returncode == 1
    assert not (tmp_path / "none.db").exists()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path / "data")
    try:
        yield made
    finally:
        if made.is_running:
            made.kill()


def test_a_receiver_does_not_start_with_a_damaged_spool_and_says_what_to_do(up: Up) -> None:
    path = up.data_dir / "spool" / "receiver.db"
    path.parent.mkdir(parents=True)
    fill(path).close()
    flip(path, path.read_bytes().index(payload(9)[:400]) + 200)

    run = subprocess.run(up.command(), capture_output=True, text=True, check=False, timeout=60)

    assert run.returncode == 1
    assert f"error: the spool {path} is damaged: entries 9:" in run.stderr
    assert f"otel-metering spool salvage {path}" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_receiver_goes_on_with_a_salvaged_spool(up: Up, tmp_path: Path) -> None:
    path = up.data_dir / "spool" / "receiver.db"
    up.start()
    body = metrics_request([Point("salvaged", 7)]).SerializeToString()
    assert post(up.http, "/v1/metrics", body, KEY)[0] == 200
    up.eventually_totals_of("salvaged", {("salvaged", "api.calls", "2026-09-21T14:13:00Z"): 7})
    assert up.stop() == 0

    run = subprocess.run([COMMAND, "spool", "salvage", path], check=False, capture_output=True)
    assert run.returncode == 0
    up.start()

    assert post(up.http, "/v1/metrics", body, KEY)[0] == 200
    up.eventually_totals_of("salvaged", {("salvaged", "api.calls", "2026-09-21T14:13:00Z"): 7})
