"""One object for all that have it: thousands of series are made of a few hundred texts."""

import sys
from collections.abc import Hashable
from typing import Any, Final, TypeVar

MAX_SHARED: Final = 20_000
"""Objects to choose from. At more all are forgotten, which costs memory later and nothing else."""

_T = TypeVar("_T", bound=Hashable)

# No lock: each use is a single operation, and what it finds is right whatever happened before.
_pool: Final[dict[Any, Any]] = {}


def shared(value: _T) -> _T:
    """Return an object that is equal to `value`, as far as possible the same one for all callers.

    Values that are equal and mean something else, as True and 1 do, are the caller's to keep apart.
    """
    if len(_pool) >= MAX_SHARED:
        _pool.clear()
    kept: _T = _pool.setdefault(value, value)
    return kept


def forget_unused() -> None:
    """Free what nobody else has; what only that was made of goes with the next call."""
    values = list(_pool)
    for value, count in zip(values, _reference_counts(values), strict=True):
        if count <= _UNUSED:
            _pool.pop(value, None)


def _reference_counts(values: list[Any]) -> list[int]:
    return [sys.getrefcount(value) for value in values]


_UNUSED: Final = _reference_counts([object()])[0] + 2
"""What `_reference_counts` says of an object that the given list and the pool have, as key and value."""
