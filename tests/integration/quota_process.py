"""The whole of quotas in one process: receiver, writer, database, gate, without the network."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from otel_metering.clock import Clock, SystemClock
from otel_metering.contract.event import UsageEvent
from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters, Signal
from otel_metering.contract.quota import Period, QuotaDefinition
from otel_metering.spool import open_spool
from query_api.keeper import Pace
from query_api.quota_state import QuotaSettings, QuotaState
from query_api.quotas import to_nano
from query_api.usage_source import Source
from query_api.verdicts import Policy, Question, Verdict
from receiver.admit import Outcome
from receiver.ingest import Ingest, Limits, Work
from receiver.metering import Metering
from receiver.pending import standstill
from receiver.seen import SeenIds
from receiver.store.client import Store
from receiver.store.migrate import migrate
from receiver.usage import Sender
from receiver.writer import Writer

SENDER = Sender(key_id="k", bound_tenant=None)
METERS = Meters(
    (
        MeterDefinition(slug="api.calls", group_by=("region",)),
        MeterDefinition(slug="requests", aggregation=Aggregation.COUNT, group_by=()),
        MeterDefinition(slug="level", aggregation=Aggregation.MAX, group_by=()),
    )
)


@dataclass
class Process:
    ingest: Ingest
    writer: Writer
    store: Store
    quotas: QuotaState
    loop: asyncio.AbstractEventLoop
    told: list[tuple[str, int]] = field(default_factory=list)

    def put(self, limit: str, **how: object) -> QuotaDefinition:
        fields = {"meter": "api.calls", "period": Period.LIFETIME, "tenant_id": "t", **how}
        made = QuotaDefinition(limit=Decimal(limit), **fields)  # type: ignore[arg-type]
        self.quotas.table.put(made)
        return made

    def send(self, events: Sequence[UsageEvent]) -> Outcome:
        work = Work(sender=SENDER, signal=Signal.EVENT, events=events)
        return self.ingest.submit(work).result(30)

    def ask(self, quantity: str = "0", **how: object) -> Verdict:
        tag = str(how.pop("tenant", "t")), str(how.pop("meter", "api.calls"))
        question = Question(tag, to_nano(Decimal(quantity)), **how)  # type: ignore[arg-type]
        done = asyncio.run_coroutine_threadsafe(self.quotas.gate.check(question), self.loop)
        return done.result(60)

    def used(self, **how: object) -> Decimal:
        """What the gate says is used."""
        binding = self.ask("0", **how).decision.binding
        assert binding is not None
        return Decimal(binding.used).scaleb(-9)

    def counted(self, name: str) -> int:
        return sum(count for what, count in self.told if what == name)


def event(quantity: str = "1", **how: object) -> UsageEvent:
    fields = {"tenant_id": "t", "meter": "api.calls", **how}
    return UsageEvent(quantity=Decimal(quantity), **fields)  # type: ignore[arg-type]


@contextmanager
def process(
    folder: Path,
    *,
    redis_url: str | None = None,
    clock: Clock | None = None,
    policy: Policy | None = None,
    pace: Pace | None = None,
    meters: Callable[[], Meters] = lambda: METERS,
    writes: bool = True,
    usage_seconds: float = 0.0,
) -> Iterator[Process]:
    clock = clock or SystemClock()
    spool = open_spool(folder / "spool.db")
    store = Store(f"chdb://{folder / 'db'}")
    migrate(store, clock)
    writer = Writer(spool, store, clock)
    ingest = Ingest(
        metering=Metering(meters()),
        seen=SeenIds(),
        spool=spool,
        clock=clock,
        limits=Limits(max_queue_bytes=10**8),
        pace=writer.pace,
        on_commit=writer.notify,
    )
    told: list[tuple[str, int]] = []
    quotas = QuotaState(
        QuotaSettings(
            journal=folder / "quota.db",
            redis_url=redis_url,
            policy=policy or Policy(),
            pace=pace or Pace(reconcile_seconds=3_600, recovery_seconds=0.2),
            usage_seconds=usage_seconds,
        ),
        store=store,
        meters=meters,
        source=Source(
            name=spool.mark.spool_id,
            store=store,
            at_rest=lambda timeout: standstill(spool, writer, timeout),
            meters=meters,
        ),
        clock=clock,
        add=lambda name, count, **_: told.append((name, count)),
    )
    ingest.tell(quotas.tally.admitted)
    quotas.tally.begin(spool.mark.appended)
    if writes:
        writer.start()
    ingest.start()
    quotas.start()
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()
    made = Process(ingest, writer, store, quotas, loop, told)
    try:
        yield made
    finally:
        ingest.stop()
        asyncio.run_coroutine_threadsafe(quotas.aclose(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        runner.join()
        loop.close()
        quotas.stop()
        writer.stop(10 if writes else 0)
        spool.close()
        store.close()
