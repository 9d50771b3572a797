"""Options of the suite."""

import hypothesis
import pytest

# Time says more about the machine than about the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms, which take minutes")
    parser.addoption("--seeds", type=int, default=200, help="how many seeds of faults are tried")
    parser.addoption("--seed", type=int, help="try this seed of faults alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a long form; run with --long"))
