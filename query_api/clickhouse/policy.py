"""What a reader may do: tables, columns, functions, settings and formats. Everything else is refused."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from query_api.clickhouse.errors import READONLY, UNKNOWN_FORMAT, ClickHouseError
from query_api.clickhouse.tokens import quote
from receiver.store import tables

ALL: Final = "1"
NONE: Final = "0"
_OWN: Final = "tenant_id = {tenant}"

TENANT_ROWS: Final[Mapping[str, str]] = {
    tables.EVENTS: _OWN,
    tables.USAGE_MINUTE: _OWN,
    tables.USAGE_HOUR: _OWN,
    tables.USAGE_DAY: _OWN,
    tables.USAGE_MONTH: _OWN,
    tables.EVENT_CORRECTIONS: _OWN,
    tables.QUARANTINE: _OWN,
    tables.QUOTAS: "tenant_id = {tenant} OR tenant_id IS NULL",
    tables.QUOTA_USAGE: _OWN,
    tables.AUDIT_LOG: _OWN,
    tables.API_KEYS: _OWN,
    tables.METERS: ALL,
    tables.METER_DEFINITIONS: ALL,
    tables.API_KEY_USE: NONE,
    tables.PIPELINE_STATS: NONE,
    tables.QUARANTINE_RESOLVED: NONE,
    tables.EXPLICIT_IDS: NONE,
    tables.MIGRATIONS: NONE,
}
"""The tables that can be read, and which of their rows a key of one tenant sees."""

_CATALOG: Final[Mapping[str, str]] = {
    "system.databases": f"name = '{tables.DATABASE}'",
    "system.tables": f"database = '{tables.DATABASE}'",
    "system.columns": f"database = '{tables.DATABASE}'",
    "system.settings": ALL,
    "system.functions": ALL,
    "system.one": ALL,
}
"""What clients ask to find their way, and what they see there."""

READABLE: Final = frozenset({*TENANT_ROWS, *_CATALOG})

_HIDDEN: Final[Mapping[str, frozenset[str]]] = {
    tables.API_KEYS: frozenset({"key_hash"}),
    tables.QUARANTINE: frozenset({"payload"}),
}

_HIDDEN_FROM_TENANTS: Final[Mapping[str, frozenset[str]]] = {
    # How much there is of all tenants together, and where.
    "system.tables": frozenset(
        {"total_rows", "total_bytes", "total_bytes_uncompressed", "parts", "active_parts"}
        | {"total_marks", "lifetime_rows", "lifetime_bytes", "data_paths", "metadata_path"}
    ),
    "system.databases": frozenset({"data_path", "metadata_path"}),
    "system.columns": frozenset(
        {"data_compressed_bytes", "data_uncompressed_bytes", "marks_bytes"}
    ),
}


def hidden_columns(tenant: str | None) -> Mapping[str, frozenset[str]]:
    """Table -> columns that a reader may not name there; None: a key of no tenant."""
    return _HIDDEN if tenant is None else {**_HIDDEN, **_HIDDEN_FROM_TENANTS}


def row_filters(tenant: str | None) -> Mapping[str, str]:
    """Table -> condition on the rows that a reader sees; None: a key of no tenant."""
    filters = {table: rows for table, rows in _CATALOG.items() if rows != ALL}
    if tenant is not None:
        literal = quote(tenant)
        for table, rows in TENANT_ROWS.items():
            if rows != ALL:
                filters[table] = rows.format(tenant=literal)
    return filters


FILTERED: Final = frozenset(row_filters(""))
"""Tables that have a filter for somebody: no alias may have such a name, the engine finds filters by alias, too."""

TABLE_FUNCTIONS: Final = frozenset(
    {"numbers", "generateSeries", "generate_series", "values", "SQLStandardValues"}
)

_CATEGORIES: Final = frozenset(
    {
        "Aggregate Functions",
        "Arithmetic",
        "Arrays",
        "Bit",
        "Bitmap",
        "Comparison",
        "Conditional",
        "Dates and Times",
        "Distance",
        "Encoding",
        "Financial",
        "Hash",
        "IP Address",
        "JSON",
        "Logical",
        "Map",
        "Mathematical",
        "Null",
        "Random Number",
        "Rounding",
        "String",
        "String Replacement",
        "String Search",
        "String Splitting",
        "Time Window",
        "Tuple",
        "Type Conversion",
        "URL",
        "UUID",
    }
)

_NOT_ALLOWED: Final = frozenset(
    {
        # The embedded engine again.
        "chdb",
        # Formats have options that name files.
        "formatRow",
        "formatRowNoNewline",
        # For the engine's own tests, and for its profiler.
        "aggThrow",
        "flameGraph",
        "nothing",
        "nothingNull",
        "nothingUInt64",
        "generateSnowflakeID",
        # Time by the product of two lengths for each row, and the engine looks at the clock between blocks only.
        "arrayLevenshteinDistance",
        "arrayLevenshteinDistanceWeighted",
        "arraySimilarity",
        "damerauLevenshteinDistance",
        "editDistance",
        "editDistanceUTF8",
        "levenshteinDistance",
        "levenshteinDistanceUTF8",
    }
)

_OTHERS_ALLOWED: Final = frozenset(
    {
        "bar",
        "byteSize",
        "countDigits",
        "currentDatabase",
        "currentUser",
        "defaultValueOfTypeName",
        "displayName",
        "finalizeAggregation",
        "formatReadableDecimalSize",
        "formatReadableQuantity",
        "formatReadableSize",
        "formatReadableTimeDelta",
        "identity",
        "ignore",
        "initializeAggregation",
        "isConstant",
        "isDecimalOverflow",
        "materialize",
        "neighbor",
        "parseReadableSize",
        "parseReadableSizeOrNull",
        "parseReadableSizeOrZero",
        "parseTimeDelta",
        "revision",
        "rowNumberInAllBlocks",
        "rowNumberInBlock",
        "runningAccumulate",
        "runningDifference",
        "runningDifferenceStartingWithFirstValue",
        "toColumnTypeName",
        "toTypeName",
        "transform",
        "uptime",
        "version",
        "visibleWidth",
    }
)

_SYNTAX: Final = frozenset({"lambda", "exists", "caseWithExpression", "_CAST"})
"""Functions of the syntax tree that no list of the engine has, or that it has for itself."""


_MAX_COMBINATORS: Final = 8
"""After the name of an aggregate function. The engine takes any number, and seconds for thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFunction:
    """A row of system.functions.

    Attributes:
        name: As it is called.
        category: Of the engine's documentation; of an alias: empty.
        alias_to: What it is another name of; empty: nothing.
        is_case_insensitive: Whether any spelling will do.
        is_aggregate: Whether combinators may follow its name.
        is_built_in: Whether it comes with the engine.
    """

    name: str
    category: str
    alias_to: str
    is_case_insensitive: bool
    is_aggregate: bool
    is_built_in: bool


class Functions:
    """Which functions of an engine a reader may call."""

    def __init__(self, known: Iterable[EngineFunction], combinators: Iterable[str]) -> None:
        by_name = {function.name: function for function in known}
        self._names: set[str] = set(_SYNTAX)
        self._any_case: set[str] = set()
        self._aggregates: set[str] = set()
        self._combinators = tuple(combinators)
        for function in by_name.values():
            meant = by_name.get(function.alias_to, function)
            if not (function.is_built_in and _is_harmless(meant)):
                continue
            self._names.add(function.name)
            if function.is_case_insensitive:
                self._any_case.add(function.name.lower())
            if meant.is_aggregate:
                self._aggregates.add(function.name)
        self._any_case_aggregates = self._any_case & _lower(self._aggregates)

    @property
    def names(self) -> frozenset[str]:
        """Every function that may be called, without combinators."""
        return frozenset(self._names)

    def allows(self, name: str) -> bool:
        """Whether it may be called by this name."""
        return name in self._names or name.lower() in self._any_case or self._is_combined(name)

    def _is_combined(self, name: str) -> bool:
        """sumIf, quantileMergeState: the name of an aggregate function and what is done with it."""
        for _ in range(_MAX_COMBINATORS + 1):
            if name in self._aggregates or name.lower() in self._any_case_aggregates:
                return True
            shorter = next(
                (name.removesuffix(end) for end in self._combinators if name.endswith(end)), None
            )
            if not shorter:
                return False
            name = shorter
        return False


def _lower(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


def _is_harmless(function: EngineFunction) -> bool:
    if function.name in _NOT_ALLOWED:
        return False
    return function.category in _CATEGORIES or function.name in _OTHERS_ALLOWED


FORMATS: Final = frozenset(
    {
        *("Arrow", "ArrowStream", "Avro", "BSONEachRow", "CSV", "CSVWithNames"),
        *("CSVWithNamesAndTypes", "JSON", "JSONColumns", "JSONColumnsWithMetadata", "JSONCompact"),
        *("JSONCompactColumns", "JSONCompactEachRow", "JSONCompactEachRowWithNames"),
        *("JSONCompactEachRowWithNamesAndTypes", "JSONCompactStrings"),
        *("JSONCompactStringsEachRow", "JSONCompactStringsEachRowWithNames"),
        *("JSONCompactStringsEachRowWithNamesAndTypes", "JSONEachRow", "JSONLines"),
        *("JSONObjectEachRow", "JSONStrings", "JSONStringsEachRow", "LineAsString", "Markdown"),
        *("MsgPack", "NDJSON", "Native", "Npy", "Null", "ORC", "Parquet", "Pretty"),
        *("PrettyCompact", "PrettyCompactMonoBlock", "PrettyCompactNoEscapes"),
        *("PrettyJSONEachRow", "PrettyMonoBlock", "PrettyNDJSON", "PrettyNoEscapes"),
        *("PrettySpace", "PrettySpaceNoEscapes", "RawBLOB", "RowBinary", "RowBinaryWithNames"),
        *("RowBinaryWithNamesAndTypes", "TSKV", "TSV", "TSVRaw", "TSVRawWithNames"),
        *("TSVRawWithNamesAndTypes", "TSVWithNames", "TSVWithNamesAndTypes", "TabSeparated"),
        *("TabSeparatedRaw", "TabSeparatedRawWithNames", "TabSeparatedRawWithNamesAndTypes"),
        *("TabSeparatedWithNames", "TabSeparatedWithNamesAndTypes", "Values", "Vertical", "XML"),
    }
)


def check_format(name: str) -> None:
    """Refuse a format that a reader cannot have.

    Raises:
        ClickHouseError: It is unknown, or has options that name files or schemas.
    """
    if name not in FORMATS:
        raise ClickHouseError(
            UNKNOWN_FORMAT, f"Unknown format {name}, or one that is not offered here"
        )


_OUTPUT: Final = re.compile(
    r"output_format_(arrow|avro|bson|csv|decimal|json|markdown|msgpack|native|orc|parquet|pretty|tsv"
    r"|values|write|xml)\w*|format_csv_\w+|format_tsv_\w+|format_json_\w+"
)

_FREE: Final = frozenset(
    {
        *(
            "aggregate_functions_null_for_empty",
            "date_time_output_format",
            "empty_result_for_aggregation_by_empty_set",
        ),
        *(
            "extremes",
            "final",
            "group_by_use_nulls",
            "interval_output_format",
            "join_default_strictness",
        ),
        *(
            "join_use_nulls",
            "limit",
            "offset",
            "prefer_column_name_to_alias",
            "result_overflow_mode",
        ),
        *("session_timezone", "totals_mode", "transform_null_in", "union_default_mode"),
    }
)
"""Settings that change what an answer looks like, and nothing else."""

_IGNORED: Final = frozenset(
    {
        *("async_insert", "cancel_http_readonly_queries_on_client_close"),
        *("cast_string_to_dynamic_use_inference", "connect_timeout", "date_time_input_format"),
        *("enable_http_compression", "http_headers_progress_interval_ms", "http_receive_timeout"),
        *("http_response_buffer_size", "http_send_timeout", "http_zlib_compression_level"),
        *("log_comment", "log_queries", "max_block_size", "max_insert_threads", "max_threads"),
        *("readonly", "receive_timeout", "send_progress_in_http_headers", "send_timeout"),
        *("use_query_cache", "wait_end_of_query"),
    }
)
"""Settings that clients send to everybody, and that change nothing here."""

_LOWERED: Final = frozenset(
    {
        "max_execution_time",
        "max_memory_usage",
        "max_result_bytes",
        "max_result_rows",
        "max_rows_to_read",
    }
)


def reader_settings(limits: Mapping[str, float], given: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a reader's statement, without those that are set against its wish.

    Args:
        limits: The greatest values of those that may be lowered.
        given: What was asked for.

    Raises:
        ClickHouseError: It asks for one that a reader cannot set.
    """
    settings: dict[str, Any] = dict(limits)
    for name, value in given.items():
        if name in _LOWERED:
            settings[name] = _lower_of(limits[name], name, value)
        elif name in _FREE or _OUTPUT.fullmatch(name):
            settings[name] = value
        elif name not in _IGNORED:
            raise ClickHouseError(READONLY, f"Cannot modify '{name}' setting in readonly mode")
    return settings


def _lower_of(limit: float, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise ClickHouseError(READONLY, f"Setting {name} is a number, and not {value!r}") from error
    # Zero: no limit of the client's own.
    return min(limit, number) if number > 0 else limit
