"""For the tests of services that meter: capture usage in memory, and look at it.

    from otel_metering.testing import capture

    def test_an_order_counts_its_items() -> None:
        with capture() as usage:
            place_order(items=3, tenant="acme")
        usage.assert_total("orders.items", 3, tenant="acme")

With pytest, the fixture `metering_usage` is such a block around the test. Nothing is written or sent, no
thread is started, and `configure` need not have been called.
"""

from otel_metering.testing._capture import capture
from otel_metering.testing._freeze import FrozenTime, freeze
from otel_metering.testing._usage import CapturedEvent, CapturedUsage, Usage

__all__ = ["CapturedEvent", "CapturedUsage", "FrozenTime", "Usage", "capture", "freeze"]
