"""The whole path of divide and conquer, from configuration to the table that compares what came of it.

Every phase is one training with a fresh optimizer and a learning rate schedule of its own. The common start and the
joint model see as many tokens of each domain, all domains in each step; a submodel sees its own domain only. Held-out
text is looked at for the table alone; scales and soups are chosen on a part of the training text that is set aside.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from hvdkit.checkpoint import find_model
from hvdkit.collectives import why_no_direct
from hvdkit.data import (
    Position,
    Samples,
    find_domains,
    join_samples,
    prepare_corpus,
    sample_range,
    save_tokenizer,
    spread_samples,
)
from hvdkit.data.durable import complete_folder
from hvdkit.errors import ConfigError, DataError
from hvdkit.merge import Ensemble, ShapleyValues, shapley_values
from hvdkit.merge.shapley_report import draw_shapley, shapley_table
from hvdkit.merge.states import State, merge_states
from hvdkit.models import count_parameters, distinct_tensors, load_tensors, write_model
from hvdkit.runtime import World, alone, divide_ranks, launch_info, together
from hvdkit.runtime.dropin.functions import broadcast_parameters
from hvdkit.train.config import TrainConfig
from hvdkit.train.divide.merging import merge_by, read_rules
from hvdkit.train.divide.picture import draw_comparison
from hvdkit.train.divide.scores import Judge, Row, mean_row, table
from hvdkit.train.divide.training import train_apart, train_together
from hvdkit.train.job import check_aggregation, initial_model, tokenizer_of
from hvdkit.train.report import Reporter, plural
from hvdkit.train.run_folder import make_run_folder

Weights = dict[str, torch.Tensor]


class DivideJob:
    """A run on all ranks. Making it is collective and checks everything that can be checked before training.

    Each rank holds the weights of all submodels, for merging and the Shapley values: M + 4 models beside training.
    """

    def __init__(self, world: World, config: TrainConfig) -> None:
        self.world, self.config = world, config
        assert config.divide is not None
        torch.set_num_threads(config.threads or world.threads)
        check_aggregation(world, config)
        self.domains = together(world, lambda: find_domains(config.divide or ()))
        self.names = [domain.name for domain in self.domains]
        self.rules = read_rules(config.merge_rules, len(self.domains))
        self.group, self.members = divide_ranks(world, len(self.domains))
        self._check_groups()
        source = together(world, lambda: find_model(Path(str(config.init_from)))) if config.init_from else None
        self.source = source
        tokenizer = together(world, lambda: tokenizer_of(source))
        self.say = self._reporter(0).say
        if tokenizer is None and config.tokenizer == "bpe":  # one vocabulary for all
            tokenizer = prepare_corpus(world, config.corpus, say=self.say).tokenizer
        self.corpora = [
            prepare_corpus(world, replace(config.corpus, data=(domain.data,)), context=config.context, say=self.say,
                           tokenizer=tokenizer)
            for domain in self.domains
        ]  # fmt: skip
        self.tokenizer = self.corpora[0].tokenizer
        torch.manual_seed(config.seed)
        self.model = together(world, lambda: initial_model(config, self.tokenizer, source)).to(world.device)
        self._divide_text()
        self.folder = make_run_folder(world, config.out)

    def run(self) -> list[Row]:
        """Train, merge, compare, save and report; returns the rows of the table. Collective."""
        if self.world.is_root:
            self.config.write(self.folder / "config.yaml")
        self._introduce()
        position = self._train_together("common start", self.config.steps_together, Position())
        base = self._weights()
        submodels = self._train_apart(base)
        rows = [self._row("start", base, f"{self.config.steps_together} steps on all domains")]
        own = [self._row(f"submodel {name}", state) for name, state in zip(self.names, submodels, strict=True)]
        rows += [*own, mean_row("mean of submodels", own, "of their losses, not a model")]
        rows += self._merge(base, submodels)
        rows += [self._ensemble(submodels)]
        if self.config.joint:
            load_tensors(self.model, base, "the common start")
            self._train_together("joint model", self._steps_apart, position)
            joint = self._weights()
            rows.append(self._row("joint model", joint, "trained on as many tokens of all domains"))
            self._save("joint", joint)
        for name, state in (
            ("start", base),
            *zip((f"submodels/{name}" for name in self.names), submodels, strict=True),
        ):
            self._save(name, state)
        self._report(rows, self._shapley(base, submodels, rows))
        return rows

    @property
    def _steps_apart(self) -> int:
        return self.config.steps - self.config.steps_together

    @property
    def _batch(self) -> int:
        """Sequences in a step of a submodel."""
        return self.config.batch_size * (1 if self.config.scaling == "strong" else self.config.accumulate)

    def _check_groups(self) -> None:
        world, most = self.world, max(map(len, self.members))
        why = why_no_direct(world)
        if world.device.type != "cpu" or self.config.strategy == "horovod":
            why = "only hvdkit's own collectives work within a group, on CPUs"
        if most > 1 and why is not None:
            raise ConfigError(
                f"--divide: {len(self.domains)} submodels on {world.size} ranks would need groups of ranks, which "
                f"cannot be had here: {why}; start {len(self.domains)} ranks or fewer"
            )

    def _divide_text(self) -> None:
        """For each domain: what is trained on, what merges are chosen by, and what is held out for the table."""
        config, domains = self.config, len(self.domains)
        most = config.eval_batches * config.batch_size // domains
        training: list[Samples] = []
        choosing: list[Samples] = []
        held_out: list[Samples] = []
        for name, corpus in zip(self.names, self.corpora, strict=True):
            train = corpus.samples("train", self.model.objective, config.context, config.seed)
            held = corpus.samples("validation", self.model.objective, config.context, config.seed)
            aside = max(1, round(len(train) * config.validation_share))
            if len(train) <= aside:
                raise DataError(f"{name}: {plural(len(train), 'sequence')} of {config.context} tokens are too few")
            cut = len(train) - aside
            training.append(sample_range(train, 0, cut))
            last = sample_range(train, cut, len(train))
            choosing.append(spread_samples(last, min(aside, max(1, most // 4))) if config.eval_batches else last)
            held_out.append(spread_samples(held, min(len(held), max(1, most))) if config.eval_batches else held)
        self.training = training
        self.mixture = join_samples([spread_samples(part, config.steps * self._batch) for part in training])
        autocast = config.precision == "bf16"
        self.judge = Judge(self.model, self.corpora, held_out, autocast)
        self.chooser = Judge(self.model, self.corpora, choosing, autocast)

    def _phase(self, steps: int, batch: int) -> TrainConfig:
        return replace(self.config, divide=None, scaling="strong", steps=steps, batch_size=batch)

    def _reporter(self, steps: int) -> Reporter:
        return Reporter(self.world.is_root, launch_info().is_launched, steps)

    def _train_together(self, name: str, steps: int, start: Position) -> Position:
        if not steps:
            broadcast_parameters(self.model.state_dict(), root_rank=0)
            return start
        batch = self._batch * len(self.domains)
        self.say(f"\n{name}: {steps} steps of {batch} sequences of all domains, {plural(self.world.size, 'rank')}")
        return train_together(
            self.world, self._phase(steps, batch), self.model, self.mixture, start, self._reporter(steps)
        )

    def _train_apart(self, base: State) -> list[Weights]:
        """The weights of every submodel, on all ranks. Each group trains its own, one after another, then all send."""
        trained: dict[int, Weights] = {}
        steps = self._steps_apart
        for number in range(self.group.number, len(self.domains), len(self.members)):
            beside = " (rank 0's; the others at the same time)" if len(self.members) > 1 else ""
            self.say(
                f"\nsubmodel {self.names[number]}: {steps} steps of {self._batch} sequences, "
                f"{plural(self.group.size(), 'rank')}{beside}"
            )
            load_tensors(self.model, base, "the common start")
            train_apart(
                self.group, self._phase(steps, self._batch), self.model, self.training[number], self._reporter(steps)
            )
            trained[number] = self._weights()
        for number in range(len(self.domains)):
            state = trained.get(number) or {name: torch.empty_like(tensor) for name, tensor in base.items()}
            root = self.members[number % len(self.members)][0]
            broadcast_parameters([(f"divide.{name}", tensor) for name, tensor in state.items()], root)
            trained[number] = state
        return [trained[number] for number in range(len(self.domains))]

    def _merge(self, base: State, submodels: list[Weights]) -> list[Row]:
        def metric(state: State) -> float:
            return Row("", self.chooser.of_state(self.world, state)).mean

        rows = []
        for rule in self.rules:
            merge = merge_by(rule, base, submodels, self.names, metric, self.config.seed)
            rows.append(self._row(rule, merge.state, merge.note))
            self._save(f"merged/{rule}", merge.state)
        return rows

    def _ensemble(self, submodels: list[Weights]) -> Row:
        """Of the submodels that this rank's group trained, on its first rank; the others bring none."""
        mine = range(self.group.number, len(self.domains), len(self.members)) if self.group.rank() == 0 else []
        models = []
        for number in mine:
            model = initial_model(self.config, self.tokenizer, self.source)
            load_tensors(model, submodels[number], self.names[number])
            models.append(model.to(self.world.device))
        ensemble = Ensemble(self.world, models)
        return Row("ensemble", self.judge.of_ensemble(ensemble), f"mean of {len(self.domains)} models' probabilities")

    def _shapley(self, base: State, submodels: list[Weights], rows: list[Row]) -> ShapleyValues:
        """What each submodel takes off the mean loss when it is one of those averaged; () is the common start."""
        everyone = range(len(submodels))
        known: dict[tuple[int, ...], Row] = {(): rows[0], **{(number,): rows[1 + number] for number in everyone}}
        known.update({tuple(everyone): row for row in rows if row.name == "average"})
        here = alone(self.world)

        def value(coalition: tuple[int, ...]) -> float:
            if coalition in known:
                return -known[coalition].mean
            state = merge_states([submodels[number] for number in coalition])
            return -Row("", self.judge.of_state(here, state)).mean

        return shapley_values(self.world, len(submodels), value, seed=self.config.seed)

    def _weights(self) -> Weights:
        """A copy of the model's, on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in distinct_tensors(self.model).items()}

    def _row(self, name: str, state: State, note: str = "") -> Row:
        return Row(name, self.judge.of_state(self.world, state), note)

    def _save(self, name: str, state: State) -> None:
        """As a model folder, by rank 0. Collective."""

        def write() -> None:
            load_tensors(self.model, state, name)
            with complete_folder(self.folder / name) as beside:
                write_model(beside, self.model)
                save_tokenizer(beside, self.tokenizer)

        together(self.world, lambda: write() if self.world.is_root else None)

    def _introduce(self) -> None:
        say, config = self.say, self.config
        say(
            f"hvdkit train --divide: {self.model.name}, {count_parameters(self.model):,} parameters, {config.precision}"
        )
        for domain, corpus in zip(self.domains, self.corpora, strict=True):
            info = corpus.info
            say(
                f"  {domain.name}: {info.train_tokens:,} tokens for training, {info.validation_tokens:,} held out "
                f"({domain.data})"
            )
        ranks = sorted({len(members) for members in self.members})
        each = f"{' or '.join(map(str, ranks))} {'rank' if ranks == [1] else 'ranks'} each"
        turns = "" if len(self.members) == len(self.domains) else ", one after another"
        say(
            f"{plural(self.world.size, 'rank')}, Horovod over {self.world.backend}: {len(self.domains)} submodels by "
            f"{plural(len(self.members), 'group')}{turns}, {each}"
        )
        say(f"run folder: {self.folder}")

    def _report(self, rows: list[Row], worth: ShapleyValues) -> None:
        if not self.world.is_root:
            return
        targets = sum(len(samples) for samples in self.judge.held_out) * self.config.context
        self.say(f"\nheld-out loss in {self.judge.unit}, on about {targets:,} tokens; lower is better:\n")
        for line in table(self.names, rows):
            self.say(line)
        self.say("\nwhat each submodel takes off the mean loss when it joins an average (Shapley values):\n")
        for line in shapley_table(self.names, worth):
            self.say(f"  {line}")
        result = {
            "unit": self.judge.unit,
            "domains": {domain.name: domain.data for domain in self.domains},
            "rows": [row.to_json() for row in rows],
            "shapley": dict(zip(self.names, worth.values, strict=True)),
        }
        (self.folder / "divide.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        pictures = (
            draw_comparison(self.folder / "divide.png", self.names, rows, self.judge.unit),
            draw_shapley(self.folder / "shapley.png", self.names, worth, self.judge.unit),
        )
        self.say(f"\nrows as numbers: {self.folder / 'divide.json'}{'; pictures beside it' if all(pictures) else ''}")
        self.say(f"go on with `hvdkit generate {self.folder / 'merged' / self.rules[0]}`")
