"""The command `otel-metering`."""

from otel_metering.cli.entry import main

__all__ = ["main"]
