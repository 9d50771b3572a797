"""The tenant on the metrics of instrumentations, which offer no hook for it.

    FastAPIInstrumentor.instrument_app(app, meter_provider=TenantMeterProvider(get_meter_provider()))

Such metrics serve dashboards by tenant, and meters that `meters.yaml` feeds from them. They pass through
the ordinary metrics pipeline, which may lose an interval and forgets no series: what is billed is better
counted by a middleware or by `otel_metering.spans`.
"""

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackT,
    Counter,
    Histogram,
    Meter,
    MeterProvider,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
    _Gauge,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import get_current_span
from opentelemetry.util.types import Attributes

from otel_metering._context import current
from otel_metering._guard import guarded
from otel_metering.contract.attributes import TENANT_ID
from otel_metering.contract.event import is_valid_name


class TenantMeterProvider(MeterProvider):
    """Adds the attribute `tenant.id` to what counters and histograms measure, unless it is given.

    The tenant is that of the current block or request, else the one that the span of the measurement
    has as an attribute: instrumentations measure a request's duration after its middleware is done.

    Left alone are gauges and observable instruments, which measure for nobody's request, and up-down
    counters: a request raises them before its tenant is known, and would lower another series afterwards.

    Args:
        provider: What measures.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = provider

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Meter:
        """Return a meter of `provider` whose instruments add the tenant."""
        meter = self._provider.get_meter(name, version, schema_url, attributes)
        return _TenantMeter(meter, name, version, schema_url)


class _TenantMeter(Meter):
    def __init__(
        self, meter: Meter, name: str, version: str | None, schema_url: str | None
    ) -> None:
        super().__init__(name, version, schema_url)
        self._meter = meter

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        return _TenantCounter(self._meter.create_counter(name, unit, description))

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        histogram = self._meter.create_histogram(
            name,
            unit,
            description,
            explicit_bucket_boundaries_advisory=explicit_bucket_boundaries_advisory,
        )
        return _TenantHistogram(histogram)

    def create_up_down_counter(
        self, name: str, unit: str = "", description: str = ""
    ) -> UpDownCounter:
        return self._meter.create_up_down_counter(name, unit, description)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> _Gauge:
        return self._meter.create_gauge(name, unit, description)

    def create_observable_counter(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> ObservableCounter:
        return self._meter.create_observable_counter(name, callbacks, unit, description)

    def create_observable_gauge(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> ObservableGauge:
        return self._meter.create_observable_gauge(name, callbacks, unit, description)

    def create_observable_up_down_counter(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> ObservableUpDownCounter:
        return self._meter.create_observable_up_down_counter(name, callbacks, unit, description)


class _TenantCounter(Counter):
    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def add(
        self, amount: float, attributes: Attributes = None, context: Context | None = None
    ) -> None:
        self._counter.add(amount, _with_tenant(attributes, context), context)


class _TenantHistogram(Histogram):
    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def record(
        self, amount: float, attributes: Attributes = None, context: Context | None = None
    ) -> None:
        self._histogram.record(amount, _with_tenant(attributes, context), context)


def _with_tenant(attributes: Attributes, context: Context | None) -> Attributes:
    with guarded:
        if attributes is not None and TENANT_ID in attributes:
            return attributes
        tenant = current.get().tenant or _tenant_of_span(context)
        # The metrics SDK drops an attribute that it cannot encode, or sends nothing at all.
        if tenant is not None and is_valid_name(tenant):
            return {**(attributes or {}), TENANT_ID: tenant}
    return attributes


def _tenant_of_span(context: Context | None) -> str | None:
    span = get_current_span(context)
    found = span.attributes if isinstance(span, ReadableSpan) else None
    tenant = found.get(TENANT_ID) if found else None
    return tenant if isinstance(tenant, str) else None
