"""What the gate is asked, what it answers, and what it does without counters: values."""

from collections.abc import Callable
from dataclasses import dataclass

from otel_metering.contract.quota import Enforcement
from otel_metering.errors import UnavailableError
from query_api.counters import Pairs, Reservation
from query_api.quotas import Counter, Decision, Standing, Tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is answered where counters cannot be had.

    Attributes:
        load_seconds: How long a check may wait for a counter to be loaded.
        allows: Enforcements whose quotas then allow.
    """

    load_seconds: float = 5.0
    allows: frozenset[Enforcement] = frozenset({Enforcement.SOFT})


@dataclass(frozen=True, slots=True)
class Question:
    """One check.

    Attributes:
        tag: Tenant and meter.
        quantity: In billionths.
        dimensions: Of the usage.
        reservation_id: Hold the units under this id; empty: under a new one; None: do not hold them.
        ttl_ms: For how long.
        is_lease: Whether usage takes its quantity from what is held.
    """

    tag: Tag
    quantity: int
    dimensions: Pairs = ()
    reservation_id: str | None = None
    ttl_ms: int = 60_000
    is_lease: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: the decision, and what is held."""

    decision: Decision
    reservation: Reservation | None = None
    ends_ns: int | None = None
    """End of the period of the quota that decides."""


@dataclass(frozen=True, slots=True)
class Status:
    """A quota, and how much of it is used in the current period."""

    standing: Standing
    counter: Counter


class Outage:
    """Whether counters can be had, and why not; set by the keeper and by whoever notices.

    Attributes:
        is_away: They cannot be reached.
        is_recovering: They were lost, and not everybody has said yet what they held.
        has_held: The journal has reservations that the counters do not know yet.
        notice: Called by whoever could not reach them.
    """

    def __init__(self) -> None:
        self.is_away = False
        self.is_recovering = False
        self.has_held = False
        self.notice: Callable[[], None] = lambda: None

    def check(self) -> None:
        """Raise UnavailableError if counters cannot be had."""
        if self.is_away or self.is_recovering:
            raise UnavailableError("the state of quotas cannot be had at the moment")
