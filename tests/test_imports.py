"""The house: imports point down, only runtime/ knows Horovod and MPI, and the environment is read where it may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hvdkit"

# From the roof down. A part may import what stands below it, and itself. `hvdkit/__init__.py` (the names) is read
# by the path aliases and the command only.
LAYERS = [
    ["cli"],
    ["plan"],
    ["train"],
    ["launch"],
    ["merge"],
    ["local"],
    ["sharding"],
    ["checkpoint"],
    ["models"],
    ["data"],
    ["files"],
    ["mpi_ops", "functions", "optimizer", "sync_batch_norm", "compression"],
    ["elastic"],
    ["optim"],
    ["collectives"],
    ["runtime"],
    ["horovod_build"],
    ["untrusted"],
    ["errors", "contract"],
]
LEVEL = {part: number for number, parts in enumerate(LAYERS) for part in parts}
USERS_OF_NAMES = {"cli", "mpi_ops", "functions", "optimizer", "sync_batch_norm"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return "__init__" if first == "__init__.py" else first.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that `path` imports, inside functions too; type-only imports do not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.lineno, node.module


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__"} <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    for line, module in imported(path):
        if module.split(".")[0] != "hvdkit":
            continue
        target = module.split(".")[1] if "." in module else "__init__"
        where = f"{path.name}:{line} imports {module}"
        if part == "__init__" or target == part:
            continue
        if target == "__init__":
            assert part in USERS_OF_NAMES, where
        else:
            assert LEVEL[target] > LEVEL[part], where


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_runtime_knows_horovod_and_mpi(path: Path) -> None:
    if part_of(path) == "runtime":
        return
    for line, module in imported(path):
        assert module.split(".")[0] not in ("horovod", "mpi4py"), f"{path.name}:{line} imports {module}"


def test_no_cycles_between_modules() -> None:
    names = {".".join(("hvdkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
             for path in MODULES}  # fmt: skip
    graph = {name: {m for _, m in imported(path) if m in names and m not in (name, "hvdkit")}
             for name, path in names.items()}  # fmt: skip
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_environment_is_read_where_it_may_be() -> None:
    allowed = {"runtime", "horovod_build", "launch"}
    for path in MODULES:
        if part_of(path) in allowed:
            continue
        text = path.read_text(encoding="utf-8")
        assert "os.environ" not in text and "os.getenv" not in text, path
