"""What every middleware can be told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

from otel_metering.middleware._request import Request
from otel_metering.middleware.tenants import Source

Attributes = Callable[[Request, int | None], Mapping[str, object]]
"""Says further dimensions of a request, given its status, None if it got none."""


class MeteringOptions(TypedDict, total=False):
    """What every middleware can be told.

    Attributes:
        tenant: Where a request says whose it is: a source of `otel_metering.middleware.tenants`, any
            function of a `Request`, or several of them, of which the first that knows decides
            [the header x-tenant-id].
        tenant_header: The same as `tenant=header(...)`.
        requests: Meter that counts each request, e.g. "api.requests" [none].
        request_bytes: Meter that counts the bytes of request bodies, and of messages from websockets [none].
        response_bytes: Meter that counts the bytes of response bodies, and of messages to websockets [none].
        quota: "enforce" asks before each request whether `requests` may count one more for the tenant,
            and answers 429 if not [never asks].
        attributes: Dimensions beside method, route and status class: a function of the request and its
            status, None if there is none.
        exclude: Regular expressions; a request whose whole path matches one is not counted.
    """

    tenant: Source | Sequence[Source] | None
    tenant_header: str | None
    requests: str | None
    request_bytes: str | None
    response_bytes: str | None
    quota: Literal["enforce"] | None
    attributes: Attributes | None
    exclude: Sequence[str]
