"""Usage on instruments of the application's own MeterProvider, through the OpenTelemetry API.

Instruments cannot be taken back, so they belong to the process and outlive pipelines. Quantities are what
these instruments know: whole numbers are exact, others as exact as a double.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from opentelemetry.metrics import CallbackOptions, Counter, Observation, get_meter_provider
from opentelemetry.util.types import AttributeValue

from otel_metering._cells import Event, Series
from otel_metering._guard import Problem, problems
from otel_metering._quantity import NANOS_PER_UNIT
from otel_metering.contract.attributes import SCOPE_NAME, TENANT_ID

MIRROR_SCOPE: Final = "otel_metering.mirror"
"""Not the scope that our receiver meters: usage came there by itself already."""

_INSTRUMENT_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")
"""OpenTelemetry specification, metrics API, "Instrument name syntax"."""


class GlobalCounters:
    """Counts usage with Counters, instead of sending it. At most once, as all that an SDK exports."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}

    def add(self, deltas: Mapping[Series, int], events: Iterable[Event]) -> None:
        """Add 10**-9 units by series, and events, whose ids no counter can carry."""
        for series, nanos in [*deltas.items(), *((event.series, event.nanos) for event in events)]:
            counter = self._counters.get(series.meter)
            if counter is None:
                if not _is_instrument_name(series.meter, Problem.REJECTED_USAGE):
                    continue
                meter = get_meter_provider().get_meter(SCOPE_NAME)
                counter = self._counters[series.meter] = meter.create_counter(series.meter)
            counter.add(_number(nanos), _attributes(series))


class Mirror:
    """Shows the same totals that are sent, as ObservableCounters."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[Series, int]] = {}
        self._has_instrument: set[str] = set()

    def reset(self) -> None:
        """In a forked child: the totals so far are the parent's. The instruments stay."""
        self._totals = {}

    def add(
        self, deltas: Mapping[Series, int], events: Iterable[Event], *, max_series: int
    ) -> None:
        """Add 10**-9 units by series, and events.

        Args:
            deltas: Of series.
            events: Each is one more usage of its series.
            max_series: Of a meter, beyond which new ones are added up by tenant.
        """
        for series, nanos in [*deltas.items(), *((event.series, event.nanos) for event in events)]:
            totals = self._totals.setdefault(series.meter, {})
            if series not in totals and len(totals) >= max_series:
                series = Series(series.meter, series.tenant, ())  # noqa: PLW2901 - the tenant stays
            totals[series] = totals.get(series, 0) + nanos
            self._show(series.meter)

    def _show(self, meter: str) -> None:
        if meter in self._has_instrument:
            return
        self._has_instrument.add(meter)
        if _is_instrument_name(meter, Problem.IGNORED_ATTRIBUTES):
            scope = get_meter_provider().get_meter(MIRROR_SCOPE)
            scope.create_observable_counter(meter, callbacks=[self._callback(meter)])

    def _callback(self, meter: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> list[Observation]:
            # list(dict.items()) runs no Python code, so the flusher cannot add half way.
            totals = list(self._totals.get(meter, {}).items())
            return [Observation(_number(nanos), _attributes(series)) for series, nanos in totals]

        return observe


global_counters = GlobalCounters()
mirror = Mirror()
"""Of this process."""


def _is_instrument_name(meter: str, problem: Problem) -> bool:
    if _INSTRUMENT_NAME.fullmatch(meter):
        return True
    problems.report(problem, f"the meter {meter} cannot be the name of an OpenTelemetry instrument")
    return False


def _number(nanos: int) -> int | float:
    units, rest = divmod(nanos, NANOS_PER_UNIT)
    return nanos / NANOS_PER_UNIT if rest else units


def _attributes(series: Series) -> dict[str, AttributeValue]:
    tenant = {} if series.tenant is None else {TENANT_ID: series.tenant}
    return {**tenant, **{name: value for name, _, value in series.dimensions}}
