"""Plant small faults, one at a time, in the functions that make the numbers, and see whether a test notices.

    pip install cosmic-ray==8.7.0
    python tests/mutation.py --folder runs/mutation    # about two hours; the same command goes on

cosmic-ray plants the faults, in a copy of the checkout: another operator, comparison or number, a condition
negated, a loop that never runs, a decorator removed. Each fault is killed if one of the tests of its module
fails. Faults in error messages are left out, because no number depends on them.
mutation.json keeps the counts and the faults that survived, each with the reason, in a line, why it changes
nothing that matters: `why` is written by hand, and a new run keeps it. Exit status 1 if fewer than 90 % are
killed or if a reason is missing.
"""

import argparse
import ast
import difflib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "mutation.json"
LEAST_KILLED = 0.9
SMART_TESTS = ["tests/smart", "mysmartloss.py"]
STEP_TESTS = ["tests/test_training_loss.py", "tests/test_loss_curves.py", "tests/test_against_reference.py"]
BATCH_TESTS = [  # without the slow ones of tokenising and of several processes
    "tests/test_datasets.py",
    "--deselect=tests/test_datasets.py::test_tokens_are_those_of_transformers",
    "tests/test_parallel.py::test_shares_of_a_batch_make_up_the_batch",
    "tests/test_parallel.py::test_noise_of_a_row_is_the_same_in_every_share",
]
ALL = ("",)

# file -> (functions and classes by the beginning of their qualified name, tests from the fastest on)
MODULES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "mysmartloss.py": (ALL, [*SMART_TESTS, *STEP_TESTS, "tests/test_devices.py"]),
    "optimizer.py": (ALL, ["tests/test_optimizer.py", *STEP_TESTS]),
    "evaluation.py": (
        ("accuracy", "macro_f1", "pearson", "spearman", "_correlation", "outputs", "score", "Evaluation"),
        ["tests/metrics", "tests/test_selection.py"],
    ),
    "tasks.py": (ALL, ["tests/metrics", "tests/test_tasks.py", *STEP_TESTS]),
    "datasets.py": (
        (
            *("length_buckets", "_cut", "Loader", "collate", "Batch", "split_pairs"),
            *("round_robin", "one_after_another", "proportional", "annealed", "joint"),
        ),
        [*BATCH_TESTS, "tests/test_pairs_apart.py", "tests/program/test_schedules.py", *STEP_TESTS[:2]],
    ),
    "training.py": (
        ("plan_steps", "Learner", "pcgrad"),
        ["tests/test_learner.py", "tests/test_mixing.py", "tests/program/test_schedules.py", *STEP_TESTS],
    ),
    "losses.py": (
        ALL,
        ["tests/test_learner.py", "tests/smart/test_freelb.py", "tests/test_pairs_apart.py", *STEP_TESTS],
    ),
    "multitask_classifier.py": (
        (
            *("training_loss", "TrainingLoss", "Cosine", "MultitaskBERT.logits", "MultitaskBERT.forward"),
            *("MultitaskBERT.pooled", "MultitaskBERT.sequences", "MultitaskBERT.sentence_vectors"),
        ),
        [
            *("tests/test_learner.py", "tests/test_pairs_apart.py", *STEP_TESTS),
            *("tests/test_dropout.py", "tests/test_precision.py"),
        ],
    ),
}
# One or two replacements for each operator: the other nine of `+` are killed by the same tests.
OPERATORS = [
    *(f"ReplaceBinaryOperator_{change}" for change in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul")),
    *(
        f"ReplaceBinaryOperator_{change}"
        for change in ("FloorDiv_Div", "Mod_FloorDiv", "Pow_Mul", "BitAnd_BitOr")
    ),
    *(f"ReplaceComparisonOperator_{change}" for change in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(
        f"ReplaceComparisonOperator_{change}"
        for change in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt")
    ),
    *(f"ReplaceUnaryOperator_{change}" for change in ("USub_UAdd", "Delete_Not", "Delete_Invert")),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "AddNot"),
    *("NumberReplacer", "ZeroIterationForLoop", "RemoveDecorator", "ReplaceContinueWithBreak"),
]


class Fault(NamedTuple):
    """One change of one line. before, after: the lines that differ, without their indentation."""

    where: str  # file:function
    before: str
    after: str
    code: str  # the whole file with the fault

    @property
    def key(self) -> str:
        return f"{self.where}: {self.before} -> {self.after}"


def names_of_lines(tree: ast.Module) -> tuple[dict[int, str], set[int]]:
    """Line number -> qualified name of the function, class or variable there; and the lines of `raise`."""
    names: dict[int, str] = {}
    raised: set[int] = set()

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
            elif isinstance(child, ast.Assign | ast.AnnAssign) and not name:
                target = child.targets[0] if isinstance(child, ast.Assign) else child.target
                inner = ast.unparse(target)
            if isinstance(child, ast.stmt):
                first = min([child.lineno, *(d.lineno for d in getattr(child, "decorator_list", []))])
                names.update(dict.fromkeys(range(first, child.end_lineno + 1), inner))
            if isinstance(child, ast.Raise):
                raised.update(range(child.lineno, child.end_lineno + 1))
            visit(child, inner)

    visit(tree, "")
    return names, raised


def faults_of(file: str) -> Iterator[Fault]:
    """Every fault that the operators make in the functions of the file."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (HERE.parent / file).read_text(encoding="utf-8")
    names, raised = names_of_lines(ast.parse(source))
    tree = get_ast(source)
    for operator_name in OPERATORS:
        operator = get_operator(f"core/{operator_name}")()
        places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            name = names.get(line, "")
            if line in raised or not any(name.startswith(chosen) for chosen in MODULES[file][0]):
                continue
            code = mutate_code(source, operator, occurrence)
            changes = list(difflib.ndiff(source.splitlines(), code.splitlines()))
            before, after = (
                " / ".join(text[2:].strip() for text in changes if text[0] == sign) for sign in "-+"
            )
            yield Fault(f"{file}:{name}", before, after, code)


def run_tests(copy: Path, tests: list[str], seconds: float) -> str:
    """`survived`, `killed`, or `timeout` after so many seconds; the tests run in a fork of this process.

    A fork has the libraries loaded, which would take more time than most tests.
    """
    process = os.fork()
    if process == 0:
        os.setsid()
        os.chdir(copy)
        silence = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return "killed" if os.waitstatus_to_exitcode(status) else "survived"
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "timeout"


def copy_checkout(folder: Path) -> Path:
    """A copy of the files that git has, as they are now."""
    copy = Path(tempfile.mkdtemp(dir=folder))
    listed = subprocess.run(["git", "ls-files"], cwd=HERE.parent, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((HERE.parent / name).read_bytes())
    return copy


def try_faults(folder: Path, only: list[str]) -> dict[str, str]:
    """Outcome by fault, those in the folder's file included; each is written there as it comes."""
    progress = folder / "outcomes.jsonl"
    lines = progress.read_text(encoding="utf-8").splitlines() if progress.exists() else []
    outcomes: dict[str, str] = dict(json.loads(line) for line in lines)
    copy = copy_checkout(folder)
    for file in only:
        faults = {fault.key: fault for fault in faults_of(file)}
        left = [fault for key, fault in faults.items() if key not in outcomes]
        if not left:
            continue
        tests = MODULES[file][1]
        begin = time.monotonic()
        if run_tests(copy, tests, 1800) != "survived":
            raise SystemExit(f"{file}: the tests fail without a fault; see {copy / 'output.txt'}")
        taken = time.monotonic() - begin
        print(f"{file}: {len(left)} of {len(faults)} faults left; the tests take {taken:.0f} s", flush=True)
        original = (copy / file).read_text(encoding="utf-8")
        for fault in left:
            (copy / file).write_text(fault.code, encoding="utf-8")
            outcomes[fault.key] = run_tests(copy, tests, 30 + 4 * taken)
            (copy / file).write_text(original, encoding="utf-8")
            with progress.open("a", encoding="utf-8") as out:
                out.write(json.dumps([fault.key, outcomes[fault.key]]) + "\n")
            if outcomes[fault.key] != "killed":
                print(f"  {outcomes[fault.key]}: {fault.key}", flush=True)
    return outcomes


def summary(outcomes: dict[str, str], reasons: dict[str, str]) -> dict[str, Any]:
    """What is kept: counts by module, and the survivors with their reasons."""
    tried: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    for key, outcome in outcomes.items():
        module = key.partition(":")[0]
        tried[module] += 1
        killed[module] += outcome != "survived"
    survivors = {
        key: reasons.get(key, "") for key, outcome in sorted(outcomes.items()) if outcome == "survived"
    }
    modules = {module: {"tried": tried[module], "killed": killed[module]} for module in tried}
    return {"command": "python tests/mutation.py", "modules": modules, "survivors": survivors}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the copy and what has been tried")
    parser.add_argument(
        "--files", nargs="+", choices=MODULES, default=list(MODULES), help="these modules only"
    )
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    options = parser.parse_args()
    if options.list:
        for file in options.files:
            for fault in faults_of(file):
                print(fault.key)
        return 0
    sys.dont_write_bytecode = True  # a fault of the same length in the same second would not be seen
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.path.remove(str(HERE))  # the copy's helpers, not these
    options.folder.mkdir(parents=True, exist_ok=True)
    import pytest  # noqa: F401  # what the forks would load
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoTokenizer, BertModel  # noqa: F401  # a package that loads its parts late

    outcomes = try_faults(options.folder.resolve(), options.files)
    old = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {"survivors": {}}
    found = summary(outcomes, old["survivors"])
    OUTPUT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = found["modules"].values()
    share = sum(count["killed"] for count in counts) / sum(count["tried"] for count in counts)
    unexplained = [key for key, why in found["survivors"].items() if not why]
    print(f"{share:.1%} of {len(outcomes)} faults killed; survivors without a reason: {len(unexplained)}")
    print("\n".join(unexplained))
    return int(share < LEAST_KILLED or bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
