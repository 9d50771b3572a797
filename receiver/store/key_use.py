"""When each API key was last used: noted in memory, written once a minute and at the end.

It has a thread of its own, and nothing waits for it: neither a request, nor the reading of the keys, on which
it depends whether a key works. What a crash loses is at most the last minute.
"""

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from otel_metering.errors import MeteringError
from receiver.store import tables
from receiver.store.client import Store

INTERVAL_SECONDS: Final = 60.0

STOP_SECONDS: Final = 5.0
"""How long a stop waits for the last minute."""

_log = logging.getLogger(__name__)


class KeyUse:
    """The last use of every key. Any thread may call any method."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._used: dict[str, int] = {}
        self._written: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="key-use", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write the last minute, if that does not take long, and end. Idempotent."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def note(self, key_id: str, now_ns: int) -> None:
        """It was used just now; touches memory only."""
        self._used[key_id] = now_ns

    def last_used(self, key_ids: Sequence[str]) -> Mapping[str, int]:
        """When these keys were used last, by any process, in microseconds since the epoch; absent: never.

        Raises:
            UnavailableError: The database did not answer.
        """
        rows = self._store.query(
            "SELECT key_id, toUnixTimestamp64Micro(max(last_used_at)) FROM metering.api_key_use "
            "WHERE key_id IN (SELECT arrayJoin({key_ids:Array(String)})) GROUP BY key_id",
            {"key_ids": list(key_ids)},
        )
        found = {str(key_id): int(micros) for key_id, micros in rows}
        here = {one: self._used[one] // 1_000 for one in key_ids if one in self._used}
        return found | {one: max(micros, found.get(one, 0)) for one, micros in here.items()}

    def write(self) -> None:
        """Write what is new since the last time. One thread at a time.

        Raises:
            MeteringError: The database did not take it; the next call writes it.
        """
        used = dict(self._used)
        fresh = {one: at for one, at in used.items() if self._written.get(one) != at}
        if not fresh:
            return
        micros = pa.array([at // 1_000 for at in fresh.values()], pa.timestamp("us", "UTC"))
        rows = pa.table({"key_id": pa.array(list(fresh), pa.string()), "last_used_at": micros})
        self._store.insert(tables.API_KEY_USE, rows, token=secrets.token_hex(16))
        self._written = used

    def _run(self) -> None:
        is_stopping = False
        while not is_stopping:
            is_stopping = self._stopping.wait(INTERVAL_SECONDS)
            try:
                self.write()
            except MeteringError as error:
                _log.warning("The use of keys waits: %s", error, extra={"event": "key_use_failed"})
            except Exception as error:  # noqa: BLE001 - the top of a worker loop
                _log.error(
                    "The use of keys failed", exc_info=error, extra={"event": "key_use_failed"}
                )
