"""The fixtures that pytest finds by itself where otel-metering is installed."""

from collections.abc import Iterator

import pytest

from otel_metering.testing import CapturedUsage, capture


@pytest.fixture
def metering_usage() -> Iterator[CapturedUsage]:
    """All usage of the test, in memory; as `otel_metering.testing.capture`."""
    with capture() as usage:
        yield usage
