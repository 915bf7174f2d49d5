"""The corpus that all ranks get: its tokens against a plain reading of the text, and the cache behind it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvdkit.data import ByteTokenizer, Corpus, CorpusConfig, prepare_corpus
from hvdkit.errors import ConfigError, DataError, HvdkitError
from hvdkit.runtime import World, gather_objects

EOT = ByteTokenizer.eot_id


def config(folder: Path, *names: str, **options: Any) -> CorpusConfig:
    """The corpus of `names` in `folder`, or all of its text, with a cache of its own."""
    data = tuple(str(folder / "text" / name) for name in names or ("",))
    return CorpusConfig(**{"data": data, "cache_dir": str(folder / "cache"), **options})


def write(world: World, folder: Path, **texts: str) -> None:
    """Files of text/ (`a_txt` is a.txt), seen by all ranks on return. Collective."""
    if world.is_root:
        (folder / "text").mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / "text" / name.replace("_", ".")).write_bytes(text.encode())
    gather_objects(world, None)


def on_all(world: World, item: Any) -> Any:
    """`item`, which must be equal on all ranks. Collective."""
    items = gather_objects(world, item)
    assert all(other == items[0] for other in items), items
    return item


def fails(world: World, kind: type[HvdkitError], folder: Path, *names: str, **options: Any) -> str:
    """The message with which preparing fails on all ranks alike. Collective."""
    context = options.pop("context", None)
    with pytest.raises(kind) as caught:
        prepare_corpus(world, config(folder, *names, **options), context=context)
    return str(on_all(world, str(caught.value)))


def test_one_text_becomes_its_bytes_cut_in_two(world: World, shared_path: Path) -> None:
    text = "Straße, \u20ac \U0001f600\r\n" * 100
    write(world, shared_path, a_txt=text)
    corpus = prepare_corpus(world, config(shared_path, "a.txt"), context=64)
    n_held = round(0.05 * len(text.encode()))
    train, held = corpus.train.tolist(), corpus.validation.tolist()
    assert train[-1] == held[-1] == EOT
    assert bytes(train[:-1] + held[:-1]).decode() == text
    assert n_held <= len(held) - 1 < n_held + 4
    assert corpus.train.dtype == np.dtype("<u2")
    on_all(world, (train, held, corpus.info, corpus.tokenizer.to_json()))
    assert corpus.info.train_bytes + corpus.info.validation_bytes == len(text.encode())
    # A loss of log(256) a token says the same of each byte and of each end of text.
    assert corpus.nats_per_byte(1.0) == len(held) / (len(held) - 1)


def test_documents_are_held_out_by_name_and_each_ends(world: World, shared_path: Path) -> None:
    records = [json.dumps({"text": f"document {number} " * 5}) for number in range(400)]
    write(world, shared_path, a_jsonl="\n".join(records))
    corpus = prepare_corpus(world, config(shared_path))
    both = [bytes(x for x in part.tolist() if x != EOT).decode() for part in (corpus.train, corpus.validation)]
    counts = [part.tolist().count(EOT) for part in (corpus.train, corpus.validation)]
    assert sum(counts) == corpus.info.documents == 400
    assert not corpus.info.validation_is_tail and 5 < counts[1] < 60
    for number in range(400):
        assert sum(f"document {number} " in side for side in both) == 1


def test_bpe_is_trained_on_the_training_part_and_loses_nothing(world: World, shared_path: Path) -> None:
    train_words, held_words = "zebra " * 950, "quokka " * 50
    write(world, shared_path, a_txt=train_words + held_words)
    options = {"tokens": "bpe", "vocab_size": 280, "validation_share": 0.059}
    corpus = prepare_corpus(world, config(shared_path, **options))
    tokenizer = corpus.tokenizer
    assert tokenizer.decode(corpus.train.tolist()) + tokenizer.decode(corpus.validation.tolist()) == (
        train_words + held_words
    )
    assert len(tokenizer.encode(" zebra")) == 1
    assert len(tokenizer.encode(" quokka")) >= 6, "words of the held-out part were learned"
    on_all(world, tokenizer.to_json())
    again = prepare_corpus(world, config(shared_path, **options))
    assert again.tokenizer.to_json() == tokenizer.to_json()
    # A resumed run brings the tokenizer along: it counts, not the configuration's.
    resumed = prepare_corpus(world, config(shared_path, **options | {"tokens": "bytes"}), tokenizer=tokenizer)
    assert np.array_equal(resumed.train, corpus.train)


COUNTING = """
from pathlib import Path

def texts():
    with Path(__file__).with_name("reads").open("a") as file:
        file.write("read\\n")
    return Path(__file__).with_name("source").read_text().split("|")
"""


@pytest.fixture
def counting(world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A data function that notes each time it is read; its name. Collective."""
    if world.is_root:
        (shared_path / "hvdkit_test_counting.py").write_text(COUNTING)
        (shared_path / "source").write_text("|".join(f"text number {number}" for number in range(300)))
        (shared_path / "reads").touch()
    gather_objects(world, None)
    monkeypatch.syspath_prepend(shared_path)
    yield "hvdkit_test_counting:texts"
    sys.modules.pop("hvdkit_test_counting", None)


def test_cache_is_made_once_per_node_and_used_again(world: World, shared_path: Path, counting: str) -> None:
    nodes = len(set(gather_objects(world, world.hostname)))

    def prepare() -> Corpus:
        return prepare_corpus(world, config(shared_path, data=(counting,)))

    def reads() -> int:
        gather_objects(world, None)
        count = (shared_path / "reads").read_text().count("read")
        gather_objects(world, None)
        return count

    def state() -> list[tuple[str, int, int]]:
        files = sorted((shared_path / "cache").rglob("*"))
        return [(str(path), path.stat().st_ino, path.stat().st_mtime_ns) for path in files]

    first = prepare()
    assert reads() == 2 * nodes, "once to survey, once to tokenise, on one rank of each node"
    written = on_all(world, state())
    assert [Path(name).name for name, _, _ in written if Path(name).is_file()] == [
        "corpus.json",
        "train.bin",
        "validation.bin",
    ]
    second = prepare()
    assert reads() == 3 * nodes, "only surveyed"
    assert state() == written
    assert np.array_equal(first.train, second.train) and first.info == second.info


def test_changed_text_is_noticed_and_a_moved_one_is_not_read_anew(world: World, shared_path: Path) -> None:
    write(world, shared_path, a_txt="one " * 100)
    before = prepare_corpus(world, config(shared_path, "a.txt"))
    write(world, shared_path, a_txt="two " * 100)
    after = prepare_corpus(world, config(shared_path, "a.txt"))
    assert bytes(before.train[:4].tolist()) == b"one " and bytes(after.train[:4].tolist()) == b"two "
    caches = on_all(world, sorted(path.name for path in (shared_path / "cache/tokens").iterdir()))
    assert len(caches) == 2
    if world.is_root:
        (shared_path / "text").rename(shared_path / "elsewhere")
    gather_objects(world, None)
    moved = prepare_corpus(world, config(shared_path, data=(str(shared_path / "elsewhere" / "a.txt"),)))
    assert np.array_equal(moved.train, after.train)
    assert sorted(path.name for path in (shared_path / "cache/tokens").iterdir()) == caches


@pytest.mark.parametrize("damage", ["cut", "gone", "info"])
def test_damaged_cache_is_made_anew(world: World, shared_path: Path, damage: str) -> None:
    write(world, shared_path, a_txt="some text " * 50)
    whole = prepare_corpus(world, config(shared_path))
    expected = (whole.train.tolist(), whole.validation.tolist())
    del whole
    gather_objects(world, None)
    if world.is_root:
        (folder,) = (shared_path / "cache" / "tokens").iterdir()
        if damage == "cut":
            with (folder / "train.bin").open("rb+") as file:
                file.truncate(10)
        elif damage == "gone":
            (folder / "validation.bin").unlink()
        else:
            (folder / "corpus.json").write_text("{}")
    gather_objects(world, None)
    mended = prepare_corpus(world, config(shared_path))
    assert (mended.train.tolist(), mended.validation.tolist()) == expected
    assert len(list((shared_path / "cache" / "tokens").iterdir())) == 1


def test_bad_lines_are_counted_anew_though_the_cache_is_another_files(world: World, shared_path: Path) -> None:
    write(world, shared_path, a_txt="good\n" * 50)
    clean = prepare_corpus(world, config(shared_path, "a.txt", skip_bad=True))
    assert clean.dropped.bad == 0 and len(clean.describe()) == 1
    if world.is_root:
        with (shared_path / "text" / "a.txt").open("ab") as file:
            file.write(b"\xff\n\xfe\n")
        (shared_path / "text" / "b.bin").write_bytes(b"\0")
    gather_objects(world, None)
    for arguments, binary in ((("a.txt",), 0), ((), 1)):
        spoiled = prepare_corpus(world, config(shared_path, *arguments, skip_bad=True))
        assert np.array_equal(spoiled.train, clean.train)
        on_all(world, spoiled.dropped)
        assert (spoiled.dropped.bad, spoiled.dropped.binary) == (2, binary)
        assert "left out 2 bad lines" in spoiled.describe()[1] and "line 51" in spoiled.describe()[1]
    assert spoiled.describe()[2] == "passed over 1 files that are not text"


def test_what_is_wrong_with_the_text_is_one_error_on_all_ranks(world: World, shared_path: Path) -> None:
    write(world, shared_path, good_txt="x" * 500, empty_txt="", bad_jsonl='{"text": "a"}\n{"text"\n', short_txt="ab")
    assert "missing.txt: there is no such file" in fails(world, DataError, shared_path, "missing.txt")
    assert "there is no text in it" in fails(world, DataError, shared_path, "empty.txt")
    text = fails(world, DataError, shared_path, "bad.jsonl")
    assert "bad.jsonl, line 2: not JSON" in text and "--skip-bad" in text
    for context in (475, 10_000):
        text = fails(world, DataError, shared_path, "good.txt", context=context + 1)
        assert "the corpus is shorter than one sequence: 476 tokens" in text
    assert prepare_corpus(world, config(shared_path, "good.txt"), context=475).train.shape == (476,)
    assert "shorter than one sequence" in fails(world, DataError, shared_path, "short.txt", context=8)
    if world.is_root:
        (shared_path / "no_tokenizer").mkdir()
    gather_objects(world, None)
    text = fails(world, DataError, shared_path, "good.txt", tokens=str(shared_path / "no_tokenizer"))
    assert "holds no tokenizer" in text


def test_cache_that_cannot_be_written_is_one_error_on_all_ranks(world: World, shared_path: Path) -> None:
    write(world, shared_path, a_txt="x" * 500)
    # A file where the folder should be: root may write anywhere else.
    for options in ({"tokens": "bytes"}, {"tokens": "bpe", "vocab_size": 270}):
        text = fails(world, DataError, shared_path, cache_dir=str(shared_path / "text" / "a.txt" / "cache"), **options)
        assert "cannot be written (Not a directory); set XDG_CACHE_HOME" in text


def test_ranks_of_one_node_map_one_file(world: World, shared_path: Path) -> None:
    write(world, shared_path, a_txt="some text " * 500)
    corpus = prepare_corpus(world, config(shared_path))
    assert isinstance(corpus.train, np.memmap)
    assert not corpus.train.flags.writeable
    files = gather_objects(world, (world.hostname, Path(str(corpus.train.filename)).stat().st_ino))
    assert len(set(files)) == len({host for host, _ in files})


def test_samples_of_a_corpus(world: World, shared_path: Path) -> None:
    write(world, shared_path, a_txt="some text " * 500)
    corpus = prepare_corpus(world, config(shared_path))
    causal = corpus.samples("train", "causal", 16)
    assert causal.batch(range(len(causal))).n_targets == len(corpus.train) - 1
    masked = corpus.samples("validation", "masked", 16, seed=3)
    assert 0 < masked.batch(range(len(masked))).n_targets < len(corpus.validation) // 3
    for part, objective in (("test", "causal"), ("train", "seq2seq")):
        with pytest.raises(ValueError, match="must be"):
            corpus.samples(part, objective, 16)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"validation_share": 0.0}, "validation_share=0.0"),
        ({"validation_share": 0.5}, "validation_share=0.5"),
        ({"tokens": "words"}, "tokens='words' is neither"),
        ({"tokens": "bpe", "vocab_size": 259}, "vocab_size=259"),
        ({"text_field": ""}, "text_field"),
    ],
)
def test_configuration_is_checked_when_it_is_made(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        CorpusConfig(**options)
