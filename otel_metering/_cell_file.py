"""Totals in a mapped file: whatever ends the process, what was added is there, to the last call.

Nothing here waits for the disk. A killed process leaves its pages to the kernel; a machine that loses
power does not, so a file is only believed in the boot it was written in (`Contents.is_current`).

The file is words of 64 bits: a header, then blocks, each with one total.

    header  magic · words of the header · alive at · read until · flush interval · length, CRC-32 of the
            payload · payload (boot, resource)
    block   words of the block · which copy of the total holds · 2 copies (high, low 63 bits) ·
            2 marks (flush, high, low) · length, CRC-32 of the descriptor · descriptor

Why a kill between any two stores leaves exactly what was added:

- A total is one store: the low word of the copy that holds. When the high word has to change, the other
  copy is written, and then one store says that it holds.
- A mark says how much of the total is in the spool, once the flush of its number was committed there. A
  flush only writes the mark that does not hold; the commit of the spool makes it hold.
- A block's size is written in the moment its space is taken, so the file can always be walked.
- A block is given to another series only while its total and its mark agree: then it is worth nothing,
  whatever its descriptor says.
"""

import mmap
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import pack_into
from typing import Final, NamedTuple

SUFFIX: Final = ".cells"
"""End of the names of these files."""

SEGMENT_BYTES: Final = 256 * 1024
"""Space is taken from the disk by multiples of it; the rest of a segment may stay unused."""

_MAX_SEGMENT_BYTES: Final = 64 * SEGMENT_BYTES

MAX_WORD: Final = 2**63 - 1
WORD_BITS: Final = 63

_WORD: Final = 8
_MAGIC: Final = int.from_bytes(b"otelcel1", "little")
_HEADER_WORDS: Final = 7
_ALIVE_AT, _READ_UNTIL = 2, 3
HOLDS: Final = 1
"""Word of a block: which copy of the total holds, 0 or 1."""

LOW: Final = 3
"""Word of a block: low word of the first copy; the high word is before it, the other copy behind it."""

_BLOCK_WORDS: Final = 14
_MARK, _OTHER_MARK, _LENGTH = 6, 9, 12
GRAIN_WORDS: Final = 8
"""Each block begins at a multiple of it."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def cells_path(spool: Path) -> Path:
    """Of the file with what is not in this spool yet."""
    return spool.with_suffix(SUFFIX)


class Slot:
    """A block of a file, as its one writer uses it.

    Attributes:
        file: Which.
        words: The mapped segment.
        at: The low word of the copy that holds.
        floor: What the high word stands for.
    """

    __slots__ = ("at", "file", "floor", "words")

    def __init__(self, file: "CellFile", words: "memoryview[int]", block: int) -> None:
        self.file: CellFile = file
        self.words: memoryview[int] = words
        self.at: int = block + LOW
        self.floor: int = 0

    @property
    def block(self) -> int:
        """The first word of the block; both copies lie in the grain that begins there."""
        return self.at & -GRAIN_WORDS

    @property
    def total(self) -> int:
        """What the block holds."""
        return self.floor + self.words[self.at]


class _Segment:
    """A mapped part of the file.

    Attributes:
        words: It.
        used: Words that belong to blocks.
    """

    __slots__ = ("used", "words")

    def __init__(self, words: "memoryview[int]") -> None:
        self.words = words
        self.used = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What whoever finds the file has to know.

    Attributes:
        resource: Of the usage; the caller's bytes.
        read_until_ns: When the first flush interval begins.
        flush_interval_ns: How often `CellFile.tick` is called.
    """

    resource: bytes
    read_until_ns: int
    flush_interval_ns: int


class CellFile:
    """The file of one process. Nothing is made before the first `allocate`.

    `mark`, `commit` and `tick` are the flusher's: one caller at a time. The other methods are for any
    thread, and for signal handlers.

    Attributes:
        path: Where.
        committed: Number of the last flush that is in the spool.
        is_closed: Whether nobody looks into the file any more.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.committed: int = 0
        self.is_closed: bool = False
        self._header = header
        self._lock = threading.RLock()
        self._is_growing = False
        self._fd = -1
        self._length = 0
        self._first: memoryview[int] | None = None
        self._segment: _Segment | None = None
        self._free: dict[int, list[Slot]] = {}

    def allocate(self, descriptor: bytes) -> Slot | None:
        """A block for the series that `descriptor` describes; what it holds counts as read.

        None: there is no room on the disk, or this is a signal handler that interrupted another
        `allocate` in the moment it took space from the disk.
        """
        words = _in_grains(_BLOCK_WORDS + -(-len(descriptor) // _WORD))
        with self._lock:
            slot = self._reused(words)
            while slot is None:
                slot = self._take(words)
                if slot is None and not self._grow(words):
                    return None
            _put_checked(slot.words, slot.block + _LENGTH, descriptor)
            return slot

    def release(self, slot: Slot) -> None:
        """Nobody adds to `slot` any more, and all it holds was read, and the flush committed."""
        self._free.setdefault(slot.words[slot.block], []).append(slot)

    def mark(self, totals: Iterable[tuple[Slot | None, int]]) -> int:
        """Note how far each slot was read; it holds once the flush is in the spool.

        Slots of other files are left alone.

        Returns:
            The number of the flush, to be put into the spool with what was read.
        """
        flush = self.committed + 1
        for slot, total in totals:
            if slot is None or slot.file is not self:
                continue
            words, block = slot.words, slot.at & -GRAIN_WORDS
            first, second = words[block + _MARK], words[block + _OTHER_MARK]
            # The one of a flush that failed, else the older one; at first the first.
            is_other = second == flush or (first > second and first != flush)
            at = block + (_OTHER_MARK if is_other else _MARK)
            pack_into("3q", words, _WORD * at, flush, total >> WORD_BITS, total & MAX_WORD)
        return flush

    def commit(self) -> None:
        """The last flush that was marked is in the spool."""
        self.committed += 1

    def tick(self, *, alive_ns: int, read_until_ns: int) -> None:
        """Note the time; what is found in the file was recorded about then, after `read_until_ns`."""
        if self._first is not None:
            self._first[_READ_UNTIL] = read_until_ns
            self._first[_ALIVE_AT] = alive_ns

    def close(self, *, delete: bool) -> None:
        """No more space is taken from the disk; slots stay usable, for nobody if the file is deleted."""
        with self._lock:
            self.is_closed = self._is_growing = True
            self._first = self._segment = None
            self._free = {}
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            if delete:
                with suppress(FileNotFoundError):
                    self.path.unlink()

    def _reused(self, words: int) -> Slot | None:
        free = self._free.get(words)
        try:
            return free.pop() if free else None
        except IndexError:  # a signal handler took it
            return None

    def _take(self, words: int) -> Slot | None:
        segment = self._segment
        if segment is None:
            return None
        # From here to the next call a signal handler that allocates runs before all of it, or after:
        # behind space whose size is not written yet, its block would not be found.
        block = segment.used
        if block + words > len(segment.words):
            return None
        segment.words[block] = words
        segment.used = block + words
        return Slot(self, segment.words, block)

    def _grow(self, words: int) -> bool:
        if self._is_growing:
            return False
        self._is_growing = True
        try:
            self._segment = self._new_segment(words)
        except OSError:
            return False
        finally:
            self._is_growing = False
        return True

    def _new_segment(self, words: int) -> _Segment:
        payload = _boot_id() + self._header.resource
        header_words = _header_words(payload)
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        needed = _WORD * (words + (0 if self._length else header_words))
        wanted = max(needed, min(self._length, _MAX_SEGMENT_BYTES), 1)
        size = -(-wanted // SEGMENT_BYTES) * SEGMENT_BYTES
        # Before it is touched: a mapped page that finds no room on the disk ends the process by SIGBUS.
        _take_from_disk(self._fd, self._length, size)
        mapped = mmap.mmap(self._fd, size, offset=self._length)
        segment = _Segment(memoryview(mapped).cast("q"))
        if not self._length:
            header = segment.words
            header[1] = segment.used = header_words
            header[_ALIVE_AT] = header[_READ_UNTIL] = self._header.read_until_ns
            header[4] = self._header.flush_interval_ns
            _put_checked(header, _HEADER_WORDS - 2, payload)
            header[0] = _MAGIC
            self._first = header
        self._length += size
        return segment


def _in_grains(words: int) -> int:
    return -(-words // GRAIN_WORDS) * GRAIN_WORDS


def _take_from_disk(fd: int, offset: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, size)
        return
    for start in range(offset, offset + size, SEGMENT_BYTES):
        if os.pwrite(fd, bytes(SEGMENT_BYTES), start) < SEGMENT_BYTES:
            raise OSError(f"no room for {size} bytes")


def _put_checked(words: "memoryview[int]", at: int, data: bytes) -> None:
    """Length, CRC-32, and `data` behind them."""
    view = words.cast("B")
    start = _WORD * (at + 2)
    view[start : start + len(data)] = data
    words[at + 1] = zlib.crc32(data)
    words[at] = len(data)


def _boot_id() -> bytes:
    """36 characters that differ after a restart of the machine; blanks where it does not tell."""
    try:
        return _BOOT_ID.read_bytes().strip().ljust(36)[:36]
    except OSError:
        return b" " * 36


class Block(NamedTuple):
    """What a block was found to hold.

    Attributes:
        descriptor: Of its series; None: it is not what was written.
        total: Everything ever added.
        marks: (flush, total read by it), twice.
    """

    descriptor: bytes | None
    total: int
    marks: tuple[tuple[int, int], tuple[int, int]]

    def rest(self, committed: int) -> int:
        """What no flush up to number `committed` has read."""
        first, second = self.marks
        # Of two that are alike the second: they are so at first, and then the first one is written.
        is_first = second[0] > committed or second[0] < first[0] <= committed
        return self.total - (first if is_first else second)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a process left.

    Attributes:
        header: As it is now: when the flush interval began of which usage is left.
        alive_ns: When the process was seen last.
        is_current: Whether the machine runs since then; if not, totals may be older than their marks.
        blocks: One for each series and thread.
        is_damaged: Whether a part of the file cannot be read.
    """

    header: Header
    alive_ns: int
    is_current: bool
    blocks: list[Block]
    is_damaged: bool

    @property
    def last_marked(self) -> int:
        """Number of the last flush that began; the one before it was committed."""
        return max((flush for block in self.blocks for flush, _ in block.marks), default=0)


def read_cell_file(path: Path) -> Contents | None:
    """What is in the file of an ended process; None: it was never used.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged from the beginning.
    """
    data = path.read_bytes()
    data += bytes(-len(data) % _WORD)
    words = memoryview(data).cast("q")
    if len(words) < _HEADER_WORDS or words[0] == 0:
        return None
    payload = _checked(words, _HEADER_WORDS - 2)
    if words[0] != _MAGIC or payload is None or words[1] != _header_words(payload):
        raise ValueError(f"{path} is not what was written")
    found = list(_blocks(words))
    return Contents(
        header=Header(
            resource=payload[36:], read_until_ns=words[_READ_UNTIL], flush_interval_ns=words[4]
        ),
        alive_ns=words[_ALIVE_AT],
        is_current=payload[:36] == _boot_id(),
        blocks=[block for block in found if block is not None],
        is_damaged=None in found,
    )


def _header_words(payload: bytes) -> int:
    return _in_grains(_HEADER_WORDS + -(-len(payload) // _WORD))


def _blocks(words: "memoryview[int]") -> Iterator[Block | None]:
    """Each block; None: something that is none."""
    segment_words = SEGMENT_BYTES // _WORD
    at = words[1]
    while at + _BLOCK_WORDS <= len(words):
        size = words[at]
        if _BLOCK_WORDS <= size <= len(words) - at:
            yield _block(words, at)
            at += size
            continue
        if size:
            yield None
        at = (at // segment_words + 1) * segment_words


def _block(words: "memoryview[int]", at: int) -> Block:
    def number(high: int) -> int:
        return (words[high] << WORD_BITS) + words[high + 1]

    low = at + LOW + 2 * (words[at + HOLDS] & 1)
    first, second = at + _MARK, at + _OTHER_MARK
    return Block(
        _checked(words, at + _LENGTH),
        number(low - 1),
        ((words[first], number(first + 1)), (words[second], number(second + 1))),
    )


def _checked(words: "memoryview[int]", at: int) -> bytes | None:
    start, length = _WORD * (at + 2), words[at]
    if 0 <= length <= _WORD * len(words) - start:
        data = bytes(words.cast("B")[start : start + length])
        if zlib.crc32(data) == words[at + 1]:
            return data
    return None
