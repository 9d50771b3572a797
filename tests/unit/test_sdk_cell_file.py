"""What a file of cells holds, as whoever finds it reads it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering._cell_file import (
    SEGMENT_BYTES,
    Block,
    CellFile,
    Contents,
    Header,
    Slot,
    read_cell_file,
)
from otel_metering._cells import Cell, add
from otel_metering._series import Series, describe, described

HEADER = Header(resource=b"resource", read_until_ns=13, flush_interval_ns=10**9)
SERIES = Series("m", "t", ())


def allocated(file: CellFile, descriptor: bytes) -> Slot:
    slot = file.allocate(descriptor)
    assert slot is not None
    return slot


def contents_of(file: CellFile) -> Contents:
    contents = read_cell_file(file.path)
    assert contents is not None
    return contents


@pytest.mark.parametrize(
    ("marks", "committed", "expected"),
    [
        (((0, 0), (0, 0)), 0, 100),
        (((1, 7), (0, 0)), 0, 100),  # marked, then killed before the commit
        (((1, 7), (0, 0)), 1, 93),
        (((0, 7), (0, 0)), 0, 100),  # killed in the middle of the first mark
        (((5, 7), (6, 9)), 5, 93),
        (((5, 7), (6, 9)), 6, 91),
        (((5, 7), (6, 9)), 20, 91),
        (((8, 11), (6, 9)), 7, 91),
        (((8, 11), (6, 9)), 8, 89),
    ],
)
def test_the_mark_of_the_last_flush_in_the_spool_holds(
    marks: tuple[tuple[int, int], tuple[int, int]], committed: int, expected: int
) -> None:
    assert Block(b"", 100, marks).rest(committed) == expected


@given(st.lists(st.integers(0, 2**63 * 10**9), max_size=20))
def test_totals_of_any_size_are_found_as_they_were_added(
    tmp_path_factory: pytest.TempPathFactory, amounts: list[int]
) -> None:
    file = CellFile(tmp_path_factory.mktemp("cells") / "x.cells", HEADER)
    cell = Cell(SERIES, slot=allocated(file, b"series"))

    for amount in amounts:
        add(cell, amount)

    (block,) = contents_of(file).blocks
    assert block == Block(b"series", sum(amounts), ((0, 0), (0, 0)))
    file.close(delete=True)


def test_blocks_of_all_sizes_are_found_through_many_segments(tmp_path: Path) -> None:
    file = CellFile(tmp_path / "x.cells", HEADER)
    sizes = [0, 1, 15, 16, 17, 1000, SEGMENT_BYTES - 200, SEGMENT_BYTES, 3 * SEGMENT_BYTES, 40_000]
    descriptors = [bytes([i]) * size for i, size in enumerate(sizes * 3)]

    for i, descriptor in enumerate(descriptors):
        add(Cell(SERIES, slot=allocated(file, descriptor)), i)

    contents = contents_of(file)
    assert not contents.is_damaged
    assert contents.is_current
    assert contents.header == HEADER
    assert [(block.descriptor, block.total) for block in contents.blocks] == [
        (descriptor, i) for i, descriptor in enumerate(descriptors)
    ]
    file.close(delete=True)
    assert not file.path.exists()


def test_all_space_is_taken_from_the_disk_before_it_is_used(tmp_path: Path) -> None:
    file = CellFile(tmp_path / "x.cells", HEADER)
    for _ in range(5000):
        allocated(file, b"x" * 100)

    found = file.path.stat()
    assert found.st_blocks * 512 >= found.st_size > 5000 * 200


def test_a_file_that_cannot_be_made_maps_nothing_and_raises_nothing(tmp_path: Path) -> None:
    file = CellFile(tmp_path / "missing" / "x.cells", HEADER)

    assert file.allocate(b"series") is None
    file.tick(alive_ns=1, read_until_ns=1)
    file.close(delete=True)


def test_a_closed_file_gives_no_blocks(tmp_path: Path) -> None:
    file = CellFile(tmp_path / "x.cells", HEADER)
    slot = allocated(file, b"series")
    file.close(delete=False)
    file.release(slot)

    assert CellFile.allocate(file, b"other" * 99) is None


def test_an_unfinished_file_is_empty_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.cells"
    path.touch()
    assert read_cell_file(path) is None
    path.write_bytes(bytes(SEGMENT_BYTES))
    assert read_cell_file(path) is None
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(ValueError, match=r"x\.cells is not what was written"):
        read_cell_file(path)


@given(st.data())
def test_any_damage_is_survived(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = CellFile(tmp_path_factory.mktemp("cells") / "x.cells", HEADER)
    for i in range(5):
        add(Cell(SERIES, slot=allocated(file, b"series")), i)
    file.close(delete=False)
    image = bytearray(file.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, 1000))] = data.draw(st.integers(0, 255))
    file.path.write_bytes(image[: data.draw(st.integers(0, len(image)))])

    try:
        contents = read_cell_file(file.path)
    except ValueError:
        return
    assert contents is None or len(contents.blocks) <= SEGMENT_BYTES // 128


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1).filter(lambda text: text.isprintable()),
            st.sampled_from(
                [("bool", True), ("int", 1), ("float", 1.0), ("str", "1"), ("float", float("inf"))]
            ),
        ),
        unique_by=lambda pair: pair[0],
    )
)
def test_a_series_is_the_same_after_it_was_bytes(
    pairs: list[tuple[str, tuple[str, object]]],
) -> None:
    dimensions = tuple((name, kind, value) for name, (kind, value) in sorted(pairs))
    for tenant in ("t", None):
        series = Series("m", tenant, dimensions)  # type: ignore[arg-type] # values of each type

        found = described(describe(series))

        assert found == series
        assert [type(value) for _, _, value in found.dimensions] == [
            type(value) for _, _, value in dimensions
        ]
