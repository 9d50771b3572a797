"""OTLP receiver: telemetry in, rows out, each acknowledged once it is durable."""
