"""What a client asks of the endpoint, what it may cost, and what it is answered."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One statement as a client sent it.

    Attributes:
        sql: The statement, and the data of an INSERT behind it.
        database: What tables without a database belong to; empty: the usual one.
        default_format: Of the answer, where the statement has no FORMAT; empty: the usual one.
        parameters: Of the statement: name -> text, escaped as in TabSeparated.
        settings: Those that it shall run with.
        protocol: Revision of the native protocol that the client speaks; 0: none.
        is_reading: Whether nothing may be written (GET).
        tag: Names the call, so that it can be cancelled.
    """

    sql: bytes
    database: str
    default_format: str
    parameters: Mapping[str, str]
    settings: Mapping[str, str]
    protocol: int
    is_reading: bool
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a statement gave.

    Attributes:
        body: In `format`.
        format: Its name; empty: there is no answer.
        written_rows: How many rows were inserted.
    """

    body: bytes
    format: str
    written_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one statement of a reader may cost.

    Attributes:
        seconds: How long it may take.
        rows: How many rows of tables it may read.
        memory_bytes: How much memory it may take.
        result_rows: How many rows its answer may have.
        result_bytes: How large its answer may be, before it has a format.
    """

    seconds: float
    rows: int
    memory_bytes: int
    result_rows: int
    result_bytes: int

    def settings(self) -> dict[str, float]:
        """Them as settings of the engine."""
        return {
            "max_execution_time": self.seconds,
            "max_rows_to_read": self.rows,
            "max_memory_usage": self.memory_bytes,
            "max_result_rows": self.result_rows,
            "max_result_bytes": self.result_bytes,
        }
