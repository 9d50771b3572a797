"""`otel-metering up` for a measurement: the same, and at the end the CPU seconds of each thread."""

import json
import os
import sys
import threading
from pathlib import Path

import uvloop

from otel_metering.clock import SystemClock
from query_api import config
from query_api.embedded import Addresses, serve
from receiver.config import Settings


def thread_seconds() -> dict[str, float]:
    """CPU seconds so far, by thread; the engine's own threads together."""
    tick = os.sysconf("SC_CLK_TCK")
    names = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    seconds: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            command = (task / "comm").read_text().strip()
        except OSError:
            continue
        name = names.get(task.name) or (
            "grpc"
            if "grpc" in command or "event" in command or "default" in command or "timer" in command
            else "engine"
        )
        name = {"MainThread": "edges (asyncio)"}.get(name, name)
        if name.startswith(("AnyIO", "asyncio_")):
            name = "API threads"
        seconds[name] = seconds.get(name, 0) + (int(fields[11]) + int(fields[12])) / tick
    return seconds


def main() -> None:
    """`python -m bench.server DATA_DIR KEY`: prints addresses, then CPU seconds for each line it reads."""
    settings = Settings(
        data_dir=Path(sys.argv[1]),
        admin_key=sys.argv[2],  # type: ignore[arg-type]  # pydantic converts it
        otlp_grpc_port=0,
        otlp_http_port=0,
    )

    def on_ready(addresses: Addresses) -> None:
        shown = {
            "grpc": addresses.otlp_grpc,
            "http": addresses.otlp_http,
            "api": addresses.api,
        }
        print(json.dumps(shown), flush=True)
        threading.Thread(target=answer, name="bench", daemon=True).start()

    def answer() -> None:
        for _ in sys.stdin:
            print(json.dumps(thread_seconds()), flush=True)

    uvloop.run(
        serve(settings, config.Settings(api_port=0, clickhouse_port=-1), SystemClock(), on_ready)
    )


if __name__ == "__main__":
    main()
