"""The load generator, a process of its own: as fast as answers come, or at a fixed rate.

At a fixed rate a request's time begins when it was due, whether or not the generator was late with it; so a
receiver that stalls is charged for every request that it kept waiting.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import grpc
import uvloop

from bench.peers import signals

Send = Callable[[bytes], Awaitable[bool]]
"""One request; False: it has to be sent again."""
AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
PAUSE_SECONDS = 0.05


@dataclass
class Result:
    seconds: float = 0.0
    requests: int = 0
    retries: int = 0
    latencies: list[float] = field(default_factory=list)


@asynccontextmanager
async def grpc_sender(address: str, key: str, signal: str, _: int) -> AsyncIterator[Send]:
    metadata = (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        export = channel.unary_unary(signals.GRPC[signal])

        async def send(body: bytes) -> bool:
            try:
                await export(body, metadata=metadata, timeout=60)
            except grpc.RpcError as error:
                if error.code() in AGAIN:
                    return False
                raise
            return True

        yield send


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection with one request on the way; reads no more than it must."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("closed by the receiver"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        _, has_length, rest = head.lower().partition(b"content-length:")
        if has_length:
            if len(body) < int(rest.partition(b"\r\n")[0]):
                return
        elif b"chunked" in head.lower() and not body.endswith(b"0\r\n\r\n"):
            return
        self._received = b""
        assert self.answer is not None
        self.answer.set_result(int(head.split(b" ", 2)[1]))


@asynccontextmanager
async def http_sender(address: str, key: str, signal: str, in_flight: int) -> AsyncIterator[Send]:
    loop = asyncio.get_running_loop()
    host, _, port = address.partition(":")
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    made = [
        (await loop.create_connection(Connection, host, int(port)))[1] for _ in range(in_flight)
    ]
    for connection in made:
        free.put_nowait(connection)
    head = (
        f"POST {signals.HTTP[signal]} HTTP/1.1\r\nhost: {address}\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/x-protobuf\r\n"
    )

    async def send(body: bytes) -> bool:
        connection = await free.get()
        connection.answer = loop.create_future()
        connection.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status = await connection.answer
        free.put_nowait(connection)
        if status not in (200, 429, 503):
            raise RuntimeError(f"HTTP status {status}")
        return status == 200

    yield send
    for connection in made:
        connection.transport.close()


SENDERS = {"grpc": grpc_sender, "http": http_sender}


async def _until_taken(send: Send, body: bytes, result: Result) -> None:
    while not await send(body):
        result.retries += 1
        await asyncio.sleep(PAUSE_SECONDS)
    result.requests += 1


async def as_fast_as_possible(send: Send, bodies: Iterator[bytes], in_flight: int) -> Result:
    result, began = Result(), time.perf_counter()

    async def work() -> None:
        for body in bodies:
            await _until_taken(send, body, result)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    result.seconds = time.perf_counter() - began
    return result


async def at_a_rate(send: Send, bodies: Iterator[bytes], per_second: float) -> Result:
    """Requests at `per_second`, however many are on the way."""
    result, began = Result(), time.perf_counter()
    running: set[asyncio.Task[None]] = set()

    async def one(body: bytes, due: float) -> None:
        await _until_taken(send, body, result)
        result.latencies.append(time.perf_counter() - due)

    for number, body in enumerate(bodies):
        due = began + number / per_second
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        task = asyncio.create_task(one(body, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    result.seconds = time.perf_counter() - began
    return result


async def _run(arguments: argparse.Namespace) -> Result:
    shape = signals.shape(arguments.size)
    made = signals.requests(arguments.signal, arguments.size, arguments.points)
    bodies = made if arguments.lazy else iter(list(made))
    print("prepared", flush=True)
    await asyncio.to_thread(input)
    in_flight = shape.in_flight if arguments.rate is None else 4 * shape.in_flight
    opened = SENDERS[arguments.transport](
        arguments.address, arguments.key, arguments.signal, in_flight
    )
    async with opened as send:
        if arguments.rate is None:
            return await as_fast_as_possible(send, bodies, in_flight)
        return await at_a_rate(send, bodies, arguments.rate / arguments.size)


def main() -> None:
    """Prints `prepared`, waits for a line, sends, prints the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("key")
    parser.add_argument("--transport", choices=sorted(SENDERS), required=True)
    parser.add_argument("--signal", choices=signals.SIGNALS, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--points", type=int, required=True)
    parser.add_argument("--rate", type=float, help="points per second")
    parser.add_argument("--lazy", action="store_true", help="encode while sending; for long runs")
    arguments = parser.parse_args()
    before = time.process_time()
    result = uvloop.run(_run(arguments))
    latencies = sorted(result.latencies)
    print(
        json.dumps(
            {
                "seconds": result.seconds,
                "requests": result.requests,
                "retries": result.retries,
                "p50": _quantile(latencies, 0.5),
                "p99": _quantile(latencies, 0.99),
                "cpu_seconds": time.process_time() - before,
            }
        ),
        flush=True,
    )


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[int(share * len(ordered))] if ordered else None


if __name__ == "__main__":
    main()
