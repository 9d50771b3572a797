"""Where usage goes by `transport_mode`, and what the application's own MeterProvider sees."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import otel_metering
from otel_metering import record
from otel_metering._cells import Event, Series
from otel_metering._global_meters import Mirror
from tests.integration.sdk_backend import (
    Act,
    Backend,
    Configure,
    configured,
    deliver,
    running_backend,
)
from tests.waiting import eventually


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.fixture
def configure(backend: Backend, tmp_path: Path) -> Iterator[Configure]:
    with configured(backend, tmp_path / "spool") as configure:
        yield configure


def run(program: str, home: Path, **environment: str) -> str:
    """What `program` prints, in a process with a home of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "TMPDIR": str(home),
            **environment,
        },
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize("mode", ["memory", "global"])
def test_without_a_disk_no_file_and_no_folder_is_made(
    backend: Backend, tmp_path: Path, mode: str
) -> None:
    program = """
        import otel_metering
        otel_metering.configure(service_name="shop")
        otel_metering.record("api.calls", 5, tenant="tenant_a")
        assert otel_metering.flush(send=True)
    """

    run(program, tmp_path, METERING_TRANSPORT_MODE=mode, METERING_ENDPOINT=backend.endpoint)

    assert list(tmp_path.iterdir()) == []
    assert backend.total("api.calls") == (5 if mode == "memory" else 0)


@pytest.mark.parametrize("act", [503, 401, Act.HANG_UP, Act.LOSE_ANSWER, Act.NOT_OTLP])
def test_in_memory_every_fault_is_retried_until_the_total_is_exact(
    configure: Configure, backend: Backend, act: Act | int
) -> None:
    configure(transport_mode="memory")
    backend.script = [act, act, 200, act]

    for _ in range(3):
        record("api.calls", 5, tenant="tenant_a")
        otel_metering.flush()
    deliver()

    assert backend.total("api.calls") == 15


def test_a_full_memory_keeps_usage_in_its_cells_until_there_is_room(
    configure: Configure, backend: Backend
) -> None:
    configure(transport_mode="memory", spool_max_bytes=300, retry_initial_seconds=0.5)
    backend.script = [503]
    record("api.calls", 5, tenant="tenant_a")
    assert otel_metering.flush()
    record("api.calls", 6, tenant="tenant_a")
    assert not otel_metering.flush()

    eventually(otel_metering.flush, bool)
    deliver()

    assert backend.total("api.calls") == 11


def test_in_memory_a_refused_request_is_given_up_and_counted(
    configure: Configure, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    configure(transport_mode="memory")
    backend.script = [400]
    before = otel_metering.stats().refused_requests

    record("api.calls", 5, tenant="tenant_a")
    assert not otel_metering.flush(send=True, timeout_seconds=10)

    assert otel_metering.stats().refused_requests == before + 1
    assert otel_metering.stats().pending_requests == 0
    assert "is given up: HTTP 400" in caplog.text


def test_in_memory_what_an_end_loses_is_said(
    configure: Configure, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    configure(transport_mode="memory", endpoint="http://127.0.0.1:9")
    record("api.calls", 5, tenant="tenant_a")

    assert not otel_metering.shutdown()

    assert "1 requests were not delivered" in caplog.text


@pytest.mark.parametrize(
    ("before", "after"),
    [("durable", "memory"), ("memory", "durable"), ("memory", "memory"), ("durable", "global")],
)
def test_a_change_of_mode_takes_everything_along(
    configure: Configure, backend: Backend, tmp_path: Path, before: str, after: str
) -> None:
    configure(transport_mode=before, endpoint="http://127.0.0.1:9")
    record("api.calls", 5, tenant="tenant_a")
    otel_metering.flush()

    configure(transport_mode=after)
    deliver()
    otel_metering.shutdown()

    assert backend.total("api.calls") == 5
    assert list(tmp_path.glob("spool/shop/*")) == []


def test_a_child_in_memory_mode_sends_its_own_usage_alone(backend: Backend, tmp_path: Path) -> None:
    program = """
        import os, otel_metering
        otel_metering.configure(service_name="shop", flush_interval_seconds=60)
        otel_metering.record("api.calls", 5, tenant="tenant_a")
        otel_metering.flush()
        if os.fork() == 0:
            otel_metering.record("api.calls", 7, tenant="tenant_a")
            assert otel_metering.flush(send=True)
            os._exit(0)
        assert os.wait()[1] == 0
    """

    run(program, tmp_path, METERING_TRANSPORT_MODE="memory", METERING_ENDPOINT=backend.endpoint)

    assert backend.total("api.calls") == 12


OF_THE_APPLICATION = """
    import os, otel_metering
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    def show():
        data = reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        if scope.scope.name != "otel_metering.sdk" or point.value:
                            print(scope.scope.name, metric.name, dict(point.attributes), point.value)
    otel_metering.configure(service_name="shop", flush_interval_seconds=60)
    record = otel_metering.record
"""
USAGE = """
    record("api.calls", 5, tenant="tenant_a", attributes={"region": "eu"})
    record("api.calls", 6, tenant="tenant_a", attributes={"region": "eu"})
    record("hours", 0.25, tenant="tenant_a")
    record("jobs", 2, event_id="e1")
    assert otel_metering.flush(send=True)
"""


def test_in_global_mode_the_applications_own_provider_counts_and_nothing_is_sent(
    backend: Backend, tmp_path: Path
) -> None:
    """The scope is ours, so that a receiver of ours meters what such a provider exports."""
    program = OF_THE_APPLICATION + USAGE + "    show()"

    printed = run(
        program, tmp_path, METERING_TRANSPORT_MODE="global", METERING_ENDPOINT=backend.endpoint
    )

    assert printed.splitlines() == [
        "otel_metering api.calls {'tenant.id': 'tenant_a', 'region': 'eu'} 11",
        "otel_metering hours {'tenant.id': 'tenant_a'} 0.25",
        "otel_metering jobs {} 2",
    ]
    assert backend.headers == []


def test_a_mirror_shows_the_totals_that_are_sent_under_a_scope_that_is_not_metered(
    backend: Backend, tmp_path: Path
) -> None:
    program = OF_THE_APPLICATION + USAGE + USAGE.replace("e1", "e2") + "    show()"

    printed = run(
        program, tmp_path, METERING_TRANSPORT_MODE="mirror", METERING_ENDPOINT=backend.endpoint
    )

    lines = [line for line in printed.splitlines() if "otel_metering.sdk" not in line]
    assert lines == [
        "otel_metering.mirror api.calls {'tenant.id': 'tenant_a', 'region': 'eu'} 22",
        "otel_metering.mirror hours {'tenant.id': 'tenant_a'} 0.5",
        "otel_metering.mirror jobs {} 4",
    ]
    assert backend.total("api.calls") == 22
    assert len(backend.events) == 2


def test_a_mirror_of_a_child_does_not_show_what_its_parent_counted(
    backend: Backend, tmp_path: Path
) -> None:
    program = (
        OF_THE_APPLICATION
        + """
    record("api.calls", 5)
    assert otel_metering.flush(send=True)
    if os.fork() == 0:
        record("api.calls", 7)
        assert otel_metering.flush(send=True)
        show()
        raise SystemExit
    assert os.wait()[1] == 0
    """
    )

    printed = run(
        program, tmp_path, METERING_TRANSPORT_MODE="mirror", METERING_ENDPOINT=backend.endpoint
    )

    assert "otel_metering.mirror api.calls {} 7" in printed.splitlines()


def test_a_mirror_with_too_many_series_keeps_tenants_apart() -> None:
    mirror = Mirror()
    for tenant in ("tenant_a", "tenant_b"):
        for region in range(5):
            series = Series("api.calls", tenant, (("region", "str", str(region)),))
            mirror.add({series: 10**9}, [], max_series=3)
    mirror.add({}, [Event(1, Series("api.calls", "tenant_b", ()), 10**9, "e1")], max_series=3)

    observed = mirror._callback("api.calls")
    sums = {"tenant_a": 0.0, "tenant_b": 0.0}
    for observation in observed(None):  # type: ignore[arg-type] # not looked at
        assert observation.attributes is not None
        sums[str(observation.attributes["tenant.id"])] += observation.value
    assert sums == {"tenant_a": 5, "tenant_b": 6}


@pytest.mark.parametrize("name", ["a:b", "9.lives", "@home"])
def test_a_meter_that_no_instrument_can_be_named_after_is_counted_as_rejected(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    configure(transport_mode="global")
    before = otel_metering.stats().rejected_usage

    record(name, 5, tenant="tenant_a")
    assert otel_metering.flush()

    assert otel_metering.stats().rejected_usage == before + 1


def test_the_sdks_own_counts_are_instruments(backend: Backend, tmp_path: Path) -> None:
    program = (
        OF_THE_APPLICATION
        + """
    record("api.calls", -1)
    record("api.calls", 5)
    assert otel_metering.flush(send=True)
    otel_metering.configure(service_name="shop", endpoint="http://127.0.0.1:9")
    record("api.calls", 5)
    otel_metering.flush()
    show()
    """
    )

    printed = run(program, tmp_path, METERING_ENDPOINT=backend.endpoint).splitlines()

    assert "otel_metering.sdk otel_metering.sdk.rejected_usage {} 1" in printed
    assert "otel_metering.sdk otel_metering.sdk.pending_requests {} 1" in printed
    assert any("otel_metering.sdk.pending_bytes" in line for line in printed)


def test_telemetry_that_is_switched_off_does_not_switch_billing_off(
    backend: Backend, tmp_path: Path
) -> None:
    program = """
        import otel_metering
        otel_metering.configure(service_name="shop")
        otel_metering.record("api.calls", 5, tenant="tenant_a")
    """

    run(
        program,
        tmp_path,
        OTEL_SDK_DISABLED="true",
        OTEL_METRICS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT=backend.endpoint,
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )

    assert backend.total("api.calls") == 5


def test_a_provider_that_is_not_ours_is_left_alone(configure: Configure, backend: Backend) -> None:
    """A private pipeline: views, readers and the end of another provider change nothing."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    configure()
    provider.shutdown()

    record("api.calls", 5, tenant="tenant_a")
    deliver()

    assert backend.total("api.calls") == 5
