"""The documentation is true: its code runs, its links lead somewhere, its settings are those of the code."""

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.up import KEY, Up
from tests.integration.sdk_backend import running_backend
from tests.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    *REPOSITORY.glob("*.md"),
    *REPOSITORY.glob("docs/**/*.md"),
]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("docs"))
    running.start()
    yield running
    assert running.stop() == 0


def test_the_code_of_the_readme_is_metered(up: Up, tmp_path: Path) -> None:
    code, _ = codes()
    settings = {
        "METERING_ENDPOINT": f"http://{up.http}",
        "METERING_API_KEY": KEY,
        "METERING_SPOOL_DIR": str(tmp_path),
    }

    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **settings})

    def usage() -> list[tuple[str, dict[str, str], str]]:
        answer = up.get("/v1/meter/events", meter="orders.items")
        return [(one["tenant_id"], one["dimensions"], one["quantity"]) for one in answer["data"]]

    eventually(usage, lambda found: found == [("acme", {"region": "eu"}, "3")])


def test_the_code_of_the_readme_asks_before_usage_and_records_it(up: Up) -> None:
    _, code = codes()
    code = code.replace("http://127.0.0.1:8080", f"http://{up.api}").replace("otm_...", KEY)

    subprocess.run([sys.executable, "-c", code], check=True)

    def usage() -> list[tuple[str, str]]:
        answer = up.get("/v1/meter/events", meter="llm.tokens")
        return [(one["tenant_id"], one["quantity"]) for one in answer["data"]]

    eventually(usage, lambda found: found == [("acme", "3120")])


def codes() -> list[str]:
    """The programs in the README."""
    return blocks(REPOSITORY / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_python_block_is_python(page: Path) -> None:
    for number, code in enumerate(blocks(page)):
        compile(code, f"{page.name}, block {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_code_of_the_sdk_page_counts_what_it_says(tmp_path: Path) -> None:
    program = "\n".join(blocks(REPOSITORY / "docs" / "sdk.md", "<!-- runs -->\n"))
    program += """
import asyncio
from types import SimpleNamespace as Thing

async def model(prompt):
    return Thing(tokens=40, model="small")

with tenant("acme"):
    asyncio.run(answer(model, "why?"))
for _ in range(2):
    bill(Thing(customer="acme", number=7))
assert otel_metering.shutdown(20)
"""
    with running_backend() as backend:
        settings = {"METERING_ENDPOINT": backend.endpoint, "METERING_SPOOL_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, **settings})

    assert backend.totals() == {
        ("orders.items", "acme"): Decimal(3),
        ("storage.gigabytes", "acme"): Decimal("0.25"),
        ("llm.tokens", "acme"): Decimal(40),
    }
    assert {attributes["metering.event.id"] for _, _, attributes in backend.events} == {"invoice/7"}


def blocks(page: Path, after: str = "") -> list[str]:
    """The Python in a page; only what stands right after that line, if one is given."""
    return re.findall(re.escape(after) + r"```python\n(.*?)```", page.read_text(), re.S)


def test_the_settings_page_is_that_of_the_code() -> None:
    made = runpy.run_path(str(REPOSITORY / "docs" / "_settings.py"))

    assert (REPOSITORY / "docs" / "settings.md").read_text() == made["page"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_make_command_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M))

    assert set(re.findall(r"\bmake ([a-z]+)\b(?!\s+of)", page.read_text())) <= targets


def test_the_variables_of_the_example_are_settings() -> None:
    settings = (REPOSITORY / "docs" / "settings.md").read_text()
    for name in re.findall(
        r"^#?\s?(METERING_\w+)=", (REPOSITORY / ".env.example").read_text(), re.M
    ):
        assert f"`{name}`" in settings, name
