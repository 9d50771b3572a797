"""Who is using the service right now.

The tenant lies in a mutable holder, and the holder in a ContextVar. A request's middleware puts the
holder there; whatever runs for that request, in copied contexts and worker threads too, sees the same
holder, and so sees a tenant that an authentication step found out later.
"""

from contextvars import ContextVar
from types import TracebackType
from weakref import WeakKeyDictionary

from opentelemetry.trace import Span

from otel_metering.contract.attributes import TENANT_ID


class Holder:
    """The tenant of one request or block.

    Attributes:
        tenant: Its id; None: not known.
        previous: What was current before.
        span: The request's own span, which gets the tenant as an attribute; None: no such span.
        claimed: Meters that one instrument counts for the whole request; others leave them to it.
    """

    __slots__ = ("claimed", "previous", "span", "tenant")

    def __init__(
        self, tenant: str | None, *, previous: "Holder | None" = None, span: Span | None = None
    ) -> None:
        self.tenant = tenant
        self.previous = previous
        self.span = span
        self.claimed: frozenset[str] = frozenset() if previous is None else previous.claimed


NOBODY = Holder(None)
"""Current where nobody said anything; never changed."""

current: ContextVar[Holder] = ContextVar("otel_metering.tenant", default=NOBODY)


class TenantScope:
    """The block of `with tenant(...)`; one object may be entered often, by any thread or task."""

    __slots__ = ("_tenant",)

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant

    def __enter__(self) -> None:
        # A new holder, not a change of the current one: tasks of one request that run side by side
        # share that one, and one task's tenant must not pay for the other's usage.
        current.set(Holder(self._tenant, previous=current.get()))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave()


def tenant(tenant_id: str) -> TenantScope:
    """Make `tenant_id` the tenant of all usage in a `with` or `async with` block.

    Blocks nest. An id that no tenant can have is not refused here: usage in the block is rejected, and
    counted as rejected.
    """
    return TenantScope(tenant_id)


def current_tenant() -> str | None:
    """The tenant that usage recorded here would be counted for; None: nobody said."""
    return current.get().tenant


def set_tenant(tenant_id: str) -> None:
    """Say who the tenant of the current request is, e.g. once it is authenticated.

    Inside `MeteringMiddleware` all code of the request sees it, whatever task or thread it runs in,
    and the request's span gets the attribute `tenant.id`. Inside `with tenant(...)` it replaces that
    block's tenant. Elsewhere it holds for the current context.
    """
    holder = current.get()
    if holder is NOBODY:
        current.set(Holder(tenant_id, previous=NOBODY))
        return
    holder.tenant = tenant_id
    if holder.span is not None:
        holder.span.set_attribute(TENANT_ID, tenant_id)


def leave() -> None:
    """Make the holder before the current one current again."""
    current.set(current.get().previous or NOBODY)


_SPAN_CLAIMS: WeakKeyDictionary[Span, frozenset[str]] = WeakKeyDictionary()


def claim_span(span: Span, slugs: frozenset[str]) -> None:
    """Say that another instrument counts these meters for what `span` stands for."""
    _SPAN_CLAIMS[span] = claimed_by(span) | slugs


def claimed_by(span: Span) -> frozenset[str]:
    """Meters that nobody shall count because of `span`."""
    return _SPAN_CLAIMS.get(span, frozenset())
