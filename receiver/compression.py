"""Content-Encoding: compressed bodies -> bodies of a bounded size.

Memory beyond the limit is never taken: every decoder is told how much it may give at most, and zstd how
large a window it may keep.
"""

import sys
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from receiver.errors import MalformedPayloadError, PayloadTooLargeError

# mypy and the interpreter both understand this form of the question.
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MIN_WINDOW_LOG: Final = 23
"""8 MiB: what every zstd decoder should take (RFC 8878, 3.1.1.1.2)."""

_MAX_WINDOW_LOG: Final = 27
"""What zstd itself takes unless told otherwise: 128 MiB."""


class _Decompressor(Protocol):
    """What zlib and zstd have in common: reads one member, or frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _zstd(max_bytes: int) -> Any:  # noqa: ANN401 - the module's type depends on the interpreter
    window = min(max(max_bytes.bit_length(), _MIN_WINDOW_LOG), _MAX_WINDOW_LOG)
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window})


_DECOMPRESSORS: Final[dict[str, Callable[[int], _Decompressor]]] = {
    "gzip": lambda _: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    # HTTP's deflate is zlib (RFC 9110, 8.4.1.2), and what the Python exporter sends; the Go receiver takes
    # the other name too.
    "deflate": lambda _: zlib.decompressobj(),
    "zlib": lambda _: zlib.decompressobj(),
    "zstd": _zstd,
}

ENCODINGS: Final = ("identity", *_DECOMPRESSORS)
"""The values of Content-Encoding that are known."""


def decompress(encoding: str, body: bytes, max_bytes: int) -> bytes:
    """Decompress a body, of one or several members (zstd: frames), to at most `max_bytes`.

    Args:
        encoding: One of `ENCODINGS`.
        body: What was sent.
        max_bytes: Bound on the answer.

    Raises:
        MalformedPayloadError: It is not what `encoding` says, is cut off, or is empty.
        PayloadTooLargeError: It would be larger; memory for it was never taken.
    """
    if encoding == "identity":
        return body
    parts: list[bytes] = []
    size, rest = 0, body
    while rest:
        member = _DECOMPRESSORS[encoding](max_bytes)
        try:
            part = member.decompress(rest, max_bytes - size + 1)
        except (zlib.error, zstd.ZstdError) as error:
            raise MalformedPayloadError(f"the body is not {encoding}: {error}") from error
        size += len(part)
        if size > max_bytes:
            raise PayloadTooLargeError(max_bytes)
        if not member.eof:
            break
        parts.append(part)
        rest = member.unused_data
    else:
        if parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise MalformedPayloadError(f"the {encoding} body is cut off")
