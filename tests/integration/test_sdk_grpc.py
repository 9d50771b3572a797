"""The same promises over OTLP/gRPC, against a real server that misbehaves."""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

import otel_metering
from otel_metering import record
from otel_metering._answers import Delivered, NotNow, Refused
from otel_metering._config import read_settings
from otel_metering._otlp_grpc import GrpcDestination, judge
from otel_metering.errors import ConfigurationError
from otel_metering.spool import open_spool
from tests.integration.sdk_backend import Act, Configure, configured, deliver
from tests.integration.sdk_grpc_backend import GrpcBackend, running_grpc_backend
from tests.waiting import eventually


@pytest.fixture
def backend() -> Iterator[GrpcBackend]:
    with running_grpc_backend() as backend:
        yield backend


@pytest.fixture
def configure(backend: GrpcBackend, tmp_path: Path) -> Iterator[Configure]:
    with configured(backend, tmp_path, protocol="grpc") as configure:
        yield configure


FAULTS = [
    *(code for code in grpc.StatusCode if code.name not in ("OK", "INVALID_ARGUMENT")),
    *Act,
]


@pytest.mark.parametrize("act", FAULTS, ids=lambda act: act.name)
def test_every_fault_is_retried_until_the_total_is_exact(
    configure: Configure, backend: GrpcBackend, act: Act | grpc.StatusCode
) -> None:
    """Pitfalls 1 to 3: only a success deletes, and what comes twice is the same."""
    configure(timeout_seconds=0.5)
    backend.codes = [act, act]

    for _ in range(3):
        record("api.calls", 5, tenant="tenant_a")
        otel_metering.flush()
    deliver()

    assert backend.total("api.calls") == 15


def test_a_lost_answer_brings_the_same_points_again(
    configure: Configure, backend: GrpcBackend
) -> None:
    configure()
    backend.codes = [Act.LOSE_ANSWER]

    record("api.calls", 5, tenant="tenant_a")
    deliver()

    assert len(backend.points) == 2
    assert len(set(backend.points)) == 1


def test_an_invalid_argument_is_kept_aside(
    configure: Configure, backend: GrpcBackend, tmp_path: Path
) -> None:
    configure()
    backend.codes = [grpc.StatusCode.INVALID_ARGUMENT]

    record("api.calls", 5, tenant="tenant_a")
    assert not otel_metering.flush(send=True, timeout_seconds=10)
    record("api.calls", 7, tenant="tenant_a")
    deliver()
    otel_metering.shutdown()

    assert backend.total("api.calls") == 7
    (refused,) = tmp_path.glob("shop/*.refused.db")
    spool = open_spool(refused)
    (entry,) = spool.entries()
    spool.close()
    assert entry.key == "metrics gRPC INVALID_ARGUMENT as told"


def test_rejected_points_and_warnings_are_counted(
    configure: Configure, backend: GrpcBackend
) -> None:
    configure()
    backend.codes = [Act.REJECT_ONE, Act.WARN]
    before = otel_metering.stats()

    for _ in range(2):
        record("api.calls", tenant="tenant_a")
        deliver()

    assert otel_metering.stats().rejected_points == before.rejected_points + 1
    assert otel_metering.stats().warned_requests == before.warned_requests + 1


def test_events_headers_and_key_arrive(configure: Configure, backend: GrpcBackend) -> None:
    configure(api_key="key_1", headers={"X-Zone": "z", "x-bytes-bin": "b"})

    record("jobs", 2, tenant="tenant_a", event_id="e1")
    deliver()

    assert [event[:2] for event in backend.events] == [("jobs", Decimal(2))]
    (headers,) = backend.headers
    assert headers["authorization"] == "Bearer key_1"
    assert headers["x-zone"] == "z"
    assert headers["user-agent"].startswith("otel-metering")


def test_compression_is_as_configured(configure: Configure, tmp_path: Path) -> None:
    without_gzip = [("grpc.compression_enabled_algorithms_bitset", 0b001)]
    with running_grpc_backend(options=without_gzip) as backend:
        configure(endpoint=backend.endpoint)
        record("api.calls", tenant="tenant_a")
        otel_metering.flush()
        eventually(lambda: otel_metering.stats().failed_sends, bool)
        assert backend.points == []

        configure(endpoint=backend.endpoint, compression="none")
        deliver()
        assert backend.total("api.calls") == 1


def test_a_receiver_that_comes_back_is_found_within_the_pause(
    configure: Configure, backend: GrpcBackend
) -> None:
    with running_grpc_backend() as other:
        configure(endpoint=other.endpoint)
        record("api.calls", 1, tenant="tenant_a")
        deliver()
    record("api.calls", 2, tenant="tenant_a")
    failed = otel_metering.stats().failed_sends
    otel_metering.flush()
    eventually(lambda: otel_metering.stats().failed_sends, lambda count: count > failed + 3)

    with running_grpc_backend(backend=other):
        deliver()

    assert other.total("api.calls") == 3


def test_more_points_than_one_message_may_hold_are_cut(
    configure: Configure, backend: GrpcBackend
) -> None:
    """Pitfall 20: a gRPC server takes messages of 4 MiB."""
    configure(batch_size=1_000_000)

    for i in range(12_000):
        record("api.calls", tenant="tenant_a", attributes={"id": f"{i:0500}"})
    deliver()

    assert backend.total("api.calls") == 12_000
    assert len(backend.request_sizes) > 6


def test_shutdown_does_not_wait_for_a_call_that_hangs(
    configure: Configure, backend: GrpcBackend
) -> None:
    configure(timeout_seconds=60)
    backend.codes = [Act.HANG]
    record("api.calls", 5, tenant="tenant_a")
    otel_metering.flush()
    eventually(lambda: backend.points, bool)

    thread = threading.Thread(target=otel_metering.shutdown, args=(0.1,))
    thread.start()
    thread.join(5.0)

    assert not thread.is_alive()


PRELUDE = """
    import os, sys, threading
    import otel_metering
    from otel_metering import record
    otel_metering.configure(service_name="shop", retry_initial_seconds=0.05, timeout_seconds=3)
"""


def run(program: str, backend: GrpcBackend, spool_dir: Path) -> None:
    """Run `program`, and then a process that delivers what it left."""
    for code in (program, "assert otel_metering.flush(60, send=True)"):
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code)],
            env={
                **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint,
                "METERING_SPOOL_DIR": str(spool_dir),
            },
            check=True,
            timeout=90,
        )
    assert list(spool_dir.glob("shop/*")) == []


def test_a_fork_after_and_during_a_call_counts_nothing_twice_and_both_go_on(
    backend: GrpcBackend, tmp_path: Path
) -> None:
    """Pitfall 5: a channel belongs to the process that made it."""
    backend.codes = [Act.REJECT_ONE, Act.HANG]
    program = """
        record("api.calls", 100, tenant="tenant_a")
        assert otel_metering.flush(send=True)
        record("api.calls", 10, tenant="tenant_a")
        otel_metering.flush()
        threading.Event().wait(0.3)  # the call hangs by now
        for child in range(2):
            if os.fork() == 0:
                record("api.calls", 7, tenant="tenant_a")
                assert otel_metering.flush(30, send=True)
                sys.exit(0) if child else os._exit(0)
        for child in range(2):
            assert os.wait()[1] == 0
        record("api.calls", 5, tenant="tenant_a")
        assert otel_metering.flush(30, send=True)
    """

    run(program, backend, tmp_path)

    assert backend.total("api.calls") == 129
    assert len({point.instance for point in backend.points}) == 3


def test_usage_at_exit_is_delivered(backend: GrpcBackend, tmp_path: Path) -> None:
    run("record('api.calls', 13, tenant='tenant_a')", backend, tmp_path)

    assert backend.total("api.calls") == 13


@pytest.mark.parametrize("act", [Act.HANG, grpc.StatusCode.UNAVAILABLE], ids=str)
def test_exit_does_not_wait_for_a_receiver_that_hangs_or_fails(
    backend: GrpcBackend, tmp_path: Path, act: Act | grpc.StatusCode
) -> None:
    """Pitfall 7."""
    backend.codes = [act]
    program = """
        otel_metering.configure(service_name="shop", retry_initial_seconds=60, timeout_seconds=60)
        record("api.calls", 13, tenant="tenant_a")
        import time
        began = time.monotonic()
        otel_metering.shutdown()
        assert time.monotonic() - began < 5
    """

    run(program, backend, tmp_path)

    assert backend.total("api.calls") == 13


@pytest.mark.parametrize("name", ["x zone", "grpc-timeout", "x:y"])
def test_a_header_that_grpc_cannot_send_is_named(name: str, tmp_path: Path) -> None:
    settings = read_settings(protocol="grpc", headers={name: "v"}, spool_dir=tmp_path)

    with pytest.raises(ConfigurationError, match=name):
        GrpcDestination(settings)


def test_only_an_invalid_argument_ends_a_request() -> None:
    for code in grpc.StatusCode:
        answer = judge(code, "why", ())
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            assert answer == Refused(reason="gRPC INVALID_ARGUMENT why")
        else:
            assert isinstance(answer, NotNow)


def retry_info(seconds: int, nanos: int = 0) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos))


def in_status(info: error_details_pb2.RetryInfo) -> bytes:
    """As grpc-go sends it, behind another detail."""
    details = [Any(), Any()]
    details[0].Pack(error_details_pb2.DebugInfo(detail="x"))
    details[1].Pack(info)
    status = status_pb2.Status(code=14, message="later", details=details)
    return bytes(status.SerializeToString())


@pytest.mark.parametrize(
    ("trailers", "seconds"),
    [
        ([("google.rpc.retryinfo-bin", retry_info(7, 500_000_000).SerializeToString())], 7.5),
        ([("grpc-status-details-bin", in_status(retry_info(3)))], 3.0),
        ([("google.rpc.retryinfo-bin", retry_info(86_400).SerializeToString())], 300.0),
        ([("google.rpc.retryinfo-bin", retry_info(-5).SerializeToString())], 0.0),
        ([("google.rpc.retryinfo-bin", b"\x0a\xff")], 0.0),
        ([("grpc-status-details-bin", b"\x1a\x03\xff\xff")], 0.0),
        ([("grpc-status-details-bin", b"\xff")], 0.0),
        ([("x-text", "7")], 0.0),
    ],
)
def test_retry_info_is_honoured_within_reason(
    trailers: list[tuple[str, str | bytes]], seconds: float
) -> None:
    answer = judge(grpc.StatusCode.UNAVAILABLE, "", trailers)

    assert isinstance(answer, NotNow)
    assert answer.after_seconds == seconds


def test_retry_info_arrives_over_the_wire(backend: GrpcBackend, tmp_path: Path) -> None:
    backend.codes = [grpc.StatusCode.RESOURCE_EXHAUSTED]
    backend.trailers = (("google.rpc.retryinfo-bin", retry_info(7).SerializeToString()),)
    settings = read_settings(protocol="grpc", endpoint=backend.endpoint, spool_dir=tmp_path)
    destination = GrpcDestination(settings)

    answer = destination.send("metrics", b"")

    assert answer == NotNow(reason="gRPC RESOURCE_EXHAUSTED as told", after_seconds=7.0)
    assert destination.send("metrics", b"") == Delivered(rejected_points=0, message="")
    destination.close()


def test_without_grpcio_the_remedy_is_named() -> None:
    code = """
        import sys
        sys.modules["grpc"] = None
        import otel_metering
        try:
            otel_metering.configure(protocol="grpc", transport_mode="memory")
        except otel_metering.errors.ConfigurationError as error:
            print(error)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )

    assert "otel-metering[grpc]" in done.stdout
