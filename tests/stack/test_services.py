"""The services of docker-compose.yml do what the stack needs of them, run by hand as the file says."""

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.e2e.up import COMMAND, REPOSITORY
from tests.otlp import Point, metrics_request, post
from tests.stack.by_hand import Stack
from tests.stack.compose import every_service
from tests.waiting import eventually


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The profile of this name, as far as it runs here; tests share it."""
    made = Stack(tmp_path_factory.mktemp("embedded"))
    made.start("embedded")
    made.run("grafana-key")
    yield made
    made.end()


@pytest.fixture
def engine(stack: Stack) -> Iterator[None]:
    """The embedded engine's endpoint in the place of the ClickHouse server, which cannot run here."""
    password = (stack.secrets / "clickhouse_password").read_text().strip()
    process = subprocess.Popen(
        [
            *(COMMAND, "clickhouse", f"--data-dir={stack.folder / 'engine'}"),
            f"--port={stack.address('8123').partition(':')[2]}",
        ],
        env={**os.environ, "METERING_CLICKHOUSE_ADMIN_PASSWORD": password},
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready"):
            break
    url = f"clickhouse://admin:{password}@{stack.address('8123')}/metering"
    _replace(stack.secrets / "metering_clickhouse_url", url)
    yield
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.fixture
def counters(stack: Stack) -> Iterator["redis.Redis"]:
    """The stack's Redis, started as the file says."""
    beside = Path(sys.executable).with_name("redis-server")
    if not beside.exists() and shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    service = every_service()["redis"]
    folder = stack.folder / "redis"
    folder.mkdir()
    port = stack.address("6379").partition(":")[2]
    script = service["entrypoint"][2].replace("/run/secrets", str(stack.secrets))
    # The container's own port and folder, moved.
    script = script.replace("cat /etc/redis.conf", f"sed s#/data#{folder}# {_redis_conf()}")
    script = script.replace("/tmp/redis.conf", f"{folder}/made.conf")
    more = f'echo "port {port}"; echo "bind 127.0.0.1"; echo "requirepass'
    script = script.replace('echo "requirepass', more)
    path = {**os.environ, "PATH": f"{beside.parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(["sh", "-c", script], env=path, stdout=subprocess.DEVNULL)
    password = (stack.secrets / "redis_password").read_text().strip()
    url = (stack.secrets / "metering_redis_url").read_text().strip()
    here = url.replace("redis:6379", f"127.0.0.1:{port}")
    _replace(stack.secrets / "metering_redis_url", here)
    with redis.Redis.from_url(here) as client:
        eventually(lambda: _answers(client), bool)
        assert password in here
        yield client
    process.terminate()
    assert process.wait(60) == 0  # the server ended, and not a shell around it


def test_the_redis_of_the_stack_wants_its_password_and_keeps_everything(
    counters: "redis.Redis",
) -> None:
    kept = {
        name: counters.config_get(name)[name]
        for name in ("maxmemory-policy", "appendonly", "appendfsync", "maxmemory")
    }
    assert kept == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": str(192 * 2**20),
    }
    stranger = redis.Redis(port=counters.connection_pool.connection_kwargs["port"])
    with pytest.raises(redis.AuthenticationError):
        stranger.ping()
    stranger.close()


def test_the_profile_server_migrates_counts_and_answers(
    stack: Stack, engine: None, counters: "redis.Redis"
) -> None:
    stack.run("migrate")
    stack.start("receiver")
    stack.run("collector-key")
    stack.start("api")
    key = _made(stack, "collector")

    _use(stack, key)

    eventually(lambda: _used(stack), lambda found: found == {"acme": Decimal(7)})
    assert counters.dbsize() > 0, "quotas are not counted in Redis"
    assert not (stack.volume("/data") / "clickhouse").exists()
    stack.end()  # while there still is a database


def test_grafana_reads_the_embedded_engine_with_the_key_that_its_container_gets(
    embedded: Stack,
) -> None:
    _use(embedded, (embedded.secrets / "metering_admin_key").read_text().strip())

    eventually(lambda: _used(embedded), lambda found: found == {"acme": Decimal(7)})
    password = _password_of_grafana(embedded)
    assert password == _made(embedded, "grafana")
    eventually(lambda: _select(embedded, password), lambda answer: answer == "acme\n")


def test_a_key_of_the_stack_is_made_once_and_again_when_it_is_worth_nothing(
    embedded: Stack,
) -> None:
    first = _made(embedded, "grafana")
    embedded.run("grafana-key")
    assert _made(embedded, "grafana") == first

    _revoke(embedded, first)
    embedded.run("grafana-key")

    second = _made(embedded, "grafana")
    assert second != first
    _select(embedded, second)
    with pytest.raises(urllib.error.HTTPError):
        _select(embedded, first)


def _redis_conf() -> Path:
    return REPOSITORY / "deploy" / "redis" / "redis.conf"


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _replace(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(f"{text}\n")


def _made(stack: Stack, name: str) -> str:
    return (stack.volume("/keys") / name / "key").read_text().strip()


def _use(stack: Stack, key: str) -> None:
    body = metrics_request([Point("acme", 7)]).SerializeToString()
    assert post(stack.address("4318"), "/v1/metrics", body, key)[0] == 200


def _ask(stack: Stack, path: str, method: str = "GET") -> Any:
    key = (stack.secrets / "metering_admin_key").read_text().strip()
    request = urllib.request.Request(
        f"http://{stack.address('8080')}{path}",
        headers={"authorization": f"Bearer {key}"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _used(stack: Stack) -> dict[str, Decimal]:
    bounds = "from=2020-01-01T00:00:00Z&to=2030-01-01T00:00:00Z"
    asked = f"/v1/meter/aggregates?meter=api.calls&window=total&group_by=tenant_id&{bounds}"
    return {row["tenant_id"]: Decimal(row["value"]) for row in _ask(stack, asked)["data"]}


def _revoke(stack: Stack, key: str) -> None:
    _ask(stack, f"/v1/meter/keys/{key.split('_')[1]}", "DELETE")


def _select(stack: Stack, password: str) -> str:
    """Whose usage a reader sees at the endpoint."""
    credentials = base64.b64encode(f"grafana_reader:{password}".encode()).decode()
    request = urllib.request.Request(
        f"http://{stack.address('8123')}/",
        data=b"SELECT DISTINCT tenant_id FROM metering.events",
        headers={"authorization": f"Basic {credentials}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def _password_of_grafana(stack: Stack) -> str:
    """What the start of Grafana's container leaves to it."""
    service = every_service()["grafana-embedded"]
    script = service["entrypoint"][2]
    assert script.endswith("exec /run.sh")
    key = service["environment"]["METERING_CH_PASSWORD_FILE"]
    there = str(stack.volume("/keys") / Path(key).relative_to("/keys"))
    done = subprocess.run(
        ["sh", "-c", script.replace("/run.sh", "printenv METERING_CH_PASSWORD")],
        env={"PATH": os.environ["PATH"], "METERING_CH_PASSWORD_FILE": there},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
