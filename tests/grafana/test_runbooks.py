"""What the runbooks say to look at and to type exists."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer.main

from grafana.builders import dashboards
from grafana.builders.dashboard import panels_of
from otel_metering.cli import audit, commands, events, keys, quarantine, quotas, spool, usage
from otel_metering.clock import SystemClock
from receiver.errors import RequestError
from receiver.store.client import Store
from receiver.store.migrate import migrate
from receiver.usage import Reason
from tests.grafana.alert_files import FOLDER

REPOSITORY = FOLDER.parent
PAGES = sorted((REPOSITORY / "docs" / "runbooks").glob("*.md"))

BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```sql\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"chdb://{tmp_path_factory.mktemp('engine')}")
    migrate(store, SystemClock())
    yield store
    store.close()


@pytest.mark.parametrize("sql", BLOCKS)
def test_each_query_runs(engine: Store, sql: str) -> None:
    assert list(engine.query(sql)) == []


def test_each_command_exists_with_its_options() -> None:
    known = commands_with_options()
    seen = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"(?:`|^    )otel-metering ([^`\n]+)", text, re.MULTILINE):
            words = line.split()
            name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
            assert name in known, f"{page.name}: {line}"
            assert {word for word in words if word.startswith("--")} <= known[name], line
            seen += 1
    assert seen > 30


def commands_with_options() -> Mapping[str, set[str]]:
    """Command -> its options, without running one."""
    app = typer.Typer()
    for register in (
        *(part.register for part in (usage, events, quotas, keys, audit, quarantine, spool)),
        *(point.load() for point in entry_points(group=commands.GROUP)),
    ):
        register(app)
    found: dict[str, set[str]] = {}
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        if children := getattr(command, "commands", None):
            waiting += [(f"{name} {child}".strip(), one) for child, one in children.items()]
        else:
            found[name] = {option for parameter in command.params for option in parameter.opts}
    return found


def test_each_panel_exists() -> None:
    """They are named as *Pipeline health / Duplicates*, and more of the same dashboard behind that."""
    titles = {
        one.title.removeprefix("Metering / "): {
            panel["title"] for panel in panels_of(one.to_json())
        }
        for one in (build() for build in dashboards.ALL)
    }
    seen = 0
    for page in PAGES:
        text = " ".join(page.read_text(encoding="utf-8").split())
        for group in re.findall(r"[Pp]anels? ((?:\*[^*]+\*(?:, | and |; |))+)", text):
            dashboard = ""
            for name in re.findall(r"\*([^*]+)\*", group):
                before, _, panel = name.rpartition(" / ")
                dashboard = before or dashboard
                assert panel in titles[dashboard], f"{page.name}: {name}"
                seen += 1
    assert seen > 20


def test_each_reason_exists() -> None:
    known = {str(reason) for reason in Reason} | {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", one.__name__.removesuffix("Error")).lower()
        for one in RequestError.__subclasses__()
    }
    known |= {"unavailable", "spool_full", "internal", "malformed_payload", "slow_request"}
    for name in ("metering-refusals", "metering-quarantine-growing"):
        page = REPOSITORY / "docs" / "runbooks" / f"{name}.md"
        for row in re.findall(r"^\| (`.*?) \|", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert set(re.findall(r"`(\w+)`", row)) <= known, row


def test_each_link_leads_to_a_file() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_each_setting_exists() -> None:
    known = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    grafana = json.dumps([path.read_text() for path in Path(FOLDER).rglob("*.yaml")])
    for page in PAGES:
        for name in re.findall(r"METERING_[A-Z_]+", page.read_text(encoding="utf-8")):
            assert f"`{name}`" in known or name in grafana or name.startswith("METERING_API_"), name
