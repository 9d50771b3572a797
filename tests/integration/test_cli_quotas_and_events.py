"""The commands for routes that are specified, against a stand-in that answers as they do."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.api_stand_in import StandIn, stand_in
from tests.integration.test_cli_commands import MAIN, cells, run


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    with stand_in() as service:
        yield service


@pytest.fixture
def service(running: StandIn) -> StandIn:
    running.seen.clear()
    running.faults.clear()
    running.usage = []
    running.exported, running.breaks_after = 5, None
    return running


def row(start: str, end: str, value: str, **more: object) -> dict[str, object]:
    return {"window_start": start, "window_end": end, "dimensions": {}, "value": value} | more


def command(service: StandIn, *arguments: str) -> "subprocess.CompletedProcess[str]":
    done = run(*arguments, url=service.url, key="k")
    assert "Traceback" not in done.stderr
    return done


def test_usage_in_detail_asks_what_was_typed(service: StandIn) -> None:
    service.usage = [
        row(
            "2026-03-28T23:00:00Z",
            "2026-03-29T22:00:00Z",
            "3",
            tenant_id="a",
            dimensions={"region": "eu"},
            previous_value="2",
        )
    ]
    done = command(
        service,
        *["usage", "--meter", "m", "--window", "day", "--timezone", "Europe/Berlin", "--compare"],
        *["--group-by", "tenant_id", "--group-by", "region", "--filter", "region=eu"],
        *["--filter", "path^=/v1", "--filter", "plan!=free", "--top", "3", "--order", "-value"],
        *["--from", "2026-03-29", "--to", "2026-03-30"],
    )

    (seen,) = service.seen
    assert sorted(seen.parameters) == sorted(
        [
            ("meter", "m"),
            ("from", "2026-03-29"),
            ("to", "2026-03-30"),
            ("window", "day"),
            ("timezone", "Europe/Berlin"),
            ("group_by", "tenant_id"),
            ("group_by", "region"),
            ("filter[region]", "eu"),
            ("filter[path][prefix]", "/v1"),
            ("filter[plan][not]", "free"),
            ("top", "3"),
            ("order", "-value"),
            ("compare", "previous"),
        ]
    )
    assert cells(done.stdout) == [
        ["window", "tenant", "region", "value", "before", "change"],
        ["2026-03-29", "a", "eu", "3", "2", "+50.0%"],
    ]


def test_usage_as_csv_and_json_is_exact(service: StandIn) -> None:
    service.usage = [row("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z", "98765432109876543.1")]

    as_csv = command(service, "usage", "--meter", "m", "--window", "total", "--format", "csv")
    as_json = command(service, "usage", "--meter", "m", "--window", "total", "--format", "json")

    assert as_csv.stdout == (
        "window_start,window_end,value\n"
        "2026-03-01T00:00:00Z,2026-04-01T00:00:00Z,98765432109876543.1\n"
    )
    assert json.loads(as_json.stdout)["rows"][0]["value"] == "98765432109876543.1"


def test_a_plot_asks_for_gaps_and_fits_the_width(service: StandIn) -> None:
    service.usage = [
        row(f"2026-03-{day:02}T00:00:00Z", f"2026-03-{day + 1:02}T00:00:00Z", str(day % 7))
        for day in range(1, 31)
    ]

    done = command(service, "usage", "--meter", "m", "--plot")

    assert ("fill", "zero") in service.seen[0].parameters
    assert ("window", "day") in service.seen[0].parameters
    lines = done.stdout.splitlines()
    assert lines[0].startswith("m, sum {call}, by day, 2026-03-01T00:00:00Z to")
    assert max(map(len, lines)) <= 80
    assert "█" in done.stdout
    assert "\x1b" not in done.stdout
    assert lines[-1] == "peak 6 at 2026-03-06"


def test_a_plot_without_usage_says_so(service: StandIn) -> None:
    assert command(service, "usage", "--meter", "m", "--plot").stdout == "no usage in this range\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["usage", "--plot"], "give --meter"),
        (["usage", "--meter", "m", "--order", "up"], "it must be one of window_start"),
        (["usage", "--meter", "m", "--plot", "--format", "csv"], "leave out --format"),
        (["usage", "--meter", "m", "--filter", "region"], "write NAME=VALUE"),
        (["quotas", "set", "--meter", "m", "--limit", "many"], "--limit is 'many'"),
        (["events", "get", "nothing"], "there is no /events/nothing (HTTP 404)"),
        (["events", "export", "-o", "/no/such/folder/x.csv"], "cannot be written"),
        (["tokens", "create", "--tenant", "t", "--ttl", "soon"], "write it like 90m"),
    ],
)
def test_a_mistake_is_one_line(service: StandIn, arguments: list[str], said: str) -> None:
    done = command(service, *arguments)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_quota_is_set_shown_and_deleted(service: StandIn) -> None:
    made = command(
        service,
        *["quotas", "set", "--meter", "m", "--limit", "1e3", "--tenant", "t", "--soft"],
        *["--threshold", "80", "--filter", "region=eu", "--filter", "region=us"],
    )
    listed = command(service, "quotas", "list")
    status = command(service, "quotas", "status")
    deleted = command(service, "quotas", "delete", "q1")

    assert service.asked("PUT", "/quotas")[0].body == {
        "tenant_id": "t",
        "meter": "m",
        "filter": {"region": ["eu", "us"]},
        "limit": "1000",
        "period": "month",
        "enforcement": "soft",
        "thresholds": [80],
    }
    assert "limit       1000\n" in made.stdout
    assert cells(listed.stdout)[1][:4] == ["q1", "any", "api.calls", "1000.5"]
    assert cells(status.stdout)[1][3:8] == ["600", "100.25", "300.25", "1000.5", "60.0"]
    assert deleted.stdout == "quota q1 is deleted\n"


def test_validate_says_no_with_its_exit_status(service: StandIn) -> None:
    yes = command(service, "validate", "--tenant", "t", "--meter", "m", "--quantity", "10")
    no = command(service, "validate", "--tenant", "t", "--meter", "m", "--quantity", "11")

    assert (yes.returncode, no.returncode) == (0, 3)
    assert "limit_exceeded" in no.stdout


def test_keys_rotate_and_tokens_are_printed_once(service: StandIn) -> None:
    rotated = command(service, "keys", "rotate", "k1", "--overlap", "30m")
    token = command(service, "tokens", "create", "--tenant", "t", "--ttl", "15m", "--meter", "m")
    made = command(
        service, *["keys", "create", "--name", "n", "--scope", "query", "--rate-limit", "5"]
    )
    listed = command(service, "keys", "list")

    assert service.asked("POST", "/keys/k1/rotate")[0].body == {"overlap_seconds": 1800}
    assert "otm_k2_secret" in rotated.stdout
    assert service.asked("POST", "/tokens")[0].body == {
        "tenant_id": "t",
        "ttl_seconds": 900,
        "meters": ["m"],
    }
    assert "ott_x" in token.stdout
    assert "rate     5/s" in made.stdout
    assert cells(listed.stdout)[1][-2:] == ["2026-09-21T14:13:20Z", "50/s"]


def test_the_audit_log_is_read_to_the_limit_and_text_is_not_markup(service: StandIn) -> None:
    both = command(service, "audit", "--actor", "k1")
    one = command(service, "audit", "--limit", "1", "--format", "json")

    assert cells(both.stdout)[1][-1] == "name=[bold]job"
    assert len(cells(both.stdout)) == 3
    assert len(json.loads(one.stdout)) == 1
    assert "there are more" in one.stderr


def test_an_event_is_voided_only_when_that_is_confirmed(service: StandIn) -> None:
    done = command(service, "events", "void", "e1", "--reason", "typo", "--yes")
    corrected = command(
        service, *["events", "correct", "e1", "--reason", "typo", "--quantity", "2.5"]
    )

    assert done.stdout.startswith("event e1 is void since")
    assert corrected.stdout.startswith("event e1 is replaced by e2 since")
    assert service.seen[-1].body == {"reason": "typo", "quantity": "2.5"}


def test_an_export_appears_when_it_is_whole(service: StandIn, tmp_path: Path) -> None:
    target = tmp_path / "events.csv"
    target.write_text("of yesterday")
    service.exported, service.breaks_after = 100_000, 50_000
    broken = command(service, "events", "export", "-o", str(target))
    kept = target.read_text()
    service.breaks_after = None
    whole = command(service, "events", "export", "-o", str(target))
    service.exported = 2
    printed = command(service, "events", "export", "--format", "ndjson")

    assert (broken.returncode, kept) == (1, "of yesterday")
    assert "broke off" in broken.stderr
    assert (whole.returncode, whole.stdout) == (0, "")
    assert whole.stderr.startswith("100,000 events, ")
    assert len(target.read_text().splitlines()) == 100_001
    assert list(tmp_path.iterdir()) == [target]
    assert printed.stdout == "event_id,quantity\ne0,1\ne1,1\n"
    assert printed.stderr == ""


def test_an_export_shows_a_bar_on_a_terminal(service: StandIn, tmp_path: Path) -> None:
    service.exported = 3_000
    ours, theirs = pty.openpty()
    environment = {**os.environ, "METERING_API_URL": service.url, "METERING_API_KEY": "k"}
    # The stand-in does not list meters: with a filter, no total is asked for.
    arguments = ["events", "export", "-o", str(tmp_path / "x"), "--filter", "a=b"]
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments], stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while some := os.read(ours, 65_536):
                shown += some
        except OSError:  # the other end is closed
            pass
        os.close(ours)

    assert process.returncode == 0
    assert "━".encode() in shown
    assert b"3,000 events" in shown


def test_a_reader_that_has_enough_is_no_error(service: StandIn) -> None:
    service.exported = 100_000
    environment = {**os.environ, "METERING_API_URL": service.url, "METERING_API_KEY": "k"}
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "events", "export"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"event_id,quantity\n"
        process.stdout.close()
        said = process.stderr.read()

    assert said == b""
