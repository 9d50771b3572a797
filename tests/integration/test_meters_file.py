"""A changed meters.yaml takes effect; a bad, half-written or missing one changes nothing."""

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_metering.clock import ManualClock, SystemClock
from otel_metering.contract.meter import Meters
from otel_metering.errors import ConfigurationError
from receiver.meters_file import Changes, MetersFile
from receiver.meters_yaml import read_text
from tests.waiting import eventually

ONE = "meters:\n- slug: one\n"
TWO = "meters:\n- slug: one\n- slug: two\n"
BAD = "meters:\n- slug: one\n  agregation: sum\n"
FIRST_READ_AT = "2026-09-21T14:13:20Z"
"""What ManualClock begins with."""


def slugs(meters: Meters) -> list[str]:
    return [definition.slug for definition in meters.definitions]


def replace(path: Path, text: str) -> None:
    """Write as editors do: a new file, renamed over the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class Watched:
    """A file that is looked at by hand, and what came of it."""

    def __init__(self, path: Path | None) -> None:
        self.clock = ManualClock()
        self.file = MetersFile(path, self.clock)
        self.taken: list[list[str]] = []
        self.file._on_change = lambda meters: self.taken.append(slugs(meters))

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.file.look()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "meters.yaml"
    path.write_text(ONE)
    return path


@pytest.fixture
def watched(path: Path) -> Watched:
    return Watched(path)


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "receiver.meters_file"):
        yield


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    return [
        (record.levelname, record.__dict__["event"], record.getMessage())
        for record in caplog.records
    ]


def test_a_file_that_stays_as_it_is_is_not_read_again(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.look(5)

    assert (watched.taken, logged(caplog)) == ([], [])
    assert watched.file.describe() == f"1 meter, read at {FIRST_READ_AT}"


def test_a_new_file_is_taken_and_the_log_says_what_changed(
    watched: Watched, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched.clock.advance(60)
    replace(path, "meters:\n- slug: one\n  unit: By\n- slug: two\n")
    watched.look()
    replace(path, "meters:\n- slug: two\n")
    watched.look()

    assert watched.taken == [["one", "two"], ["two"]]
    assert slugs(watched.file.meters) == ["two"]
    assert logged(caplog) == [
        ("INFO", "meters_read", "Meters read: added two; changed one"),
        ("INFO", "meters_read", "Meters read: removed one"),
    ]
    assert watched.file.describe() == "1 meter, read at 2026-09-21T14:14:20Z"


def test_a_bad_file_keeps_the_old_definitions_and_says_the_line(
    watched: Watched, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replace(path, BAD)
    watched.look(5)

    problem = (
        f"{path}:3: meters[0].agregation is no field; known here are aggregation, description, "
        "group_by, slug, source, tenant, unit, value"
    )
    assert watched.taken == []
    assert slugs(watched.file.meters) == ["one"]
    assert logged(caplog) == [
        ("ERROR", "meters_rejected", f"Meters stay as they were, 1 meter: {problem}")
    ]
    assert watched.file.describe() == (
        f"1 meter, read at {FIRST_READ_AT}, the file since then is wrong: {problem}"
    )


@pytest.mark.parametrize(("text", "taken"), [(ONE, []), (TWO, [["one", "two"]])])
def test_a_bad_file_that_was_put_right_is_no_problem_any_more(
    watched: Watched, path: Path, text: str, taken: list[list[str]]
) -> None:
    replace(path, BAD)
    watched.look()
    replace(path, text)
    watched.look()

    assert watched.taken == taken
    assert "wrong" not in watched.file.describe()


def test_a_missing_file_keeps_the_old_definitions_with_a_warning(
    watched: Watched, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.unlink()
    watched.look(5)

    assert watched.taken == []
    assert slugs(watched.file.meters) == ["one"]
    assert [one[:2] for one in logged(caplog)] == [("WARNING", "meters_missing")]
    assert watched.file.describe().endswith(f"{path} is gone; put it back")

    path.write_text(TWO)
    watched.look()

    assert watched.taken == [["one", "two"]]
    assert "gone" not in watched.file.describe()


def test_a_file_that_is_being_written_is_not_read(watched: Watched, path: Path) -> None:
    path.write_text("")
    watched.look(1)
    path.write_text(ONE + "- slug: tw")
    watched.look(1)
    path.write_text(TWO)
    watched.look(1)

    assert watched.taken == []

    watched.look(1)

    assert watched.taken == [["one", "two"]]


def test_a_file_emptied_for_good_is_refused(watched: Watched, path: Path) -> None:
    path.write_text("")
    watched.look()

    assert slugs(watched.file.meters) == ["one"]
    assert "the document is empty" in watched.file.describe()


def test_a_link_that_moves_on_is_a_change_as_in_a_kubernetes_volume(tmp_path: Path) -> None:
    for name, text in (("..1", ONE), ("..2", ONE.replace("one", "two"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meters.yaml").write_text(text)
        os.utime(tmp_path / name / "meters.yaml", (0, 0))
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "meters.yaml"
    path.symlink_to("..data/meters.yaml")
    watched = Watched(path)

    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").replace(tmp_path / "..data")
    watched.look()

    assert watched.taken == [["two"]]


def test_the_same_content_in_a_new_file_is_no_change(
    watched: Watched, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replace(path, ONE)
    watched.look()

    assert (watched.taken, logged(caplog)) == ([], [])


def test_whoever_asks_is_served_at_once(
    watched: Watched, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched.file.look(is_asked=True)
    replace(path, TWO)
    watched.file.look(is_asked=True)

    assert watched.taken == [["one", "two"]]
    assert [one[1] for one in logged(caplog)] == ["meters_unchanged", "meters_read"]


def test_a_file_that_cannot_be_read_is_refused(watched: Watched, path: Path) -> None:
    path.unlink()
    path.mkdir()
    watched.look()

    assert slugs(watched.file.meters) == ["one"]
    assert "it cannot be read: Is a directory" in watched.file.describe()


def test_the_default_file_need_not_be_there_and_is_taken_when_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    watched = Watched(None)
    watched.look()
    watched.file.look(is_asked=True)

    assert (watched.file.describe(), logged(caplog)) == ("0 meters, no meters.yaml", [])

    Path("meters.yaml").write_text(BAD)
    watched.look()
    assert watched.file.describe().startswith(
        "0 meters, no meters.yaml, the file since then is wrong: meters.yaml:3: "
    )

    Path("meters.yaml").write_text(TWO)
    watched.look()
    assert watched.taken == [["one", "two"]]


@pytest.mark.parametrize("text", [None, BAD, ""])
def test_a_named_file_must_be_there_and_right_at_the_start(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "m.yaml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ConfigurationError, match=f"^{path}:"):
        MetersFile(path, ManualClock())


def test_the_thread_takes_a_change_by_itself_and_outlives_a_failing_listener(path: Path) -> None:
    file = MetersFile(path, SystemClock())
    taken: list[list[str]] = []
    failed = threading.Event()

    def listen(meters: Meters) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("once")
        taken.append(slugs(meters))

    file.start(listen)
    try:
        replace(path, TWO)
        file.reload()
        assert failed.wait(20)
        replace(path, "meters:\n- slug: three\n")
        eventually(lambda: taken, lambda found: found == [["three"]])
    finally:
        file.stop()


def test_changes_are_told_apart() -> None:
    old = read_text(b"meters: [{slug: a}, {slug: b}, {slug: c}]", "m")
    new = read_text(b"meters: [{slug: d}, {slug: b, unit: By}, {slug: a}]", "m")

    changes = Changes.between(old, new)

    assert changes == Changes(added=("d",), changed=("b",), removed=("c",))
    assert str(changes) == "added d; changed b; removed c"
