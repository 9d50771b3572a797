"""Chunks of bytes become lines. Only a line feed ends one: `str.splitlines` knows eleven others."""

from collections.abc import Iterator


class Lines:
    """Holds one line at most."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def of(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that `chunk` completes, each with its line feed."""
        first, end, rest = chunk.partition(b"\n")
        self._begun.append(first + end)
        if not end:
            return
        yield b"".join(self._begun)
        *whole, begun = rest.split(b"\n")
        for line in whole:
            yield line + b"\n"
        self._begun = [begun]

    def rest(self) -> Iterator[bytes]:
        """A last line without a line feed, if there is one."""
        if last := b"".join(self._begun):
            yield last
