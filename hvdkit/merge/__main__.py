"""`python -m hvdkit.merge recipe.yaml --out merged/`, also `hvdkit merge`: alone or under horovodrun, mpirun, srun."""

import argparse
import sys
import time
from pathlib import Path

import torch

from hvdkit.data.named_function import import_function
from hvdkit.data.progress import Say
from hvdkit.errors import ConfigError
from hvdkit.merge.execute import merge_files
from hvdkit.merge.output import check_free
from hvdkit.merge.plan import expanded, make_plan
from hvdkit.merge.recipe import Recipe, read_recipe
from hvdkit.merge.rules import RULES
from hvdkit.merge.sight import look
from hvdkit.merge.soup_of_files import choose_members
from hvdkit.merge.tensor import memory_bytes
from hvdkit.runtime import World, end_job_on_error, init, share_object, together


def main(argv: list[str] | None = None) -> int:
    """Merge; returns the exit status. Every fault ends all ranks with one message."""
    options = _parser().parse_args(argv)
    with end_job_on_error():
        world = init()
        torch.set_num_threads(world.threads)
        own = together(world, lambda: expanded(read_recipe(options.recipe)) if world.is_root else None)
        recipe: Recipe = share_object(world, own)  # type: ignore[assignment]
        metric = together(world, lambda: import_function(recipe.metric, ConfigError) if recipe.metric else None)
        say = _say if world.is_root else _keep_quiet
        started = time.perf_counter()
        if options.dry_run:
            _show(world, recipe, say)
        else:
            if recipe.rule == "greedy_soup":
                together(world, lambda: check_free(options.out))
                recipe = choose_members(world, recipe, metric, options.out, say)  # type: ignore[arg-type]
            merge_files(world, recipe, options.out, say)
            say(f"merged {len(recipe.models)} submodels into {options.out} in {time.perf_counter() - started:.2f} s")
    return 0


def _show(world: World, recipe: Recipe, say: Say) -> None:
    sight = look(world, recipe)
    plan = together(world, lambda: make_plan(recipe, sight.infos))
    sight.close()
    for number, model in enumerate(recipe.models):
        weight, density = (" to ".join(f"{value:g}" for value in values) for values in (model.weight, model.density))
        say(f"submodel {number}: {model.path}, weight {weight}, density {density}")
    if recipe.metric:
        say(f"greedy_soup: the average of those submodels that make {recipe.metric} no worse")
    if recipe.base:
        say(f"base: {recipe.base}")
    for line in plan.describe():
        say(line)
    for file, names in plan.layout.files().items():
        n_bytes = sum(plan.layout.infos[name].n_bytes for name in names)
        say(f"{file}: {len(names):,} tensors, {n_bytes / 1e9:.3g} GB")
    for rank, share in enumerate(plan.shares(world.size)):
        say(f"rank {rank}: {len(share):,} tensors, {sum(task.out.count for task in share):,} elements")
    say(f"memory: {memory_bytes(len(recipe.models)) / 1e6:.0f} MB per rank beside Python's and torch's own")
    if not sight.sees_all:
        say("not every rank sees every submodel: blocks are exchanged over MPI")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _keep_quiet(text: str) -> None:
    pass


def _parser() -> argparse.ArgumentParser:
    rules = "\n".join(f"  {name:<18}{rule.formula}\n{'':<20}{rule.source}" for name, rule in RULES.items())
    parser = argparse.ArgumentParser(
        prog="hvdkit merge",
        description="Merge models that were trained apart, by a recipe in YAML (its entries: see README.md).",
        epilog=f"rules, with t_i = theta_i - base:\n{rules}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="a YAML file")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder of the merged model; must not exist")
    where.add_argument("--dry-run", action="store_true", help="check everything and show what would be done")
    return parser


if __name__ == "__main__":
    sys.exit(main())
