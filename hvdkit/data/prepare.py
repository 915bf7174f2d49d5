"""Makes the corpus of a run: text found, tokenised once per node into a cache, mapped by all its ranks.

The cache is keyed by the text itself and the tokenizer, never by paths or times: a changed file is noticed, a moved
one is not tokenised again. The price is that each start reads the text once to hash it, some hundred MB/s and node.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hvdkit.data.byte_tokens import ByteTokenizer
from hvdkit.data.corpus import Corpus, CorpusConfig
from hvdkit.data.documents import Dropped, Reader
from hvdkit.data.held_out import Survey, split, survey
from hvdkit.data.progress import Progress, Say
from hvdkit.data.sources import find_sources
from hvdkit.data.token_files import map_tokens, read_info, store, write_info, write_tokens
from hvdkit.data.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer, save_tokenizer
from hvdkit.errors import DataError
from hvdkit.files.durable import complete_folder
from hvdkit.horovod_build.cache import cache_folder
from hvdkit.runtime import World, gather_objects, share_object, together

_FORMAT = "2"
"""Part of every cache key: raise it when the meaning of the files changes."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Text:
    """The text as one rank of each node has surveyed it."""

    reader: Reader
    found: Survey
    dropped: Dropped


@dataclass(frozen=True)
class _Decided:
    """What rank 0 decides for all ranks."""

    tokenizer: Tokenizer
    key: str
    dropped: Dropped


def prepare_corpus(
    world: World,
    config: CorpusConfig,
    *,
    context: int | None = None,
    tokenizer: Tokenizer | None = None,
    say: Say = _log.info,
) -> Corpus:
    """Find the text, tokenise it (once per node) and map the token ids. Collective; all ranks get equal corpora.

    Args:
        context: the sequence length of the run, if it is to be checked here that the text fills a sequence.
        tokenizer: takes the place of `config.tokens` (a model's own, that of a resumed run); rank 0's counts.
        say: what is told on rank 0 about long work, a line every few seconds.

    Raises DataError or ConfigError on all ranks alike, naming the file and line at fault. One rank of each node reads
    the text, once to hash it and once more to tokenise it if the cache does not have it; rank 0 once more for a BPE.
    """
    say = say if world.is_root else _keep_quiet
    reads = world.local_rank == 0 or world.is_root
    cache = Path(config.cache_dir).expanduser() if config.cache_dir else cache_folder()

    text = together(world, lambda: _survey(config, say) if reads else None)
    _check_same_text(world, text)
    mine = together(world, lambda: _decide(config, cache, text, tokenizer, say) if world.is_root and text else None)
    decided = share_object(world, mine)
    if decided is None:
        raise AssertionError("rank 0 reads the text and decides")
    folder = cache / "tokens" / decided.key
    together(world, lambda: _tokenise(folder, text, decided.tokenizer, say) if text is not None else None)
    corpus = together(world, lambda: _map(folder, decided))
    if context is not None:
        corpus.check_context(context)
    return corpus


def _survey(config: CorpusConfig, say: Say) -> _Text:
    reader = Reader(find_sources(config.data), config.text_field, config.skip_bad)
    found = survey(reader, config.validation_share, Progress("reading the text", None, say))
    dropped = replace(reader.dropped)  # the reader counts anew each time
    if found.n_bytes == 0:
        raise DataError(
            f"--data {' '.join(config.data)}: there is no text in it (left out: {dropped.bad} bad lines, "
            f"{dropped.binary} files that are not text)"
        )
    return _Text(reader, found, dropped)


def _check_same_text(world: World, text: _Text | None) -> None:
    digests = gather_objects(world, (world.hostname, None if text is None else text.found.digest))
    first_host, first = digests[0]
    others = sorted({host for host, digest in digests if digest not in (None, first)})
    if others:
        raise DataError(
            f"{', '.join(others)} does not see the same text as {first_host}: give every host the same files "
            "(for the default text, the same version of Python)"
        )


def _decide(config: CorpusConfig, cache: Path, text: _Text, tokenizer: Tokenizer | None, say: Say) -> _Decided:
    chosen = tokenizer or _tokenizer(config, cache, text, say)
    return _Decided(chosen, _hash(_FORMAT, repr(text.found), chosen.to_json()), text.dropped)


def _tokenizer(config: CorpusConfig, cache: Path, text: _Text, say: Say) -> Tokenizer:
    if config.tokens == "bytes":
        return ByteTokenizer()
    if config.tokens != "bpe":
        return load_tokenizer(Path(config.tokens))
    from hvdkit.data.bpe_tokens import library_version, train_bpe

    name = _hash(_FORMAT, library_version(), repr(text.found), str(config.vocab_size))
    folder = cache / "tokenizers" / name
    if not (folder / TOKENIZER_FILE).is_file():
        say(f"training a BPE of {config.vocab_size:,} tokens")
        progress = Progress("training the BPE: counting words", text.found.n_bytes, say)
        trained = train_bpe(_training_texts(text, progress), config.vocab_size)
        try:
            with complete_folder(folder) as new:
                save_tokenizer(new, trained)
        except FileExistsError:
            _log.info("another job has trained the same BPE meanwhile; its one counts for both")
        except OSError as error:
            raise _cache_error(folder, error) from error
    return load_tokenizer(folder)


def _training_texts(text: _Text, progress: Progress) -> Iterator[str]:
    for part in split(text.reader, text.found):
        progress.advance(len(part.text))
        if not part.held_out:
            yield part.text


def _tokenise(folder: Path, text: _Text, tokenizer: Tokenizer, say: Say) -> None:
    if read_info(folder) is not None:
        return

    def fill(new: Path) -> None:
        progress = Progress("tokenising", text.found.n_bytes, say)
        write_info(new, write_tokens(new, split(text.reader, text.found), text.found, tokenizer, progress))

    try:
        store(folder, fill)
    except OSError as error:
        raise _cache_error(folder, error) from error


def _map(folder: Path, decided: _Decided) -> Corpus:
    info = read_info(folder)
    if info is None:
        raise DataError(f"{folder}: the token cache that this node's first rank wrote cannot be read here")
    return Corpus(
        train=map_tokens(folder / "train.bin", info.dtype, info.train_tokens),
        validation=map_tokens(folder / "validation.bin", info.dtype, info.validation_tokens),
        tokenizer=decided.tokenizer,
        info=info,
        dropped=decided.dropped,
    )


def _cache_error(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"the token cache {folder.parent} cannot be written ({error.strerror}); set XDG_CACHE_HOME to one that can be"
    )


def _hash(*words: str) -> str:
    return hashlib.blake2b("\0".join(words).encode(), digest_size=16).hexdigest()


def _keep_quiet(text: str) -> None:
    """Only rank 0 talks to the user."""
