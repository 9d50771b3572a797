"""128-bit identities: what makes a piece of usage the same piece when it is sent again.

- explicit id: H(tenant, meter, id), whatever its time or value.
- delta point: H(tenant, meter, stream; start, time, value).
- span: H(tenant, meter; trace id, span id).

The tenant is part of each, so that no tenant can use up an identity of another. Streams are hashed with
BLAKE2b, once; points with SipHash-2-4 (128-bit form, Aumasson and Bernstein, 2012) under the stream's
hash as key, on whole columns.

`SeenIds` is a cache of the ids in `events` and `quarantine`, rebuilt from them and from the spool.
"""

import struct
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

ID_BYTES: Final = 16


def digest(kind: bytes, *parts: bytes) -> bytes:
    """16 bytes for a kind of thing and its parts; no two different lists of parts run together."""
    state = blake2b(digest_size=ID_BYTES, person=kind)
    for part in parts:
        state.update(struct.pack("<Q", len(part)))
        state.update(part)
    return state.digest()


def explicit_id(tenant: str, meter: str, event_id: str) -> bytes:
    """Identity of an event whose sender chose an id."""
    return digest(b"event", tenant.encode(), meter.encode(), event_id.encode())


def span_id(tenant: str, meter: str, trace_id: bytes, span: bytes) -> bytes:
    """Identity of a span as usage of one meter."""
    return digest(b"span", tenant.encode(), meter.encode(), trace_id, span)


def to_words(ids: bytes) -> tuple[Words, Words]:
    """Identities one after another -> two columns (first and second eight bytes)."""
    pairs = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def to_bytes(first: Words, second: Words) -> bytes:
    """The inverse of `to_words`."""
    return np.column_stack((first, second)).tobytes()


def siphash(key_first: Words, key_second: Words, words: Iterable[Words]) -> tuple[Words, Words]:
    """SipHash-2-4 with 128 bits of output, for many keys and messages at once.

    Args:
        key_first: First half of each key.
        key_second: Second half of each key.
        words: The messages, as columns of their eight-byte words.

    Returns:
        Two columns: first and second half of each hash.
    """
    columns = list(words)
    v0 = key_first ^ np.uint64(0x736F6D6570736575)
    v1 = key_second ^ np.uint64(0x646F72616E646F6D ^ 0xEE)
    v2 = key_first ^ np.uint64(0x6C7967656E657261)
    v3 = key_second ^ np.uint64(0x7465646279746573)
    length = np.full(len(v0), (8 * len(columns) % 256) << 56, np.uint64)
    for word in [*columns, length]:
        v3 ^= word
        _rounds(v0, v1, v2, v3, 2)
        v0 ^= word
    v2 ^= np.uint64(0xEE)
    _rounds(v0, v1, v2, v3, 4)
    first = v0 ^ v1 ^ v2 ^ v3
    v1 ^= np.uint64(0xDD)
    _rounds(v0, v1, v2, v3, 4)
    return first, v0 ^ v1 ^ v2 ^ v3


def _rounds(v0: Words, v1: Words, v2: Words, v3: Words, count: int) -> None:
    for _ in range(count):
        v0 += v1
        _rotate(v1, 13)
        v1 ^= v0
        _rotate(v0, 32)
        v2 += v3
        _rotate(v3, 16)
        v3 ^= v2
        v0 += v3
        _rotate(v3, 21)
        v3 ^= v0
        v2 += v1
        _rotate(v1, 17)
        v1 ^= v2
        _rotate(v2, 32)


def _rotate(word: Words, bits: int) -> None:
    high = word >> np.uint64(64 - bits)
    word <<= np.uint64(bits)
    word |= high


class SeenIds:
    """A growing set of identities: sorted runs, 16 bytes an id.

    A new batch is a run; two neighbours become one when they are of like size, so that n ids are in
    O(log n) runs and each is moved O(log n) times.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Words, Words]] = []

    def __len__(self) -> int:
        return sum(len(first) for first, _ in self._runs)

    def contains(self, first: Words, second: Words) -> NDArray[np.bool_]:
        """For each id whether it was added before."""
        found = np.zeros(len(first), np.bool_)
        # Sorted questions walk through a run in one direction: several times faster on large runs.
        order = np.argsort(first)
        asked = first[order]
        for run_first, run_second in self._runs:
            position = np.searchsorted(run_first, asked)
            hits = np.flatnonzero(run_first[np.minimum(position, len(run_first) - 1)] == asked)
            is_same = run_second[position[hits]] == second[order[hits]]
            found[order[hits[is_same]]] = True
            # Ids that share only their first half lie side by side: with random halves, hardly ever.
            for hit in hits[~is_same]:
                i, j = order[hit], int(position[hit])
                while j < len(run_first) and run_first[j] == first[i] and not found[i]:
                    found[i] = run_second[j] == second[i]
                    j += 1
        return found

    def add(self, first: Words, second: Words) -> None:
        """Remember ids; adding one twice is harmless."""
        if not len(first):
            return
        order = np.argsort(first)
        run = (first[order], second[order])
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            run = _merge(self._runs.pop(), run)
        self._runs.append(run)


def _merge(one: tuple[Words, Words], other: tuple[Words, Words]) -> tuple[Words, Words]:
    large, small = (one, other) if len(one[0]) >= len(other[0]) else (other, one)
    position = np.searchsorted(large[0], small[0])
    return np.insert(large[0], position, small[0]), np.insert(large[1], position, small[1])


def first_occurrences(first: Words, second: Words) -> NDArray[np.bool_]:
    """For each id whether it is the first of its kind in these columns."""
    result = np.ones(len(first), np.bool_)
    order = np.argsort(first)
    if (first[order][1:] == first[order][:-1]).any():
        # lexsort is stable: of equal ids the earliest comes first.
        order = np.lexsort((second, first))
        same_first = first[order][1:] == first[order][:-1]
        result[order[1:]] = ~(same_first & (second[order][1:] == second[order][:-1]))
    return result
