"""Reads the Prometheus text exposition format (its documentation, "Text format details"), for tests."""

import re

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(?:,|$)')
UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """(name, labels) -> value; fails on what is not the format."""
    assert text.endswith("\n")
    found: Samples = {}
    described: set[tuple[str, str]] = set()
    for line in text.splitlines():
        if line.startswith("# "):
            _, kind, name, _ = line.split(" ", 3)
            assert kind in {"HELP", "TYPE"}
            assert (kind, name) not in described, "a name is described once, before its samples"
            described.add((kind, name))
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        labels = match[2] or ""
        pairs = LABEL.findall(labels)
        assert "".join(f'{name}="{value}",' for name, value in pairs).rstrip(",") == labels, line
        key = match[1], frozenset((name, unescape(value)) for name, value in pairs)
        assert key not in found, line
        found[key] = float(match[3])
    return found


def unescape(value: str) -> str:
    return re.sub(r"\\[\\\"n]", lambda match: UNESCAPED[match[0]], value)


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of a name over all samples that have these labels."""
    return sum(
        value
        for (found, pairs), value in samples.items()
        if found == name and set(labels.items()) <= pairs
    )


def by(samples: Samples, name: str, label: str) -> dict[str, float]:
    """The sums of a name for each value of a label."""
    found: dict[str, float] = {}
    for (one, pairs), value in samples.items():
        if one == name:
            key = dict(pairs)[label]
            found[key] = found.get(key, 0) + value
    return found
