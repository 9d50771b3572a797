"""What is done to counters and reservations: operations as values, the same for every place they live in.

Each operation is about one tag (tenant and meter), is atomic, and may be done again after an error of
unknown outcome: it then has no further effect. A counter that nobody `Put` is missing, and no missing
counter is ever counted into: what it would lack nobody could tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from query_api.quotas import Tag

GRACE_MS: Final = 2_000
"""How long the units of a reservation stay held beyond its end: usage that was acknowledged just before
it may still be on its way to the counters."""

KEPT_MS: Final = 600_000
"""How long a reservation is remembered behind its time: at 1,000 a second that are some 350 MB in Python."""

Pairs = tuple[tuple[str, str], ...]


class State(StrEnum):
    """What became of a reservation."""

    ACTIVE = "active"
    SETTLED = "settled"
    """Usage came that carries its id."""
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Units that are held.

    Attributes:
        tag: Tenant and meter.
        reservation_id: Unique in its tag.
        quantity: What was asked for.
        left: What is still held of it.
        dimensions: Of the usage that is to come.
        is_lease: Whether usage takes its quantity from it, instead of ending it.
        state: What became of it.
        expires_ms: End of its time, in milliseconds since the epoch.
        scopes: What it is held for, see `Rule.scope`.
    """

    tag: Tag
    reservation_id: str
    quantity: int
    left: int
    dimensions: Pairs
    is_lease: bool
    state: State
    expires_ms: int
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Units to hold, if all counters have room for them."""

    reservation_id: str
    ttl_ms: int
    dimensions: Pairs
    is_lease: bool
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """Read counters, and hold units if they fit into all of them.

    Attributes:
        tag: Tenant and meter.
        lines: (counter, scope, ceiling; None: none) of each.
        quantity: How much.
        asked: What to hold; None: nothing.
    """

    tag: Tag
    lines: tuple[tuple[str, str, int | None], ...]
    quantity: int
    asked: Asked | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer to a `Check`.

    Attributes:
        used: Of each line; None: the counter is missing.
        reserved: Of each line, what was just reserved included.
        reservation: What is held, or had been under this id before; None: nothing.
        is_new: Whether it was made now.
    """

    used: tuple[int | None, ...]
    reserved: tuple[int, ...]
    reservation: Reservation | None = None
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """Usage that carries the id of a reservation; `is_commit`: it is the commit of it."""

    reservation_id: str
    amount: int
    is_commit: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """Add usage, and end the reservations that it settles.

    Attributes:
        tag: Tenant and meter.
        source: Who counts.
        number: Of this count; one that is not above the last of its source was done before.
        deltas: (counter, amount); a missing counter stays missing.
        settlements: In their order.
    """

    tag: Tag
    source: str
    number: int
    deltas: tuple[tuple[str, int], ...]
    settlements: tuple[Settlement, ...] = ()


@dataclass(frozen=True, slots=True)
class Counted:
    """The answer to a `Count`: the counters that are missing, and the reservations that it touched."""

    missing: tuple[str, ...] = ()
    settled: tuple[Reservation, ...] = ()


@dataclass(frozen=True, slots=True)
class Find:
    """The reservation of this id."""

    tag: Tag
    reservation_id: str


@dataclass(frozen=True, slots=True)
class End:
    """End a reservation: it becomes `state`, unless it has ended; a commit also ends what has expired."""

    tag: Tag
    reservation_id: str
    state: State


@dataclass(frozen=True, slots=True)
class Extend:
    """From now on a reservation has `ttl_ms`, if it is active."""

    tag: Tag
    reservation_id: str
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Have this reservation, unless it is there."""

    reservation: Reservation

    @property
    def tag(self) -> Tag:
        """Tenant and meter."""
        return self.reservation.tag


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold the active reservation for this scope as well, if it is not."""

    tag: Tag
    reservation_id: str
    scope: str


@dataclass(frozen=True, slots=True)
class Active:
    """Every active reservation of a tag."""

    tag: Tag


@dataclass(frozen=True, slots=True)
class Put:
    """A counter has this value from now on; it may be forgotten after `until_ms` (None: kept long)."""

    tag: Tag
    key: str
    value: int
    until_ms: int | None


@dataclass(frozen=True, slots=True)
class Adjust:
    """Correct a counter, unless it is missing."""

    tag: Tag
    key: str
    delta: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a counter."""

    tag: Tag
    key: str


class Counters(Protocol):
    """A place where counters live. Any thread may call any method, the asynchronous ones on one event loop.

    Raises, all of them: UnavailableError: they cannot be reached; whether it was done is unknown.
    """

    def check(self, check: Check) -> Checked:
        """Read counters, and hold units."""
        ...

    async def check_soon(self, check: Check) -> Checked:
        """As `check`, without blocking."""
        ...

    def count(self, counts: Sequence[Count]) -> list[Counted]:
        """Add usage; each atomically."""
        ...

    def touch(self, operation: Find | End | Extend | Hold) -> Reservation | None:
        """Do something to a reservation; returns it as it then is. None: there is none."""
        ...

    def active(self, operation: Active) -> list[Reservation]:
        """Every active reservation of a tag."""
        ...

    def change(self, operations: Sequence[Put | Adjust | Drop | Restore]) -> None:
        """Do these, one by one."""
        ...

    def locate(self, reservation_id: str) -> list[Tag]:
        """The tags that have a reservation of this id."""
        ...
