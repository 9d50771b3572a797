"""`MeteringClient`: sends what the operations ask for, and waits."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from otel_metering._config import read_client_settings
from otel_metering.client import _access_operations as access
from otel_metering.client import _http
from otel_metering.client import _operations as operations
from otel_metering.client import _quota_operations as quotas
from otel_metering.client._held import Wanted
from otel_metering.client._request import Number
from otel_metering.client._sync_sender import Does, Exports, Iterates, Sender
from otel_metering.client.results import Decision, Reservation
from otel_metering.contract.event import Admission
from otel_metering.errors import MeteringError

_log = logging.getLogger("otel_metering")


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


class MeteringClient(Sender):
    """The query API, asked by a program that waits. Any thread may use it; close it at the end.

    Every call may raise ConfigurationError and InvalidUsageError before anything is sent, ApiError when
    the service says no, and NoAnswerError when it does not answer, or says "not now", to the last.

    Args:
        url: Of the service; None: `METERING_API_URL`, else `http://127.0.0.1:8080`.
        api_key: Or a token; None: `METERING_API_KEY`.
        timeout: Seconds for one attempt [30].
        connect_timeout: Seconds to connect [5].
        total_timeout: Seconds for all attempts of a call, and the pauses between them [120].
        max_retries: Attempts after the first one [4].
        certificate_file: CA certificates (PEM) for https; None: `METERING_CERTIFICATE_FILE`, else the
            system's.
        edges: Clock, randomness and ids.
        wait: Waits for some seconds between two attempts.

    Raises:
        ConfigurationError: An argument or a variable is wrong, or there is no key.
    """

    request: Final = Does(operations.request)
    usage: Final = Does(operations.usage)
    meters: Final = Does(operations.meters)
    event: Final = Does(operations.event)
    iter_events: Final = Iterates(operations.iter_events)
    export_events: Final = Exports(operations.export_events)
    void: Final = Does(operations.void)
    correct: Final = Does(operations.correct)
    iter_corrections: Final = Iterates(operations.iter_corrections)

    validate: Final = Does(quotas.validate)
    validate_many: Final = Does(quotas.validate_many)
    reservation: Final = Does(quotas.reservation)
    commit: Final = Does(quotas.commit)
    extend: Final = Does(quotas.extend)
    release: Final = Does(quotas.release)
    set_quota: Final = Does(quotas.set_quota)
    quota: Final = Does(quotas.quota)
    iter_quotas: Final = Iterates(quotas.iter_quotas)
    delete_quota: Final = Does(quotas.delete_quota)
    iter_quota_status: Final = Iterates(quotas.iter_quota_status)

    create_key: Final = Does(access.create_key)
    keys: Final = Does(access.keys)
    rotate_key: Final = Does(access.rotate_key)
    revoke_key: Final = Does(access.revoke_key)
    create_token: Final = Does(access.create_token)
    iter_audit: Final = Iterates(access.iter_audit)

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        connect_timeout: float | None = None,
        total_timeout: float | None = None,
        max_retries: int | None = None,
        certificate_file: str | None = None,
        edges: _http.Edges = _http.EDGES,
        wait: Callable[[float], object] = _wait,
    ) -> None:
        settings = read_client_settings(
            url=url,
            api_key=api_key,
            timeout=timeout,
            connect_timeout=connect_timeout,
            total_timeout=total_timeout,
            max_retries=max_retries,
            certificate_file=certificate_file,
        )
        super().__init__(settings, edges=edges, wait=wait)

    def send_events(self, events: Iterable[operations.NewEvent]) -> Admission:
        """Send usage, in as many requests as it takes; all that was accepted is durable when this returns.

        An event without an id gets one, so that it counts once however often it is sent. When this raises,
        earlier requests may have been accepted: give the events ids of your own if you will send them again.

        Returns:
            Of all requests together; indexes are those of `events`.
        """
        return self.run(operations.send_events(self._edges.new_id, events))

    def reserve(
        self,
        tenant_id: str,
        meter: str,
        quantity: Number,
        *,
        dimensions: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        lease: bool = False,
        reservation_id: str | None = None,
    ) -> "HeldReservation":
        """Take units from the quotas, before they are used. In a `with` block it gives back what is left.

        Args:
            tenant_id: Whose quotas.
            meter: Its slug.
            quantity: The most that will be used.
            dimensions: Of the usage.
            ttl_seconds: After so long it ends by itself; None: a minute.
            lease: Take usage from it piece by piece: events with the attribute `metering.reservation.id`.
            reservation_id: None: the client makes one.

        Raises:
            QuotaExceededError: A quota denies it.
        """
        wanted = Wanted(
            reservation_id=reservation_id or self._edges.new_id(),
            tenant_id=tenant_id,
            meter=meter,
            quantity=quantity,
            dimensions=dimensions,
            ttl_seconds=ttl_seconds,
            lease=lease,
        )
        return HeldReservation(self, wanted, self.run(wanted.take()), self._edges)


class HeldReservation:
    """Units that are held for this program, until it commits, releases, or the time is up.

    Leaving a `with` block releases what was not committed; when that fails, the reservation ends by itself.

    Attributes:
        reservation_id: Of the reservation; usage may carry it as `metering.reservation.id`.
        decision: What the quotas said.
    """

    def __init__(
        self, client: MeteringClient, wanted: Wanted, decision: Decision, edges: _http.Edges
    ) -> None:
        self.reservation_id: str = wanted.reservation_id
        self.decision: Decision = decision
        self._client = client
        self._wanted = wanted
        self._edges = edges
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except MeteringError as failed:
            _log.warning(
                "a reservation could not be released and ends by itself: %s",
                failed,
                extra={"event": "reservation_not_released"},
            )

    def commit(
        self,
        quantity: Number | None = None,
        *,
        timestamp: datetime | str | None = None,
        attributes: quotas.Attributes | None = None,
    ) -> None:
        """Count what was really used, durably, and end the reservation.

        Without a quota there is no reservation; then the usage is sent as an event (scope `ingest`).

        Args:
            quantity: None: all that was reserved.
            timestamp: Of the usage; None: now.
            attributes: Of the usage, beside the dimensions that were reserved for.

        Raises:
            InvalidUsageError: It can never be counted as it is.
        """
        self._client.run(
            self._wanted.count(
                self.decision,
                quantity,
                timestamp=timestamp,
                attributes=attributes,
                new_id=self._edges.new_id,
            )
        )
        self._is_open = False

    def extend(self, ttl_seconds: int) -> Reservation | None:
        """Let it end `ttl_seconds` from now; None: nothing is held, as there is no quota."""
        if self.decision.reservation_id is None:
            return None
        return self._client.extend(self.decision.reservation_id, ttl_seconds)

    def release(self) -> None:
        """Give back what was not committed. Repeating it changes nothing."""
        if self._is_open and self.decision.reservation_id is not None:
            self._client.release(self.decision.reservation_id)
        self._is_open = False
