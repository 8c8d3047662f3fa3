"""Writes the figures of the pages from the committed lines: `python -m experiments.pages`.

A page has blocks between `<!-- name -->` and `<!-- /name -->`. Each is made anew by its function; a test
compares them with what stands there, so no figure is typed and none outlives its lines.
"""

import re
from collections.abc import Callable
from pathlib import Path

from experiments import (
    best,
    breadth,
    mixing,
    precision,
    robustness,
    smart,
    study,
    sweep,
    table1,
    toy,
    unlabelled,
)
from experiments.runner import HERE

ROOT = HERE.parent
BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "answer": lambda: smart.answer(smart.STUDY),
        "table1": lambda: table1.short_table(table1.QUESTION),
    },
    "experiments/README.md": {
        "table1": lambda: table1.table(table1.QUESTION),
        "tuning": lambda: study.tuning_table(smart.STUDY),
        "comparison": lambda: study.table(smart.STUDY),
        "precision": lambda: precision.table(precision.QUESTION),
        "mixing": lambda: mixing.table(mixing.QUESTION),
        "unlabelled tuning": lambda: study.tuning_table(unlabelled.STUDY),
        "unlabelled": lambda: study.table(unlabelled.STUDY),
        "robustness": robustness.page,
        "breadth": breadth.page,
        "best": best.page,
        "toy": lambda: toy.table(toy.kept_lines()),
        "sweep": lambda: sweep.table(sweep.kept_scores()),
    },
}


def pattern(name: str) -> re.Pattern[str]:
    """Finds the content of a block, without the empty lines around it."""
    return re.compile(rf"(?<=<!-- {name} -->\n\n).*?(?=\n\n<!-- /{name} -->)", re.DOTALL)


def updated(page: str) -> str:
    """The text of a page with every block made anew. Raises ValueError if a block is not there once."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in BLOCKS[page].items():
        found = pattern(name).findall(text)
        if len(found) != 1:
            raise ValueError(f"{page}: {len(found)} blocks <!-- {name} -->")
        text = text.replace(f"<!-- {name} -->\n\n{found[0]}", f"<!-- {name} -->\n\n{make()}")
    return text


if __name__ == "__main__":
    for name in BLOCKS:
        Path(ROOT / name).write_text(updated(name), encoding="utf-8")
