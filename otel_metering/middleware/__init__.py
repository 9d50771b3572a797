"""Adapters that tell otel-metering whose request it is."""
