"""A Collector as a process of its own."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from tests.e2e.up import KEY, free_ports
from tests.waiting import eventually

CONFIG = Path(__file__).with_name("config.yaml")


class Collector:
    """One storage folder, and the process that has it, if it runs.

    Args:
        program: As `build` made it.
        folder: For its queue and its log.
        exporter: `otlp_grpc/meter` or `otlp_http/meter`.
        grpc: Where the former sends to.
        http: Where the latter sends to.
    """

    def __init__(self, program: Path, folder: Path, exporter: str, grpc: str, http: str) -> None:
        self.grpc = f"127.0.0.1:{free_ports(1)[0]}"
        self.log = folder / "collector.log"
        self._program = program
        self._environment = {
            **os.environ,
            "COLLECTOR_STORAGE": str(folder / "queue"),
            "COLLECTOR_GRPC": self.grpc,
            "COLLECTOR_EXPORTER": exporter,
            "METER_GRPC": grpc,
            "METER_HTTP": http,
            "METER_API_KEY": KEY,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, f"--config={CONFIG}"],
                stdout=log,
                stderr=log,
                env=self._environment,
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
