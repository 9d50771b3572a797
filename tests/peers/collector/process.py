"""A Collector as a process of its own, with the configuration files that users get."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from tests.e2e.up import KEY, free_ports
from tests.peers.collector.build import REPOSITORY
from tests.waiting import eventually

GATEWAY = (REPOSITORY / "collector-config.yaml",)
TENANT_HEADER = (*GATEWAY, REPOSITORY / "collector" / "tenant-header.yaml")
TLS = (*GATEWAY, REPOSITORY / "collector" / "tls.yaml")
SIDECAR = (REPOSITORY / "collector" / "sidecar.yaml",)
QUICK = Path(__file__).with_name("quick.yaml")
TOKEN = "a-token-of-a-sender"
OTHER_TOKEN = "a-token-of-another-sender"


class Collector:
    """One storage folder, and the process that has it, if it runs.

    Args:
        program: As `build` made it.
        folder: For its queue, its secrets and its log.
        config: Files, each on top of those before it.
        to: Where usage goes.
        key: What it shows there.
        **settings: Environment variables of the configuration, in lower case and without COLLECTOR_.
    """

    def __init__(
        self,
        program: Path,
        folder: Path,
        config: tuple[Path, ...] = GATEWAY,
        *,
        to: str,
        key: str = KEY,
        **settings: str,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.grpc, self.http, self.health, telemetry = (
            f"127.0.0.1:{port}" for port in free_ports(4)
        )
        self.log = folder / "collector.log"
        (folder / "key").write_text(f"{key}\n")
        (folder / "tokens").write_text(f"{TOKEN}\n{OTHER_TOKEN}\n")
        self._command = [str(program), *(f"--config={one}" for one in (*config, QUICK))]
        made = {
            "storage": str(folder / "queue"),
            "otlp_grpc": self.grpc,
            "otlp_http": self.http,
            "health": self.health,
            "telemetry_port": telemetry.partition(":")[2],
            "tokens_file": str(folder / "tokens"),
            "metering_endpoint": to,
            "metering_key_file": str(folder / "key"),
            "backend": "nop",
            "backend_endpoint": "http://127.0.0.1:1",
            **settings,
        }
        self.telemetry = telemetry
        self._environment = {f"COLLECTOR_{name.upper()}": value for name, value in made.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, **self._environment}
            )
        eventually(self._answers, bool)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(60)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        assert self.is_running, self.log.read_text()[-3000:]
        host, _, port = self.grpc.partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True


def validate(program: Path, config: tuple[Path, ...], settings: dict[str, str]) -> str:
    """What the Collector prints when it checks these files; empty: they are right."""
    command = [str(program), "validate", *(f"--config={one}" for one in config)]
    environment = {f"COLLECTOR_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    printed = done.stdout
    assert (done.returncode == 0) is (printed == ""), printed
    return printed
