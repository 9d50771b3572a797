"""The receiver's numbers as OpenTelemetry instruments, for who configures an SDK in this process.

Without an SDK the global MeterProvider does nothing, and this costs nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider

from receiver.catalog import CATALOG, Kind, Metric
from receiver.telemetry import Name, Reading, Telemetry

METER: Final = "otel_metering.receiver"


def observe(telemetry: Telemetry, provider: MeterProvider | None = None) -> None:
    """Make an observable instrument of every counter and gauge, at the global provider by default.

    A distribution, which has no observable instrument, is two counters: how many, and the sum.
    """
    meter = (provider or get_meter_provider()).get_meter(METER)
    for metric in CATALOG:
        name = metric.otel_name
        if metric.kind is Kind.COUNTER:
            callback = _callback(telemetry, metric, lambda reading: reading.counters.items())
            meter.create_observable_counter(name, [callback], metric.unit, metric.help)
        elif metric.kind is Kind.GAUGE:
            callback = _callback(telemetry, metric, lambda reading: reading.gauges.items())
            meter.create_observable_gauge(name, [callback], metric.unit, metric.help)
        else:
            counted = _callback(telemetry, metric, _counts)
            summed = _callback(telemetry, metric, _sums)
            meter.create_observable_counter(f"{name}.count", [counted], "1", metric.help)
            meter.create_observable_counter(f"{name}.sum", [summed], metric.unit, metric.help)


Pairs = Iterable[tuple[Name, float]]


def _counts(reading: Reading) -> Pairs:
    return [(name, sum(counts)) for name, (counts, _, _) in reading.distributions.items()]


def _sums(reading: Reading) -> Pairs:
    return [(name, total) for name, (_, total, _) in reading.distributions.items()]


def _callback(
    telemetry: Telemetry, metric: Metric, pairs: Callable[[Reading], Pairs]
) -> Callable[[CallbackOptions], Sequence[Observation]]:
    def observed(_: CallbackOptions) -> Sequence[Observation]:
        return [
            Observation(value, dict(name.labels))
            for name, value in pairs(telemetry.read())
            if (name.stage, name.name) == (metric.stage, metric.name)
        ]

    return observed
