"""SIGKILL at any moment, of processes that record with several threads: what had returned is delivered."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.namespaces import ISOLATION
from tests.integration.sdk_backend import Backend, running_backend

NOWHERE = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""

THREADS = 3

LOOP = f"""
    def work(index):
        meter, counted, line = f"calls_{{index}}", 0, os.write
        attributes = {{"region": "eu"}}
        while True:
            record(meter, 1, tenant="tenant_a", attributes=attributes)
            record(meter, 2, tenant="tenant_a")
            counted += 1
            os.write(1, b"%d %d\\n" % (index, 3 * counted))
            if counted % 50 == 0:  # new series, and idle ones
                record("others", 1, tenant=f"t{{counted % 1000}}")
    for index in range({THREADS}):
        threading.Thread(target=work, args=(index,), daemon=True).start()
    threading.Event().wait()
"""
"""Says how much was recorded, each time after the calls returned and before the next begin."""

EVENTS = """
    number = 0
    while True:
        number += 1
        record("jobs", 1, tenant="tenant_a", event_id=f"{os.getpid()}-{number}")
        os.write(1, b"0 %d\\n" % number)
"""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


def start(
    program: str,
    spool_dir: Path,
    *,
    endpoint: str = NOWHERE,
    prefix: tuple[str, ...] = (),
    options: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    prelude = """
        import os, sys, threading
        import otel_metering
        from otel_metering import record
        otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
    """
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(program)],
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "METERING_ENDPOINT": endpoint,
            "METERING_SPOOL_DIR": str(spool_dir),
            **(options or {}),
        },
        stdout=subprocess.PIPE,
        bufsize=0,
    )


def kill_somewhere(process: "subprocess.Popen[bytes]", seconds: float) -> dict[int, int]:
    """Let it work for `seconds` from its first line on, then kill it; what it said last, by thread."""
    assert process.stdout is not None
    lines = process.stdout.readline()
    deadline = time.monotonic() + seconds
    os.set_blocking(process.stdout.fileno(), False)
    chunks = [lines]
    while time.monotonic() < deadline:
        chunks.append(process.stdout.read(2**20) or b"")
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.set_blocking(process.stdout.fileno(), True)
    chunks.append(process.stdout.read())
    process.stdout.close()
    said: dict[int, int] = {}
    for line in b"".join(chunks).split(b"\n")[:-1]:
        index, counted = line.split()
        said[int(index)] = int(counted)
    return said


def deliver(backend: Backend, spool_dir: Path, durability: str) -> None:
    program = "assert otel_metering.flush(send=True, timeout_seconds=60)"
    options = {"METERING_DURABILITY": durability}
    with start(program, spool_dir, endpoint=backend.endpoint, options=options) as process:
        pass
    assert process.returncode == 0
    assert list(spool_dir.glob("shop/*")) == []


@pytest.mark.parametrize(
    ("durability", "interval"), [("mmap", "0.003"), ("mmap", "3600"), ("full", "0.003")]
)
def test_a_killed_process_loses_nothing_that_was_recorded(
    backend: Backend, tmp_path: Path, durability: str, interval: str
) -> None:
    kill_and_deliver(backend, tmp_path, durability, [interval] * 2, random.Random(13))


@pytest.mark.long
@pytest.mark.parametrize("durability", ["mmap", "full"])
@pytest.mark.parametrize("seed", range(10))
def test_many_killed_processes_lose_nothing_that_was_recorded(
    backend: Backend, tmp_path: Path, durability: str, seed: int
) -> None:
    moments = random.Random(seed)
    intervals = moments.choices(["0.002", "0.01", "0.1", "1", "3600"], k=10)
    kill_and_deliver(backend, tmp_path, durability, intervals, moments)


def kill_and_deliver(
    backend: Backend, tmp_path: Path, durability: str, intervals: list[str], moments: random.Random
) -> None:
    """A process for each of `intervals` (between flushes), killed; what they said has to arrive."""
    said = dict.fromkeys(range(THREADS), 0)
    for interval in intervals:
        options = {"METERING_DURABILITY": durability, "METERING_BATCH_INTERVAL_SECONDS": interval}
        process = start(LOOP, tmp_path, options=options)
        for index, counted in kill_somewhere(process, moments.uniform(0, 0.3)).items():
            said[index] += counted
    deliver(backend, tmp_path, durability)

    for index, counted in said.items():
        # Each kill may have come after calls, and before what they recorded was said.
        assert counted <= backend.total(f"calls_{index}") <= counted + 3 * len(intervals)


def test_without_it_a_kill_costs_the_last_flush_interval(backend: Backend, tmp_path: Path) -> None:
    program = """
        for i in range(1_000_000):
            record("calls_0", tenant="tenant_a")
            if i % 100 == 99:
                assert otel_metering.flush()
                os.write(1, b"0 %d\\n" % (i + 1))
    """
    options = {"METERING_BATCH_INTERVAL_SECONDS": "3600"}
    said = kill_somewhere(start(program, tmp_path, options=options), 0.2)
    deliver(backend, tmp_path, "normal")

    # The last flush may be on disk without its line having been written.
    assert backend.total("calls_0") in (said[0], said[0] + 100)


@pytest.mark.parametrize("durability", ["mmap", "full"])
def test_events_survive_a_kill_as_soon_as_record_returned(
    backend: Backend, tmp_path: Path, durability: str
) -> None:
    options = {"METERING_DURABILITY": durability, "METERING_BATCH_INTERVAL_SECONDS": "3600"}
    said = kill_somewhere(start(EVENTS, tmp_path, options=options), 0.1)
    deliver(backend, tmp_path, durability)

    ids = {attributes["metering.event.id"] for _, _, attributes in backend.events}
    assert len(ids) == len(backend.events)
    assert said[0] <= len(ids) <= said[0] + 1
    # They were put one by one, and go together.
    assert len(backend.headers) < 10


def test_events_of_signal_handlers_that_interrupt_events_and_flushes_hang_nothing(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        import signal, time
        handled = 0
        def handle(number, frame):
            global handled
            handled += 1
            record("jobs", 1, tenant="tenant_a", event_id=f"handled-{handled}")
            record(f"calls_{handled % 50}", 1, tenant="tenant_a")
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        number, until = 0, time.monotonic() + 1.5
        while time.monotonic() < until:
            number += 1
            record("jobs", 1, tenant="tenant_a", event_id=f"called-{number}")
            if number % 20 == 0:
                otel_metering.flush(send=True, timeout_seconds=0.01)
        signal.setitimer(signal.ITIMER_REAL, 0, 0)
        assert otel_metering.flush()
        os.write(1, b"0 %d\\n1 %d\\n" % (number + handled, handled))
        os.kill(os.getpid(), 9)
    """
    options = {"METERING_DURABILITY": "mmap", "METERING_BATCH_INTERVAL_SECONDS": "3600"}
    with start(program, tmp_path, endpoint=backend.endpoint, options=options) as process:
        output, _ = process.communicate(timeout=60)
    events, handled = (int(line.split()[1]) for line in output.splitlines())
    deliver(backend, tmp_path, "mmap")

    assert handled > 10
    assert len({attributes["metering.event.id"] for _, _, attributes in backend.events}) == events
    assert sum(backend.totals().values()) == handled


def test_forked_children_that_are_killed_lose_nothing_and_double_nothing(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        record("calls_0", 1000, tenant="tenant_a")
        record("idle", 7, tenant="tenant_a")
        children = []
        for child in range(3):
            if (pid := os.fork()) == 0:
                record("calls_0", 10, tenant="tenant_a")
                threading.Event().wait(0.02 * child)
                record("calls_0", 1, tenant="tenant_a")
                os.kill(os.getpid(), 9)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        record("calls_0", 100, tenant="tenant_a")
        os.write(1, b"0 0\\n")
        os.kill(os.getpid(), 9)
    """
    options = {"METERING_DURABILITY": "mmap", "METERING_BATCH_INTERVAL_SECONDS": "0.03"}
    kill_somewhere(start(program, tmp_path, options=options), 0)
    deliver(backend, tmp_path, "mmap")

    assert backend.total("calls_0") == 1133
    assert backend.total("idle") == 7


def test_a_child_that_was_forked_in_the_middle_of_a_call_leaves_its_parents_file_alone(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        from otel_metering._cells import add
        from otel_metering._lifecycle import _process
        record("calls_0", 5, tenant="tenant_a")
        held = _process._book.cell("calls_0", "tenant_a", None)
        if os.fork() == 0:
            add(held, 1000 * 10**9)
            os._exit(0)
        os.wait()
        os.write(1, b"0 0\\n")
        os.kill(os.getpid(), 9)
    """
    options = {"METERING_DURABILITY": "mmap", "METERING_BATCH_INTERVAL_SECONDS": "3600"}
    kill_somewhere(start(program, tmp_path, options=options), 0)
    deliver(backend, tmp_path, "mmap")

    assert backend.total("calls_0") == 5


def test_configurations_that_follow_each_other_lose_nothing_to_a_kill(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        def work(index):
            counted = 0
            while True:
                record(f"calls_{index}", tenant="tenant_a")
                counted += 1
                if counted % 10 == 0:
                    os.write(1, b"%d %d\\n" % (index, counted))
        for index in range(2):
            threading.Thread(target=work, args=(index,), daemon=True).start()
        while True:
            for durability in ("mmap", "full"):
                otel_metering.configure(service_name="shop", durability=durability, flush_interval_seconds=3600)
    """
    moments = random.Random(3)
    said = dict.fromkeys(range(2), 0)
    for _ in range(2):
        process = start(program, tmp_path, options={"METERING_DURABILITY": "mmap"})
        for index, counted in kill_somewhere(process, moments.uniform(0.05, 0.4)).items():
            said[index] += counted
    deliver(backend, tmp_path, "mmap")

    for index, counted in said.items():
        assert counted <= backend.total(f"calls_{index}") <= counted + 2 * 20


def test_a_process_that_may_write_no_more_counts_on_in_memory(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        import resource
        record("calls_0", 1, tenant="tenant_a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (262144 + 4096, resource.RLIM_INFINITY))
        for i in range(5000):
            record("calls_0", 1, tenant=f"t{i}")
        unmapped = otel_metering.stats().unmapped_series
        assert 2000 < unmapped < 4990, unmapped
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert otel_metering.flush()
        record("calls_0", 1, tenant="t0")
        os.write(1, b"0 0\\n")
        os.kill(os.getpid(), 9)
    """
    options = {"METERING_DURABILITY": "mmap", "METERING_BATCH_INTERVAL_SECONDS": "3600"}
    kill_somewhere(start(program, tmp_path, options=options), 0)
    deliver(backend, tmp_path, "mmap")

    assert sum(backend.totals().values()) == 5002


@pytest.mark.skipif(ISOLATION is None, reason="mounts are not permitted here")
def test_a_disk_without_room_ends_no_process_and_costs_nothing_that_it_took(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        import shutil
        folder = os.environ["METERING_SPOOL_DIR"]
        record("calls_0", 1, tenant="tenant_a")
        ballast = open(folder + "/ballast", "wb", buffering=0)
        size = 2**20
        while size:
            try:
                if ballast.write(bytes(size)) < size:
                    size //= 2
            except OSError:
                size //= 2
        for i in range(5000):
            record("calls_0", 1, tenant=f"t{i}")
        record("calls_0", 1, tenant="tenant_a")
        assert otel_metering.stats().unmapped_series > 2000
        assert not otel_metering.flush()
        ballast.truncate(0)
        assert otel_metering.flush()
        record("calls_0", 1, tenant="tenant_a")
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        shutil.copytree(folder + "/shop", os.environ["COPY_TO"])
        os.write(1, b"0 0\\n")
        os.kill(os.getpid(), 9)
    """
    assert ISOLATION is not None
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'set -e; mount -t tmpfs -o size=4m tmpfs {disk}; exec "$@"'
    prefix = (*ISOLATION, "sh", "-c", script, "sh")
    options = {
        "METERING_DURABILITY": "mmap",
        "METERING_BATCH_INTERVAL_SECONDS": "3600",
        "COPY_TO": str(tmp_path / "copy" / "shop"),
    }
    kill_somewhere(start(program, disk, prefix=prefix, options=options), 0)
    deliver(backend, tmp_path / "copy", "mmap")

    assert sum(backend.totals().values()) == 5003


def test_under_gevent_all_greenlets_of_a_thread_share_its_cells() -> None:
    pytest.importorskip("gevent")
    program = """
        from gevent import monkey
        monkey.patch_all()
        import gevent
        import threading
        import otel_metering._cells as cells
        from otel_metering._record import record, sink
        book = cells.CellBook(max_series_per_meter=10, on_new_thread=lambda: None)
        sink.open(book)
        def work():
            for _ in range(100):
                record("api.calls")
                gevent.sleep(0)
        gevent.joinall([gevent.spawn(work) for _ in range(50)])
        threading.Thread(target=work).start()  # a greenlet, too
        gevent.get_hub().threadpool.apply(work)
        assert len(book._ledgers) == 2, len(book._ledgers)
        gevent.sleep(0.2)
        assert list(book.read().deltas.values()) == [5200 * 10**9]
    """
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, env=environment)
