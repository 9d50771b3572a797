"""What a type checker sees: mypy reads this file with the rest, a test below runs pyright over it."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_type

import pytest

from otel_metering import meter, record
from otel_metering.testing import CapturedUsage, Usage, capture


def length(result: str, *_: object) -> int:
    return len(result)


def seen(_result: None, text: str) -> int:
    return len(text)


def itself(text: str) -> str:
    return text


@meter("f")
def function(text: str, *, times: int = 1) -> str:
    return text * times


@meter("f", quantity=length, attributes={"region": "eu"}, count_on="both")
def computed(text: str) -> str:
    return text


@meter("f", quantity="duration", tenant=itself)
async def coroutine(text: str) -> int:
    return len(text)


@meter("f", quota="enforce", reserve=Decimal("1.5"))
def generator(text: str) -> Generator[str, int, bytes]:
    sent = yield text
    return bytes(sent)


@meter("f", quota="enforce", reserve=len, quantity=seen)
async def async_generator(text: str) -> AsyncGenerator[str, None]:
    yield text


class Shop:
    @meter("f")
    def method(self, items: int) -> int:
        return items

    @meter("f")
    @classmethod
    def class_method(cls, items: int) -> int:
        return items

    @classmethod
    @meter("f")
    def inner_class_method(cls, items: int) -> int:
        return items

    @meter("f")
    @staticmethod
    def static_method(items: int) -> int:
        return items

    @staticmethod
    @meter("f")
    def inner_static_method(items: int) -> int:
        return items

    @meter("f")
    async def run(self, items: int) -> int:
        return items


def a_checker_sees_every_signature() -> None:
    """Never called."""
    assert_type(function("a", times=2), str)
    assert_type(computed("a"), str)
    running: Coroutine[Any, Any, int] = coroutine("a")  # pyright knows a subclass of it
    assert_type(generator("a"), Generator[str, int, bytes])
    assert_type(async_generator("a"), AsyncGenerator[str, None])
    assert_type(Shop().method(1), int)
    assert_type(Shop.class_method(1), int)
    assert_type(Shop().inner_class_method(1), int)
    assert_type(Shop.static_method(1), int)
    assert_type(Shop().inner_static_method(1), int)
    running = Shop().run(1)
    running.close()
    callback: Callable[[str], str] = computed
    assert_type(callback("a"), str)


def a_checker_sees_every_mistake() -> None:
    """Never called. Each comment is an error of its own where there is no mistake any more."""
    function(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    function("a", time=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Shop().method("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Shop.class_method("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Shop.static_method("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    meter("f", count_on="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    meter("f", quota="ask")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    record("f", "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_checker_sees_what_a_block_and_a_capture_are() -> None:
    """Never called."""
    with meter.measure("f", quantity=2) as block:
        block.quantity = 3
        block.quantity += 1
        block.attributes["model"] = "a"
    with capture() as usage:
        assert_type(usage, CapturedUsage)
        assert_type(usage.total("f", tenant=None, attributes={"a": 1}), Decimal)
        assert_type(usage.records(), list[Usage])


def the_block_may_be_in_a_generator() -> Iterator[int]:
    """Never called."""
    with meter.measure("f"):
        yield 1


async def the_block_may_be_asynchronous() -> int:
    """Never called. What the block returns is not taken for swallowed."""
    async with meter.measure("f"):
        return 1


@pytest.mark.long
def test_pyright_agrees() -> None:
    settings = Path(__file__).with_name("pyrightconfig.json")

    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "-p", str(settings)],
        capture_output=True,
        text=True,
        check=False,
    )

    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] >= 1
    assert [(d["range"]["start"], d["message"]) for d in found["generalDiagnostics"]] == []
