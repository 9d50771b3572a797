"""Entry of the command: errors become one line, and a missing extra becomes its name."""

import os
import sys

from otel_metering.errors import MeteringError


def main() -> None:
    """Run `otel-metering`; exits with 1 on any error, without a traceback."""
    try:
        from otel_metering.cli.commands import run  # noqa: PLC0415 - the SDK installs without it
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("otel_metering"):
            raise
        sys.exit(
            f"error: {error.name} is not installed; run: pip install 'otel-metering[cli]' to ask a "
            "query API, or 'otel-metering[embedded]' to run one here"
        )
    try:
        try:
            run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except MeteringError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # Who reads has enough, like `| head`. Python would complain when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
