"""What a request over HTTP asks for: its URL, headers and body, as ClickHouse reads them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import HTTP
from typing import Final
from urllib.parse import parse_qsl

from query_api.clickhouse.calls import Call
from query_api.clickhouse.errors import BAD_ARGUMENTS, NOT_IMPLEMENTED, ClickHouseError

PARAMETER_PREFIX: Final = "param_"

_OF_HTTP: Final = frozenset(
    {
        *("buffer_size", "client_protocol_version", "close_session", "compress", "database"),
        *("decompress", "default_format", "enable_http_compression", "password", "query"),
        *("http_headers_progress_interval_ms", "query_id", "quota_key", "role"),
        *("send_progress_in_http_headers", "session_check", "session_id", "session_timeout"),
        *("stacktrace", "user", "wait_end_of_query"),
    }
)
"""Parameters of the URL that are no settings."""

_MAX_FIELDS: Final = 256
"""Of a form."""

_MAX_HEAD_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """All of a request but its body.

    Attributes:
        method: In capitals.
        parameters: Of the URL; of a repeated one the last.
        headers: Names in lower case.
    """

    method: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]

    def option(self, name: str) -> str:
        """A parameter of the URL, or else the header X-ClickHouse-Name."""
        header = f"x-clickhouse-{name.replace('_', '-').removeprefix('default-')}"
        return self.parameters.get(name) or self.headers.get(header, "")

    @property
    def is_compressible(self) -> bool:
        """Whether the answer may be compressed: as HTTP says, unless a parameter forbids it."""
        return self.parameters.get("enable_http_compression", "1") not in ("0", "false")


def head_of(method: str, query_string: bytes, headers: list[tuple[bytes, bytes]]) -> Head:
    """The head of an ASGI request."""
    text = query_string.decode("latin-1")
    return Head(
        method=method,
        parameters=dict(parse_qsl(text, keep_blank_values=True, encoding="utf-8")),
        headers={
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers
        },
    )


def call_of(head: Head, body: bytes, tag: str) -> Call:
    """The statement of a request.

    Args:
        head: Of the request.
        body: Decompressed.
        tag: Names the call.

    Raises:
        ClickHouseError: It has parts that are not offered here.
    """
    if head.parameters.get("compress", "0") not in ("0", "false"):
        raise ClickHouseError(
            NOT_IMPLEMENTED,
            "compress=1 is not offered here; use Accept-Encoding, or no compression",
        )
    if head.parameters.get("decompress", "0") not in ("0", "false"):
        raise ClickHouseError(NOT_IMPLEMENTED, "decompress=1 is not offered; use Content-Encoding")
    parameters = dict(head.parameters)
    kind = head.headers.get("content-type", "")
    if kind.lower().startswith("multipart/form-data"):
        parameters |= _fields(kind, body)
        body = b""
    query = parameters.get("query", "").encode()
    sql = query + b"\n" + body if query and body else query or body
    protocol = parameters.get("client_protocol_version", "0")
    if not protocol.isdecimal():
        raise ClickHouseError(BAD_ARGUMENTS, "client_protocol_version is a number")
    return Call(
        sql=sql,
        database=head.option("database"),
        default_format=head.option("default_format"),
        parameters={
            name.removeprefix(PARAMETER_PREFIX): value
            for name, value in parameters.items()
            if name.startswith(PARAMETER_PREFIX)
        },
        settings={
            name: value
            for name, value in parameters.items()
            if name not in _OF_HTTP and not name.startswith(PARAMETER_PREFIX)
        },
        protocol=int(protocol),
        is_reading=head.method in ("GET", "HEAD"),
        tag=tag,
    )


def _fields(kind: str, body: bytes) -> dict[str, str]:
    """The fields of a form (RFC 7578); files would be tables of the client's own."""
    message = _head(f"Content-Type: {kind}".encode("latin-1", "replace"))
    boundary = message.get_boundary()
    if not boundary:
        raise ClickHouseError(BAD_ARGUMENTS, "The form has no boundary")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    fields: dict[str, str] = {}
    parts = (b"\r\n" + body).split(delimiter, _MAX_FIELDS + 1)[1:]
    if len(parts) > _MAX_FIELDS:
        raise ClickHouseError(BAD_ARGUMENTS, f"The form has more than {_MAX_FIELDS} fields")
    for part in parts:
        if part.startswith(b"--"):
            break
        head, _, raw = part.partition(b"\r\n\r\n")
        field = _head(head.lstrip())
        name = field.get_param("name", header="content-disposition")
        if field.get_filename() is not None:
            raise ClickHouseError(NOT_IMPLEMENTED, "external data is not offered here")
        if isinstance(name, str):
            fields[name] = raw.decode("utf-8", "replace")
    return fields


def _head(raw: bytes) -> Message:
    """Headers of a form or of one of its fields. Reading them takes time by the square of their length."""
    if len(raw) > _MAX_HEAD_BYTES:
        raise ClickHouseError(
            BAD_ARGUMENTS, f"A field has more than {_MAX_HEAD_BYTES} bytes of headers"
        )
    return BytesHeaderParser(policy=HTTP).parsebytes(raw)


def is_valid_id(query_id: str) -> bool:
    """Whether it can stand in a header."""
    return re.fullmatch(r"[\x21-\x7e]{1,256}", query_id) is not None
