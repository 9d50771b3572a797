"""Quantities as integers: 10**-9 of a unit, so that every sum in the process is exact."""

import operator
from decimal import Context, Decimal
from typing import Final, SupportsIndex

from otel_metering.contract.event import MAX_QUANTITY, QUANTITY_DECIMALS, check_quantity
from otel_metering.errors import InvalidUsageError

Quantity = int | float | Decimal
"""What an application may hand over. A float means the number it prints as: 0.1 is one tenth."""

NANOS_PER_UNIT: Final = 10**QUANTITY_DECIMALS

_EXACT = Context(prec=2 * QUANTITY_DECIMALS + len(str(MAX_QUANTITY)))
"""Room for every valid quantity, whatever precision the application set for itself."""


def to_nanos(quantity: object) -> int:
    """Return `quantity` in 10**-9 of a unit, exactly.

    Raises:
        InvalidUsageError: It is not a number, not finite, negative, beyond 2**63 - 1, or has more than
            nine decimal places.
    """
    if type(quantity) is int and 0 <= quantity <= MAX_QUANTITY:
        return quantity * NANOS_PER_UNIT
    decimal = check_quantity(to_decimal(quantity))
    if decimal < 0:
        raise InvalidUsageError(f"quantity {quantity} is negative; usage only grows")
    return int(decimal.scaleb(QUANTITY_DECIMALS, _EXACT))


def to_text(nanos: int) -> str:
    """Return `nanos` as the shortest exact decimal number of units."""
    units, rest = divmod(nanos, NANOS_PER_UNIT)
    return f"{units}.{rest:0{QUANTITY_DECIMALS}d}".rstrip("0").rstrip(".")


def to_decimal(quantity: object) -> Decimal:
    """Return the number that `quantity` means.

    Raises:
        InvalidUsageError: It is not a number.
    """
    if isinstance(quantity, Decimal):
        return quantity
    if isinstance(quantity, float):
        # Not repr(quantity): subclasses such as numpy.float64 print more than the number.
        return Decimal(float.__repr__(quantity))
    if isinstance(quantity, SupportsIndex):
        return Decimal(operator.index(quantity))
    raise InvalidUsageError(
        f"quantity is of type {type(quantity).__name__}; give an int, a Decimal or a float"
    )
