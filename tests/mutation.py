"""Plant small faults, one at a time, in the files that make the numbers, and see whether a test notices.

    pip install cosmic-ray==8.7.0
    python tests/mutation.py --folder runs/mutation --faults 30    # of each file; about an hour

cosmic-ray makes the faults, in a copy of what git has staged: another operator, comparison or number, a
condition negated, a loop that never runs. A fault is killed if a test of its file fails. mutation.json keeps
the counts, and each survivor with the reason why it changes no number that matters; reasons are written by
hand. Exit status 1 if fewer than 90 % are killed.
"""

import argparse
import difflib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "mutation.json"
STEP_TESTS = ["tests/test_training_loss.py", "tests/test_loss_curves.py", "tests/test_against_reference.py"]
MODULES = {  # file -> its tests, the fastest first
    "mysmartloss.py": ["tests/smart", *STEP_TESTS],
    "optimizer.py": ["tests/test_optimizer.py", "tests/test_mixing.py", "tests/test_step.py", *STEP_TESTS],
    "tasks.py": ["tests/metrics", "tests/test_tasks.py", *STEP_TESTS],
    "evaluation.py": ["tests/metrics", "tests/test_selection.py", "tests/predicting"],
    "datasets.py": ["tests/test_datasets.py", "tests/test_split_pairs.py", "tests/reading", *STEP_TESTS],
    "multitask_classifier.py": ["tests/test_step.py", "tests/test_split_pairs.py", *STEP_TESTS],
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


def faults_of(file: str) -> dict[str, str]:
    """Every fault that the operators make: a line that describes it -> the file's text with it."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (HERE.parent / file).read_text(encoding="utf-8")
    found = {}
    for operator_name in OPERATORS:
        operator = get_operator(f"core/{operator_name}")()
        places = [p for node in ast_nodes(get_ast(source)) for p in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            code = mutate_code(source, operator, occurrence)
            changes = list(difflib.ndiff(source.splitlines(), code.splitlines()))
            before, after = (" / ".join(c[2:].strip() for c in changes if c[0] == sign) for sign in "-+")
            if "raise " not in before and "log." not in before:  # no number depends on a message
                found[f"{file}:{line}: {before} -> {after}"] = code
    return found


def killed(copy: Path, tests: list[str]) -> bool:
    """Whether a test fails in the copy, or takes longer than ten minutes."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=600)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the copy")
    parser.add_argument("--faults", type=int, default=30, help="of each file, drawn at random")
    parser.add_argument("--files", nargs="+", choices=MODULES, default=list(MODULES), help="these files only")
    options = parser.parse_args()
    copy = options.folder.resolve() / "copy"
    subprocess.run(["git", "checkout-index", "-af", f"--prefix={copy}/"], cwd=HERE.parent, check=True)
    found = json.loads(OUTPUT.read_text(encoding="utf-8"))
    for file in options.files:
        if killed(copy, MODULES[file]):
            raise SystemExit(f"{file}: its tests fail without a fault")
        original = (copy / file).read_text(encoding="utf-8")
        faults = faults_of(file)
        drawn = random.Random(0).sample(sorted(faults), min(options.faults, len(faults)))
        survivors = []
        for fault in drawn:
            (copy / file).write_text(faults[fault], encoding="utf-8")
            if not killed(copy, MODULES[file]):
                survivors.append(fault)
                print(f"  survived: {fault}", flush=True)
        (copy / file).write_text(original, encoding="utf-8")
        found["modules"][file] = {"tried": len(drawn), "killed": len(drawn) - len(survivors)}
        others = {fault: why for fault, why in found["survivors"].items() if not fault.startswith(file)}
        found["survivors"] = others | {fault: found["survivors"].get(fault, "") for fault in survivors}
        OUTPUT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = [found["modules"][file] for file in options.files]
    tried, dead = (sum(count[key] for count in counts) for key in ("tried", "killed"))
    print(f"{dead} of {tried} faults killed")
    return int(dead < 0.9 * tried)


if __name__ == "__main__":
    sys.exit(main())
