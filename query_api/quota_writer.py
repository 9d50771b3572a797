"""Usage of quotas -> `metering.quota_usage`, once a minute: for dashboards and alert rules.

It reads the database and nothing else: what decides is the gate. A period that is over is written again until
a minute has passed since its end and all that was acknowledged before is in the database, so its last row is its
usage but for what arrives later. It has a thread of its own, and nothing waits for it.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters
from otel_metering.contract.quota import QuotaDefinition
from otel_metering.errors import MeteringError, UnavailableError
from query_api.aggregates import Page, Question, Row, finish, page
from query_api.queries import MAX_ROWS
from query_api.quota_periods import Span
from query_api.quota_rows import Changes, Group, Groups, Known, Terms, UsageRow
from receiver.store import tables
from receiver.store.client import ReadLimits, Store

REFRESH_SECONDS: Final = 300
"""A row of a present period is never older than this and an interval, also if nothing changed."""

SETTLE_SECONDS: Final = 60
"""A period is final when it was read so long after its end, at the earliest."""

LOOK_BACK_SECONDS: Final = 400 * 86_400
"""At the start periods that ended no longer ago are looked for that were not final yet."""

STOP_SECONDS: Final = 5.0
"""How long a stop waits for a tick that is under way."""

MAX_ENDED: Final = 10_000
"""Periods that are made final after a start."""

MAX_ENDED_TOGETHER: Final = 500
"""Periods that are over and read in one tick."""

_READ_SECONDS: Final = 30.0
_NS: Final = 10**9
_MS_NS: Final = 1_000_000

_log = logging.getLogger(__name__)

_Ended = tuple[tuple[object, ...], int]
"""Name of a group, and start of a period of it that is over (ns)."""


class QuotaWriter:
    """Writes the table. `tick` belongs to one thread."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        quotas: Callable[[], Sequence[QuotaDefinition]],
        meters: Callable[[], Meters],
        oldest_waiting: Callable[[], int],
        interval_seconds: float,
    ) -> None:
        """Put it together; nothing is read yet.

        Args:
            store: Where usage and the table are.
            clock: The time.
            quotas: Those in force.
            meters: The definitions in force.
            oldest_waiting: No usage of before this instant (ns) waits for the database.
            interval_seconds: Between ticks.
        """
        self._store = store
        self._clock = clock
        self._quotas = quotas
        self._meters = meters
        self._oldest_waiting = oldest_waiting
        self._interval_seconds = interval_seconds
        self._known: Known | None = None
        self._last_ms = 0
        # Of each group the period that was present at the last tick, and those that are not final yet.
        self._present: dict[tuple[object, ...], Span] = {}
        self._ended: dict[_Ended, Span] = {}
        self._next = 0
        self._is_failing = False
        self._tag = f"quota-usage-{secrets.token_hex(8)}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quota-usage", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """End; a read that is under way is ended. Idempotent."""
        self._stopping.set()
        if self._thread.ident is None:
            return
        self._thread.join(STOP_SECONDS / 2)
        if self._thread.is_alive():
            try:
                self._store.cancel(self._tag)
            except MeteringError:
                return
            self._thread.join(STOP_SECONDS / 2)

    def tick(self) -> int:
        """Bring the table to what is so now; returns how many rows were written.

        Raises:
            MeteringError: The database did not answer in time; the next tick does it.
        """
        groups = Groups(self._quotas(), self._meters())
        now_ns = self._clock.now_ns()
        now_ms = now_ns // _MS_NS
        if self._known is None:
            self._known = self._look(groups, now_ns)
        known = self._known
        # What is over is no change of anything: it stays.
        known.forget_ended(now_ms)
        self._note_ended(groups, now_ns)
        changes = Changes(gone=known.orphans(groups))
        error = self._compare(groups, known, changes, now_ns)
        ended, final = ([], []) if error else self._read_ended(groups, now_ns)
        at_ms = max(now_ms, self._last_ms + 1)
        self._insert([*changes.rows, *ended], at_ms, is_deleted=False)
        self._insert(changes.gone, at_ms, is_deleted=True)
        known.put(changes.rows, at_ms)
        known.drop(changes.gone)
        for key in final:
            del self._ended[key]
        if error is not None:
            raise error
        return len(changes.rows) + len(ended) + len(changes.gone)

    def _compare(
        self, groups: Groups, known: Known, changes: Changes, now_ns: int
    ) -> MeteringError | None:
        """Add what changed of each group; as many as there is time for, and the next tick goes on behind them."""
        deadline = self._clock.monotonic() + self._interval_seconds
        older_than_ms = now_ns // _MS_NS - REFRESH_SECONDS * 1_000
        count, error = len(groups.all), None
        start = self._next % max(count, 1)
        for done, group in enumerate([*groups.all[start:], *groups.all[:start]], 1):
            try:
                span = group.span(now_ns)
                found = known.compare(groups, group, span, self._read(group, span), older_than_ms)
            except MeteringError as failure:
                error = failure
                if self._stopping.is_set() or isinstance(failure, UnavailableError):
                    break
                continue
            changes.rows += found.rows
            changes.gone += found.gone
            self._next = start + done
            if self._clock.monotonic() > deadline:
                break
        return error

    def _read(self, group: Group, span: Span) -> Mapping[str, Decimal]:
        """Tenant -> what it used, of every tenant with usage."""
        question = Question(request=group.request(span))
        limits = ReadLimits(seconds=_READ_SECONDS, rows=10**12, tag=self._tag)
        used: dict[str, Decimal] = {}
        after: Row | None = None
        while True:
            found: Page = finish(
                page(question, limit=MAX_ROWS, after=after),
                lambda one: self._store.query(one.sql, one.parameters, limits),
            )
            used |= {row.groups[0]: row.value for row in found.rows if row.value is not None}
            if not found.has_more:
                return used
            after = found.rows[-1]

    def _note_ended(self, groups: Groups, now_ns: int) -> None:
        """Remember periods that were present at the last tick, and are over."""
        present = {group.name: group.span(now_ns) for group in groups.all}
        for name, before in self._present.items():
            if name in present and before.end_ns is not None and before.end_ns <= now_ns:
                self._ended[name, before.start_ns] = before
        self._present = present
        self._ended = {key: span for key, span in self._ended.items() if key[0] in present}

    def _read_ended(self, groups: Groups, now_ns: int) -> tuple[list[UsageRow], list[_Ended]]:
        """Rows of periods that are over, and which of them will never have others."""
        by_name = {group.name: group for group in groups.all}
        some = list(self._ended.items())[:MAX_ENDED_TOGETHER]
        is_late = {key: now_ns >= (span.end_ns or 0) + SETTLE_SECONDS * _NS for key, span in some}
        # Asked before the read: what was in the database then is in what is read.
        settled_ns = self._oldest_waiting() if any(is_late.values()) else 0
        rows: list[UsageRow] = []
        final: list[_Ended] = []
        for key, span in some:
            group = by_name[key[0]]
            rows += groups.rows(group, span, self._read(group, span))
            if is_late[key] and (span.end_ns or 0) <= settled_ns:
                final.append(key)
        return rows, final

    def _look(self, groups: Groups, now_ns: int) -> Known:
        """What the table has, at the start: rows of present periods, and those that are not final."""
        now_ms = now_ns // _MS_NS
        rows = self._store.query(
            "SELECT tenant_id, meter, quota_id, is_default, filter, toString(period), "  # noqa: S608 - from tables.py
            "toUnixTimestamp64Milli(period_start), toUnixTimestamp64Milli(period_end), "
            "toString(enforcement), quantity_limit, quantity_grace, quantity_used "
            f"FROM {tables.QUOTA_USAGE} FINAL WHERE NOT is_deleted "
            "AND (period_end IS NULL OR period_end > fromUnixTimestamp64Milli({now:Int64}))",
            {"now": now_ms},
        )
        known = Known()
        known.put([_from_row(row) for row in rows], 0)
        ended = self._store.query(
            "SELECT quota_id, toUnixTimestamp64Milli(period_start) AS started "  # noqa: S608 - from tables.py
            f"FROM {tables.QUOTA_USAGE} "
            "WHERE period_end <= fromUnixTimestamp64Milli({now:Int64}) "
            "AND period_end > fromUnixTimestamp64Milli({since:Int64}) "
            "GROUP BY quota_id, started "
            "HAVING max(updated_at) < max(period_end) + toIntervalSecond({settle:UInt32}) "
            "ORDER BY started DESC LIMIT {limit:UInt32}",
            {
                "now": now_ms,
                "since": max(now_ms - LOOK_BACK_SECONDS * 1_000, 0),
                "settle": SETTLE_SECONDS,
                "limit": MAX_ENDED,
            },
        )
        for quota_id, start_ms in ended:
            group = groups.of(quota_id)
            span = group.span(start_ms * _MS_NS) if group else None
            if group and span and span.start_ns == start_ms * _MS_NS:
                self._ended[group.name, span.start_ns] = span
        newest = self._store.query(
            f"SELECT toUnixTimestamp64Milli(max(updated_at)) FROM {tables.QUOTA_USAGE}"  # noqa: S608 - from tables.py
        )
        # Later than any row there is, also if the clock stepped back: the latest counts.
        self._last_ms = max(self._last_ms, int(newest[0][0]))
        return known

    def _insert(self, rows: Sequence[UsageRow], at_ms: int, *, is_deleted: bool) -> None:
        for first in range(0, len(rows), MAX_ROWS):
            table = _table(rows[first : first + MAX_ROWS], at_ms, is_deleted=is_deleted)
            self._store.insert(tables.QUOTA_USAGE, table, token=secrets.token_hex(16))
            self._last_ms = at_ms

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
                self._is_failing = False
            except MeteringError as error:
                self._failed("The usage of quotas waits for the database: %s", error)
            except Exception as error:  # noqa: BLE001 - the top of a worker loop
                self._failed("The usage of quotas was not written: %s", error)
            self._stopping.wait(self._interval_seconds)

    def _failed(self, message: str, error: Exception) -> None:
        """Say it, once until it works again."""
        if not self._is_failing and not self._stopping.is_set():
            _log.warning(message, error, extra={"event": "quota_usage_failed"})
        self._is_failing = True


def _from_row(row: Sequence[Any]) -> UsageRow:
    tenant_id, meter, quota_id, is_default, wanted, period, start_ms, end_ms, *rest = row
    enforcement, limit, grace, used = rest
    return UsageRow(
        tenant_id=str(tenant_id),
        terms=Terms(
            quota_id=str(quota_id),
            meter=str(meter),
            is_default=bool(is_default),
            filter=str(wanted),
            period=str(period),
            enforcement=str(enforcement),
            limit=Decimal(limit),
            grace=Decimal(grace),
        ),
        start_ms=int(start_ms),
        end_ms=None if end_ms is None else int(end_ms),
        used=Decimal(used),
    )


def _table(rows: Sequence[UsageRow], at_ms: int, *, is_deleted: bool) -> pa.Table:
    terms = [row.terms for row in rows]
    moment, amount = pa.timestamp("ms", "UTC"), pa.decimal128(38, 9)
    return pa.table(
        {
            "tenant_id": pa.array([row.tenant_id for row in rows], pa.string()),
            "meter": pa.array([one.meter for one in terms], pa.string()),
            "quota_id": pa.array([one.quota_id for one in terms], pa.string()),
            "is_default": pa.array([one.is_default for one in terms], pa.bool_()),
            "filter": pa.array([one.filter for one in terms], pa.string()),
            "period": pa.array([one.period for one in terms], pa.string()),
            "period_start": pa.array([row.start_ms for row in rows], moment),
            "period_end": pa.array([row.end_ms for row in rows], moment),
            "enforcement": pa.array([one.enforcement for one in terms], pa.string()),
            "quantity_limit": pa.array([one.limit for one in terms], amount),
            "quantity_grace": pa.array([one.grace for one in terms], amount),
            "quantity_used": pa.array([row.used for row in rows], amount),
            "updated_at": pa.array([at_ms] * len(rows), moment),
            "is_deleted": pa.array([is_deleted] * len(rows), pa.bool_()),
        }
    )
