"""The file `meters.yaml`: read at the start, and again whenever it changes.

A change is looked for once a second, and at once when `reload` is called (SIGHUP). It is applied when the
file was the same twice in a row, so that one that is being written is not taken for a short one. What
cannot be read, or is wrong, or gone, changes nothing: the definitions from before stay in force.
"""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters
from otel_metering.errors import ConfigurationError
from receiver.meters_yaml import MAX_BYTES, read_text

DEFAULT: Final = Path("meters.yaml")
"""Where it is looked for when no setting names it."""

POLL_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)

_State = tuple[int, int, int, int] | None
"""Device, inode, size and time of the last change (ns) of a file, behind every link; None: no file.

An editor that renames a new file over the old one, and a Kubernetes volume whose link moves on, change
the inode; one that writes in place changes size or time.
"""


def read_meters(path: Path) -> Meters:
    """Read one file.

    Raises:
        ConfigurationError: It cannot be read, or says something that it cannot say.
    """
    return read_text(_read_existing(path)[0], str(path))


@dataclass(frozen=True, slots=True)
class Changes:
    """How two sets of definitions differ: slugs, sorted."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    @classmethod
    def between(cls, old: Meters, new: Meters) -> "Changes":
        """From `old` to `new`."""
        before, after = old.by_slug, new.by_slug
        return cls(
            added=tuple(sorted(after.keys() - before.keys())),
            changed=tuple(
                sorted(slug for slug in after.keys() & before.keys() if after[slug] != before[slug])
            ),
            removed=tuple(sorted(before.keys() - after.keys())),
        )

    def __str__(self) -> str:
        parts = (("added", self.added), ("changed", self.changed), ("removed", self.removed))
        return "; ".join(f"{name} {', '.join(slugs)}" for name, slugs in parts if slugs)


class MetersFile:
    """The definitions in force, and the thread that keeps them so."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        """Read it for the first time.

        Args:
            path: The file; None: `DEFAULT`, which need not be there.
            clock: The time.

        Raises:
            ConfigurationError: It cannot be read, or says something that it cannot say.
        """
        self._path = path or DEFAULT
        self._clock = clock
        self._content: bytes | None = None
        self._meters = Meters()
        self._read_at_ns = 0
        self._problem: str | None = None
        # What was dealt with last, and what was there when it was last looked at.
        self._applied: _State = None
        self._last_seen: _State = None
        self._on_change: Callable[[Meters], None] = lambda _: None
        self._wake = threading.Event()
        self._is_asked = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="meters", daemon=True)
        if path is not None or self._path.exists():
            content, self._applied = _read_existing(self._path)
            self._last_seen = self._applied
            self._take(content, read_text(content, str(self._path)))

    @property
    def meters(self) -> Meters:
        """The definitions in force."""
        return self._meters

    @property
    def problem(self) -> str | None:
        """What is wrong with the file since the definitions were read; None: nothing."""
        return self._problem

    def describe(self) -> str:
        """What is in force since when, and what is wrong with the file since then, for people."""
        count = count_of(self._meters)
        if self._content is None:
            said = f"{count}, no {self._path}"
        else:
            moment = datetime.fromtimestamp(self._read_at_ns // 1_000_000_000, UTC)
            said = f"{count}, read at {moment:%Y-%m-%dT%H:%M:%SZ}"
        problem = self._problem
        return said if problem is None else f"{said}, the file since then is wrong: {problem}"

    def start(self, on_change: Callable[[Meters], None]) -> None:
        """Begin to watch.

        Args:
            on_change: Called in a thread of its own with each new set of definitions.
        """
        self._on_change = on_change
        self._thread.start()

    def reload(self) -> None:
        """Read the file again, at once and whatever its state; returns before it was read."""
        self._is_asked = True
        self._wake.set()

    def stop(self) -> None:
        """End the watching. Idempotent."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self, *, is_asked: bool = False) -> None:
        """Look once: read the file if it has changed and come to rest, or somebody asked."""
        state = _state_of(self._path)
        is_at_rest, self._last_seen = state == self._last_seen, state
        if is_asked or (state != self._applied and is_at_rest):
            self._read_again(is_asked=is_asked)

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
            is_asked, self._is_asked = self._is_asked, False
            try:
                self.look(is_asked=is_asked)
            except Exception as error:  # noqa: BLE001 - the top of a worker loop
                _log.error(
                    "Meters cannot be watched", exc_info=error, extra={"event": "meters_failed"}
                )

    def _read_again(self, *, is_asked: bool) -> None:
        try:
            content, state = _read(self._path)
        except FileNotFoundError:
            self._applied = None
            if self._content is None:
                return  # there never was one
            self._reject(f"{self._path} is gone; put it back", "meters_missing", logging.WARNING)
            return
        except ConfigurationError as error:
            self._applied = _state_of(self._path)
            self._reject(str(error), "meters_rejected", logging.ERROR)
            return
        self._applied = state
        if content == self._content and self._problem is None:
            if is_asked:
                _log.info("Meters unchanged", extra={"event": "meters_unchanged"})
            return
        try:
            meters = read_text(content, str(self._path))
        except ConfigurationError as error:
            self._reject(str(error), "meters_rejected", logging.ERROR)
            return
        changes = Changes.between(self._meters, meters)
        if meters != self._meters:
            self._on_change(meters)
        self._take(content, meters)
        _log.info(
            "Meters read: %s",
            str(changes) or "the same as before",
            extra={
                "event": "meters_read",
                "added": changes.added,
                "changed": changes.changed,
                "removed": changes.removed,
            },
        )

    def _take(self, content: bytes, meters: Meters) -> None:
        self._content, self._meters, self._problem = content, meters, None
        self._read_at_ns = self._clock.now_ns()

    def _reject(self, problem: str, event: str, level: int) -> None:
        self._problem = problem
        _log.log(
            level,
            "Meters stay as they were, %s: %s",
            count_of(self._meters),
            problem,
            extra={"event": event},
        )


def _read(path: Path) -> tuple[bytes, _State]:
    """What the file holds, but for what is beyond the limit, and its state just before it was read.

    Raises:
        FileNotFoundError: There is no file.
        ConfigurationError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            state = _state(os.fstat(file.fileno()))
            return file.read(MAX_BYTES + 1), state
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path}: it cannot be read: {error.strerror}") from error


def _read_existing(path: Path) -> tuple[bytes, _State]:
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path}: there is no such file; create it or name another"
        ) from error


def _state_of(path: Path) -> _State:
    try:
        return _state(path.stat())
    except OSError:
        return None


def _state(found: os.stat_result) -> _State:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def count_of(meters: Meters) -> str:
    """`1 meter`, `2 meters`."""
    count = len(meters.definitions)
    return f"{count} meter" if count == 1 else f"{count} meters"
