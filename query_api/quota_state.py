"""Puts the parts of quotas together, starts them, and stops them in order."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters
from otel_metering.contract.quota import Enforcement
from otel_metering.errors import UnavailableError
from query_api.config import Settings
from query_api.counters import Counters
from query_api.counters_memory import MemoryCounters
from query_api.counters_redis import RedisCounters
from query_api.gate import Gate
from query_api.journal import Journal
from query_api.keeper import Keeper, Pace
from query_api.quota_usage import oldest_pending
from query_api.quota_writer import QuotaWriter
from query_api.tally import Tally
from query_api.usage_source import Source
from query_api.verdicts import Outage, Policy
from receiver.store.client import Store
from receiver.store.quotas import Quotas

REST_SECONDS: Final = 5.0
"""How long the writer may take to come to rest, for a look at what waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaSettings:
    """How quotas are kept.

    Attributes:
        journal: File of the reservations that are made here.
        redis_url: Where counters live; None: in this process.
        policy: What is answered where they cannot be had.
        pace: How often they are looked after.
        usage_seconds: Between writes of `metering.quota_usage`; 0: it is not written here.
    """

    journal: Path
    redis_url: str | None = None
    policy: Policy = field(default_factory=Policy)
    pace: Pace = field(default_factory=Pace)
    usage_seconds: float = 0.0

    @classmethod
    def of(cls, settings: Settings, data_dir: Path) -> "QuotaSettings":
        """From the settings of the query API."""
        answers = {
            Enforcement.HARD: settings.quota_hard_unavailable,
            Enforcement.SOFT: settings.quota_soft_unavailable,
        }
        allows = frozenset(kind for kind, answer in answers.items() if answer == "open")
        url = settings.redis_url
        return cls(
            journal=data_dir / "quota.db",
            redis_url=url.get_secret_value() if url else None,
            policy=Policy(load_seconds=settings.quota_load_seconds, allows=allows),
            pace=Pace(
                reconcile_seconds=settings.quota_reconcile_seconds,
                recovery_seconds=settings.quota_recovery_seconds,
            ),
            usage_seconds=settings.quota_usage_seconds,
        )


Add = Callable[..., None]
"""`Telemetry.add` of the stage `quota`: name, count, labels."""


def no_telemetry(name: str, count: int, **labels: str) -> None:
    """Count nothing."""


class QuotaState:
    """Every part of quotas.

    Attributes:
        table: The definitions.
        gate: Decides.
        tally: Counts.
        counters: Where counters live.
    """

    def __init__(
        self,
        settings: QuotaSettings,
        *,
        store: Store,
        meters: Callable[[], Meters],
        source: Source,
        clock: Clock,
        add: Add = no_telemetry,
    ) -> None:
        """Open the journal; nothing is read yet.

        Raises:
            ConfigurationError: The journal cannot be used.
        """
        self.table = Quotas(store, clock)
        self._journal = Journal(settings.journal)
        self.counters: Counters = (
            RedisCounters(settings.redis_url) if settings.redis_url else MemoryCounters(clock)
        )
        self._outage = Outage()
        self.gate = Gate(
            quotas=lambda: [one.definition for one in self.table.list()],
            meters=meters,
            counters=self.counters,
            journal=self._journal,
            clock=clock,
            outage=self._outage,
            policy=settings.policy,
            count_unavailable=lambda kind: add("unavailable", 1, enforcement=kind),
        )
        self.tally = Tally(
            counters=self.counters,
            source=source,
            book=lambda: self.gate.book,
            clock=clock,
            on_settled=self.gate.settled,
            add=add,
            load_seconds=settings.policy.load_seconds,
            is_inline=settings.redis_url is None,
        )
        self.gate.follow(self.tally)
        self._keeper = Keeper(
            gate=self.gate,
            tally=self.tally,
            counters=self.counters,
            journal=self._journal,
            source=source,
            outage=self._outage,
            clock=clock,
            pace=settings.pace,
            add=add,
        )
        self._writer = QuotaWriter(
            store,
            clock,
            quotas=lambda: [one.definition for one in self.table.list()],
            meters=meters,
            oldest_waiting=lambda: _oldest_waiting(source),
            interval_seconds=settings.usage_seconds,
        )
        self._writes_usage = settings.usage_seconds > 0

    def start(self) -> None:
        """Read the quotas, have the reservations of before, and start the threads.

        Raises:
            MeteringError: The quotas could not be read.
        """
        self.table.start(self.gate.reload)
        self.tally.start()
        self._keeper.start()
        if self._writes_usage:
            self._writer.start()

    def stop(self) -> None:
        """End the threads; close what is open. Nothing may ask any more."""
        self._writer.stop()
        self._keeper.stop()
        self.tally.stop()
        self.table.stop()
        self._journal.close()
        if isinstance(self.counters, RedisCounters):
            self.counters.close()

    async def aclose(self) -> None:
        """Close what belongs to the event loop, before it ends."""
        if isinstance(self.counters, RedisCounters):
            await self.counters.aclose()


def _oldest_waiting(source: Source) -> int:
    """No usage of before this instant (ns) waits for the database."""
    try:
        with source.at_rest(REST_SECONDS) as pending:
            return oldest_pending(pending.events)
    except UnavailableError:
        return 0
