"""The SDK on a disk that is full to the last byte: usage stays, and what is on the disk drains."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.namespaces import ISOLATION
from tests.integration.sdk_backend import Backend, running_backend

pytestmark = pytest.mark.skipif(ISOLATION is None, reason="mounts are not permitted here")

PROGRAM = """
    import os, sys, threading
    from pathlib import Path
    import otel_metering
    from otel_metering import record

    spool_dir = Path(os.environ["METERING_SPOOL_DIR"])
    otel_metering.configure(
        service_name="shop", flush_interval_seconds=60, retry_initial_seconds=0.01, retry_max_seconds=0.05,
        durability=sys.argv[1],
    )
    (spool_dir / "others").write_bytes(bytes(2**20))
    counted = 0

    def use(calls):
        global counted
        for i in range(calls):
            record("api.calls", tenant="tenant_a", attributes={"id": f"{i:0200}"})
        counted += calls

    while True:
        use(500)
        if not otel_metering.flush():
            break
    size = 2**20
    with (spool_dir / "ballast").open("ab", buffering=0) as ballast:
        while size:
            try:
                if ballast.write(bytes(size)) < size:
                    size //= 2
            except OSError:
                size //= 2
    use(7)
    assert not otel_metering.flush()
    print("full", otel_metering.stats().pending_requests, flush=True)

    sys.stdin.readline()  # the receiver is back; the disk is as full as it was
    otel_metering.flush(30, send=True)
    print(otel_metering.stats().pending_requests, flush=True)
    if sys.argv[1] != "normal":
        # The spool says how far the file of the cells was read, so it cannot be given back.
        (spool_dir / "others").unlink()
    assert otel_metering.flush(30, send=True)  # what was empty gave its room back
    print(counted, flush=True)
"""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_a_full_disk_loses_nothing_counts_nothing_twice_and_drains_while_it_is_full(
    backend: Backend, tmp_path: Path, durability: str
) -> None:
    """Pitfall 22."""
    assert ISOLATION is not None
    backend.poison = b"tenant_a"
    mount = f'set -e; mount -t tmpfs -o size=6m tmpfs {tmp_path}; exec "$@"'
    code = textwrap.dedent(PROGRAM)
    with subprocess.Popen(
        [*ISOLATION, "sh", "-c", mount, "sh", sys.executable, "-c", code, durability],
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "METERING_ENDPOINT": backend.endpoint,
            "METERING_SPOOL_DIR": str(tmp_path),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        word, waiting = process.stdout.readline().split()
        assert (word, int(waiting) > 3) == ("full", True)
        assert backend.points == []

        backend.poison = None
        process.stdin.write("\n")
        process.stdin.flush()

        assert process.stdout.readline() == "0\n"
        counted = json.loads(process.stdout.readline())
        assert process.wait(60) == 0
    assert backend.total("api.calls") == counted
    assert len(backend.points) == len(set(backend.points))  # nor was anything sent twice
