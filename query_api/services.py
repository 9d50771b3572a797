"""What the routes work with; `embedded.py`, or a test, puts it together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, Protocol
from uuid import UUID

from fastapi import Depends, Request

from otel_metering.clock import Clock
from otel_metering.contract.event import Admission, UsageEvent
from otel_metering.contract.meter import Meters, Signal
from otel_metering.errors import UnavailableError
from query_api.quota_state import QuotaState
from receiver.store.audit import AuditLog
from receiver.store.client import ReadLimits, Store
from receiver.store.corrections import Correction
from receiver.store.keys import ApiKeys, Principal
from receiver.store.meters import ApiMeters

DEFAULT_LIMITS: Final = ReadLimits(seconds=30.0, rows=1_000_000_000)


class Fate(StrEnum):
    """What became of an item of quarantine."""

    REPLAYED = "replayed"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"
    IGNORED = "ignored"
    UNKNOWN_KEY = "unknown_key"
    UNAVAILABLE = "unavailable"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An item of quarantine as it was sent.

    Attributes:
        signal: Which; never an event of the JSON API.
        payload: An OTLP export request with this item, protobuf.
        key_id: The key that sent it.
        bound_tenant: The only tenant that this key may write; None: any.
    """

    signal: Signal
    payload: bytes
    key_id: str
    bound_tenant: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resubmitted:
    """What became of an item that was sent again, and why."""

    fate: Fate
    detail: str = ""


class Resubmit(Protocol):
    """Sends items through ingest again."""

    def __call__(self, items: Sequence[Held], *, is_dry: bool) -> Sequence[Resubmitted]:
        """The fate of each, in their order, once it is durable; `is_dry`: what it would be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrector:
    """What corrects events: a receiver in this process.

    Attributes:
        identify: The UUID under which (tenant, meter, id of the sender) is stored.
        submit: Makes a correction durable; False: the event was corrected before, nothing was changed.
            Raises UnavailableError: whether it was made is unknown, ask again; InvalidUsageError: it
            cannot be made.
        replacement_of: The UUID of what counts instead of an event, if anything does.
        settled: Returns a function that says whether all that was durable at the call is in the database.
    """

    identify: Callable[[str, str, str], UUID]
    submit: Callable[[Correction, Principal], bool]
    replacement_of: Callable[[UUID], UUID]
    settled: Callable[[], Callable[[], bool]]


def no_receiver(items: Sequence[Held], *, is_dry: bool) -> Sequence[Resubmitted]:
    """Nothing can be sent again from a process without a receiver."""
    detail = "there is no receiver in this process"
    return [Resubmitted(fate=Fate.UNAVAILABLE, detail=detail) for _ in items]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything outside of the API that it needs.

    Attributes:
        store: Where usage is read.
        keys: Who may ask.
        clock: The present.
        meters: The definitions in force: those of the file, and those made by API.
        file_meters: Those of `meters.yaml` alone.
        made_meters: Those made by API; None: none can be made here.
        quota_state: How much may be used; None: it is decided in another process.
        submit: Admits events; blocks until all that it accepts is durable. It rejects single events
            by index, and raises UnavailableError if nothing may be accepted now.
        metrics: The numbers of the receiver in this process, in the text format of Prometheus; None:
            there is no receiver here.
        is_metrics_public: Whether they may be read without a key.
        resubmit: Sends items of quarantine through ingest again.
        corrector: Corrects events; None: there is no receiver here.
        limits: What one read may cost.
        checks: Health, by name: each returns a short detail, or raises MeteringError.
        upstreams: The same of other processes; without them this one still answers what it can.
    """

    store: Store
    keys: ApiKeys
    clock: Clock
    meters: Callable[[], Meters]
    quota_state: QuotaState | None
    submit: Callable[[Sequence[UsageEvent], Principal], Admission]
    checks: Mapping[str, Callable[[], str]]
    metrics: Callable[[], str] | None = None
    is_metrics_public: bool = False
    resubmit: Resubmit = no_receiver
    corrector: Corrector | None = None
    limits: ReadLimits = DEFAULT_LIMITS
    file_meters: Callable[[], Meters] = Meters
    made_meters: ApiMeters | None = None
    upstreams: Mapping[str, Callable[[], str]] = field(default_factory=dict)

    @property
    def quotas(self) -> QuotaState:
        """How much may be used.

        Raises:
            UnavailableError: It is decided in another process.
        """
        if self.quota_state is None:
            raise UnavailableError(
                "quotas are not counted in this process; ask where the receiver runs"
            )
        return self.quota_state

    @property
    def audit(self) -> AuditLog:
        """Where administrative changes are recorded; `query_api.audit` is the way to it."""
        return AuditLog(self.store, self.clock)


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)  # noqa: S101 - create_app put it there
    return services


ServicesDep = Annotated[Services, Depends(_services)]
