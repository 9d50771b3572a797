"""An OpenTelemetry Collector, built from its Go modules by its own builder."""

from pathlib import Path

from tests.peers.install import installed, run, tool


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
