from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering._quantity import to_nanos, to_text
from otel_metering.errors import InvalidUsageError

quantities = st.decimals(min_value=0, max_value=2**63 - 1, places=9, allow_nan=False)


@given(quantities)
def test_every_valid_decimal_is_exact(quantity: Decimal) -> None:
    assert Decimal(to_nanos(quantity)).scaleb(-9) == quantity


@given(quantities)
def test_text_is_the_same_number(quantity: Decimal) -> None:
    assert Decimal(to_text(to_nanos(quantity))) == quantity


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_every_valid_integer_is_exact(quantity: int) -> None:
    assert to_nanos(quantity) == quantity * 10**9


def test_a_float_is_the_number_it_prints_as() -> None:
    assert to_nanos(0.1) == 100_000_000
    assert to_nanos(1e-9) == 1
    assert to_nanos(-0.0) == 0


def test_the_precision_of_the_application_does_not_matter() -> None:
    with localcontext(prec=3):
        assert to_nanos(Decimal("123456.789")) == 123_456_789_000_000


@pytest.mark.parametrize(
    "quantity",
    [
        -1,
        Decimal("-0.000000001"),
        2**63,
        float("nan"),
        float("inf"),
        Decimal("sNaN"),
        Decimal("0.0000000001"),
        0.1 + 0.2,  # 0.30000000000000004
        Decimal("1E+999999"),
        Decimal("1E-999999"),
        "3",
        None,
        1j,
    ],
    ids=repr,
)
def test_what_cannot_be_counted_exactly_is_refused(quantity: object) -> None:
    with pytest.raises(InvalidUsageError, match="quantity"):
        to_nanos(quantity)
