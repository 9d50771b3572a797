"""An instrumented service installs opentelemetry and nothing else, and pays nothing for an import."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[>=<]", requirement)[0] for requirement in requirements}


def test_the_sdk_depends_on_opentelemetry_alone() -> None:
    assert all(
        name.startswith("opentelemetry-") for name in names(PYPROJECT["project"]["dependencies"])
    )


def test_the_sdk_imports_nothing_that_only_an_extra_installs() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    modules = {
        {"googleapis-common-protos": "google.rpc", "grpcio": "grpc", "pyyaml": "yaml"}.get(
            name, name.replace("-", "_")
        )
        for name in names([requirement for extra in extras.values() for requirement in extra])
    } - {"otel_metering", "protobuf"}
    assert {"fastapi", "clickhouse_connect", "numpy", "typer", "httpx"} <= modules
    code = "import sys, otel_metering, otel_metering.middleware.asgi; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert modules & set(done.stdout.split()) == set()


def test_an_import_starts_no_thread_and_reads_no_setting() -> None:
    code = (
        "import os; os.environ['METERING_BATCH_SIZE'] = 'nonsense'; import threading, otel_metering;"
        "otel_metering.record('api.calls'); print(threading.active_count())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "1\n"


def test_a_type_checker_knows_the_type_of_every_public_name() -> None:
    # By PATH and PYTHONPATH, as `--verifytypes` ignores `--pythonpath`.
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--ignoreexternal"]

    done = subprocess.run(
        [*command, "--verifytypes", "otel_metering"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    found = json.loads(done.stdout)["typeCompleteness"]
    assert found["packageRootDirectory"] == str(REPOSITORY / "otel_metering")
    assert found["exportedSymbolCounts"]["withKnownType"] > 500
    # Of private modules too, where the classes are defined that a public one exports.
    assert [one["name"] for one in found["symbols"] if not one["isTypeKnown"]] == []


def test_metering_of_spans_and_metrics_imports_no_instrumentation() -> None:
    code = "import sys, otel_metering.spans, otel_metering.meter_provider; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(done.stdout.split())
    assert not loaded & {"opentelemetry.instrumentation", "wrapt", "flask", "django", "starlette"}


def test_the_entry_point_for_metering_without_code_can_be_loaded() -> None:
    for target in PYPROJECT["project"]["entry-points"]["opentelemetry_instrumentor"].values():
        module, _, name = target.partition(":")
        assert getattr(import_module(module), name)().instrumentation_dependencies() == ()
