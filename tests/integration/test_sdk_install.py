"""What `pip install otel-metering` without extras is: opentelemetry, and a complete SDK, on every Python.

Each Python gets a fresh environment with the wheel. The environment of the Python that runs is always
tested; those of others with --pythons, where they are found: on PATH, or installed by pyenv or uv.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.sdk_backend import Backend, running_backend
from tests.peers.install import UnavailableError, run
from tests.unit.test_packaging import PYPROJECT, REPOSITORY, names

pytestmark = pytest.mark.timeout(600)

SUPPORTED = ("3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t")
"""A `t` is the free-threaded build."""

RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}" + (
    "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
)

NEEDS_AN_EXTRA = {
    "otel_metering.cli": {"httpx", "rich", "typer"},
    "otel_metering.client": {"httpx"},
    "otel_metering._otlp_grpc": {"grpc"},
    "otel_metering.instrumentor": {"opentelemetry.instrumentation", "wrapt"},
    "otel_metering.middleware._jwt": {"jwt"},
    "otel_metering.middleware.django": {"asgiref", "django"},
    "otel_metering.middleware.flask": {"flask"},
    "otel_metering.testing": {"pytest"},
}
"""Modules that may miss something, and what. Every other module imports."""

CLEAN = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}

TESTS = (
    *sorted(str(path) for path in REPOSITORY.glob("tests/unit/test_sdk_*.py")),
    *(
        f"tests/integration/test_sdk_{name}.py"
        for name in ("delivery", "meter", "pipeline", "processes")
    ),
)
"""Those of the SDK that need nothing else."""

IMPORTS = """
import importlib, json, pathlib, sys
import otel_metering
root = pathlib.Path(otel_metering.__file__).parent
lacks = {}
for path in sorted(root.rglob("*.py")):
    name = ".".join(("otel_metering", *path.relative_to(root).with_suffix("").parts))
    name = name.removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacks[name] = error.name
print(json.dumps({"root": str(root), "lacks": lacks, "loaded": sorted(sys.modules)}))
"""

USAGE = """
import asyncio, sys, threading
from decimal import Decimal
import otel_metering
from otel_metering import meter, record, tenant

endpoint, folder = sys.argv[1:]
otel_metering.configure(
    service_name="shop", endpoint=endpoint, spool_dir=folder, flush_interval_seconds=0.02
)

@meter("orders.items", quantity=lambda _result, count: count)
def order(count): ...

@meter("jobs")
async def job(): ...

def work(number):
    with tenant(f"tenant_{number % 2}"):
        for i in range(2500):
            record("api.calls")
            record("bytes", Decimal("0.001"), attributes={"region": "eu", "try": i % 3})
            order(2)
        asyncio.run(job())
        record("invoices", event_id=f"invoice-{number}")

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert otel_metering.shutdown(20), otel_metering.stats()
print(getattr(sys, "_is_gil_enabled", lambda: True)())
"""


class Installed(NamedTuple):
    """An environment with the wheel and what it depends on."""

    python: Path
    name: str

    def install(self, *packages: str) -> None:
        """Install, or skip the test where the package index is not reached."""
        # By the pip of the suite: one of its own would take longer than all the rest.
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "--disable-pip-version-check",
        ]
        command = [*pip, "install", "--quiet", "--no-compile", "--retries", "1", *packages]
        try:
            run(command, self.python.parent, CLEAN)
        except UnavailableError as error:
            pytest.skip(str(error))

    def run(self, *arguments: str) -> str:
        """What the program printed; nothing of this process's surroundings reaches it."""
        free = ["-X", "gil=0"] if self.name.endswith("t") else []
        done = subprocess.run(
            [self.python, *free, *arguments],
            cwd=self.python.parent,
            env={"PATH": os.environ["PATH"], "HOME": str(self.python.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name == RUNNING else pytest.mark.pythons)
        for name in SUPPORTED
    ],
)
def installed(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    name: str = request.param
    python = find_python(name)
    if python is None:
        pytest.skip(f"Python {name} is not installed here")
    folder = tmp_path_factory.mktemp(f"python{name}")
    run([python, "-m", "venv", "--without-pip", folder / "venv"], folder)
    made = Installed(folder / "venv" / "bin" / "python", name)
    made.install(str(wheel))
    return made


def find_python(name: str) -> Path | None:
    """A Python of exactly this version, by what it says of itself: pyenv has stand-ins on PATH."""
    if name == RUNNING:
        return Path(sys.executable)
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"), "versions")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local" / "share" / "uv" / "python"))
    on_path = shutil.which(f"python{name}")
    for path in chain(
        [Path(on_path)] if on_path else [],
        pyenv.glob(f"*/bin/python{name}"),
        uv.glob(f"*/bin/python{name}"),
    ):
        question = "import sysconfig; print(sysconfig.get_python_version(), "
        question += "bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
        asked = subprocess.run([path, "-c", question], capture_output=True, text=True, check=False)
        if asked.stdout.split() == [name.removesuffix("t"), str(name.endswith("t"))]:
            return path
    return None


def test_nothing_is_installed_but_opentelemetry_and_what_it_needs(installed: Installed) -> None:
    found = json.loads(
        installed.run(
            "-c",
            "import json; from importlib.metadata import distributions; "
            "print(json.dumps({one.name: one.requires for one in distributions()}))",
        )
    )
    needs: dict[str, list[str]] = {name: requires or [] for name, requires in found.items()}
    open_telemetry = {name for name in needs if name.startswith("opentelemetry-")}
    needed = chain.from_iterable(names(needs[name]) for name in open_telemetry)

    rest = {normal(name) for name in needs} - {normal(name) for name in needed} - open_telemetry
    assert rest == {"otel-metering"}
    assert open_telemetry


def test_every_module_imports_that_needs_no_extra_and_nothing_of_the_server_is_loaded(
    installed: Installed,
) -> None:
    found: dict[str, Any] = json.loads(installed.run("-c", IMPORTS))

    assert Path(found["root"]).is_relative_to(installed.python.parents[1])
    unexpected = {
        module: lacks
        for module, lacks in found["lacks"].items()
        if not any(
            f"{module}.".startswith(f"{part}.") and lacks in may_lack
            for part, may_lack in NEEDS_AN_EXTRA.items()
        )
    }
    assert unexpected == {}
    extras = names(list(chain(*PYPROJECT["project"]["optional-dependencies"].values())))
    of_extras = {
        {"grpcio": "grpc", "pyyaml": "yaml", "pyjwt": "jwt"}.get(name, name.replace("-", "_"))
        for name in extras - {"otel-metering", "protobuf"}
    }
    loaded = {name.partition(".")[0] for name in found["loaded"]}
    assert loaded & (of_extras | {"receiver", "query_api"}) == set()


def test_usage_of_threads_and_coroutines_arrives_exactly(
    installed: Installed, backend: Backend, tmp_path: Path
) -> None:
    has_gil = installed.run("-c", USAGE, backend.endpoint, str(tmp_path))

    # 4 threads of each tenant, 2,500 rounds each.
    assert backend.totals() == {
        (slug, tenant): total
        for tenant in ("tenant_0", "tenant_1")
        for slug, total in (
            ("api.calls", Decimal(10_000)),
            ("bytes", Decimal(10)),
            ("orders.items", Decimal(20_000)),
            ("jobs", Decimal(4)),
        )
    }
    assert sorted(str(attributes["metering.event.id"]) for _, _, attributes in backend.events) == [
        f"invoice-{number}" for number in range(8)
    ]
    assert has_gil.strip() == str(not installed.name.endswith("t"))


def test_the_command_says_which_extra_it_needs(installed: Installed) -> None:
    command = installed.python.with_name("otel-metering")

    done = subprocess.run(
        [command, "usage"],
        env={"HOME": str(installed.python.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert re.fullmatch(
        r"error: \w+ is not installed; run: pip install 'otel-metering\[cli\]' .*\n", done.stderr
    )


@pytest.mark.pythons
def test_the_tests_of_the_sdk_pass(installed: Installed) -> None:
    if installed.name == RUNNING:
        pytest.skip("all tests run on this Python")
    installed.install("pytest", "pytest-timeout", "hypothesis")

    # The code is that of the repository here, as everywhere in the suite; the packages are the wheel's.
    done = subprocess.run(
        [installed.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=REPOSITORY,
        env={**os.environ, **CLEAN},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:]


def normal(name: str) -> str:
    """A distribution's name as the package index has it."""
    return re.sub(r"[-_.]+", "-", name).lower()
