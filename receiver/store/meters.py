"""Meters that were made by API: kept in the database, and known here within two seconds.

As with API keys, a read touches memory only, and a thread reads the table once a second. If the table
cannot be read, the meters known so far stay in force.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from otel_metering.clock import Clock
from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters
from otel_metering.errors import MeteringError
from receiver.store import tables
from receiver.store.client import Store

REFRESH_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiMeter:
    """One meter.

    Attributes:
        slug: Its name everywhere.
        aggregation: How it is read.
        event_type: Type of the events that feed it.
        value_property: JSONPath of the quantity, or of what a unique count counts; empty: none.
        group_by: Dimension → JSONPath.
        event_from: Events before this do not count; None: all do.
        name: For people.
        description: For people.
        metadata: Of whoever made it.
        created_at: When.
        updated_at: When it was changed last.
        deleted_at: When it was deleted; None: it is there.
    """

    slug: str
    aggregation: Aggregation
    event_type: str
    created_at: datetime
    updated_at: datetime
    value_property: str = ""
    group_by: Mapping[str, str] = field(default_factory=dict)
    event_from: datetime | None = None
    name: str = ""
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    deleted_at: datetime | None = None

    @property
    def definition(self) -> MeterDefinition:
        """What aggregates need of it."""
        return MeterDefinition(
            slug=self.slug,
            description=self.description,
            aggregation=self.aggregation,
            group_by=tuple(sorted(self.group_by)),
        )


class ApiMeters:
    """Every meter of one database that was made by API. Any thread may call any method."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._meters: Mapping[str, ApiMeter] = {}
        self._merged: tuple[Meters, Mapping[str, ApiMeter], Meters] | None = None
        self._write_lock = threading.Lock()
        self._stopping = threading.Event()
        self._refresher: threading.Thread | None = None

    def start(self) -> None:
        """Read the table, and go on doing so once a second.

        Raises:
            MeteringError: The first read failed.
        """
        self.refresh()
        self._refresher = threading.Thread(
            target=self._refresh_often, name="api-meters", daemon=True
        )
        self._refresher.start()

    def stop(self) -> None:
        """End the reading."""
        self._stopping.set()
        if self._refresher is not None:
            self._refresher.join()

    def list(self) -> Sequence[ApiMeter]:
        """Those that are not deleted, by slug."""
        return [meter for meter in self.every() if meter.deleted_at is None]

    def every(self) -> Sequence[ApiMeter]:
        """All, deleted ones included, by slug."""
        return [meter for _, meter in sorted(self._meters.items())]

    def find(self, slug: str) -> ApiMeter | None:
        """The meter of this slug; None: there is none, or it was deleted."""
        found = self._meters.get(slug)
        return None if found is None or found.deleted_at is not None else found

    def create(self, meter: ApiMeter) -> bool:
        """Keep a new meter; False: there is one of this slug, and nothing was changed.

        Raises:
            UnavailableError: The database did not answer.
        """
        with self._write_lock:
            if self.find(meter.slug) is not None:
                return False
            self._save(meter)
            return True

    def replace(self, meter: ApiMeter) -> None:
        """Keep another state of a meter.

        Raises:
            UnavailableError: The database did not answer; nothing was changed.
        """
        with self._write_lock:
            self._save(meter)

    def delete(self, slug: str) -> bool:
        """Delete a meter; its usage stays. False: there is none.

        Raises:
            UnavailableError: The database did not answer; nothing was changed.
        """
        with self._write_lock:
            found = self.find(slug)
            if found is None:
                return False
            now = self.now()
            self._save(replace(found, deleted_at=now, updated_at=now))
            return True

    def now(self) -> datetime:
        """The present, to the microsecond."""
        return _moment(self._clock.now_ns() // 1_000)

    def with_those_of(self, file: Meters) -> Meters:
        """The definitions of a file and these; a slug that both have is that of the file."""
        merged, own = self._merged, self._meters
        if merged is None or merged[0] is not file or merged[1] is not own:
            added = [m.definition for m in self.list() if m.slug not in file.by_slug]
            merged = self._merged = (file, own, Meters((*file.definitions, *added)))
        return merged[2]

    def refresh(self) -> None:
        """Read the table now.

        Raises:
            MeteringError: It could not be read; the meters known so far stay.
        """
        with self._write_lock:
            rows = self._store.query(
                "SELECT slug, name, description, aggregation, event_type, "  # noqa: S608 - constants
                "toUnixTimestamp64Micro(event_from), value_property, group_by, metadata, "
                "toUnixTimestamp64Micro(created_at), toUnixTimestamp64Micro(deleted_at), "
                f"toUnixTimestamp64Micro(updated_at) FROM {tables.METERS} FINAL"
            )
            found = {str(row[0]): _from_row(row) for row in rows}
            if found != self._meters:
                self._meters = found

    def _save(self, meter: ApiMeter) -> None:
        self._store.execute(
            f"INSERT INTO {tables.METERS} (slug, name, description, aggregation, event_type, "
            "event_from, value_property, group_by, metadata, created_at, deleted_at, updated_at) "
            "SELECT {slug:String}, {name:String}, {description:String}, {aggregation:String}, "
            "{event_type:String}, fromUnixTimestamp64Micro({event_from:Nullable(Int64)}), "
            "{value_property:String}, "
            "mapFromArrays({group_names:Array(String)}, {group_paths:Array(String)}), "
            "mapFromArrays({metadata_names:Array(String)}, {metadata_values:Array(String)}), "
            "fromUnixTimestamp64Micro({created_at:Int64}), "
            "fromUnixTimestamp64Micro({deleted_at:Nullable(Int64)}), "
            "fromUnixTimestamp64Micro({updated_at:Int64})",
            {
                "slug": meter.slug,
                "name": meter.name,
                "description": meter.description,
                "aggregation": str(meter.aggregation),
                "event_type": meter.event_type,
                "event_from": _micros(meter.event_from),
                "value_property": meter.value_property,
                "group_names": list(meter.group_by),
                "group_paths": list(meter.group_by.values()),
                "metadata_names": list(meter.metadata),
                "metadata_values": list(meter.metadata.values()),
                "created_at": _micros(meter.created_at),
                "deleted_at": _micros(meter.deleted_at),
                "updated_at": _micros(meter.updated_at),
            },
        )
        self._meters = {**self._meters, meter.slug: meter}

    def _refresh_often(self) -> None:
        while not self._stopping.wait(REFRESH_SECONDS):
            try:
                self.refresh()
            except MeteringError:
                _log.warning("meters cannot be read", extra={"event": "meters_refresh_failed"})


def _micros(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _moment(micros: int) -> datetime:
    seconds, rest = divmod(micros, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _from_row(row: Sequence[Any]) -> ApiMeter:
    (slug, name, description, aggregation, event_type, event_from) = row[:6]
    value_property, group_by, metadata, created_at, deleted_at, updated_at = row[6:]
    return ApiMeter(
        slug=str(slug),
        name=str(name),
        description=str(description),
        aggregation=Aggregation(aggregation),
        event_type=str(event_type),
        event_from=None if event_from is None else _moment(event_from),
        value_property=str(value_property),
        group_by=dict(group_by),
        metadata=dict(metadata),
        created_at=_moment(created_at),
        deleted_at=None if deleted_at is None else _moment(deleted_at),
        updated_at=_moment(updated_at),
    )
