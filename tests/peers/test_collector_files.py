"""The Collector's files that users get, without a Collector: they agree with each other."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.peers.collector.build import MANIFEST, REPOSITORY
from tests.peers.collector.process import GATEWAY, SIDECAR, TENANT_HEADER, TLS

FILES = sorted({*GATEWAY, *SIDECAR, *TENANT_HEADER, *TLS})

MODULES = {
    "health_check": "healthcheckextension",
    "file_storage": "filestorage",
    "bearertokenauth": "bearertokenauthextension",
    "otlp": "otlpreceiver",
    "memory_limiter": "memorylimiterprocessor",
    "attributes": "attributesprocessor",
    "filter": "filterprocessor",
    "resource": "resourceprocessor",
    "nop": "nopexporter",
    "otlp_http": "otlphttpexporter",
    "otlp_grpc": "otlpexporter",
}
"""Type of a component in a configuration -> last part of its Go module (each module's metadata.yaml)."""

OLD_NAMES = {
    "otlphttp",
    "loadbalancing",
    "logging",
    "memory_ballast",
    "batcher",
    "blocking",
}


def loaded(file: Path) -> dict[str, Any]:
    found = yaml.safe_load(file.read_text())
    assert isinstance(found, dict)
    return found


def test_every_file_is_tested() -> None:
    there = {*(REPOSITORY / "collector").glob("*.yaml"), *REPOSITORY.glob("collector*.yaml")}
    assert there - {MANIFEST} == set(FILES)


def test_the_manifest_has_what_the_files_use_and_nothing_else() -> None:
    kinds = ("extensions", "receivers", "processors", "exporters", "connectors")
    used = {
        MODULES[name.partition("/")[0]]
        for file in FILES
        for kind in kinds
        for name in loaded(file).get(kind, {})
    }
    manifest = loaded(MANIFEST)
    built = {
        one["gomod"].split()[0].split("/")[-1] for kind in kinds for one in manifest.get(kind, [])
    }

    assert used == built


def test_the_manifest_is_of_one_version() -> None:
    modules = re.findall(r"gomod: (\S+) v(\S+)", MANIFEST.read_text())
    version = loaded(MANIFEST)["dist"]["version"]
    minor = int(version.split(".")[1])

    # The stable modules of a release have a version of their own: v1.65.0 is of v0.159.0.
    assert {found for module, found in modules if "/provider/" not in module} == {version}
    assert {found for module, found in modules if "/provider/" in module} == {f"1.{minor - 94}.0"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_name_is_one_that_went_away(file: Path) -> None:
    keys = set(re.findall(r"(?:^|[{,\s])([a-z_]+)(?:/\w+)?\s*:", file.read_text()))
    assert keys & OLD_NAMES == set()
    assert "exporters:\n  otlp:" not in file.read_text()
    assert re.findall(r"\$\{(?!env:)", file.read_text()) == []


@pytest.mark.parametrize("file", [*GATEWAY, *SIDECAR], ids=lambda file: file.name)
def test_usage_waits_on_disk_and_is_sent_for_ever(file: Path) -> None:
    configuration = loaded(file)
    storages, exporters = configuration["extensions"], configuration["exporters"]
    pipelines = configuration["service"]["pipelines"]
    sending = {
        name: one
        for name, one in exporters.items()
        if name in ("otlp_http/metering", "otlp_grpc/metering")
    }
    assert len(sending) == 2
    for one in sending.values():
        queue, retry = one["sending_queue"], one["retry_on_failure"]
        assert storages[queue["storage"]]["fsync"] is True
        assert queue["block_on_overflow"] is True
        assert retry["enabled"] is True
        assert retry["max_elapsed_time"] == "0s"
        assert one["compression"] == "gzip"  # grpcio refuses other codecs for good
    for signal in ("metrics", "traces", "logs"):
        assert pipelines[f"{signal}/usage"]["processors"][0] == "memory_limiter"
        assert "otlp_http/metering" in pipelines[f"{signal}/usage"]["exporters"][0]


def test_gateway_and_sidecar_agree_on_what_is_usage() -> None:
    gateway, sidecar = loaded(GATEWAY[0]), loaded(SIDECAR[0])
    for name in ("filter/usage", "filter/telemetry"):
        assert gateway["processors"][name] == sidecar["processors"][name]
    assert gateway["service"]["pipelines"] == sidecar["service"]["pipelines"]
    assert gateway["exporters"].keys() == sidecar["exporters"].keys()


def test_every_variable_is_documented_and_nothing_else() -> None:
    read = {name for file in FILES for name in re.findall(r"\$\{env:(\w+)", file.read_text())}
    page = (REPOSITORY / "docs" / "collector.md").read_text()

    assert set(re.findall(r"`(COLLECTOR_\w+)`", page)) == read
