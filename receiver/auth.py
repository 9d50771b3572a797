"""Who sends: the API key of a request -> `Sender`."""

from collections.abc import Mapping

from otel_metering.contract.attributes import API_KEY_HEADER
from receiver.errors import PermissionDeniedError, UnauthenticatedError
from receiver.store.keys import ApiKeys, Refusal, Refused, Scope
from receiver.usage import Sender


def authenticate(headers: Mapping[str, str], keys: ApiKeys, transport: str) -> Sender:
    """The sender whose key is in `headers` (names in lower case); counted as `transport`, if there is one.

    Raises:
        UnauthenticatedError: There is no key, or nobody has it; that is certain.
        PermissionDeniedError: The key may not send usage.
        UnavailableError: The keys cannot be read at the moment.
    """
    key = headers.get(API_KEY_HEADER, "")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        key = token.strip()
    if not key:
        raise UnauthenticatedError(
            "the request has no API key; send it as the header authorization: Bearer <key>"
        )
    found = keys.enter(key, Scope.INGEST, transport)
    if not isinstance(found, Refusal):
        return Sender(key_id=found.key_id, bound_tenant=found.tenant_id)
    if found.reason is Refused.SCOPE:
        raise PermissionDeniedError(
            f"the API key {found.key_id} has no scope {Scope.INGEST}; use one that has"
        )
    raise UnauthenticatedError("the API key is unknown, revoked or expired; use another")
