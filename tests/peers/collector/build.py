"""An OpenTelemetry Collector, built from its Go modules by its own builder."""

import re
from pathlib import Path

from tests.peers.install import installed, run, tool

REPOSITORY = Path(__file__).parents[3]
MANIFEST = REPOSITORY / "collector" / "manifest.yaml"
"""Of the Collector that users are told to build."""


def shipped() -> Path:
    """The program that users are told to build. Raises as `build`."""
    [version] = re.findall(r"collector/cmd/builder@(v[\d.]+)", MANIFEST.read_text())
    return build(MANIFEST, version)


def build(manifest: Path, builder_version: str) -> Path:
    """The program that `manifest` describes; the first build takes minutes.

    Raises:
        UnavailableError: Go is missing or too old, or the module proxy is not reached.
    """

    def install(folder: Path) -> None:
        go = tool("go", (1, 26), "version")
        (folder / "manifest.yaml").write_text(manifest.read_text())
        builder = f"go.opentelemetry.io/collector/cmd/builder@{builder_version}"
        run([go, "install", builder], folder, {"GOBIN": str(folder)})
        run([folder / "builder", "--config=manifest.yaml"], folder)

    recipe = f"{builder_version}\n{manifest.read_text()}"
    folder = installed("collector", recipe, install)
    [program] = (path for path in (folder / "out").glob("otelcol-*"))
    return program
