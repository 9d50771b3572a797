"""All commands of what is installed: those of a client here, others by entry point.

A distribution adds commands with an entry point in `otel_metering.commands`: a function that takes the
Typer app. One whose imports are missing is left out, and is named when somebody asks for a command
that is not there.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final

import typer

from otel_metering.cli import audit, events, keys, quarantine, quotas, spool, usage
from otel_metering.errors import ConfigurationError

GROUP: Final = "otel_metering.commands"


def run(arguments: Sequence[str]) -> None:
    """Run the command that `arguments` name.

    Raises:
        MeteringError: It failed; the message is for the person who typed it.
    """
    app = typer.Typer(
        name="otel-metering",
        help="Usage metering native to OpenTelemetry.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for part in (usage, events, quotas, keys, audit, quarantine, spool):
        part.register(app)
    asked = arguments[0] if arguments else ""
    if asked not in _names(app):
        # Not for a client command: a service takes a second to import.
        missing = _register_installed(app)
        if missing and asked and asked not in _names(app) and not asked.startswith("-"):
            raise _not_installed(asked, missing)
    app(list(arguments), prog_name="otel-metering")


def _register_installed(app: typer.Typer) -> Mapping[str, str]:
    """Add the commands of every entry point; returns what each that cannot be added lacks."""
    missing: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            register = point.load()
        except ModuleNotFoundError as error:
            missing[point.name] = error.name or str(error)
        else:
            register(app)
    return missing


def _names(app: typer.Typer) -> set[str | None]:
    commands = {command.name for command in app.registered_commands}
    return commands | {group.name for group in app.registered_groups}


def _not_installed(asked: str, missing: Mapping[str, str]) -> ConfigurationError:
    lacks = ", ".join(f"{name} (needs {module})" for name, module in missing.items())
    return ConfigurationError(
        f"there is no command {asked!r} here; commands not installed: {lacks}; "
        "run: pip install 'otel-metering[embedded]'"
    )
