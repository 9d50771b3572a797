"""A client of ClickHouse as Grafana is one, built from its Go modules, and how it is asked."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.peers.install import installed, run, tool

SOURCES: Final = sorted(
    path for kind in ("*.go", "go.mod", "go.sum") for path in Path(__file__).parent.glob(kind)
)


def build() -> Path:
    """The program; the first build takes minutes.

    Raises:
        UnavailableError: Go is missing or too old, or the module proxy is not reached.
    """

    def install(folder: Path) -> None:
        go = tool("go", (1, 26), "version")
        for source in SOURCES:
            shutil.copy(source, folder)
        run([go, "build", "-o", "grafana", "."], folder, {"GOFLAGS": "-mod=readonly"})

    recipe = "\n".join(source.read_text() for source in SOURCES)
    return installed("grafana", recipe, install) / "grafana"


def ask(
    program: Path,
    server: Mapping[str, object],
    *,
    questions: Sequence[Mapping[str, object]] = (),
    queries: Sequence[Mapping[str, object]] = (),
) -> dict[str, Any]:
    """What it answers.

    Args:
        program: The program.
        server: Where, as whom.
        questions: Statements for clickhouse-go alone.
        queries: Targets of panels, expanded.
    """
    done = subprocess.run(
        [program],
        input=json.dumps({"server": server, "questions": questions, "queries": queries}),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered
