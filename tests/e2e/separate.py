"""Receiver, query APIs and engine as processes of their own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.up import COMMAND, REPOSITORY, Up

PASSWORD = "of-the-administrator"


class Engine(Up):
    """`otel-metering clickhouse`: the embedded engine behind the HTTP interface of ClickHouse."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.settings["METERING_CLICKHOUSE_ADMIN_PASSWORD"] = PASSWORD

    @property
    def url(self) -> str:
        return f"clickhouse://admin:{PASSWORD}@{self.clickhouse}/metering"

    def command(self) -> list[str]:
        """What is run."""
        port = self.clickhouse.partition(":")[2]
        return [str(COMMAND), "clickhouse", f"--data-dir={self.data_dir}", f"--port={port}"]


class Receiver(Up):
    """`otel-metering receiver`."""

    def __init__(self, data_dir: Path, engine: Engine) -> None:
        super().__init__(data_dir)
        self.settings["METERING_CLICKHOUSE_URL"] = engine.url

    def command(self) -> list[str]:
        """What is run."""
        command = super().command()
        return [
            command[0],
            "receiver",
            *(one for one in command[2:] if not one.startswith("--clickhouse-port")),
        ]


class Api(Up):
    """`otel-metering api`."""

    def __init__(self, data_dir: Path, engine: Engine, receiver: Receiver) -> None:
        super().__init__(data_dir)
        self.settings["METERING_CLICKHOUSE_URL"] = engine.url
        self._receiver_url = f"http://{receiver.api}"

    def command(self) -> list[str]:
        """What is run."""
        return [
            str(COMMAND),
            "api",
            f"--api-port={self.api.partition(':')[2]}",
            f"--receiver-url={self._receiver_url}",
            f"--meters={REPOSITORY / 'meters.yaml'}",
        ]


@dataclass(frozen=True, kw_only=True)
class Separate:
    """One engine, one receiver, two APIs."""

    engine: Engine
    receiver: Receiver
    apis: tuple[Api, Api]


@contextmanager
def running_separately(path: Path) -> Iterator[Separate]:
    """Start them in order; ended in any case."""
    engine = Engine(path / "engine")
    receiver = Receiver(path / "receiver", engine)
    apis = (Api(path, engine, receiver), Api(path, engine, receiver))
    with ExitStack() as ended:
        for one in (engine, receiver, *apis):
            ended.callback(_end, one)
        engine.start()
        receiver.start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(Up.start, apis))
        yield Separate(engine=engine, receiver=receiver, apis=apis)


def _end(process: Up) -> None:
    if process.is_running:
        process.kill()
