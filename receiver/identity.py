"""128-bit identities: what makes a piece of usage the same piece when it is sent again.

- explicit id: H(tenant, meter, id), whatever its time or value.
- delta point: H(tenant, meter, stream; start, time, value).
- span: H(tenant, meter; trace id, span id).
- replacement of a corrected event: H(identity of that event).

The tenant is part of each, so that no tenant can use up an identity of another. Streams are hashed with
BLAKE2b, once; points with SipHash-2-4 (128-bit form, Aumasson and Bernstein, 2012) under the stream's
hash as key, on whole columns.

The two low bits of the ninth byte say which kind of identity it is, so that whoever reads an id back from
the database knows how it may be looked up; the other 126 bits are the hash.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

ID_BYTES: Final = 16

KIND_MASK: Final = 3


class Kind(IntEnum):
    """What an identity says about the time of its row; in the two low bits of its second word.

    Attributes:
        POINT: It includes the row's time: the same id always has the same time.
        EXPLICIT: It does not: the sender's own id, or what had no time and was given ours.
        SPAN: H(trace, span): the same span has the same time, unless its sender says otherwise.
        ONCE: Nobody asks for it again: it is neither looked up nor remembered.
    """

    POINT = 0
    EXPLICIT = 1
    SPAN = 2
    ONCE = 3


def mark(id_: bytes, kind: Kind) -> bytes:
    """`id_` as an identity of `kind`."""
    return id_[:8] + bytes([id_[8] & ~KIND_MASK | kind]) + id_[9:]


def mark_words(second: Words, kind: Kind) -> Words:
    """The second words of identities, as those of `kind`."""
    return second & np.uint64(~KIND_MASK & 2**64 - 1) | np.uint64(kind)


def kinds_of(second: Words) -> Words:
    """The `Kind` of each identity, from its second word."""
    return second & np.uint64(KIND_MASK)


def digest(kind: bytes, *parts: bytes) -> bytes:
    """16 bytes for a kind of thing and its parts; no two different lists of parts run together."""
    state = blake2b(digest_size=ID_BYTES, person=kind)
    for part in parts:
        state.update(struct.pack("<Q", len(part)))
        state.update(part)
    return state.digest()


def explicit_id(tenant: str, meter: str, event_id: str) -> bytes:
    """Identity of an event whose sender chose an id."""
    chosen = digest(b"event", tenant.encode(), meter.encode(), event_id.encode())
    return mark(chosen, Kind.EXPLICIT)


def replacement_id(event_id: bytes) -> bytes:
    """Identity of the event that counts instead of a corrected one: each event has at most one such."""
    return mark(digest(b"replacement", event_id), Kind.EXPLICIT)


def span_id(tenant: str, meter: str, trace_id: bytes, span: bytes) -> bytes:
    """Identity of a span as usage of one meter."""
    return mark(digest(b"span", tenant.encode(), meter.encode(), trace_id, span), Kind.SPAN)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """Identities of rows, as columns of one length.

    Attributes:
        first: First eight bytes of each identity.
        second: Second eight bytes, which hold its `Kind`.
        time_ns: The row's timestamp.
        content: Of EXPLICIT ids: eight bytes of a digest of what the event says; 0 elsewhere.
    """

    first: Words
    second: Words
    time_ns: NDArray[np.int64]
    content: Words

    def __len__(self) -> int:
        return len(self.first)

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> "Ids":
        """The rows at these places, or those that are True."""
        return Ids(
            first=self.first[places],
            second=self.second[places],
            time_ns=self.time_ns[places],
            content=self.content[places],
        )


def join_ids(pieces: Sequence[Ids]) -> Ids:
    """The rows of all pieces, in their order."""
    none, no_time = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    return Ids(
        first=np.concatenate([none, *(piece.first for piece in pieces)]),
        second=np.concatenate([none, *(piece.second for piece in pieces)]),
        time_ns=np.concatenate([no_time, *(piece.time_ns for piece in pieces)]),
        content=np.concatenate([none, *(piece.content for piece in pieces)]),
    )
