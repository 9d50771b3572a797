"""`python -m grafana.preview [--chromium PATH] [UID ...]`: pictures of all dashboards, or of those named, in docs/images.

Grafana itself is not needed, Node and Chromium are: the queries run here, on an engine with sample data, and a page
made of Grafana's components (draw.mjs) draws what they return.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from grafana.preview.frames import write_sheets

HERE: Final = Path(__file__).parent
IMAGES: Final = HERE.parents[1] / "docs" / "images"
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class MissingError(Exception):
    """Something outside Python that the pictures need is not there."""


def browser(given: str | None) -> str:
    """Path of Chromium; `given`, if it is.

    Raises:
        MissingError: There is none.
    """
    found = given or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None or not Path(found).exists():
        raise MissingError("Chromium is missing; install it, or name its path with --chromium")
    return found


def node() -> str:
    """Path of Node, with the packages of package-lock.json in place.

    Raises:
        MissingError: Node or npm is missing, or the packages cannot be installed.
    """
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        raise MissingError(
            "Node 20 or newer, with npm, is missing; nothing but these pictures needs it"
        )
    installed = HERE / "node_modules" / ".package-lock.json"
    if (
        not installed.exists()
        or installed.stat().st_mtime < (HERE / "package-lock.json").stat().st_mtime
    ):
        print("Installing Grafana's components into grafana/preview/node_modules ...", flush=True)
        if _run(npm, "ci", "--loglevel=error", folder=HERE):
            raise MissingError(
                "npm could not install the packages of grafana/preview/package-lock.json"
            )
    return found


def main(arguments: list[str]) -> int:
    """Draw the pictures; 1 and a message where something is missing."""
    parser = argparse.ArgumentParser(prog="python -m grafana.preview", description=__doc__)
    parser.add_argument("uids", nargs="*", metavar="UID", help="dashboards; none: all of them")
    parser.add_argument("--chromium", metavar="PATH", help="the browser, where it is not found")
    asked = parser.parse_args(arguments)
    try:
        program, chromium = node(), browser(asked.chromium)
    except MissingError as error:
        print(f"preview: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="preview-") as folder:
        sheets = Path(folder) / "sheets.json"
        write_sheets(sheets, only=asked.uids)
        return _run(program, str(HERE / "draw.mjs"), str(sheets), str(IMAGES), chromium)


def _run(*command: str, folder: Path | None = None) -> int:
    """Its exit code."""
    return subprocess.run(command, cwd=folder, check=False).returncode  # noqa: S603 - programs of our own choice


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
