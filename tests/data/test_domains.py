"""Domains: disjoint, nothing left out, the same each time and everywhere, named by their last part."""

from pathlib import Path

import numpy as np
import pytest

from hvdkit.data import CausalSamples, find_domains, join_samples, sample_range, spread_samples
from hvdkit.data.sources import find_sources
from hvdkit.errors import DataError
from hvdkit.runtime import World, gather_objects
from tests.data.test_sources import write


def test_the_standard_library_is_divided_by_package_without_loss_or_overlap(world: World) -> None:
    found = find_domains([])
    assert [domain.name for domain in found] == ["asyncio", "idlelib", "encodings", "rest"]
    files = [find_sources([domain.data]) for domain in found]
    together = [file for part in files for file in part]
    assert all(files) and sorted(together, key=str) == sorted(find_sources([]), key=str)
    packages = [{file.label.split("/")[0] for file in part if "/" in file.label} for part in files]
    for number, mine in enumerate(packages):
        for other in packages[number + 1 :]:
            assert mine.isdisjoint(other), "a package is in one domain"
    assert "email" in packages[0] and "tkinter" in packages[1] and "logging" in packages[3]
    assert len(set(gather_objects(world, repr((found, files))))) == 1


def test_names_are_the_last_parts_or_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "law/a.txt", "code/x/b.txt", "code/y.txt", "more/law/c.txt", "odd name/d.txt")
    monkeypatch.chdir(tmp_path)

    def names(*arguments: str) -> list[str]:
        return [domain.name for domain in find_domains(arguments)]

    assert names("law/", "code/x", "code/y.txt", "odd name") == ["law", "x", "y.txt", "odd-name"]
    assert names("law", "more/law") == ["law", "more-law"]
    assert names("law/*.txt", "code/**/*.txt") == ["law", "code"]
    write(tmp_path, "x y/e.txt", "x-y/f.txt", "x-y-2/g.txt", "a/b/h.txt", "a-b/i.txt", "c/b/j.txt")
    assert names("x y", "x-y") == ["x-y", "x-y-2"]
    assert names("x y", "x-y", "x-y-2") == ["x-y", "x-y-3", "x-y-2"]
    assert names("a/b", "a-b", "c/b") == ["a-b-2", "a-b", "c-b"]
    assert names("python:idlelib", "os:listdir") == ["idlelib", "listdir"]


def test_what_cannot_be_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "law/a.txt", "law/b.txt")
    monkeypatch.chdir(tmp_path)
    for arguments, reason in {
        ("law",): "law is one domain",
        ("law", "law/a.txt"): "is in two domains, law and law/a.txt",
        ("law", "law"): "is in two domains",
        ("law", "missing"): "missing",
        ("law", "python:nothing"): "use one of python:asyncio",
    }.items():
        with pytest.raises(DataError, match=reason):
            find_domains(arguments)


def test_selected_samples_are_those_of_their_parts() -> None:
    one, other = (CausalSamples(np.arange(n, dtype=np.uint16), 4, pad_id=0) for n in (21, 11))
    both = join_samples([one, other])
    wanted = [*(one.sample(i) for i in range(5)), *(other.sample(i) for i in range(3))]
    assert len(both) == len(wanted)
    for index, (inputs, targets) in enumerate(wanted):
        assert (both.sample(index)[0] == inputs).all() and (both.sample(index)[1] == targets).all()
    with pytest.raises(IndexError):
        both.sample(8)
    assert [spread_samples(one, 2).sample(index)[0][0] for index in range(2)] == [0, 8]
    assert [spread_samples(one, 10).sample(index)[0][0] for index in range(10)] == [0, 0, 4, 4, 8, 8, 12, 12, 16, 16]
    assert len(sample_range(one, 3, 5)) == 2
    assert sample_range(one, 3, 5).sample(0)[0][0] == 12
