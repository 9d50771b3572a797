"""Foreign implementations, installed once into a cache folder that survives between runs.

`~/.cache/otel-metering-tests` (or under `XDG_CACHE_HOME`) holds a folder for each fingerprint of what is
installed; deleting it costs only the time to install again.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

UNREACHABLE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|no such host|dial tcp"
    r"|i/o timeout|connection refused|network is unreachable|Temporary failure in name resolution"
    r"|NewConnectionError|403 Forbidden|404 Not Found"
)


class UnavailableError(Exception):
    """It cannot be installed here: a tool is missing or too old, or a registry is not reached."""


def installed(name: str, recipe: str, install: Callable[[Path], None]) -> Path:
    """The folder that `install` filled, now or in an earlier run.

    Args:
        name: What people see in the cache folder.
        recipe: Everything that the result depends on; another recipe is another folder.
        install: Fills the empty folder it is given.

    Raises:
        UnavailableError: `install` found that it cannot be done here.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = caches / "otel-metering-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one run install it once
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            install(unfinished)
            unfinished.rename(folder)
    return folder


def tool(name: str, minimum: tuple[int, ...], *version: str) -> str:
    """The path of a program that is new enough.

    Raises:
        UnavailableError: It is missing, or older than `minimum`.
    """
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(f"{name} is not installed")
    printed = subprocess.run([path, *version], capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", printed)
    if numbers is None or tuple(int(one or 0) for one in numbers.groups()) < minimum:
        raise UnavailableError(f"{name} is {printed.strip()}; {minimum} is needed")
    return path


def run(
    command: Sequence[str | Path], cwd: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Run one step of an installation.

    Raises:
        UnavailableError: It failed because a registry was not reached, or does not have something.
        RuntimeError: It failed otherwise.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        printed = done.stdout + done.stderr
        if UNREACHABLE.search(printed):
            raise UnavailableError(f"a package registry cannot be reached: {printed[-1000:]}")
        raise RuntimeError(f"{command[0]} failed: {printed[-4000:]}")
