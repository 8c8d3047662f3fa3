"""The layout of the code: what stands where, who imports whom, which private functions of torch are used."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# from the top down; a module may import what stands below it, and `support` nothing outside itself
FLOORS = [
    {"multitask_classifier"},
    {"submit", "adapt", "average"},
    {"run_files", "dry_run"},
    {"checkpoint", "ask"},
    {"config", "model_card"},
    {"evaluation", "bert"},
    {"datasets", "base_bert", "report"},
    {"tasks"},
    {"support", "optimizer", "mysmartloss"},
]
MODULES = {path.stem: path for path in ROOT.glob("*.py")}
SUPPORT = {
    f"support.{path.stem}": path for path in (ROOT / "support").glob("*.py") if path.stem != "__init__"
}


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def ours(path: Path) -> set[str]:
    """Modules of this project that a file imports; `support` counts as one."""
    known = {*MODULES, "support", "benchmarks", "experiments"}
    return {name.split(".")[0] for name in imported(path)} & known


def test_the_top_level_holds_what_the_design_says():
    """Guards against a new file at the top that no newcomer expects."""
    assert set(MODULES) | {"support"} == set.union(*FLOORS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_upward(name):
    """Guards against a room that can only be read after the one that uses it, and against losses that nobody
    can use outside this project: mysmartloss stands at the bottom."""
    floor = next(place for place, modules in enumerate(FLOORS) if name in modules)
    below = set().union(*FLOORS[floor + 1 :])
    assert ours(MODULES[name]) <= below


def test_support_imports_nothing_of_ours():
    """Guards against a helper that knows BERT or a task: it could not be used, or read, alone."""
    for path in SUPPORT.values():
        assert ours(path) <= {"support"}, path


def test_there_are_no_circles():
    """Guards against modules that import each other, within `support` as well."""
    paths = MODULES | SUPPORT
    graph = {name: imported(path) & set(paths) for name, path in paths.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(paths)  # raises CycleError


@pytest.mark.parametrize("folder", ["benchmarks", "experiments"])
def test_benchmarks_and_experiments_use_public_names(folder):
    """Guards against measurements that break with every change inside a module."""
    for path in (ROOT / folder).glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        ours_from = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module in MODULES | SUPPORT]
        names = [alias.name for node in ours_from for alias in node.names]
        for node in nodes:  # module._name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names += [node.attr] * (node.value.id in {*MODULES, "program"})
        assert [name for name in names if name.startswith("_")] == [], path


def test_private_functions_of_torch_are_known_and_there():
    """Guards against a release of torch that drops a private function, and against new uses of them.

    Without `_fused_adamw_` AdamW's formula takes its place, which stands beside it.
    """
    used = set()
    for path in {**MODULES, **SUPPORT}.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and re.match(r"torch(\.\w+)*\._[a-z]", ast.unparse(node)):
                used.add((path.name, node.attr))
    assert used == {("optimizer.py", "_fused_adamw_")} and hasattr(torch, "_fused_adamw_")
