"""Every way in which a process ends: what arrives, and how long it takes.

The rows are those of the table of exit paths that the OpenTelemetry SDK was measured with. It loses the last
interval in half of them.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.sdk_backend import Act, Backend, running_backend
from tests.integration.sdk_process import DURABILITIES, KILL_PROOF, deliver_rest, start

NOWHERE = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""

PROMPT_SECONDS = 4.0
"""No exit takes longer, whatever the receiver does; a second of it is the receiver's chance to answer."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@dataclass(frozen=True, kw_only=True)
class Exit:
    """A row.

    Attributes:
        how: Its name.
        program: Records 13, and ends; one that prints "ready" is sent `number` then.
        before: What the program does before it configures.
        number: Signal.
        status: The process's exit status.
    """

    how: str
    program: str
    before: str = ""
    number: signal.Signals | None = None
    status: int = 0


COUNT = "record('api.calls', 13, tenant='tenant_a')\n"
WAIT = "print('ready', flush=True); sys.stdin.read()\n"

ENDS = [
    Exit(how="normal", program=COUNT),
    Exit(how="sys.exit", program=COUNT + "sys.exit(3)", status=3),
    Exit(how="exception", program=COUNT + "1 / 0", status=1),
    Exit(how="SIGINT", program=COUNT + WAIT, number=signal.SIGINT, status=-signal.SIGINT),
    Exit(
        how="SIGTERM with handler that exits",
        program="signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n" + COUNT + WAIT,
        number=signal.SIGTERM,
        status=5,
    ),
    Exit(
        how="SIGTERM with handler that counts, shuts down and dies of it",
        program="""
            def end(number, frame):
                record("api.calls", 3, tenant="tenant_a")
                otel_metering.shutdown()
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            signal.signal(signal.SIGTERM, end)
            record("api.calls", 10, tenant="tenant_a")
            print("ready", flush=True)
            sys.stdin.read()
        """,
        number=signal.SIGTERM,
        status=-signal.SIGTERM,
    ),
    Exit(
        how="thread that counts after main ended",
        program="""
            def work():
                threading.main_thread().join()
                record("api.calls", 13, tenant="tenant_a")
            threading.Thread(target=work).start()
        """,
    ),
    Exit(
        how="exit handler that counts, of before configure",
        before="""
            import atexit, otel_metering
            atexit.register(lambda: otel_metering.record("api.calls", 9, tenant="tenant_a"))
        """,
        program="record('api.calls', 4, tenant='tenant_a')",
    ),
    Exit(
        how="importlib.reload of a module that configures",
        before="""
            import importlib, pathlib, sys, tempfile
            folder = tempfile.TemporaryDirectory()
            sys.path.insert(0, folder.name)
            pathlib.Path(folder.name, "app.py").write_text(
                "import otel_metering; otel_metering.configure(service_name='shop');"
                "otel_metering.record('api.calls', 4, tenant='tenant_a')"
            )
            import app
            importlib.reload(app)
            importlib.reload(app)
        """,
        program="record('api.calls', 1, tenant='tenant_a')",
    ),
    Exit(how="shutdown, then os._exit", program=COUNT + "otel_metering.shutdown(); os._exit(0)"),
]


@pytest.mark.parametrize("row", ENDS, ids=lambda row: row.how)
def test_a_process_that_ends_has_delivered_everything(
    row: Exit, backend: Backend, tmp_path: Path
) -> None:
    with start(row.program, backend.endpoint, tmp_path, before=row.before) as process:
        _end(process, row.number)

    assert process.returncode == row.status
    assert backend.totals() == {("api.calls", "tenant_a"): 13}
    assert list(tmp_path.glob("shop/*")) == []


FAULTS: dict[str, list[Act | int] | None] = {
    "answers 503": [503] * 999,
    "answers nothing": [Act.HANG_UNREAD] * 999,
    "takes it and answers nothing": [Act.HANG] * 999,
    "hangs up": [Act.HANG_UP] * 999,
    "is not there": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_exit_does_not_wait_for_a_receiver_that(
    fault: str, backend: Backend, tmp_path: Path
) -> None:
    script = FAULTS[fault]
    backend.script = list(script or [])
    endpoint = backend.endpoint if script else NOWHERE
    with start(COUNT + WAIT, endpoint, tmp_path) as process:
        began = _end(process, signal.SIGINT)
    assert time.monotonic() - began < PROMPT_SECONDS

    backend.script = []
    deliver_rest(backend.endpoint, tmp_path)

    assert backend.totals() == {("api.calls", "tenant_a"): 13}


KILLS = [
    Exit(how="SIGTERM", program=WAIT, number=signal.SIGTERM, status=-signal.SIGTERM),
    Exit(how="SIGKILL", program=WAIT, number=signal.SIGKILL, status=-signal.SIGKILL),
    Exit(how="os._exit", program="os._exit(7)", status=7),
    Exit(how="os.execv", program="os.execv('/bin/true', ['true'])"),
]
"""Nothing of Python runs at these ends."""


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("row", KILLS, ids=lambda row: row.how)
def test_a_process_that_cannot_say_goodbye_loses_at_most_what_it_did_not_flush(
    row: Exit, durability: str, backend: Backend, tmp_path: Path
) -> None:
    program = f"""
record('api.calls', 13, tenant='tenant_a')
record('jobs', 1, tenant='tenant_a', event_id='e1')
assert otel_metering.flush()
record('api.calls', 4, tenant='tenant_a')
{row.program}
"""
    with start(program, NOWHERE, tmp_path, METERING_DURABILITY=durability) as process:
        _end(process, row.number)
    assert process.returncode == row.status

    deliver_rest(backend.endpoint, tmp_path)

    expected = 17 if durability in KILL_PROOF else 13
    assert backend.totals() == {("api.calls", "tenant_a"): expected}
    assert [event[0] for event in backend.events] == ["jobs"]


def _end(process: "subprocess.Popen[str]", number: signal.Signals | None) -> float:
    """Wait for the end, which `number` brings about; returns when it was sent."""
    if number is not None:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready == "ready\n", process.communicate()[1]
        process.send_signal(number)
    began = time.monotonic()
    process.communicate(timeout=30)
    return began
