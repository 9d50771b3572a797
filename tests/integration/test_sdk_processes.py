"""What a process owes when it forks, exits or is killed. Each test's program runs in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.sdk_backend import Act, Backend, running_backend

NOWHERE = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


def start(program: str, endpoint: str, spool_dir: Path) -> "subprocess.Popen[str]":
    prelude = """
        import os, sys, threading
        import otel_metering
        from otel_metering import record
        otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
    """
    return start_plain(textwrap.dedent(prelude) + textwrap.dedent(program), endpoint, spool_dir)


def start_plain(program: str, endpoint: str, spool_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "METERING_ENDPOINT": endpoint,
            "METERING_SPOOL_DIR": str(spool_dir),
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def run(program: str, backend: Backend, spool_dir: Path) -> str:
    """Run `program` to its end; whatever it left is delivered by the next process."""
    with start(program, backend.endpoint, spool_dir) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    with start("assert otel_metering.flush(send=True)", backend.endpoint, spool_dir) as process:
        pass
    assert process.returncode == 0
    assert list(spool_dir.glob("shop/*")) == []
    return output


def test_usage_at_exit_is_delivered(backend: Backend, tmp_path: Path) -> None:
    run("record('api.calls', 13, tenant='tenant_a')", backend, tmp_path)

    assert backend.total("api.calls") == 13


def test_usage_before_configure_waits_for_it_and_a_fork_between_counts_nothing_twice(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        import os, sys, threading
        import otel_metering
        from otel_metering import meter, record
        @meter("imports")
        def load():
            record("jobs", tenant="tenant_a", event_id="e1")
        with otel_metering.tenant("tenant_a"):
            load()
            thread = threading.Thread(target=record, args=("imports", 99), kwargs={"tenant": "tenant_a"})
            thread.start()
            thread.join()
        is_child = os.fork() == 0
        otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
        record("imports", 10 if is_child else 1, tenant="tenant_a")
        if is_child:
            sys.exit(0)
        assert os.wait()[1] == 0
    """
    with start_plain(program, backend.endpoint, tmp_path) as process:
        assert process.wait(timeout=60) == 0

    run("record('imports', 0, tenant='tenant_a')", backend, tmp_path)

    assert backend.total("imports") == 111
    assert len(backend.events) == 1


def test_usage_of_a_process_that_never_configures_is_bounded() -> None:
    program = """
        import otel_metering
        from otel_metering import record, stats
        for number in range(20_000):
            record("api.calls", tenant="tenant_a", attributes={"id": number})
            record("jobs", tenant="tenant_a", event_id=str(number))
        print(stats().folded_usage, stats().rejected_usage)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout == "10000 19000\n"


def test_usage_before_a_crash_of_the_program_is_delivered(backend: Backend, tmp_path: Path) -> None:
    with start("record('api.calls', 13, tenant='tenant_a'); 1 / 0", backend.endpoint, tmp_path):
        pass

    assert backend.total("api.calls") == 13


def test_exit_does_not_wait_for_a_dead_receiver_and_the_next_process_delivers(
    backend: Backend, tmp_path: Path
) -> None:
    program = "record('api.calls', 13, tenant='tenant_a')"
    with start(program, NOWHERE, tmp_path) as process:
        assert process.wait(timeout=20) == 0

    run("record('api.calls', 4, tenant='tenant_a')", backend, tmp_path)

    assert backend.total("api.calls") == 17


def test_a_fork_counts_nothing_twice_and_loses_nothing(backend: Backend, tmp_path: Path) -> None:
    program = """
        record("api.calls", 100, tenant="tenant_a")
        record("jobs", 1, tenant="tenant_a", event_id="e1")
        for child in range(3):
            if os.fork() == 0:
                record("api.calls", 10, tenant="tenant_a")
                thread = threading.Thread(target=record, args=("api.calls", 1), kwargs={"tenant": "tenant_a"})
                thread.start()
                thread.join()
                assert otel_metering.flush(send=True)
                record("api.calls", 2, tenant="tenant_a")
                sys.exit(0)
        for child in range(3):
            assert os.wait()[1] == 0
        record("api.calls", 5, tenant="tenant_a")
    """

    run(program, backend, tmp_path)

    assert backend.total("api.calls") == 144
    assert len({point.instance for point in backend.points}) == 4
    assert len(backend.events) == 1


def test_a_fork_in_the_middle_of_flushes_and_sends_never_hangs(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        otel_metering.configure(service_name="shop", flush_interval_seconds=0.0005, retry_initial_seconds=0.05)
        done = threading.Event()
        counted = [0, 0]
        def work(index):
            while not done.is_set():
                record("api.calls", tenant="tenant_a")
                counted[index] += 1
                if counted[index] % 1000 == 0:
                    done.wait(0.001)
        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for child in range(40):
            if os.fork() == 0:
                record("forked.calls", tenant="tenant_a")
                assert otel_metering.flush()
                os._exit(0)
        for child in range(40):
            assert os.wait()[1] == 0
        done.set()
        for thread in threads:
            thread.join()
        print(sum(counted))
    """

    output = run(program, backend, tmp_path)

    assert backend.total("api.calls") == int(output)
    assert backend.total("forked.calls") == 40


def test_processes_that_share_a_folder_count_nothing_twice_and_lose_nothing(
    backend: Backend, tmp_path: Path
) -> None:
    """Pitfall 21: each has a file of its own, and takes over the file of one that ended."""
    backend.script = [503, Act.LOSE_ANSWER, 200, 503, Act.LOSE_ANSWER, Act.HANG_UP] * 4
    program = """
        otel_metering.configure(service_name="shop", flush_interval_seconds=0.01, retry_initial_seconds=0.01)
        for i in range(300):
            record("api.calls", tenant="tenant_a")
            if i % 50 == 0:
                otel_metering.flush()
        os._exit(0) if otel_metering.flush() else sys.exit(1)
    """
    processes = [start(program, backend.endpoint, tmp_path) for _ in range(3)]
    for process in processes:
        with process:
            assert process.wait(60) == 0

    run("record('api.calls', 1, tenant='tenant_a')", backend, tmp_path)

    assert backend.total("api.calls") == 901


def test_a_fork_waits_while_a_spool_is_in_use(backend: Backend, tmp_path: Path) -> None:
    program = """
        from otel_metering._parcel import gate
        is_used, is_done = threading.Event(), threading.Event()
        def use():
            with gate.lock:
                is_used.set()
                threading.Event().wait(0.2)
                is_done.set()
        thread = threading.Thread(target=use)
        thread.start()
        is_used.wait()
        if os.fork() == 0:
            os._exit(0 if is_done.is_set() else 1)
        assert os.wait()[1] == 0
        thread.join()
    """

    run(program, backend, tmp_path)


def test_a_forked_child_that_records_nothing_leaves_nothing(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        if os.fork() == 0:
            print(threading.active_count(), end=" ", flush=True)
            os._exit(0)
        os.wait()
        folder = os.environ["METERING_SPOOL_DIR"] + "/shop"
        print(len([name for name in os.listdir(folder) if name.endswith(".db")]))
    """

    assert run(program, backend, tmp_path) == "1 1\n"


def test_usage_of_multiprocessing_children_is_delivered(backend: Backend, tmp_path: Path) -> None:
    program = """
        import multiprocessing
        context = multiprocessing.get_context("fork")
        record("api.calls", 100, tenant="tenant_a")
        children = [
            context.Process(target=record, args=("api.calls", 10), kwargs={"tenant": "tenant_a"})
            for _ in range(3)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode == 0
    """

    run(program, backend, tmp_path)

    assert backend.total("api.calls") == 130


def test_a_process_killed_loses_at_most_what_was_not_flushed(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        otel_metering.configure(service_name="shop", flush_interval_seconds=3600.0)
        for i in range(1_000_000):
            record("api.calls", tenant="tenant_a")
            if i % 100 == 99:
                assert otel_metering.flush()
                print(i + 1, flush=True)
    """
    with start(program, NOWHERE, tmp_path) as process:
        assert process.stdout is not None
        flushed = 0
        while flushed < 1_000:
            flushed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        flushed = int(process.stdout.read().strip().rpartition("\n")[2] or flushed)

    run("record('api.calls', 0, tenant='tenant_a')", backend, tmp_path)

    # The last flush may be on disk without its line having been written.
    assert backend.total("api.calls") in (flushed, flushed + 100)


def test_importing_starts_no_thread_and_opens_no_file() -> None:
    program = """
        import os, threading
        before = set(os.listdir("/proc/self/fd"))
        import otel_metering
        assert set(os.listdir("/proc/self/fd")) == before
        assert threading.active_count() == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=30)
