"""What all middlewares do: whose request it is, may it be served, and counting it once.

A middleware opens an `Exchange` for each request, makes its holder current, tells it the status and the
bytes that pass, and closes it. One request may pass several middlewares, of several frameworks: they
share the outermost one's holder, and a meter is counted by the first that claims it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from opentelemetry import trace

from otel_metering._context import Holder, claim_span, current
from otel_metering._guard import Problem, guarded, problems
from otel_metering._leases import Grant, leases
from otel_metering._quantity import NANOS_PER_UNIT
from otel_metering._record import record
from otel_metering._semconv import METHOD, ROUTE, STATUS_CLASS
from otel_metering.contract.attributes import RESERVATION_ID, TENANT_ID
from otel_metering.contract.event import check_name, is_valid_name
from otel_metering.errors import ConfigurationError, InvalidUsageError, QuotaExceededError
from otel_metering.middleware._denial import Denial, denial_of
from otel_metering.middleware._request import Request
from otel_metering.middleware.options import Attributes
from otel_metering.middleware.tenants import Source, first, header, is_blocking

_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_OTHER_METHOD: Final = "_OTHER"
"""Semantic conventions, HTTP: a method that is not known, which may be any text."""

_STATUS_CLASSES: Final = (None, "1xx", "2xx", "3xx", "4xx", "5xx")

_WITHOUT_BODY: Final = frozenset({204, 304})
"""RFC 9110, 6.4.1: whatever an application says there, the client sees no body."""

_MAX_KNOWN_DIMENSIONS: Final = 4096

_MAX_MIDDLEWARES: Final = 8
"""On one request that are asked for its route; a websocket may make requests of its own for days."""


class RequestHolder(Holder):
    """The tenant of a request, shared by all its middlewares.

    Attributes:
        requests: What each middleware knows of it, outermost first.
        is_over: Code may still run in its context, but not on its behalf.
    """

    __slots__ = ("is_over", "requests")

    def __init__(self, previous: Holder) -> None:
        super().__init__(None, previous=previous)
        self.requests: list[Request] = []
        self.is_over = False


class Metering:
    """The options of one middleware, checked.

    Attributes:
        is_blocking: Whether `open` may wait for the network.

    Raises:
        ConfigurationError: An option cannot be used; the message names it.
    """

    def __init__(
        self,
        *,
        tenant: Source | Sequence[Source] | None = None,
        tenant_header: str | None = None,
        requests: str | None = None,
        request_bytes: str | None = None,
        response_bytes: str | None = None,
        quota: Literal["enforce"] | None = None,
        attributes: Attributes | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        self.source = _source_of(tenant, tenant_header)
        self.is_blocking = is_blocking(self.source)
        self.requests = requests
        self.request_bytes = request_bytes
        self.response_bytes = response_bytes
        self.meters = _checked_meters(requests, request_bytes, response_bytes)
        self.asks = _is_enforced(quota, requests)
        self.attributes = attributes
        self.exclude = _pattern_of(exclude)
        self.known: dict[tuple[str, str | None, int], dict[str, str]] = {}

    def open(self, request: Request) -> "Exchange":
        """Begin to serve `request`: find its tenant, and claim the meters that it is counted by."""
        outer = current.get()
        if type(outer) is RequestHolder and not outer.is_over:
            holder, is_outermost = outer, False
        else:
            holder, is_outermost = RequestHolder(outer), True
        if len(holder.requests) < _MAX_MIDDLEWARES:
            holder.requests.append(request)
        exchange = Exchange(self, request, holder, is_outermost=is_outermost)
        # Claims first: a source that fails must not make others count as well.
        with guarded:
            if self.meters and not (self.exclude and self.exclude.fullmatch(request.path)):
                exchange.claim(self.meters)
            span = trace.get_current_span()
            is_recording = span.is_recording()
            if is_recording:
                if is_outermost:
                    holder.span = span
                if holder.claimed:
                    claim_span(span, holder.claimed)
            self._identify(holder, request)
            if is_recording and holder.tenant is not None:
                span.set_attribute(TENANT_ID, holder.tenant)
        return exchange

    def dimensions(self, method: str, route: str | None, status: int | None) -> dict[str, str]:
        """The dimensions of a request; not to be changed."""
        status_class = 0 if status is None or not 100 <= status < 600 else status // 100
        key = (method, route, status_class)
        found = self.known.get(key)
        if found is None:
            found = {METHOD: method if method in _METHODS else _OTHER_METHOD}
            if route is not None:
                found[ROUTE] = route
            name = _STATUS_CLASSES[status_class]
            if name is not None:
                found[STATUS_CLASS] = name
            # Methods that nobody knows are any text: not to fill the memory with them.
            if method in _METHODS and len(self.known) < _MAX_KNOWN_DIMENSIONS:
                self.known[key] = found
        return found

    def _identify(self, holder: RequestHolder, request: Request) -> None:
        tenant = self.source(request)
        if tenant is None:
            return
        if is_valid_name(tenant):
            holder.tenant = tenant
        else:
            problems.report(Problem.IGNORED_TENANTS, "a request's tenant is not a valid id")


class Exchange:
    """One request on its way through one middleware.

    Attributes:
        holder: What is current while it is served.
        meters: Which this middleware counts for it; empty: none, nothing need be measured.
        status: Of the response; None: there was none.
        request_bytes: Of the request's body, as far as it was read.
        response_bytes: Of the response's body, as far as it was sent.
        is_read: The request's body was read to its end.
        is_gone: The client is known to have left.
    """

    __slots__ = (
        "_grant",
        "_granted_to",
        "_is_counted",
        "_is_outermost",
        "_metering",
        "_request",
        "holder",
        "is_gone",
        "is_read",
        "meters",
        "request_bytes",
        "response_bytes",
        "status",
    )

    def __init__(
        self, metering: Metering, request: Request, holder: RequestHolder, *, is_outermost: bool
    ) -> None:
        self._metering = metering
        self._request = request
        self._is_outermost = is_outermost
        self._is_counted = True
        self._grant: Grant | None = None
        self._granted_to: str | None = None
        self.holder = holder
        self.meters: frozenset[str] = frozenset()
        self.status: int | None = None
        self.request_bytes = 0
        self.response_bytes = 0
        self.is_read = False
        self.is_gone = False

    def claim(self, meters: frozenset[str]) -> None:
        """Count those of `meters` that nobody outside of this middleware counts already."""
        claimed = self.holder.claimed
        self.meters = meters - claimed if claimed else meters
        self.holder.claimed = claimed | meters
        self._is_counted = not self.meters

    @property
    def asks(self) -> bool:
        """Whether the quota must be asked before the request is served."""
        return self._metering.asks and self._metering.requests in self.meters

    def take(self) -> Denial | None:
        """Take the unit that the request will use from its quota; None: it may be served."""
        with guarded:
            meter, tenant = self._asked()
            try:
                self._grant = leases.take(meter, tenant, NANOS_PER_UNIT)
            except QuotaExceededError as error:
                return self._deny(error)
        return None

    async def take_async(self) -> Denial | None:
        """As `take`, without holding up the event loop."""
        with guarded:
            meter, tenant = self._asked()
            try:
                self._grant = await leases.take_async(meter, tenant, NANOS_PER_UNIT)
            except QuotaExceededError as error:
                return self._deny(error)
        return None

    def started(self, status: int | None) -> None:
        """The response starts: the application is still at work on it, and knows its route."""
        self.status = status
        with guarded:
            _ = self._request.route

    def fail(self) -> None:
        """The application raised an error, or ended without a response: the server answers 500."""
        if self.status is None and not self.is_gone:
            self.status = 500

    def count(self) -> None:
        """Count the request, unless that was done."""
        if not self._is_counted:
            self._is_counted = True
            with guarded:
                self._count()

    def close(self) -> None:
        """The request is over."""
        self.count()
        if self._is_outermost:
            # What runs on in its context, such as a task that it started, counts for itself.
            holder = self.holder
            holder.is_over = True
            holder.claimed = holder.previous.claimed if holder.previous else frozenset()

    def _asked(self) -> tuple[str, str | None]:
        self._granted_to = self.holder.tenant
        return self._metering.requests or "", self._granted_to

    def _deny(self, error: QuotaExceededError) -> Denial:
        self._is_counted = True
        self.status = 429
        return denial_of(error, self._metering.requests or "")

    def _count(self) -> None:
        holder, metering, meters = self.holder, self._metering, self.meters
        method = self._request.method
        attributes: Mapping[str, object] = metering.dimensions(method, self._route(), self.status)
        if metering.attributes is not None:
            attributes = self._extended(attributes, metering.attributes)
        # Code of the application may have another tenant current for a part of its work.
        token = None if current.get() is holder else current.set(holder)
        try:
            if metering.requests in meters:
                self._count_request(metering.requests, attributes)
            if metering.request_bytes in meters:
                size = self._request_size()
                if size:
                    record(metering.request_bytes, size, attributes=attributes)
            if metering.response_bytes in meters:
                size = 0 if method == "HEAD" else self.response_bytes
                if size and self.status not in _WITHOUT_BODY:
                    record(metering.response_bytes, size, attributes=attributes)
        finally:
            if token is not None:
                current.reset(token)

    def _count_request(self, meter: str, attributes: Mapping[str, object]) -> None:
        grant = self._grant
        if grant is None:
            record(meter, attributes=attributes)
        elif self._granted_to != self.holder.tenant:
            # The tenant turned out to be another one, and that one's units were not taken.
            record(meter, attributes=attributes)
            leases.settle(grant, 0)
        else:
            if grant.reservation_id is not None:
                attributes = {**attributes, RESERVATION_ID: grant.reservation_id}
            record(meter, attributes=attributes)
            leases.settle(grant, NANOS_PER_UNIT)

    def _extended(
        self, dimensions: Mapping[str, object], attributes: Attributes
    ) -> Mapping[str, object]:
        with guarded:
            return {**dimensions, **attributes(self._request, self.status)}
        return dimensions

    def _route(self) -> str | None:
        # The outermost first: the others may be those of a request that its application makes itself.
        for request in self.holder.requests:
            route = request.route
            if route is not None:
                return route
        return None

    def _request_size(self) -> int:
        """Bytes of the request's body.

        An application that does not read a body leaves it to the server to do so, and to the length that
        the client announced to say how much it was.
        """
        if self.is_read or self.is_gone:
            return self.request_bytes
        length = self._request.header("content-length")
        # A client that waits to be told to go on may never send it.
        if length is None or not length.isdecimal() or self._request.header("expect") is not None:
            return self.request_bytes
        return max(self.request_bytes, int(length))


def _source_of(tenant: Source | Sequence[Source] | None, tenant_header: str | None) -> Source:
    if tenant is None:
        return header("x-tenant-id" if tenant_header is None else tenant_header)
    if tenant_header is not None:
        raise ConfigurationError("tenant and tenant_header are both given; give one")
    if callable(tenant):
        return tenant
    if not tenant or not all(map(callable, tenant)):  # characters of a text are not callable either
        raise ConfigurationError(
            f"tenant is {tenant!r}; give a source such as header('x-tenant-id'), or several"
        )
    return first(*tenant)


def _checked_meters(*meters: str | None) -> frozenset[str]:
    given = [meter for meter in meters if meter is not None]
    try:
        for meter in given:
            check_name("meter", meter)
    except InvalidUsageError as error:
        raise ConfigurationError(str(error)) from error
    if len(set(given)) < len(given):
        raise ConfigurationError(
            "requests, request_bytes and response_bytes need a meter each, or their sums get mixed"
        )
    return frozenset(given)


def _is_enforced(quota: str | None, requests: str | None) -> bool:
    if quota is None:
        return False
    if quota != "enforce" or requests is None:
        raise ConfigurationError(
            f'quota is {quota!r}; it may be "enforce", together with requests, whose quota is meant'
        )
    return True


def _pattern_of(exclude: Sequence[str]) -> re.Pattern[str] | None:
    if type(exclude) is str:  # a sequence too, of its characters
        raise ConfigurationError(f"exclude is {exclude!r}; give a list of regular expressions")
    try:
        return re.compile("|".join(f"(?:{one})" for one in exclude)) if exclude else None
    except re.error as error:
        raise ConfigurationError(f"exclude has no regular expression: {error}") from error
