"""Cross-origin requests (OTLP specification, "OTLP/HTTP"; as rs/cors does it, which the Collector uses)."""

import http.client
from collections.abc import Mapping

import pytest

from receiver.cors import Cors
from tests.e2e.up import KEY, Up

ASKED = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def request(
    up: Up, method: str, headers: Mapping[str, str], path: str = "/v1/traces"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(up.http, timeout=20)
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        answered = {name.lower(): value for name, value in response.getheaders()}
        return response.status, answered, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("origin", ["https://shop.example", "https://a.team.example"])
def test_a_preflight_is_answered_204_before_authentication(up: Up, origin: str) -> None:
    status, headers, body = request(up, "OPTIONS", {**ASKED, "origin": origin})

    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == origin
    assert headers["access-control-allow-methods"] == "POST"
    assert headers["access-control-allow-headers"] == "authorization, content-type"
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["access-control-max-age"] == "600"
    assert headers["vary"].startswith("Origin")


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": "https://evil.example"},
        {"origin": "https://shop.example.evil"},
        {"origin": "http://shop.example"},
        {"origin": "https://team.example"},
        {"origin": ""},
        {"access-control-request-method": "DELETE"},
        {"access-control-request-headers": "x-other"},
    ],
)
def test_a_preflight_of_another_origin_or_for_more_is_answered_without_permission(
    up: Up, changed: dict[str, str]
) -> None:
    headers = {**ASKED, "origin": "https://shop.example", **changed}

    status, answered, _ = request(up, "OPTIONS", headers)

    assert status == 204
    assert not [name for name in answered if name.startswith("access-control-")]


def test_an_answer_lets_an_allowed_page_read_it_also_when_it_is_an_error(up: Up) -> None:
    sent = {"origin": "https://shop.example", "content-type": "application/json"}

    for key, expected in ((KEY, 200), ("wrong", 401)):
        status, headers, _ = request(up, "POST", {**sent, "authorization": f"Bearer {key}"})
        assert status == expected
        assert headers["access-control-allow-origin"] == "https://shop.example"
        assert headers["access-control-allow-credentials"] == "true"
        assert headers["vary"] == "Origin"


def test_another_page_may_not_read_the_answer(up: Up) -> None:
    _, headers, _ = request(up, "POST", {"origin": "https://evil.example"})

    assert "access-control-allow-origin" not in headers


def test_without_allowed_origins_a_preflight_reaches_the_handler() -> None:
    off = Cors([], ["*"], max_age_seconds=0)

    assert not off.is_preflight("OPTIONS", ASKED)
    assert off.response({"origin": "https://shop.example"}) == []


def test_a_star_allows_every_page_and_header() -> None:
    every = Cors(["*"], ["*"], max_age_seconds=0)

    headers = dict(every.preflight({**ASKED, "origin": "https://any.example"}))

    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"access-control-max-age" not in headers
