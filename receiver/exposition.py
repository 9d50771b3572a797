"""The receiver's numbers in the Prometheus text exposition format, version 0.0.4."""

from collections.abc import Iterable

from receiver.catalog import CATALOG, Kind, Metric
from receiver.telemetry import BOUNDS, Name, Reading


def exposition(reading: Reading) -> str:
    """Every number of `reading` that the catalog names; ends with a line feed."""
    return "".join(f"{line}\n" for metric in CATALOG for line in _lines(metric, reading))


def _lines(metric: Metric, reading: Reading) -> Iterable[str]:
    name = metric.prometheus_name
    samples = [
        line
        for key in _names(metric, reading)
        if (key.stage, key.name) == (metric.stage, metric.name)
        for line in _samples(name, key, metric, reading)
    ]
    if samples:
        yield f"# HELP {name} {_escape_help(metric.help)}"
        yield f"# TYPE {name} {metric.kind}"
        yield from samples


def _names(metric: Metric, reading: Reading) -> list[Name]:
    match metric.kind:
        case Kind.COUNTER:
            return sorted(reading.counters)
        case Kind.GAUGE:
            return sorted(reading.gauges)
        case Kind.HISTOGRAM:
            return sorted(reading.distributions)


def _samples(name: str, key: Name, metric: Metric, reading: Reading) -> Iterable[str]:
    if metric.kind is Kind.COUNTER:
        yield f"{name}{_labels(key.labels)} {reading.counters[key]}"
    elif metric.kind is Kind.GAUGE:
        yield f"{name}{_labels(key.labels)} {_number(reading.gauges[key])}"
    else:
        counts, total, _ = reading.distributions[key]
        seen = 0
        for bound, count in zip([*map(_number, BOUNDS), "+Inf"], counts, strict=True):
            seen += count
            yield f"{name}_bucket{_labels((*key.labels, ('le', bound)))} {seen}"
        yield f"{name}_sum{_labels(key.labels)} {_number(total)}"
        yield f"{name}_count{_labels(key.labels)} {seen}"


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def _escape(value: str) -> str:
    return _escape_help(value).replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(value)
