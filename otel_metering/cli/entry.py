"""Entry of the command: errors become one line, and a missing extra becomes its name."""

import sys

from otel_metering.errors import MeteringError


def main() -> None:
    """Run `otel-metering`; exits with 1 on any error, without a traceback."""
    try:
        from otel_metering.cli.commands import run  # noqa: PLC0415 - the SDK installs without it
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("otel_metering"):
            raise
        sys.exit(f"error: {error.name} is not installed; run: pip install 'otel-metering[cli]'")
    try:
        run(sys.argv[1:])
    except MeteringError as error:
        sys.exit(f"error: {error}")
