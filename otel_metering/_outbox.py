"""The spools of this process: its own, the one of refused requests, and those of ended processes.

Each process has a file of its own, `<spool_dir>/<service>/<instance>.db`, locked while it lives. A file
whose lock can be taken belongs to nobody any more: its requests are sent from here, then it is deleted.
What the receiver refused for good lies in `<instance>.refused.db` until somebody looks at it.

SQLite must not be in the middle of anything when the process forks: its own locks would be held for
ever in the child. So all use of spools happens inside one gate, and a fork waits for the gate.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from otel_metering._cell_file import cells_path
from otel_metering._config import Settings
from otel_metering._encode import LOGS
from otel_metering._guard import Problem, problems
from otel_metering._parcel import Parcel, gate
from otel_metering._recovery import recover_cells
from otel_metering.clock import Clock, SystemClock
from otel_metering.errors import ConfigurationError, SpoolInUseError, UnavailableError
from otel_metering.spool import Entry, Spool, open_spool

_log = logging.getLogger("otel_metering")

REFUSED: Final = ".refused.db"
"""End of the names of files with requests that were refused for good."""

_MAX_EVENT_BYTES: Final = 2**20
"""Of requests of events that go as one."""


class Outbox:
    """First in, first out, on disk. Any thread.

    Attributes:
        put_count: Requests put in by this process.
        settled_count: Of those, the ones delivered or refused.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        instance_id: str,
        inherited: frozenset[Path] = frozenset(),
        clock: Clock | None = None,
    ) -> None:
        self.put_count = 0
        self.settled_count = 0
        self._settings = settings
        self._folder = settings.spool_dir / folder_name(settings.service_name)
        self._path = self._folder / f"{instance_id}.db"
        self._inherited = inherited
        self._clock = clock or SystemClock()
        self._is_closed = False
        self._own: Spool | None = None
        self._refused: Spool | None = None
        self._adopted: list[Spool] = []
        self._damaged: set[Path] = set()
        self._turn = 0

    def open(self) -> None:
        """Make the own spool, if it is not there yet.

        Raises:
            ConfigurationError: The folder cannot be used.
        """
        with gate.lock:
            self._open_own()

    @property
    def cells_path(self) -> Path:
        """Of the file for this process's cells; nobody may make it before `open`."""
        return cells_path(self._path)

    def put(
        self,
        requests: Sequence[tuple[str, bytes]],
        states: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Append (key, payload) requests, all or none; on disk when this returns.

        Args:
            requests: What is to be sent.
            states: (key, value) that the own spool remembers from the same moment on.

        Raises:
            UnavailableError: The spool or its disk is full or failing; none was put.
        """
        with gate.lock:
            if self._is_closed:
                raise UnavailableError("another configuration has taken over")
            try:
                own = self._open_own()
            except ConfigurationError as error:
                raise UnavailableError(str(error)) from error
            own.append(requests, states)
            self.put_count += len(requests)

    def take(self, *, is_single: bool = False) -> Parcel | None:
        """The oldest request of the spools in turn; None: all are empty. Not removed yet.

        Args:
            is_single: One request alone. Else requests of events go together.

        Raises:
            UnavailableError: The disk refused the own spool.
        """
        with gate.lock:
            spools = [spool for spool in (self._own, *self._adopted) if spool is not None]
            for i in range(len(spools)):
                spool = spools[(self._turn + i) % len(spools)]
                entries = self._first(spool, 1 if is_single else self._settings.batch_size)
                if entries:
                    self._turn += i + 1
                    return Parcel(entries=entries, spool=spool)
                if spool is not self._own:
                    self._release(spool)
            return None

    def settle(self, parcel: Parcel) -> None:
        """`parcel` is delivered: forget it, and the file of an ended process with its last one."""
        spool = _spool_of(parcel)
        with gate.lock:
            is_forgotten = spool.forget(*parcel.entries)
            if spool is self._own:
                self.settled_count += len(parcel.entries)
                if not is_forgotten:
                    self._make_room(spool)
            if spool in self._adopted and spool.entry_count == 0:
                self._release(spool)

    def postpone(self, parcel: Parcel) -> None:
        """Others first: move `parcel` behind all that wait with it.

        Raises:
            UnavailableError: The disk refused; it stays where it is.
        """
        with gate.lock:
            _spool_of(parcel).postpone(parcel.entries[0])

    def set_aside(self, parcel: Parcel, reason: str) -> None:
        """`parcel` can never be delivered: move it to the refused requests.

        Raises:
            UnavailableError: The disk refused, or too much was refused already; it stays.
        """
        with gate.lock:
            if self._refused is None:
                path = self._path.with_name(self._path.stem + REFUSED)
                try:
                    self._refused = self._open(path)
                except ConfigurationError as error:
                    raise UnavailableError(str(error)) from error
            # The key is what it was, so that moving the entry back is sending it again; why it was
            # refused follows. A crash before `settle` leaves it in both: the receiver sees doubles.
            self._refused.append([(f"{parcel.key} {reason}", parcel.payload)])
            self.settle(parcel)

    def adopt_orphans(self) -> None:
        """Take over the spools of this service whose process has ended.

        Called now and then; what was refused is put down, so that people can get at it.
        """
        with gate.lock:
            if self._refused is not None:
                _put_down(self._refused)
                self._refused = None
        own = {spool.path for spool in self._spools()} | self._inherited | {self._path}
        for path in sorted(self._folder.glob("*.db")):
            if path in own or path.name.endswith(REFUSED):
                continue
            # SpoolInUseError: its process lives, or somebody else was faster.
            with gate.lock, contextlib.suppress(SpoolInUseError):
                try:
                    self._take_over(self._open(path))
                except SpoolInUseError:
                    raise
                except ConfigurationError as error:
                    self._note_damage(path, error)

    def inherit(self, predecessor: "Outbox") -> None:
        """Take over the spools of this process's pipeline before; it uses them no more."""
        with gate.lock:
            own, predecessor._own = predecessor._own, None
            adopted, predecessor._adopted = predecessor._adopted, []
            for spool in [*([own] if own is not None else []), *adopted]:
                self._take_over(spool)
            predecessor._is_closed = True
            predecessor.close()

    @property
    def has_adopted(self) -> bool:
        """Whether requests of ended processes wait."""
        return bool(self._adopted)

    @property
    def pending_requests(self) -> int:
        """Requests in all spools but the refused."""
        return sum(spool.entry_count for spool in (self._own, *self._adopted) if spool is not None)

    @property
    def pending_bytes(self) -> int:
        """Their size."""
        return sum(spool.byte_count for spool in (self._own, *self._adopted) if spool is not None)

    def abandon(self) -> frozenset[Path]:
        """In a forked child: let go of everything; return the files this process must never open.

        SQLite keeps state per file and process, and what the child has of it is a stale copy.
        """
        spools = self._spools()
        for spool in spools:
            spool.abandon()
        return self._inherited | {spool.path for spool in spools}

    def close(self) -> None:
        """Close all files; what is in them is sent by a later process. Delete the empty ones."""
        with gate.lock:
            self._is_closed = True
            for spool in self._spools():
                _put_down(spool)
            self._own = self._refused = None
            self._adopted = []

    def _spools(self) -> list[Spool]:
        spools = (self._own, self._refused, *self._adopted)
        return [spool for spool in spools if spool is not None]

    def _first(self, spool: Spool, max_entries: int) -> tuple[Entry, ...]:
        try:
            return spool.first_together(LOGS, max_entries=max_entries, max_bytes=_MAX_EVENT_BYTES)
        except UnavailableError as error:
            if spool is self._own:
                raise
            # A broken file must not hold up the others; the next look for orphans finds it again.
            problems.report(Problem.INTERNAL_ERRORS, error)
            return ()

    def _release(self, spool: Spool) -> None:
        """Nothing can be taken from an adopted spool any more; only a broken one is not empty then."""
        if spool.entry_count == 0:
            self._recover(spool)
            if spool.entry_count > 0:
                return
        _put_down(spool)
        self._adopted.remove(spool)

    def _recover(self, spool: Spool) -> None:
        """Put what its process had not flushed into `spool`, if there is room."""
        try:
            recover_cells(
                cells_path(spool.path),
                spool,
                max_points=self._settings.batch_size,
                now_ns=self._clock.now_ns(),
            )
        except UnavailableError as error:
            problems.report(
                Problem.FAILED_FLUSHES, f"usage of an ended process waits in its file: {error}"
            )

    def _make_room(self, own: Spool) -> None:
        """A full disk keeps delivered requests in the file: an empty spool makes room by its end."""
        if own.entry_count == 0 and not own.has_states():
            own.delete()
            self._own = None

    def _note_damage(self, path: Path, error: ConfigurationError) -> None:
        if path not in self._damaged:
            self._damaged.add(path)
            problems.report(Problem.DAMAGED_SPOOLS, error)

    def _take_over(self, spool: Spool) -> None:
        self._recover(spool)
        if spool.entry_count == 0:
            _put_down(spool)
            return
        self._adopted.append(spool)
        _log.info(
            "%d requests of an ended process are sent now",
            spool.entry_count,
            extra={"event": "spool_adopted"},
        )

    def _open_own(self) -> Spool:
        if self._own is None:
            self._own = self._open(self._path)
        return self._own

    def _open(self, path: Path) -> Spool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"spool_dir {self._settings.spool_dir} cannot be used: {error}; choose another folder"
            ) from error
        return open_spool(
            path,
            durability="full" if self._settings.durability == "full" else "normal",
            max_bytes=self._settings.spool_max_bytes,
        )


def folder_name(service_name: str) -> str:
    """The folder of a service's spools."""
    # An escaped name can neither leave the folder nor be too long for a file system.
    name = quote(service_name, safe="")[:100]
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _spool_of(parcel: Parcel) -> Spool:
    assert parcel.spool is not None  # noqa: S101 - parcels in memory are of another outbox
    return parcel.spool


def _put_down(spool: Spool) -> None:
    """Close a file; delete it if nothing is in it, nor in the file of cells that belongs to it."""
    if spool.entry_count == 0 and not cells_path(spool.path).exists():
        spool.delete()
    else:
        spool.close()
