"""Compressed bodies: Content-Encoding and Accept-Encoding."""

import gzip
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

import lz4.frame

from query_api.clickhouse.errors import (
    CANNOT_DECOMPRESS,
    QUERY_IS_TOO_LARGE,
    UNKNOWN_COMPRESSION_METHOD,
    ClickHouseError,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAX_WINDOW_LOG: Final = 27
"""128 MiB: what zstd itself takes unless told otherwise."""

WORTHWHILE_BYTES: Final = 1_024
"""Answers below are sent as they are."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _zstd() -> Any:  # noqa: ANN401 - the module's type depends on the interpreter
    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}
    )


_DECOMPRESSORS: Final[dict[str, Callable[[], _Decompressor]]] = {
    "gzip": lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    "deflate": zlib.decompressobj,
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": _zstd,
}

_COMPRESSORS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "zstd": lambda body: zstd.compress(body, level=1),
    "lz4": lambda body: bytes(lz4.frame.compress(body)),
    "gzip": lambda body: gzip.compress(body, compresslevel=1, mtime=0),
    "deflate": lambda body: zlib.compress(body, level=1),
}


def decompress(encoding: str, body: bytes, max_bytes: int) -> bytes:
    """Decompress a body to at most `max_bytes`; memory beyond is never taken.

    Raises:
        ClickHouseError: It is not what `encoding` says, is cut off, or would be larger.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _DECOMPRESSORS:
        raise ClickHouseError(UNKNOWN_COMPRESSION_METHOD, f"Unknown Content-Encoding {encoding!r}")
    parts: list[bytes] = []
    size, rest = 0, body
    while rest:
        member = _DECOMPRESSORS[encoding]()
        try:
            part = member.decompress(rest, max_bytes - size + 1)
        except (zlib.error, zstd.ZstdError, RuntimeError) as error:
            raise ClickHouseError(CANNOT_DECOMPRESS, f"The body is not {encoding}") from error
        size += len(part)
        if size > max_bytes:
            raise ClickHouseError(QUERY_IS_TOO_LARGE, f"The body has more than {max_bytes} bytes")
        if not member.eof:
            raise ClickHouseError(CANNOT_DECOMPRESS, f"The {encoding} body is cut off")
        parts.append(part)
        rest = member.unused_data or b""
    return b"".join(parts)


def compress(accepted: str, body: bytes) -> tuple[str, bytes]:
    """Compress an answer, if the client can read that and it is worthwhile.

    Args:
        accepted: Accept-Encoding.
        body: The answer.

    Returns:
        Content-Encoding, empty for none, and the body.
    """
    if len(body) < WORTHWHILE_BYTES:
        return "", body
    named = {
        name.strip().lower()
        for name, _, weight in (part.partition(";") for part in accepted.split(","))
        if weight.strip() != "q=0"
    }
    for encoding, encode in _COMPRESSORS.items():
        if encoding in named:
            return encoding, encode(body)
    return "", body
