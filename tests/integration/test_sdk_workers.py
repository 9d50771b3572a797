"""Celery and gevent: each task and each greenlet counts once, whatever ends the worker.

Children of Celery's prefork pool end by os._exit without finalizers of any kind; the SDK listens to
`worker_process_shutdown`.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.sdk_backend import Backend, running_backend
from tests.integration.sdk_process import deliver_rest, environment
from tests.redis_server import redis_server
from tests.waiting import eventually

TASKS: Final = 20

CELERY: Final = """
import os
import sys
from celery import Celery
import otel_metering
from otel_metering import record

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True
otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
record("imports", 100, tenant="tenant_a")

@app.task
def work():
    record("jobs", tenant="tenant_a")
    with open("done", "a") as file:
        print(os.getpid(), file=file)

if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        work.delay()
"""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.mark.parametrize(
    ("how", "number"),
    [
        pytest.param("--pool prefork --concurrency 2", signal.SIGTERM, marks=pytest.mark.long),
        ("--pool prefork --concurrency 2 --max-tasks-per-child 3", signal.SIGTERM),
        pytest.param("--pool prefork --concurrency 2", signal.SIGQUIT, marks=pytest.mark.long),
        pytest.param("--pool threads --concurrency 2", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("--pool solo", signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_celery_worker_has_delivered_each_task_once(
    how: str, number: signal.Signals, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(CELERY)
    (tmp_path / "done").touch()

    def done() -> list[str]:
        return (tmp_path / "done").read_text().splitlines()

    with redis_server() as broker:
        env = environment(
            backend.endpoint,
            tmp_path / "spool",
            PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}",
            BROKER=f"redis+socket://{broker.url.removeprefix('unix://')}",
        )
        subprocess.run(
            [sys.executable, "shop.py", str(TASKS)], cwd=tmp_path, env=env, check=True, timeout=60
        )
        options = "--without-gossip --without-mingle --without-heartbeat"
        with (tmp_path / "log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", *f"celery -A shop worker {options} {how}".split()],
                cwd=tmp_path,
                env=env,
                stdout=log,
                stderr=log,
            )
        with worker:
            try:
                eventually(done, lambda pids: len(pids) == TASKS, seconds=60)
                worker.send_signal(number)
                worker.wait(30)
            finally:
                worker.kill()

    # The program that made the tasks imports it as well.
    expected = {("jobs", "tenant_a"): TASKS, ("imports", "tenant_a"): 200}
    assert backend.totals() == expected, (tmp_path / "log").read_text()
    deliver_rest(backend.endpoint, tmp_path / "spool")
    assert backend.totals() == expected
    if "max-tasks" in how:
        assert len(set(done())) >= TASKS // 3


GREENLETS: Final = """
from gevent import monkey
monkey.patch_all()
import os, sys, threading
import gevent
from gevent.pool import Pool
import otel_metering
from otel_metering import record, tenant
otel_metering.configure(service_name="shop", flush_interval_seconds=0.002, retry_initial_seconds=0.05)

def work(index):
    with tenant(f"tenant_{index % 2}"):
        for _ in range(20):
            record("api.calls")
            gevent.sleep(0)
            record("api.calls", attributes={"index": index})

Pool(50).map(work, range(200))
threads = [threading.Thread(target=work, args=(index,)) for index in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
record("api.calls", 100, tenant="tenant_0")
if os.fork() == 0:
    Pool(5).map(work, range(10))
    sys.exit(0)
assert os.wait()[1] == 0
"""


def test_each_greenlet_counts_once(backend: Backend, tmp_path: Path) -> None:
    env = environment(backend.endpoint, tmp_path)
    program = [sys.executable, "-c", GREENLETS]
    ended = subprocess.run(
        program, env=env, check=True, timeout=60, stderr=subprocess.PIPE, text=True
    )

    assert "KeyError" not in ended.stderr

    deliver_rest(backend.endpoint, tmp_path)
    half = 110 * 20 * 2
    assert backend.totals() == {
        ("api.calls", "tenant_0"): half + 100,
        ("api.calls", "tenant_1"): half,
    }
