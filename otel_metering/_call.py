"""One metered call: who pays for it, whether a quota lets it pass, and what it counts in the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from otel_metering._context import current
from otel_metering._guard import Problem, absorb, guarded, problems
from otel_metering._leases import Grant, leases
from otel_metering._quantity import Quantity, to_nanos
from otel_metering._record import Fixed, add_fixed, add_varying, fixed, sink
from otel_metering.contract.attributes import RESERVATION_ID
from otel_metering.contract.event import check_name
from otel_metering.errors import ConfigurationError, InvalidUsageError, QuotaExceededError

Outcome = Literal["success", "error", "both"]

_OUTCOMES: Final = ("success", "error", "both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one decoration, or one block, says of its calls.

    Attributes:
        meter: The slug.
        nanos: What each call counts, in 10**-9 units; None: `quantity_of` or the clock says it.
        quantity_of: Says what a call counts, by (result, *args, **kwargs).
        attributes: Dimensions that are the same in each call.
        attributes_of: Says them by (result, *args, **kwargs); None: they are `attributes`.
        key: Of the cells, if the dimensions are the same in each call.
        tenant: Who pays; None: `tenant_of` says it, else the context.
        tenant_of: Says it by (*args, **kwargs), before the call.
        counts_success: Whether a call that returns counts.
        counts_error: Whether one that raises does.
        is_enforced: Whether a quota is asked first.
        reserve_nanos: What the quota is asked for, in 10**-9 units; None: `reserve_of` says it.
        reserve_of: Says it by (*args, **kwargs).
    """

    meter: str
    nanos: int | None
    quantity_of: Callable[..., Quantity] | None
    attributes: Mapping[str, object] | None
    attributes_of: Callable[..., Mapping[str, object]] | None
    key: Fixed | None
    tenant: str | None
    tenant_of: Callable[..., str | None] | None
    counts_success: bool
    counts_error: bool
    is_enforced: bool
    reserve_nanos: int | None
    reserve_of: Callable[..., Quantity] | None

    @property
    def is_timed(self) -> bool:
        """Whether seconds are counted."""
        return self.nanos is None and self.quantity_of is None

    @property
    def is_simple(self) -> bool:
        """Whether there is nothing to do before a call, and after one that raises."""
        return (
            (self.tenant is None and self.tenant_of is None)
            and (self.counts_success and not self.counts_error)
            and not (self.is_enforced or self.is_timed)
        )

    @property
    def is_fixed(self) -> bool:
        """Whether each call counts the same."""
        return self.nanos is not None and self.key is not None

    def usage_of(
        self, result: object, args: tuple[Any, ...], kwargs: dict[str, Any], duration_ns: int = 0
    ) -> tuple[int, Mapping[str, object] | None]:
        """What a call counts, in 10**-9 units, and its dimensions; callables may raise."""
        if self.quantity_of is not None:
            nanos = to_nanos(self.quantity_of(result, *args, **kwargs))
        else:
            nanos = duration_ns if self.nanos is None else self.nanos
        if self.attributes_of is not None:
            return nanos, self.attributes_of(result, *args, **kwargs)
        return nanos, self.attributes


def new_plan(
    slug: str,
    *,
    quantity: Quantity | Callable[..., Quantity] | Literal["duration"],
    attributes: Mapping[str, object] | Callable[..., Mapping[str, object]] | None,
    tenant: str | Callable[..., str | None] | None,
    count_on: Outcome,
    quota: Literal["enforce"] | None,
    reserve: Quantity | Callable[..., Quantity] | None,
) -> Plan:
    """Check what was said, once.

    Raises:
        ConfigurationError: It can never work; the message says what and why.
    """
    check_choices(slug, count_on, quota, has_reserve=reserve is not None)
    _check_names(slug, None if callable(tenant) else tenant)
    nanos = None if callable(quantity) or quantity == "duration" else _nanos(slug, quantity)
    if quota is not None and reserve is None and nanos is None:
        raise cannot_foresee(slug)
    dimensions = dict(attributes) if isinstance(attributes, Mapping) else None
    return Plan(
        meter=slug,
        nanos=nanos,
        quantity_of=quantity if callable(quantity) else None,
        attributes=dimensions,
        attributes_of=attributes if callable(attributes) else None,
        key=None if callable(attributes) else fixed(slug, dimensions),
        tenant=None if callable(tenant) else tenant,
        tenant_of=tenant if callable(tenant) else None,
        counts_success=count_on != "error",
        counts_error=count_on != "success",
        is_enforced=quota is not None,
        reserve_nanos=nanos if reserve is None or callable(reserve) else _nanos(slug, reserve),
        reserve_of=reserve if callable(reserve) else None,
    )


def check_choices(slug: str, count_on: str, quota: str | None, *, has_reserve: bool) -> None:
    """Check what a program says literally.

    Raises:
        ConfigurationError: It can never work; the message says what and why.
    """
    if count_on not in _OUTCOMES:
        raise ConfigurationError(
            f"meter {slug!r}: count_on is {count_on!r}; it must be {' or '.join(_OUTCOMES)}"
        )
    if quota not in (None, "enforce"):
        raise ConfigurationError(f'meter {slug!r}: quota is {quota!r}; it must be "enforce"')
    if has_reserve and quota is None:
        raise ConfigurationError(f'meter {slug!r}: reserve needs quota="enforce"')


def cannot_foresee(slug: str) -> ConfigurationError:
    """What is raised where a quota cannot be told how much a call will use."""
    return ConfigurationError(
        f'meter {slug!r}: quota="enforce" has to know before the call how much it will use; '
        "give reserve: a number or, to the decorator, a function of the arguments"
    )


def _check_names(slug: object, tenant: object) -> None:
    for kind, name in (("meter", slug), ("tenant", tenant)):
        if name is None and kind == "tenant":
            continue
        if not isinstance(name, str):
            raise ConfigurationError(f"{kind} is {name!r}; give text")
        try:
            check_name(kind, name)
        except InvalidUsageError as error:
            raise ConfigurationError(str(error)) from error


def _nanos(slug: str, quantity: object) -> int:
    try:
        return to_nanos(quantity)
    except InvalidUsageError as error:
        raise ConfigurationError(f"meter {slug!r}: {error}") from error


class Metered:
    """Something that is counted when it is over, and for which a quota may be asked before.

    Attributes:
        meter: The slug.
        tenant: Who pays; None: whoever is current when it is counted.
    """

    __slots__ = ("_grant", "meter", "tenant")

    def __init__(self, meter: str, tenant: str | None) -> None:
        self.meter: str = meter
        self.tenant = tenant
        self._grant: Grant | None = None

    def keep_tenant(self) -> None:
        """Who is current now pays, whoever is later; if nobody is, it stays open."""
        if self.tenant is None:
            self.tenant = current.get().tenant

    def asked_nanos(self) -> int:
        """What the quota is asked for, in 10**-9 units."""
        raise NotImplementedError

    def reserve(self) -> None:
        """Ask the quota.

        Raises:
            QuotaExceededError: It denies the call.
        """
        self.keep_tenant()
        try:
            self._grant = leases.take(self.meter, self.tenant, self.asked_nanos())
        except QuotaExceededError:
            raise
        except Exception as error:  # noqa: BLE001 -- a fault of ours stops no call
            _pass_unchecked(error)

    async def reserve_async(self) -> None:
        """As `reserve`, without holding up the event loop."""
        self.keep_tenant()
        try:
            self._grant = await leases.take_async(self.meter, self.tenant, self.asked_nanos())
        except QuotaExceededError:
            raise
        except Exception as error:  # noqa: BLE001 -- a fault of ours stops no call
            _pass_unchecked(error)

    def release(self, used_nanos: int = 0) -> None:
        """Give the quota back what was not used; what is called again does nothing."""
        grant = self._grant
        if grant is not None:
            self._grant = None
            with guarded:
                leases.settle(grant, used_nanos)

    def count(self, nanos: int, attributes: Mapping[str, object] | None, key: Fixed | None) -> None:
        """Count `nanos` (10**-9 units), under `key` if it stands for `attributes`.

        Raises:
            InvalidUsageError: The meter or the tenant is not a valid name.
        """
        tenant = self.tenant
        if tenant is None:
            tenant = current.get().tenant
        reservation_id = None if self._grant is None else self._grant.reservation_id
        if reservation_id is not None:
            attributes = {**(attributes or {}), RESERVATION_ID: reservation_id}
        elif key is not None:
            add_fixed(key, nanos, tenant)
            return
        add_varying(self.meter, nanos, tenant, attributes)


def _pass_unchecked(error: Exception) -> None:
    problems.report(Problem.UNCHECKED_CALLS, error)
    absorb(error)


class Call(Metered):
    """A call of a decorated function; `begin` makes it."""

    __slots__ = ("_args", "_kwargs", "_plan")

    def __init__(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a call; the callable that says the tenant may raise."""
        # Not by `super`, which costs more than all the rest.
        self.meter = plan.meter
        self.tenant = plan.tenant if plan.tenant_of is None else plan.tenant_of(*args, **kwargs)
        self._grant = None
        self._plan = plan
        self._args = args
        self._kwargs = kwargs

    def asked_nanos(self) -> int:
        """What the quota is asked for, in 10**-9 units."""
        plan = self._plan
        if plan.reserve_of is not None:
            return to_nanos(plan.reserve_of(*self._args, **self._kwargs))
        return plan.reserve_nanos or 0

    def end(self, result: object, duration_ns: int, *, is_error: bool = False) -> None:
        """Count the call.

        Args:
            result: What it returned; what it raised, if `is_error`.
            duration_ns: How long it took; matters if seconds are counted.
            is_error: Whether it raised.
        """
        plan = self._plan
        used = 0
        try:
            if plan.counts_error if is_error else plan.counts_success:
                nanos, attributes = plan.usage_of(result, self._args, self._kwargs, duration_ns)
                self.count(nanos, attributes, plan.key)
                used = nanos
        except Exception as error:  # noqa: BLE001 -- what `guarded` does, in less time
            absorb(error)
        finally:
            self.release(used)


def begin(plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Begin a call; None if it is not counted here.

    That is after `shutdown`, after a callable failed, or where an instrument of the whole request counts
    the meter: then its quota is that instrument's to ask, too.
    """
    holder = current.get()
    if sink.local is None or plan.meter in holder.claimed:
        return None
    try:
        return Call(plan, args, kwargs)
    except Exception as error:  # noqa: BLE001 -- what `guarded` does, in less time
        absorb(error)
        return None
