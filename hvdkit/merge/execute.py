"""Merges the files of submodels into a model folder, over all ranks.

Where every rank sees all submodels, each merges its share of the tensors, block by block, from its own file handles
into its own places of the output: nothing is sent. Otherwise blocks are exchanged (`apart`). Memory per rank is a few
blocks per submodel (some MB), whatever the size of the model.
"""

import contextlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hvdkit.checkpoint import find_model
from hvdkit.data.progress import Progress, Say
from hvdkit.errors import MergeError
from hvdkit.merge.apart import merge_apart
from hvdkit.merge.blocks import Grid
from hvdkit.merge.c_library import trim_heap
from hvdkit.merge.files import Submodel, combined, file_in
from hvdkit.merge.output import OutputFiles, output_folder
from hvdkit.merge.plan import Plan, Task, make_plan
from hvdkit.merge.recipe import Recipe
from hvdkit.merge.sight import Sight, look
from hvdkit.merge.tensor import Read, Scratch, TensorMerge, computed_in
from hvdkit.runtime import World, gather_objects, share_object, together
from hvdkit.untrusted import parse_json

RECORD_FILE = "merge.json"
_CARRIED = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
            "vocab*", "merges.txt", "*.model", "chat_template*")  # fmt: skip


def merge_files(world: World, recipe: Recipe, out: Path, say: Say) -> Path:
    """Merge by `recipe`, `expanded`, into the new folder `out`; returns it. Collective.

    Raises MergeError or ConfigError on all ranks alike; then there is no `out`, and no input was changed.
    """
    if recipe.files_from:
        together(world, lambda: find_model(Path(str(recipe.files_from))) if world.is_root else None)
    sight = look(world, recipe)
    try:
        plan = together(world, lambda: make_plan(recipe, sight.infos))
        with _output(world, out) as beside:
            files = _open_output(world, beside, plan)
            if sight.sees_all and all(gather_objects(world, files is not None)):
                together(world, lambda: _merge_share(world, plan, sight, files, say))
            else:
                merge_apart(world, plan, sight, files, say)
            together(world, lambda: files.close() if files is not None else None)
            hashes = gather_objects(world, [s.hashes() if s is not None else {} for s in sight.mine])
            together(world, lambda: _finish(beside, plan, sight, hashes) if world.is_root else None)
    finally:
        sight.close()
    return out


@contextlib.contextmanager
def _output(world: World, out: Path) -> Iterator[Path]:
    """The hidden folder, on all ranks; its errors are everyone's. Collective at both ends."""
    with contextlib.ExitStack() as stack:
        beside = together(world, lambda: stack.enter_context(_written(out)) if world.is_root else None)
        yield share_object(world, beside)  # type: ignore[misc]
        together(world, lambda: stack.close() if world.is_root else None)


@contextlib.contextmanager
def _written(out: Path) -> Iterator[Path]:
    try:
        with output_folder(out) as beside:
            yield beside
    except OSError as error:
        raise MergeError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def _open_output(world: World, beside: Path, plan: Plan) -> OutputFiles | None:
    """None on ranks that don't see the folder."""
    together(world, lambda: OutputFiles.create(beside, plan.layout) if world.is_root else None)
    return together(world, lambda: OutputFiles(beside, plan.layout) if beside.is_dir() else None)


def _merge_share(world: World, plan: Plan, sight: Sight, files: OutputFiles | None, say: Say) -> None:
    assert files is not None
    share = plan.shares(world.size)[world.rank]
    progress = Progress("merging", sum(task.out.n_bytes for task in share), say)
    scratch = Scratch()
    for task in share:
        for start, values in _merged(task, plan, sight, scratch):
            files.write(task.name, start, values)
            progress.advance(values.numel() * task.out.dtype.itemsize)
        files.done(task.name)
        trim_heap()


def _merged(task: Task, plan: Plan, sight: Sight, scratch: Scratch) -> Iterator[tuple[int, torch.Tensor]]:
    submodels = [(plan.recipe.models[number].path, sight.mine[number]) for number in task.models]
    reads = {path: _read(submodel, task.name) for path, submodel in submodels}
    if task.settings is None:
        yield from _copied(task, reads)
        return
    rule = task.settings.rule
    base = _read(sight.mine[-1], task.name) if rule.has_base else None
    dtypes = [infos[task.name].dtype for infos in sight.infos if infos is not None and task.name in infos]
    names = [path for path, _ in submodels]
    merge = TensorMerge(
        task.name, task.out.shape, computed_in(dtypes), task.settings,
        [_read(submodel, task.name) for _, submodel in submodels], base, scratch, [*names, str(plan.recipe.base)],
    )  # fmt: skip
    for block, values in merge.merged():
        yield block.start, values


def _copied(task: Task, reads: dict[str, Read]) -> Iterator[tuple[int, torch.Tensor]]:
    for block in Grid(task.out.shape).blocks():
        path, first = next(iter(reads.items()))
        values = first(block.start, block.stop).clone()
        for other, read in reads.items():
            if not torch.equal(values, read(block.start, block.stop)):
                raise MergeError(
                    f"{task.name} is {task.out.dtype} and not the same in {path} and {other}: it cannot be merged"
                )
        yield block.start, values


def _read(submodel: Submodel | None, name: str) -> Read:
    assert submodel is not None
    return lambda start, stop: submodel.read(name, start, stop)


def _finish(beside: Path, plan: Plan, sight: Sight, hashes: list[list[dict[str, str]]]) -> None:
    """Carry over configuration and tokenizer, and write the record."""
    _carry_over(beside, plan, sight)
    inputs = []
    paths = [*(model.path for model in plan.recipe.models), plan.recipe.base]
    for number, (path, infos) in enumerate(zip(paths, sight.infos, strict=True)):
        if infos is not None:
            of_all = {name: digest for of_rank in hashes for name, digest in of_rank[number].items()}
            inputs.append({"path": path, "tensors_read": len(of_all), "hash": combined(of_all, infos)})
    record = {"hvdkit": importlib.metadata.version("hvdkit"), "recipe": plan.recipe.to_dict(), "inputs": inputs}
    (beside / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _carry_over(beside: Path, plan: Plan, sight: Sight) -> None:
    folders = [submodel.folder for submodel in (sight.mine[-1], *sight.mine[:-1]) if submodel is not None]
    folder = next((folder for folder in folders if folder is not None), None)
    if plan.recipe.files_from:
        folder = find_model(Path(plan.recipe.files_from))
    if folder is None:
        return
    for path in sorted({path for pattern in _CARRIED for path in folder.glob(pattern) if path.is_file()}):
        shutil.copyfile(file_in(folder, path.name), beside / path.name)
    config = beside / "config.json"
    if plan.recipe.dtype and config.is_file():
        try:
            content: dict[str, Any] = parse_json(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MergeError(f"{folder / 'config.json'}: cannot be read ({error})") from None
        for key in ("dtype", "torch_dtype"):
            if isinstance(content, dict) and key in content:
                content[key] = plan.recipe.dtype
        config.write_text(json.dumps(content, indent=1), encoding="utf-8")
