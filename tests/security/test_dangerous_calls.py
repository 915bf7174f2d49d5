"""What no module of hvdkit may call, and the few places that may, with the reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "hvdkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

UNPICKLING = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "marshal.load",
    "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads",
}  # fmt: skip
RUNNING = {"eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "runpy.run_path", "builtins.exec"}
YAML = {
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
}  # fmt: skip

ALLOWED = {
    # Objects that the ranks of a job send each other through Horovod's engine; mpi4py pickles others likewise. The
    # network inside a job is trusted (SECURITY.md). Nothing of it comes from a file.
    ("collectives/horovod_engine.py", "pickle.loads"),
    # With a safe loader, which `test_yaml_is_loaded_safely` checks.
    ("untrusted.py", "yaml.load"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_dangerous_is_called(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    for name, call in calls(path):
        given = keywords(call)
        if (place, name) in ALLOWED:
            continue
        assert name not in UNPICKLING | RUNNING | YAML, f"{place}:{call.lineno}: {name}"
        assert given.get("shell", "False") == "False", f"{place}:{call.lineno}: {name}(shell=...)"
        assert given.get("allow_pickle", "False") == "False", f"{place}:{call.lineno}: {name}(allow_pickle=...)"
        assert given.get("trust_remote_code", "False") == "False", f"{place}:{call.lineno}: {name}"
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"{place}:{call.lineno}: torch.load without weights_only=True"
        if name in ("np.load", "numpy.load"):
            assert "allow_pickle" not in given, f"{place}:{call.lineno}"


def test_every_exception_is_needed() -> None:
    found = {(str(path.relative_to(PACKAGE)), name) for path in MODULES for name, _ in calls(path)}
    assert found >= ALLOWED


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_dangerous_is_imported_by_name(path: Path) -> None:
    forbidden = {name.rpartition(".")[::2] for name in UNPICKLING | YAML | RUNNING if "." in name}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not {(node.module, alias.name) for alias in node.names} & forbidden, f"{path}:{node.lineno}"


def test_yaml_is_loaded_safely() -> None:
    from hvdkit.untrusted import _loader, parse_yaml

    assert _loader().__name__ in ("CSafeLoader", "SafeLoader")
    for text in ("!!python/object/apply:os.getcwd []", "!!python/name:os.system", "&a [*a]"):
        with pytest.raises(ValueError, match="not allowed"):
            parse_yaml(text)
