"""docker-compose.yml, read by Compose's own library, as `docker compose config` does."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.peers.install import UnavailableError, installed, run, tool
from tests.stack.compose import EXAMPLE, FILE, PROFILES, services, top

pytestmark = pytest.mark.peers

SOURCE = Path(__file__).parent / "compose"


@pytest.fixture(scope="session")
def compose() -> Path:
    """The program in `compose/`, built."""
    files = {one.name: one.read_text() for one in sorted(SOURCE.iterdir())}

    def install(folder: Path) -> None:
        go = tool("go", (1, 24), "version")
        for name, text in files.items():
            (folder / name).write_text(text)
        run([go, "build", "-o", "compose-config", "."], folder)

    try:
        return installed("compose", json.dumps(files), install) / "compose-config"
    except UnavailableError as error:
        pytest.skip(f"Compose's library cannot be built: {error}")


def config(compose: Path, *profiles: str, file: Path = FILE, **settings: str) -> dict[str, Any]:
    """The model of a file, with the profiles named, else those of COMPOSE_PROFILES."""
    done = subprocess.run(
        [compose, file, *profiles],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    loaded = json.loads(done.stdout)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_reads_each_profile_as_the_other_tests_do(compose: Path, profile: str) -> None:
    model = config(compose, profile)
    expected = services(profile)

    assert set(model["services"]) == set(expected)
    for name, one in model["services"].items():
        # What a container starts with is the same to Compose and to the tests that run it by hand.
        assert (one["entrypoint"] or []) == expected[name].get("entrypoint", []), name
        assert (one["command"] or []) == expected[name].get("command", []), name
        assert one.get("environment", {}) == expected[name].get("environment", {}), name
        shown = {each["source"] for each in one.get("secrets", ())}
        assert shown == set(expected[name].get("secrets", ())), name


def test_the_example_chooses_the_profile_and_a_flag_another(compose: Path, tmp_path: Path) -> None:
    file = tmp_path / FILE.name
    file.write_text(FILE.read_text())
    (tmp_path / ".env").write_text(EXAMPLE.read_text())

    assert set(config(compose, file=file)["services"]) == set(services("server"))
    flagged = config(compose, "embedded", file=file)["services"]
    assert set(flagged) == set(services("embedded"))
    assert flagged["embedded"]["ports"][0]["host_ip"] == "127.0.0.1"


def test_every_secret_is_a_file(compose: Path) -> None:
    secrets = config(compose, *PROFILES)["secrets"]

    assert set(secrets) == set(top("secrets"))
    for name, one in secrets.items():
        assert one["file"] == str(FILE.parent / "secrets" / name)


@pytest.mark.parametrize(
    "broken",
    [
        ("read_only: true", "read_onyl: true"),
        ("condition: service_healthy", "condition: healthy"),
        ("secrets: [redis_password]", "secrets: [no_such_secret]"),
    ],
)
def test_a_mistake_in_the_file_is_found(
    compose: Path, tmp_path: Path, broken: tuple[str, str]
) -> None:
    file = tmp_path / FILE.name
    assert broken[0] in FILE.read_text()
    file.write_text(FILE.read_text().replace(*broken))

    done = subprocess.run([compose, file, *PROFILES], capture_output=True, check=False)

    assert done.returncode == 1
