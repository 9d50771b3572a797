"""What a killed process had recorded but not flushed -> its spool, exactly once.

The file of cells is only read. That its usage is in the spool is said by a state that changes in the
transaction that puts it there; so this may be interrupted anywhere, and be repeated by anybody who holds
the spool's lock.
"""

import logging
from collections import Counter
from pathlib import Path
from struct import Struct
from typing import Final

from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from otel_metering._cell_file import Contents, read_cell_file
from otel_metering._encode import METRICS, Interval, Limits, encode_usage
from otel_metering._guard import Problem, problems
from otel_metering._series import Series, described
from otel_metering.errors import UnavailableError
from otel_metering.spool import Spool

_log = logging.getLogger("otel_metering")

CELLS: Final = b"cells"
"""Key of the state that says how far the file of cells is in the spool."""

_SPOOLED: Final = Struct("<qq")
_ALL: Final = 2**63 - 1
"""Number of the flush after the last one: everything is in the spool."""


def spooled(flush: int, read_until_ns: int) -> bytes:
    """The state `CELLS`: every flush up to number `flush` is in the spool, which ends at `read_until_ns`."""
    return _SPOOLED.pack(flush, read_until_ns)


def recover_cells(path: Path, spool: Spool, *, max_points: int, now_ns: int) -> None:
    """Put what is left in the file of cells at `path` into `spool`, and delete the file.

    A part that cannot be read is reported, and its file kept beside as `<path>.damaged`.

    Raises:
        UnavailableError: The disk refused, or the spool is full; nothing was put, the file is there.
    """
    if not path.exists():
        return
    state = spool.states([CELLS]).get(CELLS)
    flush, read_until_ns = (0, 0) if state is None else _SPOOLED.unpack(state)
    is_damaged = False
    try:
        contents = None if flush == _ALL else read_cell_file(path)
    except ValueError as error:
        problems.report(Problem.DAMAGED_SPOOLS, error)
        contents, is_damaged = None, True
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error}") from error
    if contents is not None and not contents.is_current:
        _log.warning(
            "the machine was restarted since %s was written; usage of its last flush interval is lost",
            path,
            extra={"event": "cells_outdated"},
        )
        contents = None
    if contents is not None:
        deltas, is_damaged = _rest(contents, flush, path)
        interval = _interval(contents, read_until_ns, now_ns)
        resource = Resource.FromString(contents.header.resource)
        requests = encode_usage(deltas, interval, resource, Limits(max_points=max_points))
        state = spooled(_ALL, interval.end_ns)
        spool.append([(METRICS, request) for request in requests], [(CELLS, state)])
        if deltas:
            _log.info(
                "usage of %d series is saved that a process had not flushed when it was killed",
                len(deltas),
                extra={"event": "cells_recovered"},
            )
    _remove(path, is_damaged=is_damaged)


def _rest(contents: Contents, flush: int, path: Path) -> tuple[dict[Series, int], bool]:
    """10**-9 units by series; and whether there is more that cannot be read."""
    is_damaged = contents.is_damaged
    if contents.last_marked > flush + 1:
        # The spool knew a later flush: its end is lost. Never more than what no flush has read.
        flush, is_damaged = contents.last_marked, True
    deltas: Counter[Series] = Counter()
    for block in contents.blocks:
        rest = block.rest(flush)
        if rest > 0 and block.descriptor is not None:
            deltas[described(block.descriptor)] += rest
        elif rest:
            is_damaged = True
    if is_damaged:
        problems.report(Problem.DAMAGED_SPOOLS, f"{path} or its spool is not what was written")
    return deltas, is_damaged


def _interval(contents: Contents, read_until_ns: int, now_ns: int) -> Interval:
    start_ns = max(read_until_ns, contents.header.read_until_ns)
    # Alive is noted with each flush; the next one, which never came, may have been late.
    end_ns = min(now_ns, contents.alive_ns + 2 * contents.header.flush_interval_ns)
    return Interval(start_ns=start_ns, end_ns=max(end_ns, start_ns + 1))


def _remove(path: Path, *, is_damaged: bool) -> None:
    try:
        if is_damaged:
            path.rename(f"{path}.damaged")
        else:
            path.unlink()
    except OSError as error:
        raise UnavailableError(f"{path} cannot be removed: {error}") from error
