"""Bytes and BPE: nothing of a text is lost, special tokens stay special, and transformers reads the same ids."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from hvdkit.data.bpe_tokens import BpeTokenizer, train_bpe
from hvdkit.data.byte_tokens import SPECIAL_TOKENS, ByteTokenizer
from hvdkit.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from hvdkit.errors import ConfigError, DataError
from hvdkit.runtime import launch_info

transformers_loads_once = pytest.mark.skipif(
    launch_info().size > 1, reason="communicates nothing, and each rank would import transformers"
)

# "None", "</s>" and the like are words of this text; none of them may be taken for a special token.
CORPUS = ["if x is None or y is None: return None\n", "<|endoftext|> </s> [SEP] None\n", "Straße, \u20ac, \U0001f600\n"]


def unicode_texts() -> list[str]:
    """Every kind of character: all below U+0300, a random choice of the others, and combinations."""
    random = np.random.Generator(np.random.PCG64(5))
    scalars = [int(point) for point in random.integers(0x300, 0x110000, 3000) if not 0xD800 <= point < 0xE000]
    return [
        "",
        " ",
        "  \t\r\n\n ",
        "".join(map(chr, range(0x300))),
        "".join(map(chr, scalars)),
        "e\u0301 \u1112\u1161\u11ab \U0001f468\u200d\U0001f469 \ufeff \uffff\0",
        *SPECIAL_TOKENS,
        "a<|endoftext|>b<|mask|>",
    ]


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return train_bpe(CORPUS * 50, 300)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue("bpe")


def test_any_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in unicode_texts():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        # What looks like a special token in a text is text.
        assert not {tokenizer.eot_id, tokenizer.mask_id, tokenizer.pad_id} & set(ids)
        assert all(0 <= number < tokenizer.vocab_size for number in ids)


def test_many_at_once_are_the_same(tokenizer: Tokenizer) -> None:
    texts = unicode_texts() * 20
    found = list(tokenizer.encode_many(iter(texts)))
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in texts]


def test_bytes_are_the_ids_of_the_byte_tokenizer() -> None:
    assert ByteTokenizer().encode("aä\n") == [97, 0xC3, 0xA4, 10]
    assert ByteTokenizer().decode([97, 0xC3, 256, 0x20, 258]) == "a\ufffd "


def test_bpe_has_special_tokens_of_their_own(bpe: BpeTokenizer) -> None:
    vocabulary = json.loads(bpe.to_json())["model"]["vocab"]
    assert {"None", "Ġis"} & vocabulary.keys(), "the text's own words were to be merged"
    assert (bpe.eot_id, bpe.mask_id, bpe.pad_id) == tuple(vocabulary[name] for name in SPECIAL_TOKENS)
    assert bpe.decode([bpe.eot_id, *bpe.encode("x"), bpe.mask_id or 0, bpe.pad_id]) == "x"


def test_bpe_merges_what_is_frequent(bpe: BpeTokenizer) -> None:
    text = CORPUS[0]
    assert len(bpe.encode(text)) < len(ByteTokenizer().encode(text)) / 2
    assert bpe.vocab_size <= 300


def test_saved_tokenizer_is_read_back_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, tokenizer)
    read = load_tokenizer(tmp_path)
    assert type(read) is type(tokenizer)
    for other in (read, pickle.loads(pickle.dumps(tokenizer))):
        assert other.to_json() == tokenizer.to_json()
        assert other.to_config() == tokenizer.to_config()
        assert (other.kind, other.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
        assert (other.eot_id, other.mask_id, other.pad_id) == (tokenizer.eot_id, tokenizer.mask_id, tokenizer.pad_id)
        assert other.encode("Straße None") == tokenizer.encode("Straße None")


@transformers_loads_once
def test_transformers_reads_the_saved_tokenizer_with_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path, tokenizer)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eot_id, tokenizer.pad_id)
    assert theirs.mask_token_id == tokenizer.mask_id
    assert len(theirs) == tokenizer.vocab_size
    for text in unicode_texts() + CORPUS:
        if not any(name in text for name in SPECIAL_TOKENS):
            ids = theirs(text).input_ids
            assert ids == tokenizer.encode(text), repr(text[:40])
            assert theirs.decode(ids) == text
    # There, the names of special tokens are read as such.
    assert theirs("a<|endoftext|>").input_ids == [*tokenizer.encode("a"), tokenizer.eot_id]


@transformers_loads_once
def test_hugging_face_folder_keeps_its_configuration(bpe: BpeTokenizer, tmp_path: Path) -> None:
    """Fine-tuning must not lose the chat template, or which class reads the files."""
    save_tokenizer(tmp_path, bpe)
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": {"content": "<|pad|>", "lstrip": False, "__type": "AddedToken"},
        "chat_template": "{{ messages }}",
        "model_max_length": 77,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    assert ours.eot_id == bpe.pad_id
    again = tmp_path / "again"
    again.mkdir()
    save_tokenizer(again, ours)
    assert json.loads((again / "tokenizer_config.json").read_text()) == config
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(again), local_files_only=True)
    assert theirs.chat_template == "{{ messages }}"
    assert theirs.eos_token == "<|pad|>"
    assert theirs("Straße None").input_ids == ours.encode("Straße None")


@transformers_loads_once
def test_folder_with_only_a_vocabulary_is_read_through_transformers(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("The cats sat.") == [5, 6, 7, 8, 9]
    assert (tokenizer.eot_id, tokenizer.pad_id, tokenizer.mask_id) == (3, 0, 4)
    assert tokenizer.decode([2, 5, 6, 7, 3]) == "the cats"


@pytest.mark.parametrize("size", [1, 256, 259])
def test_vocabulary_without_room_for_merges_is_an_error(size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size={size} leaves no room"):
        train_bpe(CORPUS, size)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tokenizer .tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    for text in ("{", "[]", '{"model": 5}', "\udcff"):
        (tmp_path / "tokenizer.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
            load_tokenizer(tmp_path)
    without_end = json.loads(ByteTokenizer().to_json())
    without_end["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(without_end))
    with pytest.raises(DataError, match="no end-of-text token"):
        load_tokenizer(tmp_path)
