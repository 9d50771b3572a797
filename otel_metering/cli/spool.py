"""`otel-metering spool`: what to do with a spool that is damaged."""

from pathlib import Path
from typing import Annotated

import typer

from otel_metering._spool_salvage import salvage


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="The files in which usage waits: salvage.", no_args_is_help=True)
    # With a callback, one command still has a name of its own.
    group.callback()(lambda: None)
    group.command(name="salvage")(_salvage)
    app.add_typer(group, name="spool")


def _salvage(
    path: Annotated[Path, typer.Argument(help="The file, for example receiver.db.")],
) -> None:
    """Replace a damaged spool by one that has all of it that is whole; the damaged file is kept."""
    found = salvage(path)
    typer.echo(f"{path}: {len(found.entries)} entries are whole and wait to be delivered")
    numbers = ", ".join(map(str, found.lost)) or "none"
    typer.echo(f"lost entries: {numbers}")
    if found.lost_states:
        typer.echo(
            f"lost states of cumulative streams: {found.lost_states}; "
            "what these streams had counted is counted again with their next point"
        )
    typer.echo(f"the damaged file is {found.kept}")
