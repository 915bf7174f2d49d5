"""What a person sees of the path, and the files that say it again: divide.json, divide.png, shapley.png."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from hvdkit.merge import ShapleyValues
from hvdkit.merge.shapley_report import draw_shapley, shapley_table
from hvdkit.runtime import World
from hvdkit.train.divide.picture import draw_comparison
from hvdkit.train.divide.scores import Row, table
from hvdkit.train.divide.text import DividedText
from hvdkit.train.report import plural

Say = Callable[[str], None]


def introduce(say: Say, world: World, text: DividedText, members: Sequence[tuple[int, ...]]) -> None:
    """The domains, and which ranks train their submodels."""
    for domain, corpus in zip(text.domains, text.corpora, strict=True):
        info = corpus.info
        say(
            f"  {domain.name}: {info.train_tokens:,} tokens for training, {info.validation_tokens:,} held out "
            f"({domain.data})"
        )
    sizes = sorted({len(ranks) for ranks in members})
    each = f"{' or '.join(map(str, sizes))} {'rank' if sizes == [1] else 'ranks'} each"
    turns = "" if len(members) == len(text.domains) else ", one after another"
    say(
        f"{plural(world.size, 'rank')}, Horovod over {world.backend}: {len(text.domains)} submodels by "
        f"{plural(len(members), 'group')}{turns}, {each}"
    )


def conclude(say: Say, folder: Path, text: DividedText, rows: Sequence[Row], worth: ShapleyValues, unit: str) -> None:
    """Print the table and the Shapley values, and write them into the run's folder. Rank 0 calls it."""
    names = [domain.name for domain in text.domains]
    tokens = sum(len(samples) * samples.context for samples in text.held_out)
    say(f"\nheld-out loss in {unit}, on about {tokens:,} tokens; lower is better:\n")
    for line in table(names, rows):
        say(line)
    say("\nwhat each submodel takes off the mean loss when it joins an average (Shapley values):\n")
    for line in shapley_table(names, worth):
        say(f"  {line}")
    result = {
        "unit": unit,
        "domains": {domain.name: domain.data for domain in text.domains},
        "rows": [row.to_json() for row in rows],
        "shapley": dict(zip(names, worth.values, strict=True)),
    }
    (folder / "divide.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    pictures = (
        draw_comparison(folder / "divide.png", names, rows, unit),
        draw_shapley(folder / "shapley.png", names, worth, unit),
    )
    say(f"\nthe same as numbers: {folder / 'divide.json'}{', pictures beside it' if all(pictures) else ''}")
