"""What a training run does: one dataclass, from which the command line and the YAML file are derived."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hvdkit.data import CorpusConfig
from hvdkit.errors import ConfigError
from hvdkit.train.command_line import add_options, from_values, make_parser, option, read
from hvdkit.untrusted import shown

Local = Literal["none", "sgd", "post-local", "diloco"]
ROUND_OPTIONS = (
    "sync_every", "outer_lr", "outer_momentum", "fragments", "overlap_steps", "outer_compression", "local_after",
    "local_level", "pace",
)  # fmt: skip
"""What matters with `local` only."""
Scaling = Literal["weak", "weak-linear-lr", "weak-sqrt-lr", "strong"]


@dataclass(frozen=True)
class TrainConfig:
    """Every option of `hvdkit train`; names on the command line have dashes where these have underscores."""

    data: list[str] = option(
        [], "files, folders, globs, package.module:function or python:PART; default: Python's own sources"
    )
    text_field: str = option("text", "field of JSON Lines records that holds the text")
    skip_bad: bool = option(False, "drop and count lines that cannot be read, instead of stopping")
    tokenizer: str = option("bytes", "bytes, bpe (trained on the training part) or a folder with tokenizer.json")
    vocab_size: int = option(8192, "size of a trained BPE vocabulary")
    validation_share: float = option(0.05, "share of the text held out for validation")

    model: str = option("gpt-mini", "a preset, hf:TYPE, a model folder, or package.module:function")
    init_from: str | None = option(None, "start from this run, checkpoint or Hugging Face folder, tokenizer included")
    context: int = option(128, "tokens per sequence")

    steps: int = option(240, "optimizer steps of the whole run")
    batch_size: int = option(8, "sequences per rank and micro-batch (with --scaling strong: per step in all)")
    accumulate: int = option(1, "micro-batches per step")
    scaling: Scaling = option(
        "weak",
        "what more ranks change: weak = larger global batch, same learning rate; weak-linear-lr and weak-sqrt-lr = "
        "also a learning rate times ranks or their square root; strong = nothing, the batch is divided",
    )
    lr: float = option(2e-3, "peak learning rate")
    min_lr: float = option(0.1, "final learning rate as a share of the peak")
    warmup_steps: int = option(30, "steps of linear warm-up; then cosine")
    weight_decay: float = option(0.1, "AdamW's decay of matrices (vectors are not decayed)")
    beta2: float = option(0.95, "AdamW's second beta")
    clip_norm: float = option(1.0, "largest norm of the aggregated gradient; 0 for no clipping")
    on_nonfinite: Literal["stop", "skip", "ignore"] = option(
        "stop",
        "what a NaN or infinity in the gradients does: stop = ends the run and names the parameters, skip = the step "
        "is left out on all ranks (with --local: on the rank that met it) and counted, ignore = nothing is looked at",
    )
    precision: Literal["float32", "bf16", "float64"] = option("float32", "bf16 computes under autocast")
    compression: str = option(
        "none", "gradients on the wire: none, fp16, bf16, int8, topk:ratio=0.01, powersgd:rank=4 (or other numbers)"
    )
    strategy: str = option(
        "auto",
        "what reduces gradients: auto (the quickest by measurement), mpi, ring, tree, shared_memory, hierarchical, or "
        "horovod (its engine)",
    )
    sharding: Literal[0, 1, 2, 3] = option(
        0, "what is cut over the ranks: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 parameters too"
    )
    local: Local = option(
        "none",
        "how often ranks come together: none = gradients are averaged in every step; else each rank trains alone for "
        "--sync-every steps: sgd = weights are averaged then, post-local = the same after --local-after synchronous "
        "steps, diloco = an outer optimizer steps with the mean of what the ranks did",
    )
    sync_every: int | str = option(
        50,
        "with --local, steps per round: a number, a schedule (10@0,50@200: rounds of 50 from step 200 on), or adaptive "
        "(from measured drift and cost; adaptive:min=16,max=256,drift=0.1,cost=0.05)",
    )
    outer_lr: float = option(0.7, "learning rate of diloco's outer optimizer")
    outer_momentum: float = option(0.9, "Nesterov momentum of diloco's outer optimizer")
    fragments: int = option(1, "with --local, parts of the model that are synchronised in turn within a round")
    overlap_steps: int = option(0, "with --local, steps that ranks do while a fragment is under way")
    outer_compression: str = option(
        "none", "with --local, what ranks exchange on the wire: none, bf16, int8 (or others), with error feedback"
    )
    local_after: int = option(0, "with --local, synchronous steps before the first round")
    local_level: Literal["all", "nodes"] = option(
        "all", "with --local, who trains alone: every rank, or nodes whose ranks average gradients in every step"
    )
    pace: Literal["equal", "proportional"] = option(
        "equal", "with --local, what part of a global batch a rank gets: equal, or proportional to its measured speed"
    )
    seed: int = option(0, "of initial weights, order of samples, and dropout")

    divide: list[str] | None = option(
        None,
        "train a submodel on each of these folders, globs or files (none: the parts of Python's library), merge them "
        "and compare; a step of each takes batch-size sequences, however many ranks share it",
    )
    common_steps: int | None = option(
        None, "with --divide: the first of --steps, in which all train the common start (default: half of them)"
    )
    merge_rules: str = option(
        "average,karcher,task_arithmetic,ties,dare_ties,model_stock,greedy_soup",
        "with --divide: how submodels are merged, names with commas",
    )
    joint: bool = option(True, "with --divide: also train one model on all the text, on as many tokens")

    eval_every: int = option(100, "steps between evaluations; 0 for only at the end")
    eval_batches: int = option(
        64,
        "validation batches (of batch_size sequences, over all ranks), but for the last evaluation, on all; 0 for all",
    )
    log_every: int = option(10, "steps between lines of progress")
    checkpoint_every: int = option(100, "steps between checkpoints; 0 for only at the end")
    check_every: int = option(
        0,
        "steps between comparisons of all ranks' parameters, which stop a run whose ranks have drifted apart; 0 for "
        "never (with --sharding 3: of parameters that every rank has whole; with --local: of the outer model)",
    )
    hang_timeout: int | None = option(
        None,
        "seconds that ranks wait for one that hangs before they end the job, and warn after half of them; 0 to wait "
        "for ever; default: 60, or what HOROVOD_STALL_* say (10 times as long for one that works on something else)",
    )
    checkpoint_async: bool = option(
        False, "copy what a checkpoint holds and write it while training goes on; needs the room for the copy"
    )
    keep: int = option(2, "newest checkpoints to keep; 0 for all")
    keep_best: int = option(1, "checkpoints of least validation loss to keep besides, of those with one measured")
    out: str | None = option(None, "folder of the run, must not exist; default: runs/DATE-TIME")
    resume: str | None = option(None, "continue this run folder or checkpoint; its configuration is the default then")
    tensorboard: bool = option(False, "also write TensorBoard events")
    sample_prompt: str = option("def ", "what the sample at the end continues")
    sample_tokens: int = option(200, "tokens of the sample at the end; 0 for none")
    threads: int = option(0, "CPU threads per rank; 0 for this rank's share of the cores")

    def __post_init__(self) -> None:
        rules = [*self._limits()] or self._rules()
        faults = [
            f"--{name.replace('_', '-')} {shown(getattr(self, name))} must be {rule}"
            for name, rule, good in rules
            if not good
        ]
        if faults:
            raise ConfigError("; ".join(faults))
        self._check_divide()
        if not self.resume:  # what the run was saved with is not known here
            self.check_rounds({item.name: item.default for item in fields(self)})
        _ = self.corpus  # checks its own options

    def _limits(self) -> Iterator[tuple[str, str, bool]]:
        """Numbers that only a damaged or hostile file holds, before anything is counted with them."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value.bit_length() > 63:
                yield item.name, "a number of at most 63 bits", False
            elif isinstance(value, float) and not math.isfinite(value):
                yield item.name, "a finite number", False

    def _rules(self) -> list[tuple[str, str, bool]]:
        at_least_1 = ("context", "steps", "batch_size", "accumulate", "log_every", "vocab_size", "fragments")
        at_least_0 = ("warmup_steps", "eval_every", "eval_batches", "checkpoint_every", "keep", "keep_best",
                      "sample_tokens", "threads", "seed", "weight_decay", "clip_norm", "overlap_steps", "local_after",
                      "check_every")  # fmt: skip
        return [
            *((name, "1 or more", getattr(self, name) >= 1) for name in at_least_1),
            *((name, "0 or more", getattr(self, name) >= 0) for name in at_least_0),
            ("lr", "more than 0", self.lr > 0),
            ("hang_timeout", "0, or 2 or more", self.hang_timeout in (None, 0) or self.hang_timeout >= 2),
            ("min_lr", "between 0 and 1", 0 <= self.min_lr <= 1),
            ("beta2", "in [0, 1)", 0 <= self.beta2 < 1),
            ("outer_lr", "more than 0", self.outer_lr > 0),
            ("outer_momentum", "in [0, 1)", 0 <= self.outer_momentum < 1),
            ("sharding", f"0 with --local {self.local}", not self.sharding or self.local == "none"),
            ("local_after", "1 or more with --local post-local", self.local != "post-local" or self.local_after > 0),
            ("local_after", "0 with --local-level nodes", not self.local_after or self.local_level == "all"),
            (
                "compression",
                f"none with --local {self.local}, which sends no gradients: use --outer-compression",
                self.compression == "none" or self.local == "none" or self.local_after > 0,
            ),
        ]

    def _check_divide(self) -> None:
        if self.divide is None:
            return
        if self.data:
            raise ConfigError(f"--divide names the text, a domain each: move {' '.join(self.data)} there from --data")
        is_local = self.local != "none"
        if self.sharding or is_local or self.tensorboard or self.scaling not in ("weak", "strong"):
            raise ConfigError(
                "--divide goes with none of --sharding, --local, --tensorboard, and no --scaling of rates"
            )
        if self.resume and self.out:
            raise ConfigError("--divide goes on in its own folder: give --resume without --out")
        if not 0 <= self.steps_together < self.steps:
            raise ConfigError(
                f"--common-steps {self.common_steps} must be 0 or more, and less than --steps {self.steps}: the rest "
                "trains the submodels"
            )

    def check_rounds(self, usual: Mapping[str, Any]) -> None:
        """Raise ConfigError for options of rounds that are not as in `usual` where `local` says that there are none."""
        chosen = [name for name in ROUND_OPTIONS if getattr(self, name) != usual[name]]
        if self.local == "none" and chosen:
            words = ", ".join(f"--{name.replace('_', '-')} {getattr(self, name)}" for name in chosen)
            raise ConfigError(f"{words}: of rounds, which --local {self.local} has not; add --local sgd or diloco, say")

    @property
    def steps_together(self) -> int:
        """With `divide`: the steps of the common start."""
        return self.steps // 2 if self.common_steps is None else self.common_steps

    @property
    def corpus(self) -> CorpusConfig:
        """The part that `hvdkit.data` owns."""
        return CorpusConfig(
            data=tuple(self.divide or self.data),
            text_field=self.text_field,
            skip_bad=self.skip_bad,
            tokens=self.tokenizer,
            vocab_size=self.vocab_size,
            validation_share=self.validation_share,
        )

    def global_batch(self, ranks: int) -> int:
        """Sequences per optimizer step over all ranks."""
        return self.batch_size if self.scaling == "strong" else self.batch_size * ranks * self.accumulate

    def micro_batch(self, ranks: int) -> int:
        """Sequences per rank and backward pass, at most."""
        return -(-self.global_batch(ranks) // (ranks * self.accumulate))

    def peak_lr(self, ranks: int) -> float:
        """The learning rate after warm-up."""
        factor = {"weak-linear-lr": float(ranks), "weak-sqrt-lr": float(ranks) ** 0.5}.get(self.scaling, 1.0)
        return float(self.lr * factor)

    def saved_values(self) -> dict[str, Any]:
        """The options that a run is saved with: those that say what it computes."""
        left_out = ("out", "resume", *(ROUND_OPTIONS if self.local == "none" else ()))
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def write(self, path: Path) -> None:
        """Save as YAML that `--config` reads back."""
        import yaml

        path.write_text(yaml.safe_dump(self.saved_values(), sort_keys=False), encoding="utf-8")


def parse(argv: list[str] | None, defaults: Path | None = None) -> TrainConfig:
    """The configuration that a command line means; `defaults` is a YAML file that it overrides.

    Raises ConfigError for anything it cannot read; prints help and exits if asked to.
    """
    parser = make_parser("hvdkit train", _DESCRIPTION, defaults)
    add_options(parser, TrainConfig)
    return from_values(TrainConfig, read(parser, argv))


_DESCRIPTION = (
    "Train a language model over all ranks that the launcher started. Without options: a byte-level GPT on Python's "
    "own standard library."
)
