"""Quantities of the wire are exact decimals."""

from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from receiver import quantity

NANO = Decimal("1e-9")
int64 = st.integers(-(2**63), 2**63 - 1)
doubles = st.floats(-9.2e18, 9.2e18) | st.decimals(-(10**6), 10**6, places=9).map(float)


@given(values=st.lists(int64, min_size=1), scale=st.integers(0, 9))
def test_integers_with_a_scale_are_exact(values: list[int], scale: int) -> None:
    whole, nano = quantity.from_ints(np.array(values, np.int64), scale)

    assert quantity.to_decimal128(whole, nano).to_pylist() == [
        Decimal(value).scaleb(-scale) for value in values
    ]


@given(values=st.lists(doubles, min_size=1))
@example(values=[0.1, -0.1, 0.3, 1e-9, -1e-9, 5e-10, 1.5e-9, 999999.999999999, 1234567890.1])
@example(
    values=[68792.0069873485, 66250.2965442785, 16498.4698417645]
)  # ties: naive scaling is wrong
@example(values=[0.0, -0.0, 2.0**53, 2.0**53 + 2, 9.2e18, -9.2e18, 1e6, 123456.7890125])
def test_a_double_is_the_decimal_that_people_see(values: list[float]) -> None:
    expected = [
        Decimal(int(value))
        if value == int(value)
        else Decimal(repr(value)).quantize(NANO, ROUND_HALF_EVEN)
        for value in values
    ]

    whole, nano = quantity.from_doubles(np.array(values))

    assert quantity.to_decimal128(whole, nano).to_pylist() == expected


@given(value=st.decimals(-(10**18), 10**18, places=9))
def test_a_decimal_is_itself(value: Decimal) -> None:
    whole, nano = quantity.from_decimal(value)

    assert Decimal(whole) + nano * NANO == value
    assert 0 <= nano < 10**9


def test_what_is_no_number_or_too_large_is_not_storable() -> None:
    values = np.array(
        [float("nan"), float("inf"), -float("inf"), 2.0**63, 1e300, 0.0, -5.0, 2.0**62]
    )

    assert quantity.are_storable(values).tolist() == [False] * 5 + [True] * 3
