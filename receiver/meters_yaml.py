"""Text of `meters.yaml` -> definitions; an error says on which line.

Two people must not read one file differently, and YAML makes that easy: `no` and `on` are truth values to
YAML 1.1 and texts to 1.2, `010` is 8 or 10, `1:30` is 90 or a text. So what is not the same to both must
stand in quotes here, names are unique in their mapping, and the only tags are those of JSON.
"""

import re
from dataclasses import dataclass, field
from typing import Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from otel_metering.contract.fields import FieldPath, shown
from otel_metering.contract.meter import Meters, parse_meters
from otel_metering.errors import ConfigurationError, DefinitionError

MAX_BYTES: Final = 2**20
"""Size of a file: some 4,000 meters; parsing takes three seconds."""

MAX_DEPTH: Final = 16
"""Nesting of lists and mappings; the deepest definition needs six levels."""

MAX_VALUES: Final = 200_000
"""Values in a file with every alias spelled out: aliases of aliases grow without bound."""

_TAG: Final = "tag:yaml.org,2002:"
_INT = re.compile(r"-?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,30})\.[0-9]{1,30}([eE][-+]?[0-9]{1,3})?")
_BOOLS: Final = {"true": True, "false": False}
_LIKE_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+")
"""What YAML 1.2 takes for a number, also where YAML 1.1 does not (1e3)."""


def read_text(content: bytes, name: str) -> Meters:
    """Definitions from the bytes of the file `name`, which errors begin with.

    Raises:
        ConfigurationError: Line, field, what it holds and what it may hold.
    """
    if len(content) > MAX_BYTES:
        raise ConfigurationError(
            f"{name}: it has over {MAX_BYTES} bytes, which is the limit; remove meters"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{name}:{line}: it is not UTF-8; save it as UTF-8") from error
    document = _parse(text, name)
    try:
        return parse_meters(document.value)
    except DefinitionError as error:
        line = document.line_of(error.path)
        raise ConfigurationError(f"{name}:{line}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Document:
    """A value, and the line on which each part of it begins."""

    value: object
    lines: dict[FieldPath, int]

    def line_of(self, path: FieldPath) -> int:
        """The line of what `path` leads to; of what is missing, that of what it is missing in."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def _parse(text: str, name: str) -> _Document:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        builder = _Builder()
        return _Document(builder.build(root, ()) if root is not None else None, builder.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigurationError(f"{name}:{line}: {_explain(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(
            f"{name}:{line}: there is a control character, U+{ord(text[error.position]):04X}; remove it"
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets these pass for escapes such as "\UFFFFFFFF" and endless version numbers.
        raise ConfigurationError(f"{name}: it is not YAML: {error}") from error


def _explain(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _RefusedError):
        return str(error.problem)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in said:
        return "it is indented with a tab, which YAML forbids; use spaces"
    if "alias" in said:
        return f"it is not YAML: {said}; put a text that begins with * in quotes"
    began, mark = error.context_mark, error.problem_mark
    if began and mark and began.line != mark.line:
        said += f" (what is wrong may begin in line {began.line + 1})"
    return f"it is not YAML: {said}; check indentation, quotes and colons around here"


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that is not for `meters.yaml`; the problem is the whole message."""

    def __init__(self, node: Node, problem: str) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _TooDeepError(_RefusedError):
    def __init__(self, node: Node) -> None:
        super().__init__(node, f"it is nested deeper than {MAX_DEPTH} levels; flatten it")


class _Loader(yaml.SafeLoader):
    """Reads nodes, never deeper than `MAX_DEPTH`, whatever the text."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH + 1 and parent is not None:
            raise _TooDeepError(parent)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


@dataclass(slots=True)
class _Builder:
    """Nodes -> values, remembering the line of each."""

    lines: dict[FieldPath, int] = field(default_factory=dict)
    count: int = 0

    def build(self, node: Node, path: FieldPath) -> object:
        """The value of `node`, which is at `path`."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise _RefusedError(
                node, f"with its aliases spelled out it has over {MAX_VALUES} values; use fewer"
            )
        if len(path) > MAX_DEPTH:
            raise _TooDeepError(node)  # an alias of what it is in
        self.lines.setdefault(path, node.start_mark.line + 1)
        match node:
            case ScalarNode():
                return _scalar(node)
            case SequenceNode() if node.tag == f"{_TAG}seq":
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            case MappingNode() if node.tag == f"{_TAG}map":
                return self._mapping(node, path)
            case _:
                raise _foreign_tag(node)

    def _mapping(self, node: MappingNode, path: FieldPath) -> dict[str, object]:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            if key in found:
                first = self.lines[(*path, key)]
                raise _RefusedError(
                    key_node, f"{key!r} is here a second time, after line {first}; remove one"
                )
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.build(value_node, (*path, key))
        return found


def _key(node: Node) -> str:
    key: object = {} if isinstance(node, MappingNode) else []
    if isinstance(node, ScalarNode):
        key = _scalar(node)
        if isinstance(key, str) and key:
            return key
    described = shown(key or None) if isinstance(node, ScalarNode) else shown(key)
    raise _RefusedError(node, f"the name of a field is {described}; put it in quotes")


def _scalar(node: ScalarNode) -> str | int | float | bool | None:
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    is_quoted = node.style is not None
    if kind == "str" and (is_quoted or not _LIKE_NUMBER.fullmatch(text)):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _RefusedError(node, "half of a surrogate pair is no character; remove it")
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if kind == "int" and _INT.fullmatch(text):
        return int(text)
    if kind == "float" and _FLOAT.fullmatch(text):
        return float(text)
    if kind in _AMBIGUOUS:
        raise _RefusedError(node, f"{text[:64]!r} {_AMBIGUOUS[kind]}")
    raise _foreign_tag(node)


_NUMBER_REMEDY: Final = "is no plain decimal number; write it like 30 or 0.5, or put it in quotes"
_AMBIGUOUS: Final = {
    "bool": "is text to some readers of YAML and a truth value to others; "
    "put it in quotes, or write true or false",
    "int": _NUMBER_REMEDY,
    "float": _NUMBER_REMEDY,
    "str": _NUMBER_REMEDY,
    "timestamp": "is a date to some readers of YAML; put it in quotes",
    "merge": "merges mappings, which is not supported; write the fields out",
    "value": "has a meaning of its own in YAML; put it in quotes",
}


def _foreign_tag(node: Node) -> _RefusedError:
    return _RefusedError(node, f"the tag {node.tag[:64]!r} has no meaning here; remove it")
