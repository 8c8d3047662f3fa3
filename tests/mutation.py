"""Plant small faults, one at a time, in the functions that make the numbers, and see whether a test notices.

    pip install cosmic-ray==8.7.0
    python tests/mutation.py --folder runs/mutation    # about two hours; the same command goes on

cosmic-ray makes the faults, in a copy of what git has staged: another operator, comparison or number, a
condition negated, a loop that never runs, a decorator removed. A fault is killed if one of the tests of its
module fails. Faults in error messages are left out, because no number depends on them.
mutation.json keeps the counts and the faults that survived, each with the reason why it changes nothing that
matters; the reasons are written by hand, and a new run keeps them. Exit status 1 if fewer than 90 % are
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
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "mutation.json"
LEAST_KILLED = 0.9
STEP_TESTS = ["tests/test_training_loss.py", "tests/test_loss_curves.py", "tests/test_against_reference.py"]
MODEL = "MultitaskBERT"
# file -> the functions and classes whose faults are planted, and the tests from the fastest on
MODULES: dict[str, tuple[set[str], list[str]]] = {
    "mysmartloss.py": (set(), ["tests/smart", "mysmartloss.py", *STEP_TESTS]),
    "optimizer.py": (
        set(),
        ["tests/test_optimizer.py", "tests/test_mixing.py", "tests/test_step.py", *STEP_TESTS],
    ),
    "tasks.py": (set(), ["tests/metrics", "tests/test_tasks.py", *STEP_TESTS]),
    "evaluation.py": ({"outputs", "Evaluation"}, ["tests/metrics", "tests/test_selection.py"]),
    "datasets.py": (
        {"length_buckets", "Loader", "collate", "Batch", "split_pairs", "plan_steps"},
        [
            *("tests/test_datasets.py", "tests/test_split_pairs.py", "tests/program/test_schedules.py"),
            *("tests/test_parallel.py::test_shares_of_a_batch_make_up_the_batch", *STEP_TESTS[:2]),
        ],
    ),
    "support/schedules.py": (
        {"round_robin", "one_after_another", "proportional", "annealed", "joint"},
        ["tests/program/test_schedules.py"],
    ),
    "multitask_classifier.py": (
        {
            *("training_loss", "smart_loss", "rounding_floor", "contrastive_term", "forward_passes"),
            *("optimizer_groups", "Cosine", f"{MODEL}.logits", f"{MODEL}.forward", f"{MODEL}.pooled"),
            *(f"{MODEL}.sequences", f"{MODEL}.sentence_vectors"),
        },
        [
            *("tests/test_step.py", "tests/test_split_pairs.py", "tests/smart/test_freelb.py", *STEP_TESTS),
            *("tests/test_mixing.py", "tests/test_precision.py"),
        ],
    ),
}
# One or two replacements for each operator: the other nine of `+` are killed by the same tests.
BINARY = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_FloorDiv Pow_Mul BitAnd_BitOr"
COMPARISON = "Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is Lt_LtE LtE_Lt Gt_GtE GtE_Gt Lt_Gt Gt_Lt"
UNARY = "USub_UAdd Delete_Not Delete_Invert"
OTHERS = "AndWithOr OrWithAnd TrueWithFalse FalseWithTrue ContinueWithBreak"
OPERATORS = [
    *(f"ReplaceBinaryOperator_{change}" for change in BINARY.split()),
    *(f"ReplaceComparisonOperator_{change}" for change in COMPARISON.split()),
    *(f"ReplaceUnaryOperator_{change}" for change in UNARY.split()),
    *(f"Replace{change}" for change in OTHERS.split()),
    *("AddNot", "NumberReplacer", "ZeroIterationForLoop", "RemoveDecorator"),
]


def names_of_lines(source: str, chosen: set[str]) -> dict[int, str]:
    """Line number -> qualified name of its function or class, if it is chosen. Without lines of `raise`."""
    names: dict[int, str] = {}

    def visit(node: ast.AST, name: str, wanted: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
            inside = wanted or inner in chosen
            if isinstance(child, ast.stmt):
                first = min([child.lineno, *(d.lineno for d in getattr(child, "decorator_list", []))])
                lines = range(first, (child.end_lineno or first) + 1)
                if isinstance(child, ast.Raise):
                    for line in lines:
                        names.pop(line, None)
                elif inside:
                    names.update(dict.fromkeys(lines, inner))
            visit(child, inner, inside)

    visit(ast.parse(source), "", not chosen)
    return names


def faults_of(file: str) -> Iterator[tuple[str, str]]:
    """Every fault that the operators make in the chosen functions: a line that describes it, and the file's
    text with it."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (HERE.parent / file).read_text(encoding="utf-8")
    names = names_of_lines(source, MODULES[file][0])
    tree = get_ast(source)
    for operator_name in OPERATORS:
        operator = get_operator(f"core/{operator_name}")()
        places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            if line not in names:
                continue
            code = mutate_code(source, operator, occurrence)
            changes = list(difflib.ndiff(source.splitlines(), code.splitlines()))
            before, after = (
                " / ".join(text[2:].strip() for text in changes if text[0] == sign) for sign in "-+"
            )
            yield f"{file}:{names[line]}: {before} -> {after}", code


def run_tests(copy: Path, tests: list[str], seconds: float) -> str:
    """`survived`, `killed`, or `timeout` after so many seconds.

    The tests run in a fork of this process, which has loaded the libraries. Most tests are shorter than that.
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


def try_faults(folder: Path, file: str) -> dict[str, str]:
    """Outcome of each fault of the file. Those in the folder's record are not tried again."""
    record = folder / f"{file}.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    outcomes: dict[str, str] = dict(json.loads(line) for line in lines)
    copy = folder / "copy"
    subprocess.run(["git", "checkout-index", "-af", f"--prefix={copy}/"], cwd=HERE.parent, check=True)
    tests = MODULES[file][1]
    begin = time.monotonic()
    if run_tests(copy, tests, 1800) != "survived":
        raise SystemExit(f"{file}: the tests fail without a fault; see {copy / 'output.txt'}")
    taken = time.monotonic() - begin
    original = (copy / file).read_text(encoding="utf-8")
    faults = dict(faults_of(file))
    print(
        f"{file}: {len(faults)} faults, {len(outcomes)} of them tried; the tests take {taken:.0f} s",
        flush=True,
    )
    for fault, code in faults.items():
        if fault in outcomes:
            continue
        (copy / file).write_text(code, encoding="utf-8")
        outcomes[fault] = run_tests(copy, tests, 30 + 4 * taken)
        (copy / file).write_text(original, encoding="utf-8")
        with record.open("a", encoding="utf-8") as out:
            out.write(json.dumps([fault, outcomes[fault]]) + "\n")
        if outcomes[fault] != "killed":
            print(f"  {outcomes[fault]}: {fault}", flush=True)
    return {fault: outcomes[fault] for fault in faults}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the copy and what has been tried")
    parser.add_argument("--files", nargs="+", choices=MODULES, default=list(MODULES), help="these files only")
    options = parser.parse_args()
    sys.dont_write_bytecode = True  # a fault of the same length in the same second would not be seen
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.path.remove(str(HERE))  # the copy's helpers, not these
    options.folder.mkdir(parents=True, exist_ok=True)
    import pytest  # noqa: F401  # what the forks would load
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoTokenizer, BertModel  # noqa: F401  # a package that loads its parts late

    found = json.loads(OUTPUT.read_text(encoding="utf-8"))
    reasons = found["survivors"]
    for file in options.files:
        outcomes = try_faults(options.folder.resolve(), file)
        survivors = [fault for fault, outcome in outcomes.items() if outcome == "survived"]
        found["modules"][file] = {"tried": len(outcomes), "killed": len(outcomes) - len(survivors)}
        kept = {fault: why for fault, why in found["survivors"].items() if not fault.startswith(f"{file}:")}
        found["survivors"] = kept | {fault: reasons.get(fault, "") for fault in sorted(survivors)}
        OUTPUT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tried, killed = (sum(count[key] for count in found["modules"].values()) for key in ("tried", "killed"))
    unexplained = [fault for fault, why in found["survivors"].items() if not why]
    print(
        f"{killed} of {tried} faults killed; survivors without a reason: {len(unexplained)}",
        *unexplained,
        sep="\n",
    )
    return int(killed < LEAST_KILLED * tried or bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
