"""Identities: the reference vectors of SipHash, and what a set of seen ids must do."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from receiver import identity

# vectors_sip128 of the reference implementation (Aumasson), messages of whole words.
REFERENCE = {
    0: "a3817f04ba25a8e66df67214c7550293",
    8: "3b62a9ba6258f5610f83e264f31497b4",
}


def siphash_in_python(key: bytes, message: bytes) -> bytes:
    """SipHash-2-4-128 as its paper has it, one word after another, in plain integers."""
    mask = 2**64 - 1
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE]
    v += [k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & mask

    def rounds(count: int) -> None:
        for _ in range(count):
            for a, b, turn, swing in ((0, 1, 13, 32), (2, 3, 16, 0), (0, 3, 21, 0), (2, 1, 17, 32)):
                v[a] = (v[a] + v[b]) & mask
                v[b] = rotate(v[b], turn) ^ v[a]
                v[a] = rotate(v[a], swing) if swing else v[a]

    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for place in range(0, len(padded), 8):
        word = int.from_bytes(padded[place : place + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xEE
    rounds(4)
    first = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    rounds(4)
    return first.to_bytes(8, "little") + (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")


def test_siphash_equals_the_reference_vectors() -> None:
    key_first, key_second = identity.to_words(bytes(range(16)))
    for length, expected in REFERENCE.items():
        words = [
            np.frombuffer(bytes(range(length)), np.uint64)[i : i + 1] for i in range(length // 8)
        ]

        found = identity.to_bytes(*identity.siphash(key_first, key_second, words))

        assert found.hex() == expected
        assert siphash_in_python(bytes(range(16)), bytes(range(length))).hex() == expected


@given(key=st.binary(min_size=16, max_size=16), message=st.binary(min_size=24, max_size=24))
def test_siphash_of_columns_equals_the_paper(key: bytes, message: bytes) -> None:
    first, second = identity.to_words(key * 3)
    words = [np.repeat(np.frombuffer(message, np.uint64)[i], 3) for i in range(3)]

    found = identity.to_bytes(*identity.siphash(first, second, words))

    assert found == siphash_in_python(key, message) * 3


@given(id_=st.binary(min_size=16, max_size=16), kind=st.sampled_from(identity.Kind))
def test_a_mark_is_the_two_low_bits_of_the_ninth_byte_and_changes_nothing_else(
    id_: bytes, kind: identity.Kind
) -> None:
    marked = identity.mark(id_, kind)
    first, second = identity.to_words(id_)

    assert marked[8] & 3 == kind
    assert (
        marked[:8] + bytes([marked[8] & 252]) + marked[9:]
        == id_[:8] + bytes([id_[8] & 252]) + id_[9:]
    )
    assert identity.to_bytes(first, identity.mark_words(second, kind)) == marked
    assert identity.kinds_of(identity.mark_words(second, kind)).tolist() == [kind]


@given(
    parts=st.lists(st.binary(max_size=4), max_size=4),
    others=st.lists(st.binary(max_size=4), max_size=4),
)
def test_no_two_lists_of_parts_have_one_digest(parts: list[bytes], others: list[bytes]) -> None:
    same = identity.digest(b"x", *parts) == identity.digest(b"x", *others)

    assert same is (parts == others)
