"""Options of the suite."""

import signal

import hypothesis
import pytest

# Time says more about the machine than about the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


OPTIONS = {
    "long": "run the long forms, which take minutes",
    "pythons": "run the tests of each Python that is installed, which installs into each",
    "peers": "run the tests that build a real OpenTelemetry Collector first, which takes minutes",
}
"""Marker -> what the option of the same name does."""


def pytest_configure() -> None:
    # A suite that runs in the background may have inherited that SIGINT is ignored, and the processes that
    # tests start would as well.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, meaning in OPTIONS.items():
        parser.addoption(f"--{name}", action="store_true", help=meaning)
    parser.addoption("--seeds", type=int, default=100, help="how many seeds of faults are tried")
    parser.addoption("--seed", type=int, help="try this seed of faults alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name in OPTIONS:
        if not config.getoption(f"--{name}"):
            for item in items:
                if item.get_closest_marker(name) is not None:
                    item.add_marker(pytest.mark.skip(reason=f"run it with --{name}"))
