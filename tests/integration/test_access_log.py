"""Request ids on every answer, and what the access log says and never says."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from query_api.app import create_app
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api
from tests.waiting import eventually

LOGGER = "query_api.access"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("log"), has_access_log=True) as running:
        yield running


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=LOGGER)
    return caplog


def line_of(log: pytest.LogCaptureFixture, request_id: str) -> Any:
    """The line of a request; it is written behind the end of its answer."""

    def found() -> list[logging.LogRecord]:
        of_log = [record for record in log.records if record.name == LOGGER]
        return [one for one in of_log if getattr(one, "request_id", None) == request_id]

    (line,) = eventually(found, bool)
    return line


def test_a_line_says_what_was_answered_to_which_key(
    api: Api, log: pytest.LogCaptureFixture
) -> None:
    key, text = api.keys.create(name="n", scopes=[Scope.ADMIN])

    answer = api.client().delete(
        "/v1/meter/keys/some-key-id?secret=query",
        headers={"x-api-key": text, "x-request-id": "one"},
    )

    line = line_of(log, "one")
    assert (line.method, line.route, line.status) == ("DELETE", "/v1/meter/keys/{key_id}", 404)
    assert line.response_bytes == len(answer.content)
    assert line.key_id == key.key_id
    assert line.duration_ms >= 0
    assert line.getMessage() == (
        f"DELETE /v1/meter/keys/{{key_id}} 404 {line.duration_ms:.1f} ms "
        f"{len(answer.content)} bytes key={key.key_id} request=one"
    )


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ("a", True),
        ("Az09._-" * 18 + "ab", True),
        ("a" * 129, False),
        ("", False),
        ("a b", False),
        ("a;b", False),
        ("caf\u00e9", False),
    ],
)
def test_a_request_id_is_taken_over_if_no_log_can_be_confused_by_it(
    api: Api, given: str, is_taken: bool
) -> None:
    headers = [(b"x-request-id", given.encode())]

    answers = [api.client().get("/v1/meter/health", headers=headers) for _ in range(2)]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert (ids == [given, given]) == is_taken
    if not is_taken:
        assert ids[0] != ids[1]


def test_every_answer_and_every_problem_has_the_id_of_its_request(
    api: Api, log: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("a bug")

    client = api.client(Scope.ADMIN)
    with api.submitting(break_down):
        bug = client.post("/v1/meter/events", json={"tenant_id": "t", "meter": "m"})
    large = client.post("/v1/meter/events", content=b" " * (17 * 2**20))
    answers = {
        200: client.get("/v1/meter/meters"),
        307: client.get("/"),
        400: client.get("/v1/meter/meters?nonsense=1"),
        401: api.client().get("/v1/meter/meters"),
        403: api.client(Scope.INGEST).get("/v1/meter/meters"),
        404: client.get("/nowhere"),
        405: client.put("/v1/meter/events"),
        413: large,
        500: bug,
    }

    for status, answer in answers.items():
        assert answer.status_code == status
        request_id = answer.headers["x-request-id"]
        assert line_of(log, request_id).status == status
        if status >= 400:
            assert answer.json()["request_id"] == request_id
    assert line_of(log, answers[404].headers["x-request-id"]).route == "-"
    failed = [record for record in log.records if record.message == "request failed"]
    assert [getattr(record, "request_id", "") for record in failed] == [bug.headers["x-request-id"]]
    ids = [answer.headers["x-request-id"] for answer in answers.values()]
    assert len(set(ids)) == len(ids)


async def _answered(api: Api, *, has_access_log: bool) -> httpx.Response:
    app = create_app(api.app.state.services, has_access_log=has_access_log)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        return await client.get("/v1/meter/health")


@pytest.mark.parametrize("has_access_log", [False, True])
def test_the_log_is_a_setting_and_the_id_is_not(
    api: Api, log: pytest.LogCaptureFixture, has_access_log: bool
) -> None:
    answer = asyncio.run(_answered(api, has_access_log=has_access_log))

    ids = [getattr(record, "request_id", None) for record in log.records if record.name == LOGGER]
    assert (answer.headers["x-request-id"] in ids) == has_access_log
