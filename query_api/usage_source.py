"""Where usage is: in the database, and in the spool until it is there."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from otel_metering.contract.meter import Meters
from receiver.store.client import Store


class Pending(Protocol):
    """What waits for the database, up to the entry of this number."""

    @property
    def number(self) -> int:
        """Of the last entry."""
        ...

    @property
    def events(self) -> pa.Table | None:
        """Rows of `metering.events`; None: there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where usage is.

    Attributes:
        name: Of the spool: the numbers are its.
        store: The database.
        at_rest: While it is entered, the database and what it yields together have each event once;
            takes the seconds that it may wait. Raises UnavailableError.
        meters: The definitions in force.
    """

    name: str
    store: Store
    at_rest: Callable[[float], AbstractContextManager[Pending]]
    meters: Callable[[], Meters]
