"""Quotas: put, listed, deleted, and kept in memory for every check.

A thread reads the table once a second, so that a quota that was put elsewhere is in force here within two.
If it cannot be read, those known so far stay in force.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from otel_metering.clock import Clock
from otel_metering.contract.quota import Enforcement, Period, QuotaDefinition, as_filter
from otel_metering.errors import MeteringError
from receiver.store import tables
from receiver.store.client import Store

REFRESH_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuota:
    """A quota, and when it was made and last changed: microseconds since the epoch."""

    definition: QuotaDefinition
    created_us: int
    updated_us: int


class Quotas:
    """Every quota of one database. Any thread may call any method."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._quotas: dict[str, StoredQuota] = {}
        self._on_change: Callable[[], None] = lambda: None
        self._write_lock = threading.Lock()
        self._stopping = threading.Event()
        self._refresher: threading.Thread | None = None

    def start(self, on_change: Callable[[], None]) -> None:
        """Read the table, and go on doing so once a second; `on_change` is called after each change.

        Raises:
            MeteringError: The first read failed.
        """
        self._on_change = on_change
        self.refresh()
        self._refresher = threading.Thread(target=self._refresh_often, name="quotas", daemon=True)
        self._refresher.start()

    def stop(self) -> None:
        """End the reading."""
        self._stopping.set()
        if self._refresher is not None:
            self._refresher.join()

    def list(self) -> list[StoredQuota]:
        """Every quota, by its id."""
        quotas = self._quotas
        return [quotas[quota_id] for quota_id in sorted(quotas)]

    def get(self, quota_id: str) -> StoredQuota | None:
        """The quota of this id; None: there is none."""
        return self._quotas.get(quota_id)

    def put(self, definition: QuotaDefinition) -> StoredQuota:
        """Make a quota, or replace the one in its place; in force here when this returns.

        Raises:
            UnavailableError: The database did not answer; the quotas are as they were.
        """
        with self._write_lock:
            now_us = self._clock.now_ns() // 1_000
            before = self._quotas.get(definition.quota_id)
            # Later than what it replaces, also if the clock stepped back: the latest row counts.
            updated_us = max(now_us, before.updated_us + 1 if before else 0)
            made = StoredQuota(
                definition=definition,
                created_us=before.created_us if before else now_us,
                updated_us=updated_us,
            )
            self._save(made, is_deleted=False)
            self._quotas = {**self._quotas, definition.quota_id: made}
        self._on_change()
        return made

    def delete(self, quota_id: str) -> StoredQuota | None:
        """Remove a quota; returns what it was, None: there was none.

        Raises:
            UnavailableError: The database did not answer; it is still in force.
        """
        with self._write_lock:
            before = self._quotas.get(quota_id)
            if before is None:
                return None
            updated_us = max(self._clock.now_ns() // 1_000, before.updated_us + 1)
            gone = StoredQuota(
                definition=before.definition,
                created_us=before.created_us,
                updated_us=updated_us,
            )
            self._save(gone, is_deleted=True)
            self._quotas = {key: one for key, one in self._quotas.items() if key != quota_id}
        self._on_change()
        return before

    def refresh(self) -> None:
        """Read the table now.

        Raises:
            MeteringError: It could not be read; the quotas known so far stay.
        """
        with self._write_lock:
            rows = self._store.query(
                "SELECT tenant_id, meter, filter, quantity_limit, quantity_grace, toString(period), anchor_day, timezone, "  # noqa: S608 - from tables.py
                "toString(enforcement), thresholds, toUnixTimestamp64Micro(created_at), "
                f"toUnixTimestamp64Micro(updated_at) FROM {tables.QUOTAS} FINAL WHERE NOT is_deleted"
            )
            found = [_from_row(row) for row in rows]
            quotas = {one.definition.quota_id: one for one in found}
            has_changed = quotas != self._quotas
            self._quotas = quotas
        if has_changed:
            self._on_change()

    def _save(self, quota: StoredQuota, *, is_deleted: bool) -> None:
        one = quota.definition
        self._store.execute(
            f"INSERT INTO {tables.QUOTAS} (quota_id, tenant_id, meter, filter, quantity_limit, quantity_grace, period, anchor_day, "
            "timezone, enforcement, thresholds, is_deleted, created_at, updated_at) SELECT {quota_id:String}, "
            "{tenant_id:Nullable(String)}, {meter:String}, {filter:String}, toDecimal128({limit:String}, 9), "
            "toDecimal128({grace:String}, 9), {period:String}, {anchor_day:Nullable(UInt8)}, {timezone:String}, "
            "{enforcement:String}, {thresholds:Array(UInt16)}, {is_deleted:Bool}, "
            "fromUnixTimestamp64Micro({created_us:Int64}), fromUnixTimestamp64Micro({updated_us:Int64})",
            {
                "quota_id": one.quota_id,
                "tenant_id": one.tenant_id,
                "meter": one.meter,
                "filter": json.dumps(dict(one.filter)),
                "limit": format(one.limit, "f"),
                "grace": format(one.grace, "f"),
                "period": str(one.period),
                "anchor_day": one.anchor_day,
                "timezone": one.timezone,
                "enforcement": str(one.enforcement),
                "thresholds": list(one.thresholds),
                "is_deleted": is_deleted,
                "created_us": quota.created_us,
                "updated_us": quota.updated_us,
            },
        )

    def _refresh_often(self) -> None:
        while not self._stopping.wait(REFRESH_SECONDS):
            try:
                self.refresh()
            except MeteringError:
                _log.warning("Quotas cannot be read", extra={"event": "quotas_refresh_failed"})


def _from_row(row: Sequence[Any]) -> StoredQuota:
    tenant_id, meter, wanted, limit, grace, period, anchor, timezone, enforcement, *rest = row
    thresholds, created_us, updated_us = rest
    return StoredQuota(
        definition=QuotaDefinition(
            tenant_id=None if tenant_id is None else str(tenant_id),
            meter=str(meter),
            filter=as_filter(json.loads(wanted)),
            limit=Decimal(limit),
            grace=Decimal(grace),
            period=Period(period),
            anchor_day=None if anchor is None else int(anchor),
            timezone=str(timezone),
            enforcement=Enforcement(enforcement),
            thresholds=tuple(int(percent) for percent in thresholds),
        ),
        created_us=int(created_us),
        updated_us=int(updated_us),
    )
