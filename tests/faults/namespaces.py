"""A process with mounts of its own: small disks and read-only folders, which vanish with it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.up import Up

_PROBE = "mount -t tmpfs -o size=1m tmpfs /mnt && touch /mnt/x && mount -o remount,ro /mnt && ! touch /mnt/x"


def isolation() -> list[str] | None:
    """The command before a command that gives it mounts of its own; None: not permitted here."""
    if not sys.platform.startswith("linux"):
        return None
    for command in (["unshare", "-m"], ["unshare", "-U", "-r", "-m"]):
        try:
            run = subprocess.run([*command, "sh", "-c", _PROBE], check=False, capture_output=True)
        except OSError:
            return None
        if run.returncode == 0:
            return command
    return None


ISOLATION = isolation()


class Isolated(Up):
    """A receiver that runs `set_up`, a shell script, in mounts of its own before it starts."""

    def __init__(self, data_dir: Path, set_up: str, *arguments: str) -> None:
        super().__init__(data_dir, *arguments)
        self._set_up = set_up

    def command(self) -> list[str]:
        assert ISOLATION is not None
        script = f'set -e; {self._set_up}; exec "$@"'
        return [*ISOLATION, "sh", "-c", script, "sh", *super().command()]

    def inside(self, path: Path) -> Path:
        """A path as that process sees it."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/root{path}")

    def enter(self, command: Sequence[str]) -> None:
        """Run a command with the mounts of that process."""
        assert self._process is not None
        assert ISOLATION is not None
        user = ["-U", "--preserve-credentials"] if "-U" in ISOLATION else []
        subprocess.run(
            ["nsenter", "-t", str(self._process.pid), "-m", *user, *command],
            check=True,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
        )
