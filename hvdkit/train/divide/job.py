"""The whole path of divide and conquer, from configuration to the table that compares what came of it.

Every phase is one training with a fresh optimizer and a learning rate schedule of its own. The common start and the
joint model see as many tokens of each domain, all domains in each step; a submodel sees its own domain only. Nothing
is chosen on held-out text: scales and soups are, on a part of the training text that is set aside.
"""

from dataclasses import replace
from pathlib import Path

import torch

from hvdkit.checkpoint import find_model
from hvdkit.collectives import why_no_direct
from hvdkit.data import Position, find_domains, save_tokenizer
from hvdkit.errors import ConfigError
from hvdkit.files.durable import complete_folder
from hvdkit.merge import Ensemble, ShapleyValues, shapley_values
from hvdkit.merge.states import State, merge_states
from hvdkit.models import LanguageModel, count_parameters, distinct_tensors, load_tensors, load_weights, write_model
from hvdkit.runtime import World, alone, divide_ranks, launch_info, together
from hvdkit.runtime.dropin.functions import broadcast_parameters
from hvdkit.train.aggregate import check_aggregation
from hvdkit.train.agreement import check_same_start
from hvdkit.train.building import initial_model, tokenizer_of
from hvdkit.train.config import TrainConfig
from hvdkit.train.divide.merging import merge_by, read_rules
from hvdkit.train.divide.phases import CONFIG, open_run_folder, saved_models
from hvdkit.train.divide.report import conclude, introduce
from hvdkit.train.divide.scores import Judge, Row, mean_row
from hvdkit.train.divide.text import divide_text, prepare_domains
from hvdkit.train.divide.training import position_after, train_apart, train_together
from hvdkit.train.report import Reporter, plural
from hvdkit.train.run_folder import Claim

Weights = dict[str, torch.Tensor]

_START, _JOINT = "start", "joint"
"""Folders of models."""


class DivideJob:
    """A run on all ranks. Making it is collective and checks everything that can be checked before training.

    Each rank holds the weights of all submodels, for merging and the Shapley values: M + 4 models beside training.
    """

    def __init__(self, world: World, config: TrainConfig) -> None:
        self.world, self.config = world, config
        check_same_start(world, config)
        torch.set_num_threads(config.threads or world.threads)
        check_aggregation(world, config)
        domains = together(world, lambda: find_domains(config.divide or ()))
        self.names = [domain.name for domain in domains]
        self.rules = read_rules(config.merge_rules, len(domains))
        self.group, self.members = divide_ranks(world, len(domains))
        self._check_groups()
        self.say = self._reporter(0).say
        self.source = together(world, lambda: find_model(Path(config.init_from)) if config.init_from else None)
        tokenizer = together(world, lambda: tokenizer_of(self.source))
        corpora = prepare_domains(world, config, domains, tokenizer, self.say)
        self.tokenizer = corpora[0].tokenizer
        torch.manual_seed(config.seed)
        self.model = together(world, self._initial_model)
        self.text = divide_text(config, domains, corpora, self.model.objective)
        self.mixture = self.text.mixture(config.steps * self._batch)
        autocast = config.precision == "bf16"
        self.judge = Judge(self.model, corpora, self.text.held_out, autocast)
        self.chooser = Judge(self.model, corpora, self.text.choosing, autocast)
        self.folder = open_run_folder(world, config)
        self._claim = together(world, lambda: Claim(self.folder) if world.is_root else None)
        self._submodel_folders = [f"submodels/{name}" for name in self.names]
        self._saved = saved_models(world, self.folder, [_START, *self._submodel_folders, _JOINT])

    def run(self) -> list[Row]:
        """Train, merge, compare, save and report; returns the rows of the table. Collective."""
        if self.world.is_root:
            self.config.write(self.folder / CONFIG)
        parameters = count_parameters(self.model)
        self.say(f"hvdkit train --divide: {self.model.name}, {parameters:,} parameters, {self.config.precision}")
        introduce(self.say, self.world, self.text, self.members)
        self.say(f"run folder: {self.folder}")

        position = self._train_together("common start", _START, self.config.steps_together, Position())
        base = self._weights()
        start = self._row("start", base, f"{self.config.steps_together} steps on all domains", folder=_START)
        submodels = self._train_apart(base)
        own = [
            self._row(f"submodel {name}", state, folder=folder)
            for name, state, folder in zip(self.names, submodels, self._submodel_folders, strict=True)
        ]
        mean = mean_row("mean of submodels", own, "of their losses, not a model")
        merged = self._merge(base, submodels)
        rows = [start, *own, mean, *merged, self._ensemble(submodels)]
        worth = self._shapley(submodels, start, own, merged)
        if self.config.joint:
            load_tensors(self.model, base, "the common start")
            self._train_together("joint model", _JOINT, self._steps_apart, position)
            rows.append(
                self._row("joint model", self._weights(), "trained on as many tokens of all domains", folder=_JOINT)
            )
        if self.world.is_root:
            conclude(self.say, self.folder, self.text, rows, worth, self.judge.unit)
            self.say(f"go on with `hvdkit generate {self.folder / 'merged' / self.rules[0]}`")
        return rows

    @property
    def _steps_apart(self) -> int:
        return self.config.steps - self.config.steps_together

    @property
    def _batch(self) -> int:
        """Sequences in a step of a submodel."""
        return self.config.batch_size * (1 if self.config.scaling == "strong" else self.config.accumulate)

    def _initial_model(self) -> LanguageModel:
        return initial_model(self.config, self.tokenizer, self.source).to(self.world.device)

    def _check_groups(self) -> None:
        why = why_no_direct(self.world)
        if self.world.device.type != "cpu" or self.config.strategy == "horovod":
            why = "only hvdkit's own collectives work within a group, on CPUs"
        if max(map(len, self.members)) > 1 and why is not None:
            count = len(self.names)
            raise ConfigError(
                f"--divide: {count} submodels on {self.world.size} ranks need groups of several ranks, which cannot be "
                f"had here: {why}; start {count} ranks or fewer"
            )

    def _phase(self, steps: int, batch: int) -> TrainConfig:
        return replace(self.config, divide=None, scaling="strong", steps=steps, batch_size=batch)

    def _reporter(self, steps: int) -> Reporter:
        return Reporter(self.world.is_root, launch_info().is_launched, steps)

    def _train_together(self, name: str, folder: str, steps: int, start: Position) -> Position:
        batch = self._batch * len(self.names)
        if folder in self._saved:
            self._take_saved(name, folder)
            return position_after(self.mixture, batch, start, steps)
        if not steps:
            broadcast_parameters(self.model.state_dict(), root_rank=0)
            return start
        self.say(f"\n{name}: {steps} steps of {batch} sequences of all domains, {plural(self.world.size, 'rank')}")
        phase = self._phase(steps, batch)
        return train_together(self.world, phase, self.model, self.mixture, start, self._reporter(steps))

    def _take_saved(self, name: str, folder: str) -> None:
        self.say(f"\n{name}: trained before, in {self.folder / folder}")
        load_weights(self.model, self.folder / folder)

    def _train_apart(self, base: State) -> list[Weights]:
        """The weights of every submodel, on all ranks. Each group trains its own, one after another, then all send."""
        trained: dict[int, Weights] = {}
        steps, beside = self._steps_apart, " (the other groups theirs)" if len(self.members) > 1 else ""
        for number in self._own_numbers():
            name, folder = f"submodel {self.names[number]}", self._submodel_folders[number]
            if folder in self._saved:
                self._take_saved(name, folder)
            else:
                ranks = plural(self.group.size(), "rank")
                self.say(f"\n{name}: {steps} steps of {self._batch} sequences, {ranks}{beside}")
                load_tensors(self.model, base, "the common start")
                phase = self._phase(steps, self._batch)
                train_apart(self.group, phase, self.model, self.text.training[number], self._reporter(steps))
                if self.group.rank() == 0:  # now, so that it is not lost with another group's
                    self._save(folder)
            trained[number] = self._weights()
        for number in range(len(self.names)):
            state = trained.get(number) or {name: torch.empty_like(tensor) for name, tensor in base.items()}
            root = self.members[number % len(self.members)][0]
            broadcast_parameters([(f"divide.{name}", tensor) for name, tensor in state.items()], root)
            trained[number] = state
        return [trained[number] for number in range(len(self.names))]

    def _own_numbers(self) -> range:
        """The submodels of this rank's group."""
        return range(self.group.number, len(self.names), len(self.members))

    def _merge(self, base: State, submodels: list[Weights]) -> list[Row]:
        def metric(state: State) -> float:
            return Row("", self.chooser.of_state(self.world, state)).mean

        rows = []
        for rule in self.rules:
            merge = merge_by(rule, base, submodels, self.names, metric, self.config.seed)
            rows.append(self._row(rule, merge.state, merge.note, folder=f"merged/{rule}"))
        return rows

    def _ensemble(self, submodels: list[Weights]) -> Row:
        """Of the submodels that this rank's group trained, on its first rank; the others bring none."""
        models = []
        for number in self._own_numbers() if self.group.rank() == 0 else ():
            model = self._initial_model()
            load_tensors(model, submodels[number], self.names[number])
            models.append(model)
        losses = self.judge.of_ensemble(Ensemble(self.world, models))
        return Row("ensemble", losses, f"mean of {len(submodels)} models' probabilities")

    def _shapley(self, submodels: list[Weights], start: Row, own: list[Row], merged: list[Row]) -> ShapleyValues:
        """What each submodel takes off the mean loss when it joins an average; () is the common start."""
        known: dict[tuple[int, ...], float] = {(): start.mean}
        known.update({(number,): row.mean for number, row in enumerate(own)})
        for row in merged:
            if row.name == "average":
                known[tuple(range(len(own)))] = row.mean
        here = alone(self.world)

        def value(coalition: tuple[int, ...]) -> float:
            if coalition in known:
                return -known[coalition]
            state = merge_states([submodels[number] for number in coalition])
            return -Row("", self.judge.of_state(here, state)).mean

        return shapley_values(self.world, len(submodels), value, seed=self.config.seed)

    def _weights(self) -> Weights:
        """A copy of the model's, on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in distinct_tensors(self.model).items()}

    def _row(self, name: str, state: State, note: str = "", *, folder: str) -> Row:
        """Measure a model, and save it into `folder` of the run if it is not there, by rank 0. Collective."""
        losses = self.judge.of_state(self.world, state)  # which puts it into the model
        together(self.world, lambda: self._save(folder) if self.world.is_root else None)
        return Row(name, losses, note)

    def _save(self, folder: str) -> None:
        """The model, if it is not there."""
        path = self.folder / folder
        if path.is_dir():
            return
        with complete_folder(path) as beside:
            write_model(beside, self.model)
            save_tokenizer(beside, self.tokenizer)
