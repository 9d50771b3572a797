"""A service of docker-compose.yml run by hand: its command, environment and health check, on free ports."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.up import COMMAND, free_ports
from tests.stack.compose import REPOSITORY, every_service, mounts
from tests.waiting import eventually

HOSTS = ("clickhouse", "embedded", "receiver", "redis")
"""Names of containers that others ask for."""


class Stack:
    """The folders and ports that stand for those of the containers.

    Args:
        folder: Empty; it gets the secrets, as users make them, and the volumes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        script = REPOSITORY / "deploy" / "make-secrets.sh"
        subprocess.run(["sh", script, self.secrets], check=True, capture_output=True)
        self._ports: dict[str, str] = {}
        self._running: list[subprocess.Popen[bytes]] = []

    def address(self, port: str) -> str:
        """Where a port of a container is."""
        return f"127.0.0.1:{self._port(port)}"

    def volume(self, target: str) -> Path:
        """The folder that is mounted there."""
        made = self.folder / "volumes" / target.strip("/")
        made.mkdir(parents=True, exist_ok=True)
        return made

    def start(self, name: str) -> None:
        """Start it, and wait until its health check is content."""
        service = every_service()[name]
        self._running.append(self._begin(name, service))
        check = [self._here(part, name) for part in service["healthcheck"]["test"]]
        command = check[1:] if check[0] == "CMD" else ["sh", "-c", check[1]]
        eventually(lambda: self._is_well(command), bool, seconds=60, every=0.2)

    def run(self, name: str) -> None:
        """Run it to its end, which must be a good one."""
        process = self._begin(name, every_service()[name])
        assert process.wait(60) == 0, self.log(name)

    def log(self, name: str) -> str:
        """What it printed."""
        return (self.folder / f"{name}.log").read_text()

    def end(self) -> None:
        """End what runs, the last first."""
        while self._running:
            process = self._running.pop()
            process.terminate()
            assert process.wait(60) in (0, -15)

    def _begin(self, name: str, service: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
        command = [*service.get("entrypoint", ["otel-metering"]), *service.get("command", ())]
        self._show_secrets(name, service["secrets"])
        for _, target in mounts(service):
            if target.startswith("/keys/"):
                self.volume(target)
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                _programs([self._here(part, name) for part in command]),
                env=self._environment(name, service),
                cwd=self.volume("/data"),
                stdout=log,
                stderr=log,
            )

    def _show_secrets(self, name: str, secrets: Sequence[str]) -> None:
        """To a container those that it has, and no others."""
        shown = self._secrets_of(name)
        shown.mkdir(exist_ok=True)
        for one in secrets:
            (shown / one).unlink(missing_ok=True)
            (shown / one).write_text((self.secrets / one).read_text())

    def _secrets_of(self, name: str) -> Path:
        return self.folder / f"secrets-of-{name}"

    def _environment(self, name: str, service: Mapping[str, Any]) -> dict[str, str]:
        """Nothing of this process but where Python is: a container has nothing else either."""
        given = {**image_settings(), **service["environment"]}
        return {
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            **{setting: self._here(text, name) for setting, text in given.items()},
        }

    def _here(self, text: str, name: str) -> str:
        """A text of a service with paths, hosts and ports of this machine."""
        files = {
            "/run/secrets": self._secrets_of(name),
            "/etc/otel-metering": REPOSITORY / "deploy" / "meters",
            "/etc/redis.conf": REPOSITORY / "deploy" / "redis" / "redis.conf",
            "/make_key.py": REPOSITORY / "deploy" / "make_key.py",
        }

        def path(match: "re.Match[str]") -> str:
            return str(files.get(match[0]) or self.volume(match[0]))

        folders = "|".join([*map(re.escape, files), "/data", "/keys", "/tmp"])
        text = re.sub(rf"(?<![\w./:])(?:{folders})\b", path, text).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(rf"//(?:{'|'.join(HOSTS)}):", "//127.0.0.1:", text)
        port = r"(?<=^)(\d{4,5})(?=$)|(?<=127\.0\.0\.1:)(\d+)"
        return re.sub(port, lambda match: self._port(match[0]), text)

    def _port(self, port: str) -> str:
        if port not in self._ports:
            self._ports[port] = str(free_ports(1)[0])
        return self._ports[port]

    def _is_well(self, command: Sequence[str]) -> bool:
        process = self._running[-1]
        assert process.poll() is None, [
            one.read_text()[-3000:] for one in self.folder.glob("*.log")
        ]
        checked = subprocess.run(_programs(command), capture_output=True, check=False, timeout=30)
        return checked.returncode == 0


def image_settings() -> dict[str, str]:
    """The settings that the images themselves make."""
    text = (REPOSITORY / "Dockerfile").read_text()
    return dict(re.findall(r"\b(METERING_\w+)=(\S+)", text))


def _programs(command: Sequence[str]) -> list[str]:
    here = {"python": sys.executable, "otel-metering": str(COMMAND)}
    return [here.get(command[0], command[0]), *command[1:]]
