"""Requests that wait to be decoded: bounded, and fair between API keys.

Each turn takes one request of each key, so a key that sends much delays itself. And each key may fill as
much as is still free: a flood leaves room for others (dynamic thresholds, Choudhury and Hahne, 1998).
"""

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from otel_metering.errors import UnavailableError

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items by key, with sizes in bytes. Any thread may put; one takes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: OrderedDict[str, deque[tuple[T, int]]] = OrderedDict()
        self._key_bytes: dict[str, int] = {}
        self._byte_count = 0
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def byte_count(self) -> int:
        """Bytes that wait."""
        return self._byte_count

    def put(self, key: str, item: T, size: int) -> None:
        """Queue an item of `key`.

        Raises:
            UnavailableError: The queue, or this key's share of it, is full, or it is closed.
        """
        with self._changed:
            if self._is_closed:
                raise UnavailableError("the receiver is stopping; send again to the next one")
            own, free = self._key_bytes.get(key, 0), self._max_bytes - self._byte_count
            # A first item fits whatever its size, else it could never be sent.
            if own + size > free and self._byte_count and (own or size > free):
                raise UnavailableError(
                    f"{self._byte_count} bytes of requests wait, {own} of them with this key, and "
                    f"{self._max_bytes} may in all; send again in a second"
                )
            self._key_bytes[key] = own + size
            self._byte_count += size
            self._waiting.setdefault(key, deque()).append((item, size))
            self._changed.notify()

    def take(self, *, max_bytes: int, max_items: int) -> list[T]:
        """Wait for an item; return it and what else has come, in turn. Empty: closed, and no more come."""
        taken: list[T] = []
        size = 0
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            while self._waiting and size < max_bytes and len(taken) < max_items:
                item, item_size = self._next()
                taken.append(item)
                size += item_size
        return taken

    def close(self) -> None:
        """Take no more; what waits can still be taken. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _next(self) -> tuple[T, int]:
        key, items = self._waiting.popitem(last=False)
        item, size = items.popleft()
        self._byte_count -= size
        self._key_bytes[key] -= size
        if items:
            self._waiting[key] = items
        else:
            del self._key_bytes[key]
        return item, size
