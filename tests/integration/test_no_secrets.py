"""No secret is ever written down: not in a log, an answer, or any column of any table."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from receiver.store.client import Store
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api
from tests.waiting import eventually

CLIENT_SIDE = ("httpx", "httpcore")
"""Loggers of the test's own client, in the same process."""


def columns_with(store: Store, text: str) -> list[str]:
    """Every column of every table of ours that has `text` anywhere."""
    columns = store.query(
        "SELECT table, name FROM system.columns WHERE database = 'metering' AND table IN "
        "(SELECT name FROM system.tables WHERE database = 'metering' AND engine LIKE '%MergeTree')"
    )
    assert len(columns) > 100
    found = []
    for table, column in columns:
        (count,) = store.query(
            f"SELECT countIf(position(toString({column}), {{text:String}}) > 0) "
            f"FROM metering.{table}",
            {"text": text},
        )[0]
        if count:
            found.append(f"{table}.{column}")
    return found


def everything_of(record: logging.LogRecord) -> str:
    """A record with its extras and its traceback."""
    return logging.Formatter().format(record) + repr(record.__dict__)


def use_everything(api: Api) -> tuple[list[str], list[str]]:
    """Secrets, and the text of every answer but the two that may show one."""
    client = api.client()
    answers: list[str] = []
    secrets: list[str] = []

    def call(method: str, path: str, key: str, **more: Any) -> Any:
        answer = client.request(method, path, headers={"authorization": f"Bearer {key}"}, **more)
        made = answer.json() if answer.status_code == 201 else {}
        secrets.extend(made[name] for name in ("key", "token") if name in made)
        if not made:
            answers.append(answer.text + repr(answer.headers))
        return made

    admin = api.key(Scope.ADMIN)
    key = call("POST", "/v1/meter/keys", admin, json={"name": "n", "scopes": ["admin"]})
    new = call("POST", f"/v1/meter/keys/{key['key_id']}/rotate", admin, json={})
    token = call(
        "POST", "/v1/meter/tokens", admin, json={"tenant_id": "tenant_a", "ttl_seconds": 60}
    )["token"]
    limited = api.keys.create(name="n", scopes=[Scope.QUERY], rate_limit_per_second=1)[1]
    secrets += [admin, limited, "otm_nobody_" + "5ecret" * 8, "ott_nobody.5ecret5ecret5ecret"]

    def break_down(*_: object) -> None:
        raise RuntimeError("a bug")

    with api.submitting(break_down):
        call("POST", "/v1/meter/events", admin, json={"tenant_id": "t", "meter": "m"})
    for presented in (*secrets, key["key"][:-1], token[:-1], f"{token}x", limited):
        for path in ("meters", "keys", "audit", "events", "quarantine", "nowhere", "meters?x=y"):
            call("GET", f"/v1/meter/{path}", presented)
        call("POST", "/v1/meter/quarantine/discard", presented, json={"name": "x"})
    call("DELETE", f"/v1/meter/keys/{new['key_id']}", admin)
    return secrets, answers


def test_no_secret_is_written_down_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with running_api(tmp_path, has_access_log=True) as api:
        secrets, answers = use_everything(api)
        api.keys.use.write()
        key_ids = {secret.split("_")[1] for secret in secrets if secret.startswith("otm_")}
        lines = eventually(
            lambda: [one for one in caplog.records if one.name == "query_api.access"],
            lambda found: len(found) >= len(answers),
        )

        assert len(answers) > 60
        # The search finds what is there: ids of keys, in the tables, in the log and in the answers.
        assert {"api_keys.key_id", "audit_log.key_id", "api_key_use.key_id"} <= {
            column for key_id in key_ids for column in columns_with(api.store, key_id)
        }
        assert any(getattr(line, "key_id", "") in key_ids for line in lines)
        assert any(key_id in answer for key_id in key_ids for answer in answers)
        records = [
            everything_of(record)
            for record in caplog.records
            if not record.name.startswith(CLIENT_SIDE)
        ]
        for secret in secrets:
            private = re.split(r"\." if secret.startswith("ott_") else "_", secret)[-1]
            assert len(private) >= 16
            for text in (private, private[:16]):
                assert columns_with(api.store, text) == []
                assert not [record for record in records if text in record]
                assert not [answer for answer in answers if text in answer]
        assert not [record for record in records if "bearer" in record.lower()]
