# SPDX-License-Identifier: Apache-2.0
"""Settings from YAML, the environment and flags: typed, and each mistake with its place.

Structs of msgspec say which settings there are; types such as ``Duration`` say how their texts are
written. What is wrong is told with file, line and the key's path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from difflib import get_close_matches
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal
from typing import Protocol
from typing import Self
from typing import TypeVar
from typing import get_args
from typing import get_origin
from typing import runtime_checkable
from urllib.parse import urlsplit

import msgspec
import yaml

from podscope import filters
from podscope.errors import PodscopeError
from podscope.errors import UsageError

# Names of members and numbers of items, from the top.
Path = tuple[str | int, ...]
T = TypeVar("T")

_AT = re.compile(r" - at `\$((?:[^`])*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_EXPECTED = re.compile(r"Expected `(.+?)`(?:, got `(.+)`)?")
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "keys with values",
    "null": "nothing",
}
_NO_CHOICE = re.compile(r"Invalid enum value ('[^']*'|\S+)")
_MOST_SECRET = 1 << 16
_SIZE = re.compile(r"([0-9]{1,15})(k|M|G|T|Ki|Mi|Gi|Ti)?B?")
_FACTORS = {"": 1} | {
    prefix + mark: base**power
    for mark, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kMGT", 1)
} | {"Ki": 1024}  # fmt: skip


@runtime_checkable
class Written(Protocol):
    """A type of settings that is written as text."""

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong."""


class Duration(float):
    """Seconds, written ``200ms``, ``1s`` or ``1m30s``."""

    LEAST_NS: ClassVar[int] = 1

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong."""
        if not isinstance(value, str):
            raise ValueError(f"not a duration: {value!r}; write it as 200ms, 1s or 1m30s")
        return cls(_or_value_error(filters.duration_ns, value, least_ns=cls.LEAST_NS) / 1e9)

    def __str__(self) -> str:
        if not self:
            return "0s"
        for unit, seconds in (("h", 3600), ("m", 60), ("s", 1)):
            if self % seconds == 0:
                return f"{self / seconds:.0f}{unit}"
        milliseconds = round(self * 1e3)
        return f"{milliseconds}ms" if self == milliseconds / 1e3 else f"{self * 1e6:.0f}us"


class Share(int):
    """One in so many, written ``1/100``."""

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong."""
        if not isinstance(value, str):
            raise ValueError(f"not a share: {value!r}; write it as 1/100")
        return cls(_or_value_error(filters.one_in, value))

    def __str__(self) -> str:
        return f"1/{int(self)}"


class Size(int):
    """Bytes, written ``4096``, ``64KiB``, ``16MiB`` or ``1GB``."""

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"not a size: {value!r}; write it as 64KiB, 16MiB or 1GB")
        return cls(int(found[1]) * _FACTORS[found[2] or ""])

    def __str__(self) -> str:
        for unit in ("Ti", "Gi", "Mi", "Ki"):
            if self and self % _FACTORS[unit] == 0:
                return f"{self // _FACTORS[unit]}{unit}B"
        return f"{int(self)}"


class Names(tuple[str, ...]):
    """Some names, written ``[a, b]`` or ``a,b``."""

    __slots__ = ()

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong."""
        told = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(told, list) or not all(isinstance(one, str) for one in told):
            raise ValueError(f"no list of names: {value!r}; write it as [a, b] or a,b")
        return cls(one for one in told if one)

    def __str__(self) -> str:
        return ",".join(self)


class Address(str):
    """What to listen on, written ``127.0.0.1:9435``, ``[::1]:9435`` or ``:9435``."""

    __slots__ = ()

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong."""
        if not isinstance(value, str):
            raise ValueError(f"not an address: {value!r}; write it as 127.0.0.1:9435")
        _or_value_error(filters.address, value)
        return cls(value)

    @property
    def pair(self) -> tuple[str, int]:
        """Host and port."""
        return filters.address(self, "")


class Url(str):
    """Where a server is, written ``https://example.com:8443/path``; it holds no secret."""

    __slots__ = ()

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong."""
        example = "write it as https://example.com:8443"
        try:
            parts = urlsplit(value) if isinstance(value, str) else urlsplit("")
            hostname, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError(f"not a URL: {value!r}; {example}") from None
        if "@" in parts.netloc:
            # Not shown: what is before the @ may be a password.
            raise ValueError("no user or password belongs into a URL; there are keys for them")
        if parts.scheme not in ("http", "https") or not hostname or parts.query or parts.fragment:
            raise ValueError(f"not a URL: {value!r}; {example}")
        return cls(str(value).rstrip("/"))


class Secret:
    """A password or key: in a file, or in a variable of the environment, and never in settings.

    It is read when it is used, so that a file which changes is taken up.
    """

    __slots__ = ("_file", "_variable")

    def __init__(self, *, file: str = "", variable: str = "") -> None:
        self._file = file
        self._variable = variable

    @classmethod
    def read(cls, value: object) -> Self:
        """The setting; raises ValueError with what is wrong, and never shows the value."""
        if isinstance(value, dict) and len(value) == 1:
            ((where, name),) = value.items()
            if where in ("file", "env") and isinstance(name, str) and name:
                return cls(file=name) if where == "file" else cls(variable=name)
        raise ValueError(
            "a secret is not written here: name its file, as {file: /run/secrets/key}, "
            "or its variable, as {env: KEY}"
        )

    @property
    def variable(self) -> str:
        """The variable that it is in; empty: it is in a file."""
        return self._variable

    def __repr__(self) -> str:
        return f"Secret({self})"

    def __str__(self) -> str:
        return f"file {self._file}" if self._file else f"variable {self._variable}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def text(self) -> str:
        """The secret itself, without the line's end.

        Raises:
            PodscopeError: it is not there.
        """
        if self._variable:
            found = os.environ.get(self._variable, "")
            if not found:
                raise PodscopeError(f"the variable {self._variable}, a secret, is not set")
            return found
        try:
            with open(self._file, encoding="utf-8") as stream:
                return stream.read(_MOST_SECRET).rstrip("\r\n")
        except OSError as error:
            raise PodscopeError(f"cannot read the secret {self._file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise PodscopeError(f"the secret {self._file} is not UTF-8") from None


def _or_value_error(read: Any, value: str, **more: object) -> Any:
    try:
        return read(value, "", **more)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(": ")) from None


@dataclass(frozen=True)
class Layer:
    """Settings of one place.

    Attributes:
        values: as written; mappings and lists inside of each other.
        places: where each of them was written, as ``podscope.yaml:3``, by path.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: Mapping[Path, str] = field(default_factory=dict)

    def over(self, other: Layer) -> Layer:
        """Both; where both have a setting, this one's."""
        return Layer(_over(self.values, other.values), {**other.places, **self.places})

    def place(self, path: Path) -> str:
        """Where this or what it is in was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return ""


def _over(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _over(value, below) if both else value  # type: ignore[arg-type]
    return merged


def from_yaml(text: str, name: str) -> Layer:
    """The settings of a YAML document; none, if it is empty.

    Args:
        text: the document.
        name: of the file, for errors.

    Raises:
        UsageError: no YAML, no mapping, or a key that is there twice.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        places = {path: f"{name}:{line}" for path, line in _lines(root, (), name)} if root else {}
        values = loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{name}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{name}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{name}: it is nested too deep") from None
    if values is None:
        return Layer()
    if not isinstance(values, dict):
        raise UsageError(f"{name}:1: it must be lines of the form 'key: value'")
    return Layer(values, places)


def _lines(node: yaml.Node, path: Path, name: str) -> Iterator[tuple[Path, int]]:
    """Each path of a document, and the line that it begins on, counted from one."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield from _lines(item, (*path, place), name)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            raise UsageError(f"{name}:{line}: {_dotted(path, 'a key')} is not text")
        if key.value in seen:
            raise UsageError(
                f"{name}:{line}: {_dotted((*path, key.value))} is there already, on line "
                f"{seen[key.value]}"
            )
        seen[key.value] = line
        yield from _lines(value, (*path, key.value), name)
        yield (*path, key.value), line


def _dotted(path: Path, otherwise: str = "") -> str:
    """``sinks[0].url``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or otherwise


@dataclass(frozen=True)
class Setting:
    """One setting that is no list and no mapping.

    Attributes:
        path: its keys, from the top.
        type: of its value.
        default: without it; ``msgspec.NODEFAULT`` if it must be there.
        text: what it means.
        live: whether a change is taken up without a restart.
    """

    path: tuple[str, ...]
    type: Any
    default: Any
    text: str
    live: bool

    @property
    def name(self) -> str:
        """``requests.slower``: its key in the documents."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """``PODSCOPE_REQUESTS_SLOWER``: its variable of the environment."""
        return "_".join(("PODSCOPE", *self.path)).replace("-", "_").upper()

    @property
    def flag(self) -> str:
        """``--requests-slower``."""
        return "--" + "-".join(self.path)

    def layer(self, text: str, place: str) -> Layer:
        """The setting as it is written in one variable or flag."""
        value: Any = text
        if self.type in (bool, int, float):
            value = yaml.safe_load(text) if re.fullmatch(r"[A-Za-z0-9.+-]+", text) else text
        for key in reversed(self.path):
            value = {key: value}
        return Layer(value, {self.path: place})


def settings_of(struct: type[msgspec.Struct], above: tuple[str, ...] = ()) -> Iterator[Setting]:
    """The settings of a struct and of those inside of it, in their order; lists are left out."""
    for one in msgspec.structs.fields(struct):
        kind, meta = _plain(one.type)
        path = (*above, one.encode_name)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from settings_of(kind, path)
        elif isinstance(kind, type) or get_origin(kind) is Literal:
            default = one.default
            if default is msgspec.NODEFAULT and one.default_factory is not msgspec.NODEFAULT:
                default = one.default_factory()
            text = (meta.description or "") if meta else ""
            live = bool(meta and (meta.extra or {}).get("live"))
            yield Setting(path, kind, default, text, live)


def _plain(kind: Any) -> tuple[Any, msgspec.Meta | None]:
    """The type of ``Annotated[type, meta]``, and its msgspec.Meta."""
    found = [one for one in getattr(kind, "__metadata__", ()) if isinstance(one, msgspec.Meta)]
    inner = getattr(kind, "__origin__", kind) if found else kind
    return inner, found[0] if found else None


def decoded(layer: Layer, kind: type[T]) -> T:
    """The settings as what they are to be.

    Args:
        layer: as written.
        kind: a struct of msgspec.

    Raises:
        UsageError: an unknown key, one that is missing, or a value that cannot be; with its place.
    """
    try:
        return convert(layer.values, kind)
    except msgspec.ValidationError as error:
        raise UsageError(_told(str(error), layer, kind)) from None
    except RecursionError:
        raise UsageError(f"{layer.place(())}: it is nested too deep") from None


def convert(value: object, kind: type[T]) -> T:
    """``msgspec.convert`` that knows the types of this module, and says what may be chosen."""
    try:
        return msgspec.convert(value, kind, dec_hook=_read)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _NO_CHOICE.match(message)
        choices = _choices(kind, _split(message)[1]) if found else ""
        if not found or not choices:
            raise
        said = f"no such choice: {found[1]}; choose from {choices}{message[found.end() :]}"
        raise msgspec.ValidationError(said) from None


def _choices(kind: Any, path: Path) -> str:
    """What a value at ``path`` may be, where it is one of some words or numbers."""
    inner = kind
    for step in path:
        told = get_args(inner)
        if isinstance(step, int):
            inner = told[0] if told else None
        elif isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            types = {one.encode_name: one.type for one in msgspec.structs.fields(inner)}
            inner = types.get(step)
        if get_origin(inner) is Annotated:
            inner = get_args(inner)[0]
    return ", ".join(map(str, get_args(inner))) if get_origin(inner) is Literal else ""


def _read(kind: type, value: object) -> object:
    if isinstance(kind, type) and isinstance(kind, Written):
        return kind.read(value)
    raise NotImplementedError(kind)


def _told(message: str, layer: Layer, kind: type) -> str:
    """msgspec's message in plain words, after where it was written."""
    problem, path = _split(message)
    if found := _UNKNOWN.fullmatch(problem):
        key = found[1]
        near = get_close_matches(key, _keys(layer, path, kind), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        where = _dotted(path)
        return f"{layer.place((*path, key))}: {where + ': ' * bool(where)}unknown key {key!r}{hint}"
    if found := _MISSING.fullmatch(problem):
        return f"{layer.place(path)}: {_dotted((*path, found[1]))} is missing"
    place = layer.place(path)
    # A flag or variable says already which setting it is.
    named = f"{_dotted(path)}: " if path and ":" in place else ""
    return f"{place}: {named}{_plain_words(problem)}"


def _split(message: str) -> tuple[str, Path]:
    """The problem, and where it is: the innermost struct's path is written first."""
    steps: list[str | int] = []
    for told in reversed(_AT.findall(message)):
        steps += [name or int(number) for name, number in _STEP.findall(told)]
    return _AT.sub("", message), tuple(steps)


def _keys(layer: Layer, path: Path, kind: type) -> Sequence[str]:
    """Keys that the struct at ``path`` knows; of others none are known here."""
    inner: Any = kind
    for step in path:
        if not (isinstance(inner, type) and issubclass(inner, msgspec.Struct)):
            return ()
        types = {one.encode_name: one.type for one in msgspec.structs.fields(inner)}
        inner = _plain(types.get(str(step)))[0]
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        return [one.encode_name for one in msgspec.structs.fields(inner)]
    return ()


def _plain_words(problem: str) -> str:
    found = _EXPECTED.match(problem)
    if found is None:
        return problem
    wanted = " or ".join(_WORDS.get(word, word) for word in found[1].split(" | "))
    bound = problem[found.end() :]
    got = f", and not {_WORDS.get(found[2], found[2])}" if found[2] else ""
    return f"it must be {wanted}{bound}{got}"
