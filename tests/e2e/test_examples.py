"""Every example runs in one command against `otel-metering up`, and is counted to the last digit."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.up import KEY, REPOSITORY, Up, free_ports
from tests.waiting import eventually

EXAMPLES = REPOSITORY / "examples"


def settings(up: Up, spool_dir: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
        "METERING_API_KEY": KEY,
        "METERING_ENDPOINT": f"http://{up.http}",
        "METERING_API_URL": f"http://{up.api}",
        "METERING_SPOOL_DIR": str(spool_dir),
    }


def run(name: str, up: Up, spool_dir: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env=settings(up, spool_dir),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@contextmanager
def serving(name: str, up: Up, spool_dir: Path, path: str) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, str(EXAMPLES / name), "--port", str(port)]
    with subprocess.Popen(
        command, env=settings(up, spool_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: get(url + path), lambda answer: answer[0] != 0)
            yield url
        finally:
            process.terminate()


def get(url: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        url, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def usage(up: Up, meter: str, *group_by: str) -> dict[tuple[str, ...], Decimal]:
    """(tenant, dimension...) -> all there ever was."""
    answer = up.get(
        "/v1/meter/aggregates",
        meter=meter,
        window="total",
        group_by=["tenant_id", *group_by],
        **{"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"},
    )
    return {
        (row["tenant_id"], *(row["dimensions"][name] for name in group_by)): Decimal(row["value"])
        for row in answer["data"]
    }


def expect(up: Up, meter: str, expected: dict[str, int | Decimal]) -> None:
    wanted = {(tenant,): Decimal(value) for tenant, value in expected.items()}
    eventually(lambda: usage(up, meter), lambda found: found == wanted)


def test_the_decorator(up: Up, tmp_path: Path) -> None:
    assert "acknowledged: True" in run("decorator.py", up, tmp_path)

    expect(up, "reports.made", {"acme": 2, "globex": 2})
    expect(up, "reports.pages", {"acme": 14, "globex": 5})
    expect(up, "archive.gigabytes", {"acme": Decimal("0.25"), "globex": Decimal("0.25")})
    expect(up, "emails", {"acme": 2, "globex": 2})


def test_tasks(up: Up, tmp_path: Path) -> None:
    assert "acknowledged: True" in run("async_tasks.py", up, tmp_path)

    # An export searches once more.
    expect(up, "search.queries", {"acme": 6, "globex": 3, "initech": 2})
    expect(up, "search.exports", {"acme": 1, "globex": 1, "initech": 1})
    expect(up, "search.sessions", {"acme": 1, "globex": 1, "initech": 1})
    seconds = usage(up, "search.seconds")
    assert seconds["acme",] >= Decimal("0.06")


def test_a_fastapi_service(up: Up, tmp_path: Path) -> None:
    with serving("fastapi_app.py", up, tmp_path, "/health") as url:
        for _ in range(3):
            assert get(f"{url}/files/readme", x_tenant_id="acme") == (200, b"Read me.\n" * 1000)
        status, error = get(f"{url}/files/missing", x_tenant_id="globex")
        assert status == 404

    expect(up, "api.requests", {"acme": 3, "globex": 1})
    expect(up, "api.egress", {"acme": 27_000, "globex": len(error)})


def test_a_flask_service(up: Up, tmp_path: Path) -> None:
    with serving("flask_app.py", up, tmp_path, "/nothing") as url:
        assert get(f"{url}/images/7", authorization="Bearer acme-key")[0] == 200
        assert get(f"{url}/images/8", authorization="Bearer acme-key")[0] == 200
        assert get(f"{url}/images/9", authorization="Bearer globex-key")[0] == 200
        # While it serves: Flask's own server has no handler of SIGTERM, which may cost the last second.
        expect(up, "images.requests", {"acme": 2, "globex": 1})
        expect(up, "images.pixels", {"acme": 614_400, "globex": 307_200})


def test_a_chat_ends_at_its_quota(up: Up, tmp_path: Path) -> None:
    printed = run("llm_streaming.py", up, tmp_path)

    assert "acknowledged: True" in printed
    chats = printed.count("tokens\n")
    tokens = sum(int(line.split()[-2]) for line in printed.splitlines() if line.endswith("tokens"))
    # As long as 60 tokens are left for another chat, there is one.
    assert 240 < tokens <= 300
    assert f"after {chats} chats: " in printed
    expect(up, "chat.tokens", {"acme": tokens})


def test_a_batch_that_runs_twice_is_billed_once(up: Up, tmp_path: Path) -> None:
    for _ in range(2):
        assert "acknowledged: True" in run("batch_worker.py", up, tmp_path)

    expect(up, "jobs.gigabytes", {"acme": Decimal("9.0"), "globex": Decimal("10.0")})
    expect(up, "jobs.done", {"acme": 20, "globex": 20})


def test_every_example_is_tested() -> None:
    examples = {path.name for path in EXAMPLES.glob("*.py")}
    tested = Path(__file__).read_text(encoding="utf-8")

    # The shop is what `make demo` drives.
    assert [name for name in sorted(examples - {"shop_api.py"}) if f'"{name}"' not in tested] == []


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder for the spool."""
    return tmp_path / "spool"
