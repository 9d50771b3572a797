"""Tables that rotel's ClickHouse exporter writes: those of the Collector's, but with nanoseconds in metrics."""

_MAP = "Map(LowCardinality(String), String)"
_Z = "CODEC(ZSTD(1))"


def _index(*columns: str) -> str:
    return ", ".join(
        f"INDEX idx_{column.lower()}_{part} map{part}({column}) TYPE bloom_filter(0.01) GRANULARITY 1"
        for column in columns
        for part in ("Keys", "Values")
    )


METRICS_SUM = f"""
CREATE TABLE otel.otel_metrics_sum (
    ResourceAttributes {_MAP} {_Z}, ResourceSchemaUrl String {_Z}, ScopeName String {_Z},
    ScopeVersion String {_Z}, ScopeAttributes {_MAP} {_Z}, ScopeDroppedAttrCount UInt32 {_Z},
    ScopeSchemaUrl String {_Z}, ServiceName LowCardinality(String) {_Z},
    MetricName String {_Z}, MetricDescription String {_Z}, MetricUnit String {_Z},
    Attributes {_MAP} {_Z}, StartTimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)), Value Float64 {_Z}, Flags UInt32 {_Z},
    Exemplars Nested (FilteredAttributes {_MAP}, TimeUnix DateTime64(9), Value Float64,
        SpanId String, TraceId String) {_Z},
    AggregationTemporality Int32 {_Z}, IsMonotonic Boolean CODEC(Delta, ZSTD(1)),
    {_index("ResourceAttributes", "ScopeAttributes", "Attributes")}
) ENGINE = MergeTree PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1
"""

TRACES = f"""
CREATE TABLE otel.otel_traces (
    Timestamp DateTime64(9) CODEC(Delta, ZSTD(1)), TraceId String {_Z}, SpanId String {_Z},
    ParentSpanId String {_Z}, TraceState String {_Z}, SpanName LowCardinality(String) {_Z},
    SpanKind LowCardinality(String) {_Z}, ServiceName LowCardinality(String) {_Z},
    ResourceAttributes {_MAP} {_Z}, ScopeName String {_Z}, ScopeVersion String {_Z},
    SpanAttributes {_MAP} {_Z}, Duration UInt64 {_Z}, StatusCode LowCardinality(String) {_Z},
    StatusMessage String {_Z},
    Events Nested (Timestamp DateTime64(9), Name LowCardinality(String), Attributes {_MAP}) {_Z},
    Links Nested (TraceId String, SpanId String, TraceState String, Attributes {_MAP}) {_Z},
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_duration Duration TYPE minmax GRANULARITY 1,
    {_index("ResourceAttributes", "SpanAttributes")}
) ENGINE = MergeTree PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1
"""

LOGS = f"""
CREATE TABLE otel.otel_logs (
    Timestamp DateTime64(9) CODEC(Delta, ZSTD(1)), TraceId String {_Z}, SpanId String {_Z},
    TraceFlags UInt8, SeverityText LowCardinality(String) {_Z}, SeverityNumber UInt8,
    ServiceName LowCardinality(String) {_Z}, Body String {_Z},
    ResourceSchemaUrl LowCardinality(String) {_Z}, ResourceAttributes {_MAP} {_Z},
    ScopeSchemaUrl LowCardinality(String) {_Z}, ScopeName String {_Z},
    ScopeVersion LowCardinality(String) {_Z}, ScopeAttributes {_MAP} {_Z}, LogAttributes {_MAP} {_Z},
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_body Body TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 8,
    {_index("ResourceAttributes", "ScopeAttributes", "LogAttributes")}
) ENGINE = MergeTree PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, toDateTime(Timestamp), Timestamp)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1
"""

ALL = [METRICS_SUM, TRACES, LOGS]
TABLE = {"metrics": "otel_metrics_sum", "spans": "otel_traces", "logs": "otel_logs"}
