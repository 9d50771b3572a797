"""Who sends: the API key of a request -> `Sender`."""

from collections.abc import Mapping

from otel_metering.contract.attributes import API_KEY_HEADER
from receiver.errors import PermissionDeniedError, UnauthenticatedError
from receiver.store.keys import ApiKeys, Scope
from receiver.usage import Sender


def authenticate(headers: Mapping[str, str], keys: ApiKeys) -> Sender:
    """The sender whose key is in `headers` (names in lower case).

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
    principal = keys.authenticate(key)
    if principal is None:
        raise UnauthenticatedError("the API key is unknown, revoked or expired; use another")
    if not principal.may(Scope.INGEST):
        raise PermissionDeniedError(
            f"the API key {principal.key_id} has no scope {Scope.INGEST}; use one that has"
        )
    return Sender(key_id=principal.key_id, bound_tenant=principal.tenant_id)
