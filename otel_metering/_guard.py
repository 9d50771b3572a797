"""Fail open: a fault of metering is counted and logged once, and never reaches the application.

Under pytest it does reach the application, so that tests find what production only counts.
"""

import logging
import threading
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

from otel_metering._config import is_under_pytest
from otel_metering.errors import InvalidUsageError

_log = logging.getLogger("otel_metering")


class Problem(StrEnum):
    """What is counted when something does not go as it should; a field of `Stats` each."""

    REJECTED_USAGE = "rejected_usage"
    INTERNAL_ERRORS = "internal_errors"
    IGNORED_TENANTS = "ignored_tenants"
    IGNORED_ATTRIBUTES = "ignored_attributes"
    FOLDED_USAGE = "folded_usage"
    FAILED_FLUSHES = "failed_flushes"
    FAILED_SENDS = "failed_sends"
    REFUSED_REQUESTS = "refused_requests"
    REJECTED_POINTS = "rejected_points"
    WARNED_REQUESTS = "warned_requests"
    PILED_UP = "piled_up"
    DAMAGED_SPOOLS = "damaged_spools"
    UNCHECKED_CALLS = "unchecked_calls"
    DENIED_CALLS = "denied_calls"
    UNMAPPED_SERIES = "unmapped_series"
    UNCOUNTED_TOKENS = "uncounted_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts of this process since its start or fork; what concerns requests, since `configure`.

    Attributes:
        rejected_usage: Calls whose usage can never be counted: bad quantity, tenant, meter or id.
        internal_errors: Faults of the SDK, or of a callable given to it.
        ignored_tenants: Requests whose tenant header was not a tenant id.
        ignored_attributes: Attributes left out: reserved names, or too many.
        folded_usage: Calls counted for their tenant without dimensions: too many series.
        failed_flushes: Flushes the disk refused; their usage stayed in memory for the next one.
        failed_sends: Attempts that will be made again.
        refused_requests: Requests the receiver will never take; they are set aside on disk, or given up
            where there is none.
        rejected_points: Points the receiver did not take out of requests that it took.
        warned_requests: Requests that were taken with a warning: some of their usage is kept in the
            receiver's quarantine, and not billed.
        piled_up: Times at which usage had been waiting for a minute, or half of the spool was full.
        damaged_spools: Files of ended processes that cannot be read; `otel-metering spool status` names
            them.
        unchecked_calls: Calls that an enforced quota let pass, or denied, without having been asked.
        denied_calls: Calls that an enforced quota denied.
        unmapped_series: Series that a kill may cost their last flush interval, in spite of
            `durability`: there was no room for them on disk.
        uncounted_tokens: Spans of calls of language models that should have had token counts and had
            none, or were of an unknown operation.
        sent_requests: Requests acknowledged by the receiver.
        pending_requests: Requests that this process has yet to deliver.
        pending_bytes: Their size.
    """

    rejected_usage: int = 0
    internal_errors: int = 0
    ignored_tenants: int = 0
    ignored_attributes: int = 0
    folded_usage: int = 0
    failed_flushes: int = 0
    failed_sends: int = 0
    refused_requests: int = 0
    rejected_points: int = 0
    warned_requests: int = 0
    piled_up: int = 0
    damaged_spools: int = 0
    unchecked_calls: int = 0
    denied_calls: int = 0
    unmapped_series: int = 0
    uncounted_tokens: int = 0
    sent_requests: int = 0
    pending_requests: int = 0
    pending_bytes: int = 0


class Problems:
    """Counts by kind, and a log line for the first of each kind. Any thread."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start from zero, with a new lock: a forked child may have inherited a held one."""
        # Re-entrant: a finalizer may report in the middle of a report of the same thread.
        self._lock = threading.RLock()
        self._counts = dict.fromkeys(Problem, 0)
        self._logged: set[Problem] = set()

    def report(self, problem: Problem, detail: object, *, count: int = 1) -> None:
        """Count `problem`; log it if it is the first of its kind since the last `settle`."""
        with self._lock:
            self._counts[problem] += count
            is_first = problem not in self._logged
            self._logged.add(problem)
        if is_first:
            _log.warning(
                "%s: %s (logged once; otel_metering.stats() counts)",
                problem.value,
                detail,
                extra={"event": problem.value},
                exc_info=detail if problem is Problem.INTERNAL_ERRORS else None,  # type: ignore[arg-type] # an error then
            )

    def settle(self, problem: Problem) -> None:
        """The cause of `problem` is gone: log the next one again."""
        self._logged.discard(problem)

    def counts(self) -> dict[str, int]:
        """Every count, by the name of its field in `Stats`."""
        with self._lock:
            return {problem.value: count for problem, count in self._counts.items()}


problems = Problems()
"""Of this process."""


def absorb(error: Exception) -> None:
    """Count and log `error`; raise it under pytest."""
    kind = (
        Problem.REJECTED_USAGE if isinstance(error, InvalidUsageError) else Problem.INTERNAL_ERRORS
    )
    problems.report(kind, error)
    if is_under_pytest():
        raise error


class _Guard:
    """`with guarded:` absorbs whatever the block raises. One object for all: it has no state."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(exc, Exception):
            absorb(exc)
            return True
        return False


guarded = _Guard()
