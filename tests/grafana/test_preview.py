"""The pictures of the dashboards in the documentation. Nothing here needs Node: it draws them, and only that."""

import json
import struct
from pathlib import Path

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "grafana" / "dashboards"
IMAGES = ROOT / "docs" / "images"
PREVIEW = ROOT / "grafana" / "preview"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE_BYTES = 400 * 1024
PAGE_WIDTH_PX = 1600


def test_every_dashboard_has_a_picture_and_every_picture_a_dashboard() -> None:
    dashboards = {json.loads(path.read_text())["uid"] for path in DASHBOARDS.glob("*.json")}
    pictures = {path.stem for path in IMAGES.glob("metering-*.png")}
    assert dashboards
    assert pictures == dashboards, "run `make preview` and look at what it drew"


def test_a_picture_is_a_png_as_wide_as_the_page_and_small_enough_for_a_repository() -> None:
    for path in IMAGES.glob("metering-*.png"):
        content = path.read_bytes()
        assert content[:8] == PNG_SIGNATURE, path.name
        # ISO/IEC 15948, 11.2.2: the first chunk is IHDR, and begins with width and height.
        width, height = struct.unpack(">II", content[16:24])
        assert width == PAGE_WIDTH_PX, path.name
        assert height > width / 4, path.name
        assert len(content) < LARGEST_PICTURE_BYTES, path.name


def test_the_lock_file_of_the_pictures_pins_each_package_and_names_no_registry() -> None:
    lock = json.loads((PREVIEW / "package-lock.json").read_text())
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert packages
    for name, one in packages.items():
        assert "resolved" not in one, name
        assert one["integrity"].startswith("sha512-"), name


def test_the_packages_of_the_pictures_are_named_with_exact_versions() -> None:
    wanted = json.loads((PREVIEW / "package.json").read_text())["dependencies"]
    locked = json.loads((PREVIEW / "package-lock.json").read_text())["packages"]
    assert wanted
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert locked[""]["dependencies"] == wanted
