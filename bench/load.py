"""The load: OTLP requests like those of real senders, and a generator that is a process of its own.

A sender is one service instance with its own streams; a request is one flush of it: each stream once, with
the flush's time. So every point is new, and every stream comes again with the sender's next flush.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
STREAMS = 5_000
TENANTS = 50
INSTANCE = 1_000
"""Points of one service instance in a request at most: no two of them are alike."""
START_NS = 1_790_000_000 * 10**9
_TIME, _START = 0x1111111111111111, 0x2222222222222222


@dataclass(frozen=True)
class Shape:
    """How the points are cut into requests."""

    points_per_request: int
    in_flight: int

    @property
    def senders(self) -> int:
        return max(STREAMS // self.points_per_request, 1)


def requests(shape: Shape, points: int) -> list[bytes]:
    """`points` points as encoded requests, sender after sender, flush after flush."""
    return list(flushes(shape, points))


def flushes(shape: Shape, points: int) -> Iterator[bytes]:
    """The same, made while they are asked for."""
    templates = [_template(shape, sender) for sender in range(shape.senders)]
    return _flushes(shape, templates, points // shape.points_per_request)


def _flushes(shape: Shape, templates: list[bytes], count: int) -> Iterator[bytes]:
    for number in range(count):
        flush, sender = divmod(number, shape.senders)
        time_ns = START_NS + flush * 10**9 + sender * 1_000
        yield (
            templates[sender]
            .replace(_TIME.to_bytes(8, "little"), time_ns.to_bytes(8, "little"))
            .replace(_START.to_bytes(8, "little"), (time_ns - 10**9).to_bytes(8, "little"))
        )


def _template(shape: Shape, sender: int) -> bytes:
    request = ExportMetricsServiceRequest()
    first = sender * shape.points_per_request
    for begin in range(first, first + shape.points_per_request, INSTANCE):
        end = min(begin + INSTANCE, first + shape.points_per_request)
        _instance(request, begin // min(shape.points_per_request, INSTANCE), range(begin, end))
    return request.SerializeToString()


def _instance(request: ExportMetricsServiceRequest, number: int, streams: range) -> None:
    """What one service instance sends; large requests are those of several, as a Collector merges them."""
    resource = request.resource_metrics.add()
    for name, value in (("service.name", "shop"), ("service.instance.id", f"instance-{number}")):
        resource.resource.attributes.add(key=name).value.string_value = value
    scope = resource.scope_metrics.add()
    scope.scope.name = "otel_metering"
    metric = scope.metrics.add(name="api.calls", unit="{call}")
    metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
    metric.sum.is_monotonic = True
    for stream in streams:
        point = metric.sum.data_points.add(
            start_time_unix_nano=_START, time_unix_nano=_TIME, as_int=1 + stream % 9
        )
        for name, value in (
            ("tenant.id", f"tenant_{stream % TENANTS}"),
            ("region", f"region-{stream % 3}"),
            ("route", f"/v1/things/{stream % 40}"),
            ("status", "2xx"),
        ):
            point.attributes.add(key=name).value.string_value = value


async def _send(address: str, key: str, shape: Shape, bodies: list[bytes]) -> float:
    metadata = (("authorization", f"Bearer {key}"),)
    waiting = iter(bodies)
    async with grpc.aio.insecure_channel(address) as channel:
        export = channel.unary_unary(EXPORT)

        async def work() -> None:
            for body in waiting:
                while True:
                    try:
                        await export(body, metadata=metadata, timeout=30)
                        break
                    except grpc.RpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise
                        await asyncio.sleep(0.05)

        await channel.channel_ready()
        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(shape.in_flight)))
        return time.perf_counter() - began


def main() -> None:
    """`python -m bench.load ADDRESS KEY POINTS_PER_REQUEST IN_FLIGHT POINTS`: waits for a line, then sends."""
    address, key, per_request, in_flight, points = sys.argv[1:]
    shape = Shape(int(per_request), int(in_flight))
    bodies = requests(shape, int(points))
    print("prepared", flush=True)
    sys.stdin.readline()
    seconds = asyncio.run(_send(address, key, shape, bodies))
    print(f"{seconds:.6f} {time.process_time():.6f}", flush=True)


if __name__ == "__main__":
    main()
