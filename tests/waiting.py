"""Waiting without sleeping blindly: ask until it is so, with a deadline."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_never = threading.Event()


def eventually(
    ask: Callable[[], T], is_so: Callable[[T], bool], *, seconds: float = 20.0, every: float = 0.05
) -> T:
    """The first answer for which `is_so`; fails with the last answer when the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if is_so(answer):
            return answer
        assert time.monotonic() < deadline, f"not so after {seconds} s: {answer!r}"
        _never.wait(every)
