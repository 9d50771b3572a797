"""Tasks side by side, each for its tenant: coroutines, an async generator, time that was used.

export METERING_API_KEY=otm_...          # the key that `make up` printed
.venv/bin/python examples/async_tasks.py
.venv/bin/otel-metering usage --meter search.seconds
"""

import asyncio
from collections.abc import AsyncIterator

import otel_metering
from otel_metering import meter, tenant


@meter("search.queries")
@meter("search.seconds", quantity="duration", count_on="both")  # also if it fails: it took time
async def search(text: str) -> list[str]:
    await asyncio.sleep(0.01)
    return [f"{text} {number}" for number in range(3)]


@meter("search.exports")  # once, when it is exhausted or closed
async def export(text: str) -> AsyncIterator[str]:
    for line in await search(text):
        yield line


async def customer(name: str, queries: int) -> None:
    with tenant(name):  # this task's alone: others run at the same time
        await asyncio.gather(*(search(f"query {number}") for number in range(queries)))
        async with meter.measure("search.sessions") as session:
            session.attributes["kind"] = "export"
            print(name, "exported", [line async for line in export("all")])


async def run() -> None:
    await asyncio.gather(customer("acme", 5), customer("globex", 2), customer("initech", 1))


def main() -> None:
    otel_metering.configure(service_name="example-async")
    asyncio.run(run())
    print("acknowledged:", otel_metering.flush(send=True))


if __name__ == "__main__":
    main()
