"""Writes the figures of the pages from the committed lines: `python -m experiments.pages`.

A page has blocks between `<!-- name -->` and `<!-- /name -->`. Each is made anew by its function; a test
compares them with what stands there, so no figure is typed and none outlives its lines.
"""

import re
import textwrap
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


def answer() -> str:
    """What the main README says: a sentence for each primary comparison, and how they were measured."""
    asked = (smart.STUDY.comparison, unlabelled.STUDY.comparison, robustness.QUESTION)
    lines = [line for question in asked for line in question.lines()]
    measured = (", ".join(sorted({line[name] for line in lines})) for name in ("precision", "processor"))
    found = (
        study.answer(smart.STUDY),
        study.answer(unlabelled.STUDY),
        robustness.answer(robustness.QUESTION),
    )
    said = ["Accuracy beside tuned plain training, on SST's dev rows:", ""]
    said += [f"- {sentence}" for sentence in found if sentence]
    how = f"MiniLM, {', '.join(measured)}, last step's weights, no threshold fitted"
    said += ["", f"{how} ([experiments](experiments/README.md))."]
    wrapped = (textwrap.fill(line, 110, subsequent_indent="  " * line.startswith("-")) for line in said)
    return "\n".join(wrapped)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "answer": answer,
        "table1": lambda: table1.short_table(table1.QUESTION),
        "best": best.recommended,
    },
    "experiments/README.md": {
        "table1": lambda: table1.table(table1.QUESTION),
        "tuning": lambda: study.tuning_table(smart.STUDY),
        "comparison": lambda: study.page(smart.STUDY),
        "precision": lambda: precision.table(precision.QUESTION),
        "mixing": lambda: mixing.table(mixing.QUESTION),
        "unlabelled tuning": lambda: study.tuning_table(unlabelled.STUDY),
        "unlabelled": lambda: study.page(unlabelled.STUDY),
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
