"""What `stats()` has, as instruments of the application's MeterProvider; nothing happens without one."""

from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation, get_meter_provider

from otel_metering._guard import Stats

SCOPE: Final = "otel_metering.sdk"

_UNITS: Final = {"pending_bytes": "By", "pending_requests": "{request}"}
"""Of what goes up and down, by UCUM; all else are counts of what happened."""


class SelfMetrics:
    """The instruments of this process; an API without an SDK makes them do nothing."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats
        self._is_shown = False

    def show(self) -> None:
        """Create the instruments, unless they were; they show the process that is asked."""
        if self._is_shown:
            return
        self._is_shown = True
        meter = get_meter_provider().get_meter(SCOPE)
        for field in Stats.__dataclass_fields__:
            name, callbacks = f"{SCOPE}.{field}", [self._callback(field)]
            if field in _UNITS:
                meter.create_observable_gauge(name, callbacks=callbacks, unit=_UNITS[field])
            else:
                meter.create_observable_counter(name, callbacks=callbacks, unit="1")

    def _callback(self, field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> list[Observation]:
            return [Observation(getattr(self._stats(), field))]

        return observe
