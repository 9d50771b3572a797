"""Asks the database for ids that the memory has forgotten."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from receiver import rows
from receiver.identity import ID_BYTES, Ids, Kind, Words, kinds_of, to_bytes
from receiver.seen import Owner
from receiver.store import tables
from receiver.store.client import Store

IDS_PER_QUERY: Final = 512
"""With the longest names this is 170 KB of SQL, where ClickHouse takes 256."""


class StoredIds:
    """The ids in the database, as `receiver.seen.Lookup`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, ids: Ids, owners: Sequence[Owner]) -> tuple[NDArray[np.bool_], Words]:
        """Whether each id is stored, and the content of EXPLICIT ones.

        Raises:
            UnavailableError: The database did not answer.
        """
        is_stored = np.zeros(len(ids), np.bool_)
        content = np.zeros(len(ids), np.uint64)
        is_explicit = kinds_of(ids.second) == Kind.EXPLICIT
        # Neighbours in the table are asked for together: fewer granules are read.
        timed = np.flatnonzero(~is_explicit).tolist()
        timed.sort(key=lambda place: (owners[place], ids.time_ns[place]))
        keys = np.frombuffer(to_bytes(ids.first, ids.second), f"V{ID_BYTES}")
        for places in _chunks(timed):
            conditions = [
                f"({_text(owners[i][0])}, {_text(owners[i][1])}, {_time(ids.time_ns[i])})"
                for i in places
            ]
            # The hint only chooses granules: the id, which is of one time, is all that is read of them.
            sql = (
                f"SELECT event_id FROM {tables.EVENTS} WHERE "  # noqa: S608 - from tables.py
                f"indexHint((tenant_id, meter, timestamp) IN ({', '.join(conditions)})) "
                f"AND event_id IN ({_uuids(keys, places)})"
            )
            stored = {row[0].bytes for row in self._store.query(sql)}
            is_stored[places] = [keys[i].tobytes() in stored for i in places]
        for places in _chunks(np.flatnonzero(is_explicit).tolist()):
            sql = (
                f"SELECT event_id, content FROM {tables.EXPLICIT_IDS} "  # noqa: S608 - from tables.py
                f"WHERE event_id IN ({_uuids(keys, places)})"
            )
            said = {row[0].bytes: rows.content_of(row[1].bytes) for row in self._store.query(sql)}
            is_stored[places] = [keys[i].tobytes() in said for i in places]
            content[places] = [said.get(keys[i].tobytes(), 0) for i in places]
        return is_stored, content


def _chunks(places: Sequence[int]) -> list[Sequence[int]]:
    return [places[i : i + IDS_PER_QUERY] for i in range(0, len(places), IDS_PER_QUERY)]


def _uuids(keys: NDArray[np.void], places: Sequence[int]) -> str:
    return ", ".join(f"'{UUID(bytes=keys[i].tobytes())}'" for i in places)


def _text(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _time(time_ns: np.int64) -> str:
    moment = np.datetime_as_string(time_ns.astype("datetime64[ns]"))
    return f"'{str(moment).replace('T', ' ')}'"
