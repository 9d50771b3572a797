"""Numbers as people type them."""

from decimal import Decimal, InvalidOperation

from otel_metering.errors import InvalidUsageError


def parse_decimal(option: str, text: str) -> Decimal:
    """Read a number, exactly.

    Raises:
        InvalidUsageError: It is none.
    """
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite():
        raise InvalidUsageError(f"{option} is {text!r}; it must be a number such as 1000 or 0.5")
    return found
