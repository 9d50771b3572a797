"""The client commands against a real API: what they print, and how they fail."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from uuid import UUID

import pytest

from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

MAIN = "from otel_metering.cli import main; main()"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("commands")) as running:
        yield running


@pytest.fixture(scope="module")
def admin_key(api: Api) -> str:
    return api.key(Scope.ADMIN)


def run(
    *arguments: str, url: str = "", key: str = "", code: str = MAIN
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if "METERING" not in name},
        **({"METERING_API_URL": url} if url else {}),
        **({"METERING_API_KEY": key} if key else {}),
        "COLUMNS": "80",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def cells(output: str) -> list[list[str]]:
    """The rows of a printed table."""
    rows = [line for line in output.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in re.split("[│┃]", row)[1:-1]] for row in rows]


def test_usage_is_a_table_of_tenants_and_meters(api: Api, admin_key: str) -> None:
    at = 1_769_904_000_000_000_000
    usage = [
        ("tenant_a", "api.calls", "1.5"),
        ("tenant_a", "api.calls", "98765432109876543210.000000001"),
        ("tenant_b", "api.calls", "2"),
        ("tenant_b", "requests", "9"),
    ]
    api.insert(
        [
            {
                "event_id": UUID(int=i),
                "tenant_id": tenant,
                "meter": meter,
                "quantity": quantity,
                "timestamp": at,
            }
            for i, (tenant, meter, quantity) in enumerate(usage)
        ]
    )
    within = ["--from", "2026-02-01", "--to", "2026-02-02"]

    everything = run("usage", *within, url=api.url, key=admin_key)
    one_tenant = run("usage", *within, "--tenant", "tenant_b", url=api.url, key=admin_key)
    one_meter = run("usage", *within, "--meter", "requests", url=api.url, key=admin_key)

    assert everything.returncode == 0, everything.stderr
    assert "usage from 2026-02-01T00:00:00Z to 2026-02-02T00:00:00Z" in everything.stdout
    assert cells(everything.stdout) == [
        ["", "api.calls", "requests"],
        ["tenant", "sum {call}", "count"],
        ["tenant_a", "98765432109876543211.500000001", ""],
        ["tenant_b", "2", "1"],
    ]
    assert cells(one_tenant.stdout)[2:] == [["tenant_b", "2", "1"]]
    assert cells(one_meter.stdout)[2:] == [["tenant_b", "1"]]


def test_usage_of_an_empty_range_says_so(api: Api, admin_key: str) -> None:
    result = run("usage", "--last", "1h", "--tenant", "nobody", url=api.url, key=admin_key)

    assert (result.returncode, result.stdout) == (0, "no usage in this range\n")


def test_a_key_is_made_listed_and_revoked(api: Api, admin_key: str) -> None:
    made = run(
        *["keys", "create", "--name", "job", "--scope", "query", "--scope", "ingest"],
        *["--tenant", "tenant_k", "--expires", "2099-12-31"],
        url=api.url,
        key=admin_key,
    )
    key = re.search(r"otm_\w+", made.stdout)
    assert made.returncode == 0
    assert key

    listed = run("keys", "list", url=api.url, key=admin_key)
    works = run("usage", url=api.url, key=key[0])
    key_id = key[0].split("_")[1]
    revoked = run("keys", "revoke", key_id, url=api.url, key=admin_key)
    refused = run("usage", url=api.url, key=key[0])

    row = next(row for row in cells(listed.stdout) if row[0] == key_id)
    assert row[1:6] == ["job", "ingest, query", "tenant_k", "2099-12-31T00:00:00Z", ""]
    assert key[0] not in listed.stdout
    assert works.returncode == 0
    assert f"key {key_id} (job) is revoked since" in revoked.stdout
    assert refused.returncode == 1
    assert "revoked or expired" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["usage", "--last", "soon"], "write it like 90m, 24h, 30d or 4w"),
        (["usage", "--last", "1h", "--to", "2026-01-01"], "either --last, or --from and --to"),
        (["usage", "--last", "999999w"], "before the year 1"),
        (["usage", "--from", "yesterday"], "RFC 3339"),
        (
            ["usage", "--api-key", "otm_x_y"],
            "unknown, revoked or expired; use another one (HTTP 401)",
        ),
        (["usage", "--api-url", "http://127.0.0.1:1"], "does not answer"),
        (["usage", "--api-url", "nonsense"], "it must be a URL such as http://127.0.0.1:8080"),
        (["keys", "create", "--name", "x", "--scope", "root"], "scopes"),
        (["keys", "create", "--name", "x", "--scope", "query", "--expires", "999999w"], "9999"),
        (["keys", "revoke", "no body"], "there is no key 'no body'"),
    ],
)
def test_a_failure_is_one_line_with_the_remedy(
    api: Api, admin_key: str, arguments: list[str], said: str
) -> None:
    result = run(*arguments, url=api.url, key=admin_key)

    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_key_the_remedy_is_named() -> None:
    result = run("keys", "list")

    assert (result.returncode, result.stdout) == (1, "")
    assert "METERING_API_KEY" in result.stderr


def test_what_is_not_the_api_is_named() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        result = run("keys", "list", url=f"http://127.0.0.1:{server.server_port}", key="x")
        thread.join()

    assert result.returncode == 1
    assert "answers 501, and not as the query API does" in result.stderr


def test_without_the_extra_its_name_is_printed() -> None:
    code = f"import sys; sys.modules['typer'] = None; {MAIN}"

    result = run("usage", code=code)

    assert result.returncode == 1
    assert result.stderr == (
        "error: typer is not installed; run: pip install 'otel-metering[cli]' to ask a query API, "
        "or 'otel-metering[embedded]' to run one here\n"
    )


def test_a_command_whose_extra_is_missing_is_explained() -> None:
    code = f"import sys; sys.modules['uvicorn'] = sys.modules['grpc'] = None; {MAIN}"

    asked = run("up", code=code)
    client = run("usage", "--help", code=code)

    assert asked.returncode == 1
    assert "there is no command 'up' here" in asked.stderr
    assert "pip install 'otel-metering[embedded]'" in asked.stderr
    assert client.returncode == 0


def test_help_lists_the_commands_of_every_installed_part() -> None:
    result = run("--help")

    assert result.returncode == 0
    for command in ("usage", "keys", "up"):
        assert re.search(rf"^. {command} ", result.stdout, re.MULTILINE), result.stdout
