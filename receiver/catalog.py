"""Every number of `telemetry`: its unit, what it means, and its name in OpenTelemetry and Prometheus.

The names are a contract: dashboards, alert rules and `metering.pipeline_stats` use them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "otel_metering.receiver"

_PROMETHEUS_UNITS: Final = {"s": "_seconds", "By": "_bytes"}


class Kind(StrEnum):
    """How a number behaves."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, whatever its labels."""

    stage: str
    name: str
    kind: Kind
    unit: str
    help: str

    @property
    def otel_name(self) -> str:
        """As OpenTelemetry names it."""
        return f"{PREFIX}.{self.stage}.{self.name}"

    @property
    def prometheus_name(self) -> str:
        """As Prometheus names it (OpenTelemetry, "Prometheus and OpenMetrics Compatibility")."""
        total = "_total" if self.kind is Kind.COUNTER else ""
        name = self.otel_name.replace(".", "_")
        return name + _PROMETHEUS_UNITS.get(self.unit, "") + total


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

CATALOG: Final = (
    Metric("edge", "in", _C, "{request}", "Requests received, by transport and signal."),
    Metric("edge", "out", _C, "{request}", "Requests acknowledged: what they brought is durable."),
    Metric("edge", "refused", _C, "{request}", "Requests answered by an error, by reason."),
    Metric("edge", "ack_duration", _H, "s", "From a request received to its acknowledgement."),
    Metric("edge", "connections", _G, "{connection}", "Open connections, by transport."),
    Metric("keys", "in", _C, "{request}", "Requests with an API key, by its id and transport."),
    Metric("keys", "out", _C, "{request}", "Requests whose key was let through."),
    Metric("keys", "refused", _C, "{request}", "Requests whose key was refused, by reason."),
    Metric("ingest", "requests_in", _C, "{request}", "Requests that were decided."),
    Metric("ingest", "requests_out", _C, "{request}", "Requests whose usage is durable."),
    Metric("ingest", "requests_refused", _C, "{request}", "Requests refused as a whole."),
    Metric("ingest", "in", _C, "{item}", "Uses of a meter in acknowledged requests."),
    Metric("ingest", "out", _C, "{item}", "Uses of a meter stored for the first time."),
    Metric("ingest", "refused", _C, "{item}", "Uses that were not stored as usage, by reason."),
    Metric("ingest", "tenant_refused", _C, "{item}", "Usage of a tenant its key may not write."),
    Metric("ingest", "corrections_in", _C, "{event}", "Events that were to be voided or replaced."),
    Metric("ingest", "corrections_out", _C, "{event}", "Events that do not count any more."),
    Metric("ingest", "corrections_refused", _C, "{event}", "Events that were corrected before."),
    Metric("ingest", "meters_reloads", _C, "{reload}", "Changes of meters.yaml that were applied."),
    Metric(
        "ingest", "meters_stale", _G, "1", "1: the file is wrong; the meters before are in force."
    ),
    Metric("ingest", "ids", _G, "{id}", "Identities in memory."),
    Metric("ingest", "ids_size", _G, "By", "Memory of the identities."),
    Metric("ingest", "streams", _G, "{stream}", "Streams in the cache."),
    Metric("spool", "in", _C, "{row}", "Rows made durable: usage, quarantine, corrections."),
    Metric("spool", "entries", _G, "{entry}", "Entries that wait for the database."),
    Metric("spool", "size", _G, "By", "Bytes that wait for the database."),
    Metric("spool", "oldest_age", _G, "s", "How long the oldest entry has waited."),
    Metric("writer", "in", _C, "{row}", "Rows of every attempt to store a batch, by table."),
    Metric("writer", "out", _C, "{row}", "Rows stored, by table."),
    Metric("writer", "refused", _C, "{row}", "Rows of failed attempts; they are tried again."),
    Metric("writer", "batches", _C, "{batch}", "Batches stored."),
    Metric("writer", "failures", _C, "{attempt}", "Attempts that failed."),
    Metric("writer", "retries", _C, "{attempt}", "Attempts after one that failed."),
    Metric("writer", "lag", _H, "s", "From a row admitted to the row stored, for each row."),
    Metric("quota", "unavailable", _C, "{answer}", "Answers without counters, by enforcement."),
    Metric("quota", "loads", _C, "{counter}", "Counters read from the database."),
    Metric("quota", "load_failures", _C, "{attempt}", "Reads of counters that failed."),
    Metric("quota", "count_failures", _C, "{failure}", "Usage that did not reach its counters."),
    Metric("quota", "corrections", _C, "{counter}", "Counters that were wrong, and corrected."),
    Metric("quota", "outages", _C, "{outage}", "Times that Redis could not be reached."),
    Metric("quota", "losses", _C, "{loss}", "Times that Redis had lost its data."),
    Metric("stats", "lost", _C, "{interval}", "Intervals that pipeline_stats does not have."),
)
"""In the order in which they are shown."""
