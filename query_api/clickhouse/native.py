"""Blocks of the format Native that the engine does not make itself."""

from collections.abc import Sequence

CUSTOM_SERIALIZATION_REVISION = 54_454
"""From this revision of the protocol on, a byte after each type says whether it is serialized in a way of its own."""


def hello(display_name: str, version: str, timezone: str) -> bytes:
    """The answer to clickhouse-go's first question: displayName(), version(), revision(), timezone().

    It is the one block that clickhouse-go reads by its own revision of the protocol (54460), and by the revision
    that stands in it, it reads all others: zero, which is what the embedded engine writes.
    """
    columns = (
        ("displayName()", "String", _string(display_name)),
        ("version()", "String", _string(version)),
        ("revision()", "UInt32", (0).to_bytes(4, "little")),
        ("timezone()", "String", _string(timezone)),
    )
    block_info = b"\x01\x00\x02\xff\xff\xff\xff\x00"
    head = block_info + _varint(len(columns)) + _varint(1)
    return head + b"".join(
        _string(name) + _string(kind) + b"\x00" + value for name, kind, value in columns
    )


def header(columns: Sequence[tuple[str, str]]) -> bytes:
    """A block of no rows: (name, type) of each column. The engine writes nothing where there are no rows."""
    head = _varint(len(columns)) + _varint(0)
    return head + b"".join(_string(name) + _string(kind) for name, kind in columns)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _varint(len(raw)) + raw


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
