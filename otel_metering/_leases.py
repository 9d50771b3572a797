"""Units of quotas that are reserved ahead from the query API, and spent at the speed of memory."""

from typing import NamedTuple


class Grant(NamedTuple):
    """Units that a call may use.

    Attributes:
        reservation_id: What the usage has to name as `metering.reservation.id`; None: no quota holds it.
        nanos: How much, in 10**-9 units.
    """

    reservation_id: str | None
    nanos: int


class Leases:
    """The leases of this process."""

    def take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        """Take units for a call; asks the query API if no lease has them.

        Raises:
            QuotaExceededError: The quota denies them.
        """
        return Grant(None, nanos)

    async def take_async(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        """As `take`, without holding up the event loop."""
        return Grant(None, nanos)

    def settle(self, grant: Grant, used_nanos: int) -> None:
        """The call is over and used so much; 0 gives everything back."""


leases = Leases()
"""Of this process."""
