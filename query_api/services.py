"""What the routes work with; `embedded.py`, or a test, puts it together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from otel_metering.clock import Clock
from otel_metering.contract.event import Admission, UsageEvent
from otel_metering.contract.meter import Meters
from receiver.store.client import Store
from receiver.store.keys import ApiKeys, Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything outside of the API that it needs.

    Attributes:
        store: Where usage is read.
        keys: Who may ask.
        clock: The present.
        meters: The definitions in force.
        submit: Admits events; blocks until all that it accepts is durable. It rejects single events
            by index, and raises UnavailableError if nothing may be accepted now.
        checks: Health, by name: each returns a short detail, or raises MeteringError.
    """

    store: Store
    keys: ApiKeys
    clock: Clock
    meters: Callable[[], Meters]
    submit: Callable[[Sequence[UsageEvent], Principal], Admission]
    checks: Mapping[str, Callable[[], str]]


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)  # noqa: S101 - create_app put it there
    return services


ServicesDep = Annotated[Services, Depends(_services)]
