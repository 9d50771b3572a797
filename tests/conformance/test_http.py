"""Rules of OTLP/HTTP (OTLP specification 1.11, "OTLP/HTTP")."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping

import pytest

from tests.conformance.conftest import LIMIT, READ_TIMEOUT_SECONDS
from tests.conformance.wire import (
    COMPRESSORS,
    INVALID_ARGUMENT,
    JSON,
    OK,
    RESOURCE_EXHAUSTED,
    SIGNALS,
    UNAUTHENTICATED,
    UNIMPLEMENTED,
    Answer,
    Signal,
    read_http,
)
from tests.e2e.up import KEY, Up
from tests.otlp import PROTOBUF, Point, metrics_request

every_media_type = pytest.mark.parametrize("media_type", [PROTOBUF, JSON])
ALL_PATHS = [signal.path for signal in SIGNALS]

GOOD = metrics_request([Point("##########", 1)]).SerializeToString()


def answer_of(
    up: Up,
    headers: Mapping[str, str],
    *,
    method: str = "POST",
    path: str = "/v1/metrics",
    body: bytes = b"",
    key: str = KEY,
) -> Answer:
    connection = http.client.HTTPConnection(up.http, timeout=20)
    try:
        connection.request(method, path, body, {"authorization": f"Bearer {key}", **headers})
        response = connection.getresponse()
        answered = {name.lower(): value for name, value in response.getheaders()}
        return read_http(response.status, response.read(), answered)
    finally:
        connection.close()


@pytest.mark.parametrize("signal", SIGNALS, ids=["metrics", "traces", "logs"])
@pytest.mark.parametrize(
    "content_type",
    [
        JSON,
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "Application/X-Protobuf ; x=y",
    ],
)
def test_the_content_type_is_parsed_and_the_answer_has_the_same(
    up: Up, signal: Signal, content_type: str
) -> None:
    answer = answer_of(up, {"content-type": content_type}, path=signal.path)

    assert answer.http == 200
    assert answer.headers["content-type"] == (JSON if "json" in content_type.lower() else PROTOBUF)


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-protobuf2", "application/jsonp"]
)
def test_another_content_type_is_415_with_a_status_in_json(
    up: Up, content_type: str | None
) -> None:
    """Go answers text/plain; the specification wants a Status in the body of every 4xx."""
    headers = {} if content_type is None else {"content-type": content_type}

    answer = answer_of(up, headers, body=GOOD)

    assert (answer.http, answer.code) == (415, INVALID_ARGUMENT)
    assert answer.headers["content-type"] == JSON


@every_media_type
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_405_with_a_status(up: Up, method: str, media_type: str) -> None:
    """Go answers text/plain."""
    answer = answer_of(up, {"content-type": media_type}, method=method)

    assert (answer.http, answer.code) == (405, UNIMPLEMENTED)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["allow"] == "POST"


@every_media_type
@pytest.mark.parametrize("path", ["/", "/v1/nothing", "/v1/metrics/", "/%ff"])
def test_another_path_is_404_with_a_status(up: Up, path: str, media_type: str) -> None:
    answer = answer_of(up, {"content-type": media_type}, path=path)

    assert (answer.http, answer.code) == (404, UNIMPLEMENTED)
    assert answer.headers["content-type"] == media_type


@every_media_type
def test_profiles_are_404_and_it_says_so(up: Up, media_type: str) -> None:
    answer = answer_of(up, {"content-type": media_type}, path="/v1development/profiles")

    assert (answer.http, answer.code) == (404, UNIMPLEMENTED)
    assert "profiles" in answer.message


def test_bad_json_is_400_in_json(up: Up) -> None:
    answer = answer_of(up, {"content-type": JSON}, body=b"1234")

    assert (answer.http, answer.code) == (400, INVALID_ARGUMENT)
    assert answer.headers["content-type"] == JSON


def test_a_wrong_value_in_json_is_400_and_its_path_is_named(up: Up) -> None:
    body = b'{"resourceMetrics": [{}, {"scopeMetrics": [{"metrics": [{"name": 5}]}]}]}'

    answer = answer_of(up, {"content-type": JSON}, body=body)

    path = "resourceMetrics[1].scopeMetrics[0].metrics[0].name"
    assert (answer.http, answer.code) == (400, INVALID_ARGUMENT)
    violation = answer.details["google.rpc.BadRequest"]["fieldViolations"][0]
    assert violation["field"] == path
    assert answer.message == f"{path}: expected text, found a number: '5'"


ENCODED = [name for name in COMPRESSORS if name not in ("none", "identity")]


@every_media_type
@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("wrong", ["plain", "empty", "truncated", "cut", "with a rest"])
def test_a_corrupt_body_is_400_with_code_3(
    up: Up, encoding: str, wrong: str, media_type: str
) -> None:
    packed = COMPRESSORS[encoding](GOOD)
    body = {
        "plain": GOOD,
        "empty": b"",
        "truncated": packed[:-3],
        "cut": packed[: len(packed) // 2],
        "with a rest": packed + b"rest",
    }[wrong]

    answer = answer_of(up, {"content-type": media_type, "content-encoding": encoding}, body=body)

    assert (answer.http, answer.code) == (400, INVALID_ARGUMENT)
    assert answer.headers["content-type"] == media_type


@every_media_type
@pytest.mark.parametrize("encoding", ["br", "snappy", "lz4", "gzip, gzip", "zstd2"])
def test_an_unknown_content_encoding_is_400(up: Up, encoding: str, media_type: str) -> None:
    """As Go answers to names that it does not know; it does know snappy and lz4."""
    answer = answer_of(up, {"content-type": media_type, "content-encoding": encoding}, body=GOOD)

    assert (answer.http, answer.code) == (400, INVALID_ARGUMENT)
    assert "gzip" in answer.message


def test_without_a_content_type_a_bad_encoding_is_answered_in_json(up: Up) -> None:
    answer = answer_of(up, {"content-encoding": "br"})

    assert answer.headers["content-type"] == JSON


@pytest.mark.parametrize("encoding", [" GZIP ", "Deflate", "ZSTD"])
def test_the_case_of_a_content_encoding_does_not_matter(up: Up, encoding: str) -> None:
    body = COMPRESSORS[encoding.strip().lower()](GOOD)

    assert (
        answer_of(up, {"content-type": PROTOBUF, "content-encoding": encoding}, body=body).code
        == OK
    )


@pytest.mark.parametrize("encoding", ENCODED)
def test_several_members_or_frames_are_one_body(up: Up, encoding: str) -> None:
    """Two export requests, one behind the other, are one in protobuf."""
    body = COMPRESSORS[encoding](GOOD) + COMPRESSORS[encoding](GOOD)

    answer = answer_of(up, {"content-type": PROTOBUF, "content-encoding": encoding}, body=body)

    assert b"2 in quarantine" in answer.body


def test_a_skippable_zstd_frame_is_skipped(up: Up) -> None:
    """RFC 8878, 3.1.2."""
    body = b"\x50\x2a\x4d\x18\x03\0\0\0abc" + COMPRESSORS["zstd"](GOOD)

    answer = answer_of(up, {"content-type": PROTOBUF, "content-encoding": "zstd"}, body=body)

    assert b"1 in quarantine" in answer.body


def test_a_zstd_window_above_the_limit_is_refused_before_it_is_allocated(up: Up) -> None:
    """A frame header of six bytes may ask for a window of gigabytes (RFC 8878, 3.1.1.1.2)."""
    window_of_2_gib = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"

    answer = answer_of(
        up, {"content-type": PROTOBUF, "content-encoding": "zstd"}, body=window_of_2_gib
    )

    assert (answer.http, answer.code) == (400, INVALID_ARGUMENT)


@every_media_type
@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_over_the_limit_is_413(up: Up, has_length: bool, media_type: str) -> None:
    """Go answers 400."""
    connection = http.client.HTTPConnection(up.http, timeout=20)
    size = LIMIT + 1
    headers = {"content-type": media_type, "authorization": f"Bearer {KEY}"}
    body = bytes(size) if has_length else iter([bytes(2**16)] * (size // 2**16 + 1))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered before all was sent
        connection.request("POST", "/v1/metrics", body, headers, encode_chunked=not has_length)
    response = connection.getresponse()
    answered = {name.lower(): value for name, value in response.getheaders()}
    answer = read_http(response.status, response.read(), answered)

    assert (answer.http, answer.code) == (413, RESOURCE_EXHAUSTED)
    assert answer.headers["content-type"] == media_type
    assert "retry-after" not in answer.headers
    connection.close()


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic " + KEY, KEY, "Bearer otm_root_wrong"]
)
def test_a_missing_or_unknown_key_is_401(up: Up, authorization: str) -> None:
    answer = answer_of(up, {"content-type": PROTOBUF, "authorization": authorization}, body=GOOD)

    assert (answer.http, answer.code) == (401, UNAUTHENTICATED)


def test_path_method_and_content_type_are_looked_at_before_the_key(up: Up) -> None:
    unknown = {"authorization": "Bearer otm_root_wrong", "content-type": PROTOBUF}

    assert answer_of(up, unknown, path="/v1/nothing").http == 404
    assert answer_of(up, unknown, method="GET").http == 405
    assert answer_of(up, {**unknown, "content-type": "text/plain"}).http == 415


def test_the_key_is_looked_at_before_the_body_is_read(up: Up) -> None:
    headers = {"authorization": "Bearer otm_root_wrong", "content-type": PROTOBUF}

    large = answer_of(up, {**headers, "content-length": str(2 * LIMIT)})
    corrupt = answer_of(up, {**headers, "content-encoding": "gzip"}, body=b"no gzip")

    assert (large.http, corrupt.http) == (401, 401)


def _raw(up: Up, text: bytes) -> bytes:
    """What is answered to bytes that never become a whole request, until the server ends it, in time."""
    host, _, port = up.http.partition(":")
    answered = b""
    with socket.create_connection(
        (host, int(port)), timeout=3 * READ_TIMEOUT_SECONDS
    ) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(text)
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                answered += part
    return answered


def test_a_body_that_does_not_arrive_in_time_is_503_and_the_connection_ends(up: Up) -> None:
    """503 and not 408: clients give up for good on 408, and the network may be better in a second."""
    head = (
        "POST /v1/metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
        f"content-type: {JSON}\r\nauthorization: Bearer {KEY}\r\n\r\n"
    )

    answered = _raw(up, head.encode() + b"{")

    status, _, rest = answered.partition(b"\r\n")
    assert status.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in rest
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["code"] == 14


@pytest.mark.parametrize("sent", [b"", b"POST /v1/metrics HTTP/1.1\r\nhost: "])
def test_a_head_that_does_not_arrive_in_time_ends_the_connection(up: Up, sent: bytes) -> None:
    assert _raw(up, sent) == b""


@pytest.mark.parametrize("line", [b"x: " + b"y" * 100, b"y" * 100])
def test_headers_above_64_kib_are_431_and_harm_nobody(up: Up, line: bytes) -> None:
    head = b"POST /v1/metrics HTTP/1.1\r\nhost: x"
    if line.startswith(b"x"):
        line = b"\r\n" + line
    # Just above, so that nothing is left unread: else a reset may overtake the answer.
    answered = _raw(up, (head + line * 700)[: 64 * 1024 + 1])

    assert answered.startswith(b"HTTP/1.1 431 ")
    assert answer_of(up, {"content-type": PROTOBUF}).code == OK


def test_a_connection_is_kept_for_the_next_request(up: Up) -> None:
    connection = http.client.HTTPConnection(up.http, timeout=20)
    headers = {"content-type": JSON, "authorization": f"Bearer {KEY}"}
    for _ in range(3):
        connection.request("POST", "/v1/metrics", b"{}", headers)
        before = connection.sock
        assert connection.getresponse().read() == b"{}"
        assert connection.sock is before
    connection.close()
