"""Children of every kind: what the parent counted counts once, and what a child counted counts.

The OpenTelemetry SDK counts twice what a parent had not exported, and loses all of a child that was forked
while the exporter was busy, or that multiprocessing made. Each program runs in a process of its own.
"""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.sdk_backend import Backend, running_backend
from tests.integration.sdk_process import DURABILITIES, KILL_PROOF, deliver_rest, environment, start


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A row.

    Attributes:
        how: Its name.
        program: What the parent does; each of its children counts 10, and `rest` without flushing.
        total: What is to arrive.
        rest: What arrives as well if a killed process loses nothing.
    """

    how: str
    program: str
    total: int
    rest: int = 0


COUNT = """
import concurrent.futures, multiprocessing

def count(quantity=10):
    record("api.calls", quantity, tenant="tenant_a")

def count_in_a_thread_that_outlives():
    def work():
        threading.main_thread().join()
        count()
    threading.Thread(target=work).start()

def wait(children=1):
    for _ in range(children):
        assert os.wait()[1] == 0

def run(context, target=count, children=3):
    processes = [context.Process(target=target) for _ in range(children)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
"""

FORKS = [
    Fork(
        how="os.fork before any usage",
        program="""
            if os.fork() == 0:
                count()
                sys.exit(0)
            wait()
            count(100)
        """,
        total=110,
    ),
    Fork(
        how="os.fork with usage that waits for the flush, and more after",
        program="""
            count(100)
            for _ in range(3):
                if os.fork() == 0:
                    count()
                    sys.exit(0)
            count(5)
            wait(3)
        """,
        total=135,
    ),
    Fork(
        how="os.fork of a child that forks",
        program="""
            count(100)
            if os.fork() == 0:
                count()
                if os.fork() == 0:
                    count()
                    sys.exit(0)
                wait()
                sys.exit(0)
            wait()
        """,
        total=120,
    ),
    Fork(
        how="os.fork in a thread",
        program="""
            count(100)
            def work():
                count()
                if os.fork() == 0:
                    count()
                    otel_metering.shutdown()
                    os._exit(0)  # sys.exit would end the thread alone
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            wait()
        """,
        total=120,
    ),
    Fork(
        how="os.fork while a request is under way",
        program="""
            for _ in range(20):
                count(5)
                otel_metering.flush()
                if os.fork() == 0:
                    count()
                    sys.exit(0)
            wait(20)
        """,
        total=300,
    ),
    Fork(
        how="os.fork of a child that configures for itself",
        program="""
            count(100)
            if os.fork() == 0:
                otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
                count()
                sys.exit(0)
            wait()
        """,
        total=110,
    ),
    Fork(
        how="os.fork before configure",
        program="""
            otel_metering.shutdown()
            if os.fork() == 0:
                otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
                count()
                sys.exit(0)
            wait()
            otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
            count(100)
        """,
        total=110,
    ),
    Fork(
        how="os.fork after shutdown, in which nothing counts",
        program="""
            count(100)
            otel_metering.shutdown()
            if os.fork() == 0:
                count()
                sys.exit(0)
            wait()
        """,
        total=100,
    ),
    Fork(
        how="os._exit of the child after a flush",
        program="""
            count(100)
            if os.fork() == 0:
                count()
                assert otel_metering.flush()
                count(3)
                os._exit(0)
            wait()
        """,
        total=110,
        rest=3,
    ),
    Fork(
        how="multiprocessing fork",
        program="""
            count(100)
            run(multiprocessing.get_context("fork"))
        """,
        total=130,
    ),
    Fork(
        how="multiprocessing fork, thread that counts after its target ended",
        program="""
            run(multiprocessing.get_context("fork"), count_in_a_thread_that_outlives, children=1)
        """,
        total=10,
    ),
    Fork(
        how="multiprocessing fork, terminated",
        program="""
            context = multiprocessing.get_context("fork")
            is_ready = context.Event()
            def work():
                count()
                assert otel_metering.flush()
                count(3)
                is_ready.set()
                threading.Event().wait(30)
            process = context.Process(target=work)
            process.start()
            assert is_ready.wait(20)
            process.terminate()
            process.join()
        """,
        total=10,
        rest=3,
    ),
    Fork(
        how="multiprocessing.Pool, closed and joined",
        program="""
            count(100)
            pool = multiprocessing.get_context("fork").Pool(2)
            pool.map(count, [10] * 20)
            pool.close()
            pool.join()
        """,
        total=300,
    ),
    Fork(
        how="concurrent.futures.ProcessPoolExecutor",
        program="""
            count(100)
            with concurrent.futures.ProcessPoolExecutor(2) as pool:
                list(pool.map(count, [10] * 20))
        """,
        total=300,
    ),
]


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("row", FORKS, ids=lambda row: row.how)
def test_what_a_parent_and_its_children_count_arrives_once(
    row: Fork, durability: str, backend: Backend, tmp_path: Path
) -> None:
    program = f"{COUNT}\n{textwrap.dedent(row.program)}"
    with start(program, backend.endpoint, tmp_path, METERING_DURABILITY=durability) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors

    deliver_rest(backend.endpoint, tmp_path)

    expected = row.total + (row.rest if durability in KILL_PROOF else 0)
    assert backend.totals() == {("api.calls", "tenant_a"): expected}


SPAWNED = """
import concurrent.futures, multiprocessing, sys
import otel_metering
from otel_metering import record

otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
record("imports", 1, tenant="tenant_a")

def count(quantity):
    record("api.calls", quantity, tenant="tenant_a")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    count(100)
    processes = [context.Process(target=count, args=(10,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        list(pool.map(count, [10] * 20))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_that_import_the_program_again_count_for_themselves(
    method: str, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(SPAWNED)
    subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), method],
        env=environment(backend.endpoint, tmp_path / "spool"),
        check=True,
        timeout=60,
    )

    # The parent, two processes, one of the pool.
    assert backend.totals() == {("api.calls", "tenant_a"): 320, ("imports", "tenant_a"): 4}
    assert list(tmp_path.glob("spool/shop/*")) == []
