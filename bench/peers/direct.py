"""The engine's own insert of the rows that a load becomes, in a process of its own."""

import json
import subprocess
import sys

from bench import stages
from bench.peers import signals
from otel_metering.contract.meter import Signal

SIGNAL = {"metrics": Signal.METRIC, "spans": Signal.SPAN, "logs": Signal.LOG}


def insert(signal: str, size: int, points: int) -> dict[str, float]:
    """Rows/s, and microseconds of CPU a row."""
    command = [sys.executable, "-m", "bench.peers.direct", signal, str(size), str(points)]
    done = subprocess.run(command, check=True, capture_output=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Print the measurement as JSON."""
    signal, size, points = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    bodies = list(signals.requests(signal, size, points))
    print(json.dumps(stages.insert_bodies(SIGNAL[signal], bodies, size)))


if __name__ == "__main__":
    main()
