"""`python -m bench.validate`: POST /v1/meter/validate beside an empty FastAPI route, on one worker each.

The servers are processes of their own, all at once; the load goes to them in turn, so that a slow minute of the
machine is in every figure. The load generator writes prepared bytes to keep-alive connections.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

CONNECTIONS = 32
BODY = b'{"tenant_id": "tenant_a", "meter": "api.calls", "quantity": "1"}'
RESERVE = (
    b'{"tenant_id": "tenant_a", "meter": "api.calls", "quantity": "0.000001", "reserve": true}'
)


def serve(kind: str, folder: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    if kind == "empty":
        app: Any = FastAPI()

        @app.post("/v1/meter/validate")
        async def empty() -> dict[str, str]:
            return {}

        uvicorn.run(app, port=port, log_level="error", access_log=False)
        return
    from otel_metering.clock import SystemClock
    from query_api import config, embedded
    from query_api.app import create_app
    from receiver.app import Receiver
    from receiver.config import Settings

    settings = Settings(data_dir=Path(folder), admin_key=os.environ["BENCH_KEY"])  # type: ignore[arg-type]
    clock = SystemClock()
    receiver = Receiver(settings, clock)
    receiver.start()
    embedded.ensure_admin_key(receiver, settings, clock)
    quotas = embedded.open_quotas(receiver, settings, config.Settings(), clock)
    quotas.start()
    services = replace(embedded.services(receiver, quotas, clock, config.Settings()))
    uvicorn.run(create_app(services), port=port, log_level="error", access_log=False)
    quotas.stop()
    receiver.stop()


def request(body: bytes, key: str, path: str = "/v1/meter/validate", method: str = "POST") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    body = await reader.readexactly(length)
    assert head.startswith(b"HTTP/1.1 200"), head + body
    return body


async def closed(port: int, data: bytes, seconds: float) -> float:
    """Requests a second that are answered when `CONNECTIONS` clients send one after the other."""
    until, done = time.monotonic() + seconds, 0

    async def one() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            writer.write(data)
            await answer(reader)
            done += 1
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return done / (time.monotonic() - began)


async def paced(port: int, data: bytes, rate: float, seconds: float) -> list[float]:
    """Seconds that each request took, from when it was due, at `rate` a second."""
    free: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    took: list[float] = []

    async def one(due: float) -> None:
        connection = await free.get()
        connection[1].write(data)
        await answer(connection[0])
        took.append(time.monotonic() - due)
        free.put_nowait(connection)

    began, tasks = time.monotonic(), []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        delay = due - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait()[1].close()
    return took


async def once(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    found = await answer(reader)
    writer.close()
    return found


@contextlib.contextmanager
def servers(kinds: list[str], key: str, redis_url: str) -> Iterator[dict[str, int]]:
    import socket

    ports, processes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports[kind] = free.getsockname()[1]
            environment = {**os.environ, "BENCH_KEY": key}
            if kind == "redis":
                environment["METERING_REDIS_URL"] = redis_url
            command = [sys.executable, "-m", "bench.validate", "--serve", kind, f"{folder}/{kind}"]
            processes.append(subprocess.Popen([*command, str(ports[kind])], env=environment))
        try:
            yield ports
        finally:
            for process in processes:
                process.terminate()
                process.wait()


async def measure(arguments: argparse.Namespace) -> None:
    from tests.redis_server import redis_server

    key = "otm_bench_" + "0123456789abcdef" * 4
    kinds = ["empty", "memory", "redis"]
    with redis_server() as redis, servers(kinds, key, redis.url) as ports:
        quota = (
            b'{"tenant_id": "tenant_a", "meter": "api.calls", "limit": "1e12", "period": "month"}'
        )
        for kind in kinds:
            await until_up(ports[kind], key)
            if kind != "empty":
                await once(ports[kind], request(quota, key, "/v1/meter/quotas", "PUT"))
                for _ in range(100):
                    if b'"ok"' in await once(ports[kind], request(BODY, key)):
                        break
                    await asyncio.sleep(0.1)
        plans = [("empty", BODY), ("memory", BODY), ("memory", RESERVE), ("redis", BODY)]
        plans.append(("redis", RESERVE))
        rates: dict[Any, list[float]] = {plan: [] for plan in plans}
        times: dict[Any, list[float]] = {plan: [] for plan in plans}
        for _ in range(arguments.runs):
            for kind, body in plans:
                data = request(body, key)
                rates[kind, body].append(await closed(ports[kind], data, arguments.seconds))
                times[kind, body] += await paced(
                    ports[kind], data, arguments.rate, arguments.seconds
                )
        empty = statistics.median(rates["empty", BODY])
        print(f"{os.cpu_count()} cores, one worker, medians of {arguments.runs} runs")
        for kind, body in plans:
            took = sorted(times[kind, body])
            rate = statistics.median(rates[kind, body])
            name = kind + (" reserve" if body is RESERVE else "")
            print(
                f"{name:16} {rate:8,.0f} requests/s ({rate / empty:4.0%} of empty)   at {arguments.rate:,.0f}/s: "
                f"p50 {took[len(took) // 2] * 1e3:6.2f} ms  p99 {took[int(len(took) * 0.99)] * 1e3:6.2f} ms"
            )


async def until_up(port: int, key: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await once(port, request(BODY, key))
            return
        await asyncio.sleep(0.1)
    raise SystemExit("a server does not come up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        kind, folder, port = arguments.serve
        serve(kind, folder, int(port))
        return
    asyncio.run(measure(arguments))


if __name__ == "__main__":
    main()
