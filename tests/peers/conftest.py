"""The receiver as a process, as the end-to-end tests run it."""

from tests.e2e.conftest import new_up

__all__ = ["new_up"]
