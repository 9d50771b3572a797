"""What became of requests that showed an API key: stage `keys` of the receiver's numbers.

In = out + refused by reason, each by key and transport; a request without a key is not counted. Memory only,
and bounded: a key that does not exist has no name here, whatever its text says.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_KEYS: Final = 1_000
"""Keys that are counted one by one; those beyond are counted together, as `OTHER`."""

OTHER: Final = "other"
NOBODY: Final = ""
"""The id of a key that nobody has."""


class Refused(StrEnum):
    """Why a key was not let through."""

    UNKNOWN = "unknown"
    """Nobody has it."""
    REVOKED = "revoked"
    EXPIRED = "expired"
    """Or rotated, and its overlap is over."""
    SCOPE = "scope"
    """It may not do this."""
    TENANT = "tenant"
    """It is bound to a tenant, and this is about another, or about all."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A key that is not let through.

    Attributes:
        reason: Why.
        key_id: Which; `NOBODY` if it is unknown.
    """

    reason: Refused
    key_id: str = NOBODY


Sample = tuple[str, Mapping[str, str], int]
"""Name of a number, its labels, and how much it is."""


class KeyCounts:
    """The numbers of one process. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: set[str] = set()
        self._passed: dict[tuple[str, str], int] = {}
        self._refused: dict[tuple[str, str], dict[Refused, int]] = {}

    def passed(self, transport: str, key_id: str) -> None:
        """A request was let through."""
        with self._lock:
            try:
                self._passed[transport, key_id] += 1
            except KeyError:
                name = transport, self._bounded(key_id)
                self._passed[name] = self._passed.get(name, 0) + 1

    def refused(self, transport: str, refusal: Refusal) -> None:
        """A request was refused because of its key."""
        with self._lock:
            name = transport, self._bounded(refusal.key_id)
            reasons = self._refused.setdefault(name, {})
            reasons[refusal.reason] = reasons.get(refusal.reason, 0) + 1

    def read(self) -> Iterator[Sample]:
        """Every number since the start."""
        with self._lock:
            passed = dict(self._passed)
            refused = {name: dict(reasons) for name, reasons in self._refused.items()}
        for name in sorted(passed.keys() | refused.keys()):
            labels = {"transport": name[0], "key_id": name[1]}
            reasons = refused.get(name, {})
            # Not counted on its own: a request is counted once it is known what became of it.
            yield "in", labels, passed.get(name, 0) + sum(reasons.values())
            yield "out", labels, passed.get(name, 0)
            for reason, count in reasons.items():
                yield "refused", {**labels, "reason": str(reason)}, count

    def _bounded(self, key_id: str) -> str:
        if key_id not in self._keys and key_id != NOBODY:
            if len(self._keys) >= MAX_KEYS:
                return OTHER
            self._keys.add(key_id)
        return key_id
