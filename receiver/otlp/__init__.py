"""OTLP: bytes to columns, without I/O."""
