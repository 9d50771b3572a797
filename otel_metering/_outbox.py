"""The spools of this process: its own, the one of refused requests, and those of ended processes.

Each process has a file of its own, `<spool_dir>/<service>/<instance>.db`, locked while it lives. A file
whose lock can be taken belongs to nobody any more: its requests are sent from here, then it is deleted.
What the receiver refused for good lies in `<instance>.refused.db` until somebody looks at it.

SQLite must not be in the middle of anything when the process forks: its own locks would be held for
ever in the child. So all use of spools happens inside one gate, and a fork waits for the gate.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from otel_metering._config import Settings
from otel_metering._guard import Problem, problems
from otel_metering.errors import ConfigurationError, UnavailableError
from otel_metering.spool import Batch, Spool, open_spool

_log = logging.getLogger("otel_metering")

_REFUSED: Final = ".refused.db"

_FORK_WAIT_SECONDS: Final = 5.0
"""A commit takes milliseconds; a disk that hangs longer must not hang the application's fork."""


class _Gate:
    """Held while any spool is used, and during a fork."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def close_for_fork(self) -> None:
        self.lock.acquire(timeout=_FORK_WAIT_SECONDS)

    def open_in_parent(self) -> None:
        with contextlib.suppress(RuntimeError):  # the wait was in vain
            self.lock.release()

    def open_in_child(self) -> None:
        self.lock = threading.RLock()


gate = _Gate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One request on its way out.

    Attributes:
        spool: Where it lies.
        batch: It, alone.
    """

    spool: Spool
    batch: Batch

    @property
    def key(self) -> str:
        """Which kind of request."""
        return self.batch.entries[0].key

    @property
    def payload(self) -> bytes:
        """The request's bytes."""
        return self.batch.entries[0].payload


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
        new_token: Callable[[], str],
        inherited: frozenset[Path] = frozenset(),
    ) -> None:
        self.put_count = 0
        self.settled_count = 0
        self._settings = settings
        self._folder = settings.spool_dir / _folder_name(settings.service_name)
        self._path = self._folder / f"{instance_id}.db"
        self._new_token = new_token
        self._inherited = inherited
        self._own: Spool | None = None
        self._refused: Spool | None = None
        self._adopted: list[Spool] = []
        self._turn = 0

    def open(self) -> None:
        """Make the own spool, if it is not there yet.

        Raises:
            ConfigurationError: The folder cannot be used.
        """
        with gate.lock:
            self._open_own()

    def put(self, requests: Sequence[tuple[str, bytes]]) -> None:
        """Append (key, payload) requests, all or none; on disk when this returns.

        Raises:
            UnavailableError: The spool or its disk is full or failing; none was put.
        """
        with gate.lock:
            try:
                own = self._open_own()
            except ConfigurationError as error:
                raise UnavailableError(str(error)) from error
            own.append(requests)
            self.put_count += len(requests)

    def take(self) -> Parcel | None:
        """The oldest request of the spools in turn; None: all are empty. Not removed yet.

        Raises:
            UnavailableError: The disk refused the own spool.
        """
        with gate.lock:
            spools = [spool for spool in (self._own, *self._adopted) if spool is not None]
            for i in range(len(spools)):
                spool = spools[(self._turn + i) % len(spools)]
                batch = self._seal(spool)
                if batch is not None:
                    self._turn += i + 1
                    return Parcel(spool=spool, batch=batch)
                if spool is not self._own:
                    self._release(spool)
            return None

    def settle(self, parcel: Parcel) -> None:
        """`parcel` is delivered: forget it, and the file of an ended process with its last one.

        Raises:
            UnavailableError: The disk refused; it will be taken again.
        """
        with gate.lock:
            parcel.spool.drop(parcel.batch)
            if parcel.spool is self._own:
                self.settled_count += 1
            if parcel.spool in self._adopted and parcel.spool.entry_count == 0:
                self._release(parcel.spool)

    def set_aside(self, parcel: Parcel, reason: str) -> None:
        """`parcel` can never be delivered: move it to the refused requests.

        Raises:
            UnavailableError: The disk refused, or too much was refused already; it stays.
        """
        with gate.lock:
            if self._refused is None:
                path = self._path.with_name(self._path.stem + _REFUSED)
                try:
                    self._refused = self._open(path)
                except ConfigurationError as error:
                    raise UnavailableError(str(error)) from error
            # The key is what it was, so that moving the entry back is sending it again; why it was
            # refused follows. A crash before `settle` leaves it in both: the receiver sees doubles.
            self._refused.append([(f"{parcel.key} {reason}", parcel.payload)])
            self.settle(parcel)

    def adopt_orphans(self) -> None:
        """Take over the spools of this service whose process has ended."""
        own = {spool.path for spool in self._spools()} | self._inherited | {self._path}
        for path in sorted(self._folder.glob("*.db")):
            if path in own or path.name.endswith(_REFUSED):
                continue
            # ConfigurationError: its process lives, or somebody else was faster.
            with gate.lock, contextlib.suppress(ConfigurationError):
                self._take_over(self._open(path))

    def inherit(self, predecessor: "Outbox") -> None:
        """Take over the spools of this process's pipeline before; it uses them no more."""
        with gate.lock:
            own, predecessor._own = predecessor._own, None
            adopted, predecessor._adopted = predecessor._adopted, []
            for spool in [*([own] if own is not None else []), *adopted]:
                self._take_over(spool)
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
            for spool in self._spools():
                if spool.entry_count == 0:
                    _delete(spool)
                else:
                    spool.close()
            self._own = self._refused = None
            self._adopted = []

    def _spools(self) -> list[Spool]:
        spools = (self._own, self._refused, *self._adopted)
        return [spool for spool in spools if spool is not None]

    def _seal(self, spool: Spool) -> Batch | None:
        try:
            return spool.seal(self._new_token(), max_entries=1, max_bytes=1)
        except UnavailableError as error:
            if spool is self._own:
                raise
            # A broken file must not hold up the others; the next look for orphans finds it again.
            problems.report(Problem.INTERNAL_ERRORS, error)
            return None

    def _release(self, spool: Spool) -> None:
        """Nothing can be taken from an adopted spool any more; only a broken one is not empty then."""
        if spool.entry_count == 0:
            _delete(spool)
        else:
            spool.close()
        self._adopted.remove(spool)

    def _take_over(self, spool: Spool) -> None:
        if spool.entry_count == 0:
            _delete(spool)
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


def _folder_name(service_name: str) -> str:
    # An escaped name can neither leave the folder nor be too long for a file system.
    name = quote(service_name, safe="")[:100]
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _delete(spool: Spool) -> None:
    """Close and delete an empty spool; only its owner ever appends, so it stays empty."""
    spool.close()
    # The file itself last: as long as it is there, whoever looks for orphans finds it and goes on.
    for suffix in ("-wal", "-shm", ".lock", ""):
        with contextlib.suppress(OSError):
            Path(f"{spool.path}{suffix}").unlink()
