"""`otel-metering demo`: the whole pipe on real input, and the proof that it counts exactly.

Starts `otel-metering up` and the example shop as processes of their own, sends the shop some thousand
requests of several tenants over HTTP, and compares what the query API reports with what was sent.
"""

import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from otel_metering.clock import Clock, SystemClock

TENANTS: Final = ("acme", "globex", "initech", "umbrella", "wayne")
CONCURRENT_REQUESTS: Final = 16
START_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 30.0
"""How long the totals may take to be complete; they take one or two seconds."""

SHOP: Final = Path(__file__).parent.parent / "examples" / "shop_api.py"

Totals = Counter[tuple[str, str]]
"""(tenant, meter) -> quantity."""


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """One request that the driver sends."""

    tenant: str
    items: int
    """0: no order, only a look at the products."""
    cents: int

    def meters(self) -> Iterator[tuple[str, Decimal]]:
        """What it must be metered as."""
        yield "http.requests", Decimal(1)
        yield "api.calls", Decimal(1)
        if self.items:
            yield "orders.items", Decimal(self.items)
            yield "orders.revenue", Decimal(self.cents) / 100


def run(
    *,
    requests: Annotated[int, typer.Option(help="How many requests to send.", min=1)] = 3_000,
    exit_: Annotated[bool, typer.Option("--exit", help="Leave when done.")] = False,
) -> None:
    """Run the whole pipe on real input, and compare what was counted with what was sent."""
    console = Console()
    if not SHOP.exists():
        console.print(
            f"[red]error:[/] {SHOP.name} is not here; run the demo in a checkout: make demo"
        )
        raise typer.Exit(1)
    try:
        with tempfile.TemporaryDirectory(prefix="otel-metering-demo-") as folder:
            is_equal = _demo(console, Path(folder), requests, stay=not exit_)
    except DemoError as error:
        console.print(f"[red]error:[/] {error}")
        raise typer.Exit(1) from error
    if not is_equal:
        raise typer.Exit(1)


def _demo(console: Console, folder: Path, requests: int, *, stay: bool) -> bool:
    key = f"otm_demo_{secrets.token_hex(32)}"
    command = str(Path(sys.executable).with_name("otel-metering"))
    console.print(
        "Starting [bold]otel-metering up[/] on free ports, with data in a temporary folder ..."
    )
    up_arguments = [command, "up", f"--data-dir={folder / 'data'}", "--api-port=0"]
    up_arguments += ["--otlp-grpc-port=0", "--otlp-http-port=0", "--clickhouse-port=0"]
    with _process(up_arguments, {"METERING_ADMIN_KEY": key}) as up:
        otlp, api = up.value_of("OTLP/HTTP"), up.value_of("query API")
        console.print(f"  OTLP/HTTP {otlp}, query API {api}")
        console.print(
            "Starting [bold]examples/shop_api.py[/], a FastAPI service that meters itself ..."
        )
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
            "METERING_API_KEY": key,
            "METERING_SPOOL_DIR": str(folder / "spool"),
        }
        with _process([sys.executable, str(SHOP), "--port=0"], environment) as shop:
            address = shop.ready.split()[1]
            console.print(f"  the shop {address}\n")
            sent = asyncio.run(_drive(console, address, requests))
            usage = _Usage(api, key)
            reported = _settle(usage, sent)
            is_equal = _compare(console, sent, reported)
            if stay and is_equal:
                _say_what_next(console, api=api, shop=address, key=key)
                _wait_for_interrupt()
                console.print("\nStopping ...")
    return is_equal


async def _drive(console: Console, address: str, requests: int) -> Totals:
    """Send the requests; returns what they must be metered as."""
    chance = random.Random(requests)  # noqa: S311 - a demo, the same each time
    sent: Totals = Counter()
    orders = [
        _Order(
            tenant=chance.choice(TENANTS),
            items=chance.choice([0, 0, 1, 2, 3, 7]),
            cents=chance.randrange(1, 100_000),
        )
        for _ in range(requests)
    ]
    waiting = iter(orders)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Requests of {len(TENANTS)} tenants", total=requests)

        async def work(client: httpx.AsyncClient) -> None:
            for order in waiting:
                await _send(client, order)
                for meter, quantity in order.meters():
                    sent[order.tenant, meter] += quantity  # type: ignore[assignment]  # Decimals
                progress.advance(task)

        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            await asyncio.gather(*(work(client) for _ in range(CONCURRENT_REQUESTS)))
    return sent


async def _send(client: httpx.AsyncClient, order: _Order) -> None:
    headers = {"x-tenant-id": order.tenant}
    if order.items:
        body = {"items": order.items, "total": f"{Decimal(order.cents) / 100:.2f}"}
        response = await client.post("/orders", json=body, headers=headers)
    else:
        response = await client.get("/products", headers=headers)
    if response.is_error:
        raise DemoError(f"the shop answered {response.status_code}: {response.text[:200]}")


class _Usage:
    """What the query API reports."""

    def __init__(self, api: str, key: str) -> None:
        self._client = httpx.Client(
            base_url=api, headers={"authorization": f"Bearer {key}"}, timeout=30
        )

    def totals(self, meters: set[str]) -> Totals:
        """(tenant, meter) -> quantity, of today and yesterday."""
        found: Totals = Counter()
        for meter in meters:
            parameters = {"meter": meter, "window": "total", "group_by": "tenant_id"}
            response = self._client.get("/v1/meter/aggregates", params=parameters)
            if response.is_error:
                raise DemoError(
                    f"the query API answered {response.status_code}: {response.text[:200]}"
                )
            rows: list[dict[str, Any]] = response.json()["data"]
            for row in rows:
                found[row["tenant_id"], meter] = Decimal(row["value"])  # type: ignore[assignment]
        return found


def _settle(usage: _Usage, sent: Totals, clock: Clock | None = None) -> Totals:
    """Ask until everything is there; the last answer if it never is."""
    clock = clock or SystemClock()
    deadline = clock.monotonic() + SETTLE_SECONDS
    pause = threading.Event()
    meters = {meter for _, meter in sent}
    while True:
        reported = usage.totals(meters)
        if reported == sent or clock.monotonic() > deadline:
            return reported
        pause.wait(0.2)


def _compare(console: Console, sent: Totals, reported: Totals) -> bool:
    table = Table(title="Usage per tenant and meter")
    for name in ("tenant", "meter"):
        table.add_column(name)
    for name in ("sent by the driver", "reported by the API", ""):
        table.add_column(name, justify="right")
    for tenant, meter in sorted(sent.keys() | reported.keys()):
        expected, found = sent[tenant, meter], reported[tenant, meter]
        mark = "[green]equal[/]" if expected == found else "[red]differs[/]"
        table.add_row(tenant, meter, f"{Decimal(expected):,}", f"{Decimal(found):,}", mark)
    console.print(table)
    if sent == reported:
        console.print(f"[green]All {len(sent)} totals are equal, to the last digit.[/]\n")
        return True
    console.print("[red]The totals differ: this is a bug in otel-metering.[/]")
    return False


def _say_what_next(console: Console, *, api: str, shop: str, key: str) -> None:
    lines = [
        "Everything stays up until Ctrl-C. Try:",
        "",
        f"  export METERING_API_URL={api} METERING_API_KEY={key}",
        "  .venv/bin/otel-metering usage --last 24h                  # tenants x meters",
        f"  curl -H 'x-tenant-id: acme' {shop}/products   # one more call of acme",
        f"  curl -H \"authorization: Bearer $METERING_API_KEY\" '{api}/v1/meter/events?limit=3'",
        f"  {api}/docs   # the query API, to read and to try",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _wait_for_interrupt() -> None:
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    stopping.wait()


class _Process:
    """A child that prints lines, one of which begins with `ready`."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._name = Path(arguments[-1] if arguments[0] == sys.executable else arguments[0]).name
        self._lines: list[str] = []
        self._is_ready = threading.Event()
        self._process = subprocess.Popen(  # noqa: S603 - our own commands
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**_inherited(), **environment},
            start_new_session=True,  # Ctrl-C is for the demo, which ends its children in order
        )
        self.ready = ""
        threading.Thread(target=self._read, daemon=True).start()
        if not self._is_ready.wait(START_SECONDS) or not self.ready:
            self.stop()
            raise DemoError(f"{arguments} did not start:\n{''.join(self._lines)}")

    def value_of(self, name: str) -> str:
        """The word that it printed after `name`."""
        for line in self._lines:
            if line.startswith(name):
                return line.removeprefix(name).split()[0]
        raise DemoError(f"{self._name} did not print {name}")

    def stop(self) -> None:
        """End it, in order."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        with self._process.stdout as lines:
            for line in lines:
                self._lines.append(line)
                if line.startswith("ready"):
                    self.ready = line
                    self._is_ready.set()
        self._is_ready.set()


def _inherited() -> dict[str, str]:
    """The environment without settings: the demo is the same whatever the user has exported."""
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - of the children
        if not name.startswith(("METERING_", "OTEL_"))
    }


@contextmanager
def _process(arguments: list[str], environment: Mapping[str, str]) -> Iterator[_Process]:
    process = _Process(arguments, environment)
    try:
        yield process
    finally:
        process.stop()
