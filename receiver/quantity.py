"""Numbers of the wire -> exact quantities, on whole columns.

A quantity is `whole + nano / 10**9` with 0 <= nano < 10**9: two int64 columns, exact for every OTLP
integer and nine decimal places, and two steps away from the Decimal(38, 9) of the table.
"""

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otel_metering.contract.event import MAX_QUANTITY, QUANTITY_DECIMALS

Ints = NDArray[np.int64]

NANO: Final = 10**QUANTITY_DECIMALS

_EXACT_BELOW: Final = 1e6
"""Doubles below it with nine decimal places have at most fifteen digits, and those are unique."""


def from_ints(values: Ints, scale: int) -> tuple[Ints, Ints]:
    """Integers with `scale` decimal places -> (whole, nano)."""
    if scale == 0:
        return values, np.zeros(len(values), np.int64)
    divisor = 10**scale
    return values // divisor, values % divisor * 10 ** (QUANTITY_DECIMALS - scale)


def from_doubles(values: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Finite doubles of magnitude below 2**63 -> (whole, nano).

    An integral double is that integer. Any other counts as the shortest decimal that reads back as it,
    which is what people see of it (0.1 is 0.1), rounded to nine places, half to even.
    """
    whole, nano = np.floor(values).astype(np.int64), np.zeros(len(values), np.int64)
    is_small = np.abs(values) < _EXACT_BELOW
    scaled = np.rint(np.where(is_small, values, 0.0) * NANO)
    # At most fifteen digits that read back as the double are its shortest decimal.
    is_shortest = is_small & (scaled / NANO == values)
    np.floor_divide(scaled.astype(np.int64), NANO, out=whole, where=is_shortest)
    np.remainder(scaled.astype(np.int64), NANO, out=nano, where=is_shortest)
    for i in np.flatnonzero(~is_shortest & (np.floor(values) != values)):
        whole[i], nano[i] = from_decimal(Decimal(repr(float(values[i]))))
    return whole, nano


def from_decimal(value: Decimal) -> tuple[int, int]:
    """A decimal, rounded to nine places, half to even -> (whole, nano)."""
    scaled = int(value.scaleb(QUANTITY_DECIMALS).to_integral_value(ROUND_HALF_EVEN))
    return divmod(scaled, NANO)


def are_storable(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """For each double whether it is a number of a magnitude that one event may have."""
    with np.errstate(invalid="ignore"):
        return np.abs(values) < float(MAX_QUANTITY)  # False for NaN


def to_decimal128(whole: Ints, nano: Ints) -> pa.Array:
    """(whole, nano) -> decimal128(38, 9)."""
    # whole * 10**9 + nano in 128 bits, from two products that fit into 64.
    high, low = whole >> 32, whole & 0xFFFFFFFF
    low_product = low * NANO + nano
    high_product = high * NANO + (low_product >> 32)
    words = np.empty((len(whole), 2), np.int64)
    words[:, 0] = (high_product << 32) | (low_product & 0xFFFFFFFF)
    words[:, 1] = high_product >> 32
    buffer = pa.py_buffer(words)
    return pa.Array.from_buffers(pa.decimal128(38, QUANTITY_DECIMALS), len(whole), [None, buffer])
