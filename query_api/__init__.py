"""Usage over HTTP: events, aggregates, keys, health."""
