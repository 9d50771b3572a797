"""The systems that are compared: each started with an empty store, on free ports of this machine."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import pipeline
from bench.peers import schema, signals
from tests.e2e.up import free_ports
from tests.peers.collector.build import build
from tests.peers.install import installed, run

ROTEL = "rotel==0.0.1a15"
BUILDER = "v0.161.0"
MANIFEST = Path(__file__).with_name("collector.yaml")
CONFIG_SECONDS = 30.0
BATCH = 50_000
"""Rows of a rival's INSERT at most. By default rotel has 8,192, and then drops acknowledged items of a request
of 10,000 ("Too many batch items split, dropping data")."""


@dataclass
class Running:
    """A system under load.

    Attributes:
        grpc: Where OTLP/gRPC listens.
        http: Where OTLP/HTTP listens.
        key: What it wants as bearer token.
        processes: Part of the system -> process ids.
        count: How many items of a signal can be read; None: it keeps none.
        threads: CPU seconds by part, where a process knows more than its total.
    """

    grpc: str
    http: str
    processes: dict[str, int]
    key: str = "none"
    count: Callable[[str], int] | None = None
    threads: Callable[[], dict[str, float]] | None = None

    def cpu_seconds(self) -> dict[str, float]:
        """Part -> CPU seconds so far; the engine apart from the receiver."""
        if self.threads is not None:
            by_thread = self.threads()
            by_thread.pop("API threads", None)  # the count that the measurement itself asks for
            engine = by_thread.get("engine", 0.0) + by_thread.get("writer", 0.0)
            return {"receiver": sum(by_thread.values()) - engine, "engine": engine}
        return {part: _cpu_seconds(pid) for part, pid in self.processes.items()}


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        promise: What an acknowledgement of it means.
    """

    name: str
    promise: str
    start: Callable[[ExitStack, Path], Running] = field(repr=False)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def started(system: System) -> Iterator[Running]:
    """`system`, ready for load; ended afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        yield system.start(stack, Path(folder))


def _process(
    stack: ExitStack, command: list[str | Path], **options: object
) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)
    return process


def _ready(address: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + CONFIG_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if pipeline.is_listening(address):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not listen: {log.read_text()[-2000:]}")


# --- this project


def _metering(stack: ExitStack, folder: Path) -> Running:
    key = f"otm_bench_{secrets.token_hex(32)}"
    server = _process(
        stack,
        [sys.executable, "-m", "bench.server", folder, key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    addresses = json.loads(pipeline.line_of(server))
    return Running(
        grpc=addresses["grpc"],
        http=addresses["http"].removeprefix("http://"),
        key=key,
        processes={"receiver": server.pid},
        count=lambda name: pipeline.visible(addresses["api"], key, signals.METER[name]),
        threads=lambda: pipeline.ask(server),
    )


# --- the engine, as far as the rivals' exporters need it


def _clickhouse(stack: ExitStack, statements: list[str]) -> tuple[str, int, Callable[[str], int]]:
    """Address, process id, and the count of a signal's rows."""
    server = _process(
        stack,
        [sys.executable, "-m", "bench.peers.clickhouse"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    server.stdin.write(json.dumps(statements) + "\n")
    server.stdin.flush()
    address = pipeline.line_of(server).strip()

    def count(name: str) -> int:
        sql = f"SELECT count() FROM otel.{schema.TABLE[name]}".encode()
        with urllib.request.urlopen(f"http://{address}/", data=sql) as response:
            return int(response.read())

    return address, server.pid, count


# --- rotel


def _rotel_program() -> Path:
    def install(folder: Path) -> None:
        run([sys.executable, "-m", "venv", folder], folder)
        run([folder / "bin" / "pip", "install", "--quiet", ROTEL], folder)

    folder = installed("rotel", ROTEL, install)
    [program] = folder.glob("lib/python*/site-packages/rotel/rotel-agent")
    return program


def _rotel(stack: ExitStack, folder: Path, *arguments: str) -> Running:
    program = _rotel_program()
    grpc, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    log = folder / "rotel.log"
    process = _process(
        stack,
        [
            program,
            "start",
            f"--otlp-grpc-endpoint={grpc}",
            f"--otlp-http-endpoint={http}",
            "--otlp-grpc-max-recv-msg-size-mib=64",
            f"--batch-max-size={BATCH}",
            *arguments,
        ],
        stdout=stack.enter_context(log.open("w")),
        stderr=subprocess.STDOUT,
    )
    _ready(grpc, process, log)
    return Running(grpc=grpc, http=http, processes={"receiver": process.pid})


def _rotel_clickhouse(stack: ExitStack, folder: Path) -> Running:
    address, pid, count = _clickhouse(stack, schema.ALL)
    running = _rotel(
        stack,
        folder,
        "--exporter=clickhouse",
        f"--clickhouse-exporter-endpoint=http://{address}",
    )
    running.processes["engine"] = pid
    running.count = count
    return running


# --- the OpenTelemetry Collector


def _collector(
    stack: ExitStack, folder: Path, exporter: dict[str, object], *, durable: bool = False
) -> Running:
    program = build(MANIFEST, BUILDER)
    grpc, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    [name] = exporter
    pipe = {"receivers": ["otlp"], "exporters": [name]}
    storage = {
        "file_storage": {
            "directory": str(folder / "queue"),
            "create_directory": True,
            "fsync": True,
        }
    }
    config = {
        "extensions": storage if durable else {},
        "receivers": {
            "otlp": {
                "protocols": {
                    "grpc": {"endpoint": grpc, "max_recv_msg_size_mib": 64},
                    "http": {"endpoint": http},
                }
            }
        },
        "exporters": exporter,
        "service": {
            "extensions": list(storage) if durable else [],
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"metrics": pipe, "traces": pipe, "logs": pipe},
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "collector.log"
    process = _process(
        stack,
        [program, f"--config={folder / 'config.yaml'}"],
        stdout=stack.enter_context(log.open("w")),
        stderr=subprocess.STDOUT,
    )
    _ready(grpc, process, log)
    return Running(grpc=grpc, http=http, processes={"receiver": process.pid})


def _collector_clickhouse(stack: ExitStack, folder: Path, *, durable: bool) -> Running:
    address, pid, count = _clickhouse(stack, [])
    queue: dict[str, object] = {
        "enabled": True,
        "sizer": "items",
        "queue_size": 500_000,
        "block_on_overflow": True,
        "num_consumers": 4,
        "batch": {"min_size": 8192, "max_size": BATCH, "flush_timeout": "200ms"},
    }
    if durable:
        queue["storage"] = "file_storage"
    exporter = {
        "clickhouse": {
            "endpoint": f"http://{address}/",
            "database": "otel",
            "compress": "none",
            "timeout": "30s",
            "sending_queue": queue,
            "retry_on_failure": {"enabled": True, "max_elapsed_time": "0s"},
        }
    }
    running = _collector(stack, folder, exporter, durable=durable)
    running.processes["engine"] = pid
    running.count = count
    return running


ALL = {
    one.name: one
    for one in (
        System("otel-metering", "durable, deduplicated, rolled up", _metering),
        System(
            "rotel-nothing",
            "nothing: received and dropped",
            lambda stack, folder: _rotel(stack, folder, "--exporter=blackhole"),
        ),
        System("rotel-clickhouse", "none: acknowledged from memory; raw rows", _rotel_clickhouse),
        System(
            "collector-nothing",
            "nothing: received and dropped",
            lambda stack, folder: _collector(stack, folder, {"nop": {}}),
        ),
        System(
            "collector-clickhouse",
            "none: acknowledged from memory; raw rows",
            lambda stack, folder: _collector_clickhouse(stack, folder, durable=False),
        ),
        System(
            "collector-durable",
            "durable (queue on disk, fsync), not deduplicated; raw rows",
            lambda stack, folder: _collector_clickhouse(stack, folder, durable=True),
        ),
    )
}
