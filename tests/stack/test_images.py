"""The steps of the Dockerfile that are ours, replayed in a clean folder: no Docker engine runs here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.compose import REPOSITORY

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


class Stage:
    """One stage: its COPYs and RUNs are done in `root`, which stands for /."""

    def __init__(self, root: Path, context: Path) -> None:
        self.root = root
        self._context = context

    def replay(self, name: str) -> None:
        """Do what the stage and those before it do."""
        parent, steps = _stages()[name]
        if parent in _stages():
            self.replay(parent)
        for instruction, rest in steps:
            if instruction == "COPY" and not rest.startswith("--from"):
                self._copy(*rest.split())
            elif instruction == "RUN":
                self._run(rest)

    def _copy(self, *paths: str) -> None:
        *sources, target = paths
        for source in sources:
            there = self._context / source
            assert there.exists(), f"{source} is not there, or ignored"
            folder = self.root / "src" / target
            if there.is_dir():
                shutil.copytree(there, folder, dirs_exist_ok=True)
            elif target.endswith("/"):
                shutil.copy(there, folder)
            else:
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(there, folder)

    def _run(self, command: str) -> None:
        command = re.sub(r"(?<![\w.])/(app|build|wheels)\b", rf"{self.root}/\1", command)
        command = re.sub(r"^python ", f"{sys.executable} ", command)
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=self.root / "src",
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if "Could not find a version" in done.stderr or "Connection" in done.stderr:
            pytest.skip("the package index cannot be reached")
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `docker build` is sent: the files of git that .dockerignore leaves."""
    folder = tmp_path_factory.mktemp("context")
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if any(name == one or name.startswith(f"{one}/") for one in kept):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.mark.parametrize("image", ["server", "embedded"])
def test_the_steps_of_an_image_make_a_program_that_runs(
    context: Path, tmp_path: Path, image: str
) -> None:
    (tmp_path / "src").mkdir()

    Stage(tmp_path, context).replay(f"{image}-packages")

    program = tmp_path / "app" / "bin" / "otel-metering"

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [program, *arguments],
            env={"PATH": "/usr/bin:/bin", "METERING_DATA_DIR": str(tmp_path / "data")},
            cwd=context / "deploy" / "meters",
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("--help").returncode == 0
    assert run("meters", "check", "meters.yaml").returncode == 0
    migrated = run("migrate")
    # Without a server's URL it is the embedded engine, which only one of the images has.
    assert (migrated.returncode == 0) is (image == "embedded")
    assert ("otel-metering[embedded]" in migrated.stderr) is (image == "server")
    modules = {one.name for one in (tmp_path / "app").glob("lib/*/site-packages/*")}
    assert ("chdb" in modules) is (image == "embedded")
    assert not modules & {"pip", "pytest", "mypy", "tests", "bench"}


def _stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Name -> the stage it is made from, and its instructions."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    steps: list[tuple[str, str]] = []
    for line in text.splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            steps = []
            found[match[2]] = (match[1], steps)
        elif match := re.fullmatch(r"([A-Z]+) +(.*)", line):
            steps.append((match[1], re.sub(r" +", " ", match[2])))
    return found
