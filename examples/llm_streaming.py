"""A chat that streams, bills by token, and stops at the customer's quota.

    export METERING_API_KEY=otm_...          # the key that `make up` printed: it may set quotas
    .venv/bin/python examples/llm_streaming.py
    .venv/bin/otel-metering quotas status --tenant acme

Tokens are reserved before the model is asked, so that many chats at once cannot spend more than is left. When
the stream ends, also half way, what was really used is counted, and the rest is free again.
"""

import asyncio
from collections.abc import AsyncIterator

import otel_metering
from otel_metering import MeteringClient, QuotaExceededError, meter, tenant

MAX_TOKENS = 60
LIMIT = 300


async def model(prompt: str) -> AsyncIterator[str]:
    """Stands in for a provider's streaming API: one word is one token."""
    for word in f"You said {prompt!r} and I have a long answer to that".split():
        await asyncio.sleep(0.001)
        yield word


async def chat(prompt: str) -> AsyncIterator[str]:
    async with meter.measure(
        "chat.tokens",
        quantity=0,
        reserve=MAX_TOKENS,
        quota="enforce",
        count_on="both",  # tokens of an answer that breaks off were paid for as well
        attributes={"gen_ai.request.model": "parrot-1"},
    ) as usage:
        async for token in model(prompt):
            usage.quantity += 1
            yield token


async def run() -> None:
    with tenant("acme"):
        for number in range(1000):
            try:
                answer = [token async for token in chat(f"hello {number}")]
            except QuotaExceededError as denied:
                print(f"after {number} chats: {denied}")
                return
            print(f"chat {number}: {len(answer)} tokens")


def main() -> None:
    with MeteringClient() as client:
        client.set_quota("chat.tokens", LIMIT, period="month", tenant_id="acme")
    otel_metering.configure(service_name="example-chat")
    asyncio.run(run())
    print("acknowledged:", otel_metering.shutdown(timeout_seconds=10))


if __name__ == "__main__":
    main()
