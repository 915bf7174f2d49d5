"""The whole path of `--divide`: its table against `hvdkit evaluate` and plain computations, on any number of ranks."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hvdkit.data import CorpusConfig, prepare_corpus
from hvdkit.errors import ConfigError
from hvdkit.models import load_model
from hvdkit.models.state import read_tensors
from hvdkit.runtime import World, alone, gather_objects
from hvdkit.train.__main__ import read_configuration
from hvdkit.train.config import TrainConfig
from hvdkit.train.divide import DivideJob
from tests.jobs import BIN, ROOT, clean_environ, run_ranks, succeed
from tests.train.runs import CONTEXT, as_words, configure, write_text
from tests.train.test_bad_input import fail

RULES = "average,karcher,task_arithmetic,ties,dare_ties,model_stock,greedy_soup"
NAMES = ("law", "code", "news")
OWN = [f"submodels/{name}" for name in NAMES]


def write_domains(folder: Path, names: tuple[str, ...] = NAMES) -> list[str]:
    """Texts of different words, so that what is learnt on one is not all that another needs."""
    for seed, name in enumerate(names):
        write_text(folder / name, seed=seed)
        for path in (folder / name).iterdir():
            path.write_text(path.read_text().replace("ring", name).replace("tree", name[::-1]))
    return [str(folder / name) for name in names]


def divided(domains: list[str], out: Path, **options: Any) -> TrainConfig:
    """12 steps together, 8 apart, with everything that is held out in the table."""
    usual = {"divide": domains, "common_steps": 12, "batch_size": 6, "eval_batches": 0, "threads": 1}
    return replace(configure(Path(), out), **{"data": [], **usual, **options})


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "divide.json").read_text())
    return found


def rows(out: Path) -> dict[str, list[float]]:
    return {row["name"]: [*row["losses"], row["mean"]] for row in read(out)["rows"]}


@pytest.fixture
def domains(world: World, shared_path: Path) -> list[str]:
    if world.is_root:
        write_domains(shared_path)
    gather_objects(world, None)
    return [str(shared_path / name) for name in NAMES]


def test_the_table_is_what_evaluate_says(
    world: World, shared_path: Path, domains: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every saved model on every domain; the mean of submodels, the ensemble and the Shapley values by definition."""
    out = shared_path / "run"
    DivideJob(world, divided(domains, out)).run()
    printed = capsys.readouterr().out
    if not world.is_root:
        assert printed == ""
        return
    found, table = read(out), rows(out)
    assert list(found["domains"]) == list(NAMES) and found["unit"] == "nats/byte"
    order = ["start", *(f"submodel {name}" for name in NAMES), "mean of submodels", *RULES.split(","), "ensemble"]
    assert list(table) == [*order, "joint model"]
    folders = {"start": "start", "joint model": "joint"}
    folders.update({f"submodel {name}": f"submodels/{name}" for name in NAMES})
    folders.update({rule: f"merged/{rule}" for rule in RULES.split(",")})
    held_out = [_held_out(world, domain) for domain in domains]
    for name, folder in folders.items():
        model = load_model(out / folder)
        losses = [_loss(model(inputs), targets) * unit for inputs, targets, unit in held_out]
        assert table[name] == pytest.approx([*losses, sum(losses) / 3], abs=1e-9), name
    own = [table[f"submodel {name}"] for name in NAMES]
    assert table["mean of submodels"] == pytest.approx([sum(column) / 3 for column in zip(*own, strict=True)])
    models = [load_model(out / "submodels" / name) for name in NAMES]
    together = [
        _loss(torch.stack([m(x).softmax(-1) for m in models]).mean(0).log(), y) * unit for x, y, unit in held_out
    ]
    assert table["ensemble"][:3] == pytest.approx(together, abs=1e-9)
    assert sum(found["shapley"].values()) == pytest.approx(table["start"][3] - table["average"][3])
    for line in ("mean of submodels ", "average ", "ensemble ", "joint model "):
        assert any(row.startswith(line) for row in printed.splitlines()), printed
    assert all(Image.open(out / name).size[0] > 400 for name in ("divide.png", "shapley.png"))


def _held_out(world: World, domain: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Inputs and targets, and tokens per byte."""
    corpus = prepare_corpus(alone(world), CorpusConfig(data=(domain,), validation_share=0.1))
    samples = corpus.samples("validation", "causal", CONTEXT)
    batch = samples.batch(range(len(samples)))
    return batch.inputs, batch.targets, corpus.nats_per_byte(1.0)


@torch.no_grad()
def _loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100))


def test_each_submodel_learns_its_own_domain(world: World, shared_path: Path, domains: list[str]) -> None:
    """Each is better on its own domain than the start and than the others; merges beat their mean."""
    options = {"steps": 60, "common_steps": 30, "joint": False, "precision": "float32"}
    job = DivideJob(world, divided(domains, shared_path / "run", **options))
    found = {row.name: row for row in job.run()}
    assert "joint model" not in found and not (shared_path / "run" / "joint").exists()
    for number, name in enumerate(NAMES):
        losses = {key: row.losses[number] for key, row in found.items() if key.startswith(("submodel", "start"))}
        assert min(losses, key=losses.__getitem__) == f"submodel {name}", losses
    better = [rule for rule in RULES.split(",") if found[rule].mean < found["mean of submodels"].mean]
    assert {"average", "karcher", "task_arithmetic", "model_stock"} <= {*better}
    assert len(set(gather_objects(world, repr(found)))) == 1


@pytest.mark.launch
def test_any_number_of_ranks_gives_the_same(tmp_path: Path) -> None:
    """Alone, fewer ranks than domains, and groups of several: 1 and 2 ranks for 3 domains, 1 and 4 for 2."""
    for count, more in ((3, 2), (2, 4)):
        data = write_domains(tmp_path, NAMES[:count])
        wanted: dict[str, list[float]] = {}
        for ranks in (1, more):
            out = tmp_path / f"{count}-{ranks}"
            words = as_words(divided(data, out, merge_rules="average,task_arithmetic,greedy_soup"))
            said = succeed(run_ranks(ranks, "-m", "hvdkit.train", *words)).stdout
            found = rows(out)
            wanted = wanted or found
            assert found.keys() == wanted.keys()
            for name, losses in found.items():
                assert losses == pytest.approx(wanted[name], abs=1e-9), (name, ranks)
            groups = min(ranks, count)
            assert f"{ranks} rank" in said and f"{count} submodels by {groups} group" in said
    average = read_tensors(tmp_path / "3-2" / "merged" / "average" / "model.safetensors")
    parts = [read_tensors(tmp_path / "3-2" / "submodels" / name / "model.safetensors") for name in NAMES]
    for name, tensor in average.items():
        assert torch.allclose(tensor, torch.stack([part[name] for part in parts]).mean(0), rtol=0, atol=1e-12)


@pytest.mark.launch
def test_evaluate_and_another_divide_go_on_from_it(tmp_path: Path) -> None:
    """Under Gloo with bpe; its merge measured by the command, and as the start of another run without common steps."""
    data, out = write_domains(tmp_path, NAMES[:2]), tmp_path / "run"
    options: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 270, "precision": "float32"}
    words = as_words(divided(data, out, merge_rules="slerp", steps=14, **options))
    succeed(run_ranks(2, "-m", "hvdkit.train", *words, launcher="horovodrun-gloo"))
    merged = out / "merged" / "slerp"
    for number, domain in enumerate(data):
        result = run_ranks(1, "-m", "hvdkit.train.evaluate", merged, "--data", domain, "--json", launcher="python")
        loss = json.loads(succeed(result).stdout)["loss_nats_per_byte"]
        assert loss == pytest.approx(rows(out)["slerp"][number], rel=1e-5)
    more = divided(data, tmp_path / "more", init_from=str(merged), common_steps=0, steps=2, merge_rules="average",
                   precision="float32")  # fmt: skip
    succeed(run_ranks(2, "-m", "hvdkit.train", *as_words(more)))
    assert rows(tmp_path / "more")["start"] == pytest.approx(rows(out)["slerp"], rel=1e-5)


@pytest.mark.parametrize("left", [["start"], ["start", "submodels/code"], ["start", *OWN], ["start", *OWN, "joint"]])
def test_it_goes_on_from_what_is_saved(
    left: list[str], world: World, shared_path: Path, domains: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """To the same bits, training only what is not there."""
    whole, part = shared_path / "whole", shared_path / "part"
    options: dict[str, Any] = {"model": "tests.train.runs:WithDropout", "merge_rules": "average",
                               "strategy": "horovod" if world.comm is None else "ring"}  # fmt: skip
    DivideJob(world, divided(domains, whole, **options)).run()
    if world.is_root:
        for name in left:
            shutil.copytree(whole / name, part / name)
        shutil.copy(whole / "config.yaml", part)
    gather_objects(world, None)
    capsys.readouterr()
    DivideJob(world, read_configuration(["--resume", str(part)])).run()
    if world.is_root:
        said = capsys.readouterr().out
        assert f"common start: trained before, in {part}/start" in said and "common start: 12 steps" not in said
        assert ("joint model: 8 steps" in said) == ("joint" not in left)
        assert ("submodel law: 8 steps" in said) == ("submodels/law" not in left)
        assert read(part)["rows"] == read(whole)["rows"]
        for name in ["start", *OWN, "joint", "merged/average"]:
            assert (part / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"was begun with other options: --lr 0.5 \(was "):
        DivideJob(world, read_configuration(["--resume", str(part), "--lr", "0.5"]))


@pytest.mark.launch
def test_a_restarted_job_trains_on(tmp_path: Path) -> None:
    """A rank is killed while the submodels are trained; the second attempt has the common start."""
    data = write_domains(tmp_path, NAMES[:2])
    options: dict[str, Any] = {"model": "tests.train.runs:Slow", "merge_rules": "average", "strategy": "ring"}
    words = as_words(divided(data, tmp_path / "run", common_steps=4, steps=30, **options))
    command = [BIN / "hvdkit", "run", "-np", "2", "--launcher", "mpirun", "--max-restarts", "1", "--backoff", "0.1"]
    with subprocess.Popen(
        [*command, "--", sys.executable, "-m", "hvdkit.train", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environ(), cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if ": 26 steps of 6 sequences, 1 rank (the other" in line and "restart 1" not in said:
                ranks = [child for child in psutil.Process(process.pid).children(recursive=True)
                         if "hvdkit.train" in child.cmdline()[:4]]  # fmt: skip
                ranks[-1].kill()
    assert process.returncode == 0, said
    assert "restart 1 of 1" in said, said
    assert f"common start: trained before, in {tmp_path}/run/start" in said, said
    undisturbed = divided(data, tmp_path / "undisturbed", common_steps=4, steps=30, **options)
    succeed(run_ranks(2, "-m", "hvdkit.train", *as_words(undisturbed)))
    assert read(tmp_path / "run")["rows"] == read(tmp_path / "undisturbed")["rows"]


@pytest.mark.launch
def test_what_cannot_be_divided(tmp_path: Path) -> None:
    law, code = write_domains(tmp_path, NAMES[:2])
    both, out = ["--divide", law, code], ["--out", tmp_path / "out"]
    assert "law is one domain" in fail(tmp_path, "--divide", law, *out)
    assert "must not overlap" in fail(tmp_path, "--divide", law, f"{law}/part1.txt", *out)
    assert "move" in fail(tmp_path, *both, "--data", code, *out)
    assert "--common-steps 2 must be" in fail(tmp_path, *both, "--common-steps", "2", *out)
    assert "--merge-rules sum: use some of average" in fail(tmp_path, *both, "--merge-rules", "sum", *out)
    assert "slerp merges exactly 2" in fail(tmp_path, "--divide", "--merge-rules", "average,slerp", *out)
    assert "goes with none of --sharding" in fail(tmp_path, *both, "--sharding", "1", *out)
    assert "start 2 ranks or fewer" in fail(tmp_path, *both, *out, ranks=3, launcher="horovodrun-gloo")
    assert not (tmp_path / "out").exists()
