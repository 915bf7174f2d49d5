"""Inputs made of valid ones: their tree changed in a few places, then perhaps their bytes."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

_MOST_LEVELS = 20
_NESTED: list[Any] = []
for _ in range(250):
    _NESTED = [_NESTED]

NAMES = [
    "", ".", "..", "../x", "../../../../etc/passwd", "/etc/passwd", "/dev/zero", "a/b", "a\0b", "link", "loop",
    "pipe", "\ud800", "é" * 300, "x" * 5000, "C:\\x", "~", "-oProxyCommand=x", "__metadata__", "con\nfig", "∞",
]  # fmt: skip
"""What may stand where a name should."""

NUMBERS = [
    0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**25,
    10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip

OTHERS: list[Any] = [
    None, True, False, [], {}, [[]], [1, 2, 3], {"a": 1}, [None], _NESTED, "0-3", "5GB", "9" * 5000 + "GB", "1e999",
    "nan", ".inf", "[1, 2", "{", "&a [*a]", "[&a [x, x], &b [*a, *a]]", "2001-13-45", "0x_", "<<", "=",
    "9" * 400, "9" * 5000,
]  # fmt: skip

hostile = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(NAMES),
    st.sampled_from(OTHERS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
).map(copy.deepcopy)  # since what was put into a tree may be changed there


def _places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if len(place) > _MOST_LEVELS:
        return
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _places(value, (*place, key))
    elif isinstance(node, list):
        for number, value in enumerate(node[:20]):
            yield from _places(value, (*place, number))


@st.composite
def changed_trees(draw: st.DrawFn, valid: Sequence[Any], most_changes: int = 3) -> Any:
    """One of the `valid` trees (of dict, list and scalars) with a few nodes replaced, deleted, doubled or renamed."""
    tree = copy.deepcopy(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, most_changes))):
        places = list(_places(tree))
        place = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(["replace", "replace", "replace", "delete", "rename", "add", "swap"]))
        if not place or change == "add":
            tree = _add(tree, place, draw(hostile), draw(st.sampled_from(NAMES)))
            continue
        parent = tree
        for key in place[:-1]:
            parent = parent[key]
        if change == "replace":
            parent[place[-1]] = draw(hostile)
        elif change == "delete":
            del parent[place[-1]]
        elif change == "swap":
            other = parent
            for key in places[draw(st.integers(0, len(places) - 1))]:
                try:
                    other = other[key]
                except (KeyError, IndexError, TypeError):
                    break
            parent[place[-1]] = copy.deepcopy(other)
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(NAMES))] = parent.pop(place[-1])
        else:
            parent.insert(0, parent[place[-1]])
    return tree


def _add(tree: Any, place: tuple[Any, ...], value: Any, name: str) -> Any:
    node = tree
    for key in place:
        node = node[key]
    if isinstance(node, dict):
        node[name] = value
    elif isinstance(node, list):
        node.append(value)
    elif not place:
        return value
    return tree


def as_json(tree: Any) -> bytes:
    """As Python writes it: NaN, Infinity and escaped halves of surrogates too."""
    return json.dumps(tree).encode()


def as_yaml(tree: Any) -> bytes:
    """YAML without tags and aliases; what YAML cannot say is a JSON text."""
    try:
        return yaml.dump(tree, Dumper=_Plain, allow_unicode=True).encode()
    except (ValueError, yaml.YAMLError, RecursionError):
        return as_json(tree)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


BILLION = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefghij"
)
PIECES = [
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"\r", b":", b"- ", b"#", b"{", b"}", b"[", b"]",
    b"[" * 3000, b'{"a":' * 3000, b"- " * 3000, b"? " * 300, b'"', b"'", b"&a ", b"*a", b"<<: *a",
    b"!!python/object/apply:os.system [true]",
    b"!!bool x", b"!!int ''", b"!!timestamp x", b"!!binary x", b"%YAML 9.9", b"---\n", b"\t", b"9" * 5000, b"-" * 20,
    b"NaN", b"1e999", b"0x_", b"0b_", b"._", b"2001-13-45", b"9999-12-31T23:59:59-23:59", b"\xe2\x80\xa8", BILLION,
]  # fmt: skip


@st.composite
def changed_bytes(draw: st.DrawFn, valid: st.SearchStrategy[bytes], most_changes: int = 3) -> bytes:
    """One of `valid` with some bytes flipped, cut out, doubled, cut off, or with pieces of trouble put in."""
    data = draw(valid)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, most_changes]))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["put", "put", "flip", "cut", "double", "end", "raw"]))
        if change == "put":
            data = data[:place] + draw(st.sampled_from(PIECES)) + data[place:]
        elif change == "flip" and place < len(data):
            data = data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
        elif change == "cut":
            data = data[:place] + data[place + draw(st.integers(1, 40)) :]
        elif change == "double":
            data = data[:place] + data[place : place + draw(st.integers(1, 200))] + data[place:]
        elif change == "end":
            data = data[:place]
        else:
            data = data[:place] + draw(st.binary(max_size=30)) + data[place:]
    return data


def files(trees: st.SearchStrategy[Any], write: Any) -> st.SearchStrategy[bytes]:
    """The trees as `write` writes them, mostly as they are or with changed bytes, and sometimes bytes of no meaning."""
    written = trees.map(write)
    return st.one_of(written, changed_bytes(written), changed_bytes(written), st.binary(max_size=200))
