"""The only door to the database: chDB inside the process, or a ClickHouse server, by URL.

- `chdb:///path` (or `chdb://memory`): ClickHouse inside this process. One process owns a path.
- `clickhouse://user:password@host:8123/metering`, `clickhouses://` for TLS: a server over HTTP.

Synchronous, because chDB is. Each call borrows a handle of its own, so calls of several threads run
side by side. Driver errors leave here as `UnavailableError` (send it again later), `ReadLimitError` (it
reads too much, or was cancelled) or `StoreError` (the statement itself is wrong).
"""

import queue
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from otel_metering.errors import (
    ConfigurationError,
    InvalidUsageError,
    MeteringError,
    UnavailableError,
)

MAX_HANDLES: Final = 8
"""Handles open at once: writer, start-up load and a few readers; further callers wait for one."""

_CODE: Final = re.compile(r"Code: (\d+)")
"""In the text of an error of the embedded engine."""

_STATEMENT_ERRORS: Final = frozenset(
    {
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        36,  # BAD_ARGUMENTS
        43,  # ILLEGAL_TYPE_OF_ARGUMENT
        46,  # UNKNOWN_FUNCTION
        47,  # UNKNOWN_IDENTIFIER
        53,  # TYPE_MISMATCH
        60,  # UNKNOWN_TABLE
        62,  # SYNTAX_ERROR
        72,  # CANNOT_PARSE_NUMBER
        81,  # UNKNOWN_DATABASE
        215,  # NOT_AN_AGGREGATE
        456,  # UNKNOWN_QUERY_PARAMETER
    }
)


_ACCESS_ERRORS: Final = frozenset(
    {
        495,  # ACCESS_STORAGE_READONLY
        497,  # ACCESS_DENIED
        514,  # ACCESS_STORAGE_FOR_INSERTION_NOT_FOUND
    }
)

LIMIT_ERRORS: Final = {
    158: "it reads too many rows",  # TOO_MANY_ROWS
    159: "it takes too long",  # TIMEOUT_EXCEEDED
    241: "it needs too much memory",  # MEMORY_LIMIT_EXCEEDED
    394: "it was cancelled",  # QUERY_WAS_CANCELLED
    396: "its answer has too many rows",  # TOO_MANY_ROWS_OR_BYTES
}
"""Codes of what a statement may not cost -> words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """What one SELECT may cost.

    Attributes:
        seconds: How long it may take.
        rows: How many rows of tables it may read.
        tag: Names the read, so that `Store.cancel` can end it; empty: nobody will.
    """

    seconds: float
    rows: int
    tag: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Them as settings of ClickHouse."""
        settings: dict[str, Any] = {
            "max_execution_time": self.seconds,
            "max_rows_to_read": self.rows,
            "read_overflow_mode": "throw",
            "timeout_overflow_mode": "throw",
        }
        # A query id of our own does not reach the embedded engine; a comment does.
        return {**settings, "log_comment": self.tag} if self.tag else settings


class AccessDeniedError(UnavailableError):
    """The database's user may not do this, until somebody grants it."""


class ReadLimitError(MeteringError):
    """A read passed one of its limits, or was cancelled; nothing is wrong with the database."""


class StoreError(MeteringError):
    """The database understood the statement and refuses it: a bug here, or a schema not migrated.

    Attributes:
        code: ClickHouse's error code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class EngineError(MeteringError):
    """A statement of `Store.ask` or `Store.load` failed.

    Attributes:
        code: ClickHouse's error code; 0: it has none.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Store:
    """A ClickHouse database. Any thread may call any method."""

    def __init__(self, url: str, *, handles: int = MAX_HANDLES) -> None:
        """Connects when it is first used.

        Args:
            url: Where the database is.
            handles: How many statements run at once.
        """
        self._url = url
        self._is_embedded = urlsplit(url).scheme == "chdb"
        self._idle: queue.LifoQueue[Client | None] = queue.LifoQueue()
        for _ in range(handles):
            self._idle.put(None)

    @property
    def is_embedded(self) -> bool:
        """Whether the engine is in this process, and no server."""
        return self._is_embedded

    def query(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        limits: ReadLimits | None = None,
    ) -> Sequence[Sequence[Any]]:
        """Run a SELECT; returns its rows, in the statement's order.

        Args:
            sql: With `{name:Type}` placeholders.
            parameters: A value for each placeholder.
            limits: What it may cost; None: anything.

        Raises:
            UnavailableError: The database did not answer.
            ReadLimitError: It passed a limit, or was cancelled.
            StoreError: The statement is wrong.
        """
        settings = limits.settings if limits else None
        with self._handle() as client:
            return client.query(
                sql, parameters=_bindable(parameters), settings=settings
            ).result_rows

    def query_table(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        limits: ReadLimits | None = None,
    ) -> pa.Table:
        """Run a SELECT; returns an Arrow table. Arguments and errors are those of `query`."""
        settings = limits.settings if limits else None
        with self._handle() as client:
            return client.query_arrow(sql, parameters=_bindable(parameters), settings=settings)

    def cancel(self, tag: str) -> None:
        """Let reads with this tag end soon, with ReadLimitError; if there is none, nothing happens.

        Raises:
            UnavailableError: The database did not answer.
        """
        with self._handle() as client:
            client.query(
                "KILL QUERY WHERE Settings['log_comment'] = {tag:String} ASYNC",
                parameters={"tag": tag},
            )

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Run a SELECT; yields its rows in pieces. Raises as `query`.

        A server sends them piece by piece; of the embedded engine the driver holds the whole answer.
        """
        with self._handle() as client, client.query_arrow_stream(sql) as stream:
            yield from stream

    def execute(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement that returns no rows. Raises as `query`."""
        with self._handle() as client:
            client.command(sql, parameters=_bindable(parameters))

    def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        """Insert `rows` as one block; durable, and in every rollup, when this returns.

        The same rows may be inserted again with the same token, after a crash or an error of
        unknown outcome: source and rollups have them once.

        Args:
            table: Qualified name.
            rows: Column names and order of the table.
            token: Names this block, for ever.

        Raises:
            UnavailableError: Whether it was stored is unknown; insert again with the token.
            StoreError: The database refuses the rows.
        """
        settings = {
            "insert_deduplication_token": token,
            "deduplicate_blocks_in_dependent_materialized_views": 1,
            # One block, whatever its size and however many months it spans: a token names one block.
            "max_insert_block_size": max(rows.num_rows, 1),
            "max_block_size": max(rows.num_rows, 1),
            # Nor may a view split its result: each piece would be a part of its own, with its own fsync.
            "group_by_two_level_threshold": 0,
            "group_by_two_level_threshold_bytes": 0,
            "min_insert_block_size_rows": 0,
            "min_insert_block_size_bytes": 0,
            "max_partitions_per_insert_block": 0,
        }
        with self._handle() as client:
            client.insert_arrow(table, rows, settings=settings)

    def ask(
        self,
        sql: str,
        parameters: Mapping[str, str] | None = None,
        *,
        settings: Mapping[str, object] | None = None,
        database: str = "default",
    ) -> bytes:
        """Run one statement as it is; returns the bytes of its answer.

        Args:
            sql: With the format that the answer shall have, and with `{name:Type}` placeholders.
            parameters: For each placeholder its value, escaped as in the format TabSeparated.
            settings: Of a statement that has no SETTINGS clause.
            database: What tables without a database belong to.

        Raises:
            EngineError: It failed.
        """
        with self._handle() as client, _engine_errors():
            client.database = database
            return client.raw_query(
                sql,
                parameters={name: _Escaped(text) for name, text in (parameters or {}).items()},
                settings=dict(settings or {}),
            )

    def load(
        self,
        target: str,
        data: bytes,
        *,
        data_format: str,
        settings: Mapping[str, object],
        database: str = "default",
    ) -> int:
        """Insert data of any format that the engine reads; returns how many rows there were.

        Args:
            target: Table, and columns in parentheses, as SQL.
            data: In `data_format`.
            data_format: Its name.
            settings: Of this INSERT.
            database: What tables without a database belong to.

        Raises:
            EngineError: It failed.
        """
        with self._handle() as client, _engine_errors():
            client.database = database
            summary = client.raw_insert(target, None, data, dict(settings), data_format)
            return int(summary.written_rows)

    def close(self) -> None:
        """Close every idle handle; for chDB the last one releases the data directory."""
        while True:
            try:
                client = self._idle.get_nowait()
            except queue.Empty:
                return
            if client is not None:
                client.close()

    @contextmanager
    def _handle(self) -> Iterator[Client]:
        client = self._idle.get()
        try:
            if client is None:
                client = self._connect()
            yield client
        except ClickHouseError as error:
            raise _translate(error) from error
        finally:
            self._idle.put(client)

    def _connect(self) -> Client:
        try:
            if self._is_embedded:
                return self._open_embedded()
            return clickhouse_connect.get_client(
                dsn=_without_database(self._url), autogenerate_session_id=False
            )
        except ImportError as error:
            raise ConfigurationError(
                f"{self._url.split('@')[-1]} needs chDB; install otel-metering[embedded]"
            ) from error

    def _open_embedded(self) -> Client:
        try:
            return clickhouse_connect.get_client(dsn=self._url)
        except ClickHouseError as error:
            raise UnavailableError(
                f"the database in {urlsplit(self._url).path} cannot be opened: its folder must be writable, "
                f"on a disk with room, and no other process may have it ({str(error).splitlines()[0]})"
            ) from error


@dataclass(frozen=True, slots=True)
class _Escaped:
    """A parameter that the driver hands on as it is; a str it would escape once more."""

    text: str

    def __str__(self) -> str:
        return self.text


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Errors of the engine with its own words and number."""
    try:
        yield
    except ClickHouseError as error:
        text = str(error)
        message = text.partition("DB::Exception: ")[2] or text
        raise EngineError(message.strip(), _code(error)) from error


def _code(error: ClickHouseError) -> int:
    match = _CODE.search(str(error))
    return int(getattr(error, "code", None) or (match[1] if match else 0))


def _without_database(url: str) -> str:
    """The address of a server; statements name their database, and before the first migration there is none."""
    parts = urlsplit(url)
    scheme = parts.scheme.replace("clickhouse", "http", 1)
    return urlunsplit(parts._replace(scheme=scheme, path=""))


def _bindable(parameters: Mapping[str, object] | None) -> dict[str, object]:
    """A copy of `parameters`; JSON can spell half of a surrogate pair, which no column can hold."""
    for name, value in (parameters or {}).items():
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise InvalidUsageError(f"{name} is no valid Unicode; correct it") from error
    return dict(parameters or {})


def _translate(error: ClickHouseError) -> MeteringError:
    code = _code(error)
    if code in LIMIT_ERRORS:
        return ReadLimitError(LIMIT_ERRORS[code])
    message = f"the database failed: {str(error).splitlines()[0]}"
    if code in _ACCESS_ERRORS:
        return AccessDeniedError(message)
    return StoreError(message, code) if code in _STATEMENT_ERRORS else UnavailableError(message)
