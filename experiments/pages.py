"""Writes the figures of the pages from the committed lines.

    python -m experiments.pages           # writes the tables of this folder's README and of the main README
    python -m experiments.pages --plot    # draws the pictures

A page has blocks between `<!-- name -->` and `<!-- /name -->`. Each is made anew by its function; a test
compares them with what stands there, so no figure is typed and none outlives its lines.
"""

import argparse
import re
import textwrap
from collections.abc import Callable

from experiments import (
    best,
    breadth,
    mixing,
    precision,
    records,
    robustness,
    smart,
    sweep,
    table1,
    toy,
    trainer,
    unlabelled,
)
from experiments.tables import HERE, listed

ROOT = HERE.parent
QUESTIONS = {  # by block, in the order of the page
    "table1": table1.QUESTION,
    "tuning": smart.STUDY.tuning,
    "comparison": smart.STUDY.comparison,
    "toy": toy.QUESTION,
    "precision": precision.QUESTION,
    "mixing": mixing.QUESTION,
    "unlabelled tuning": unlabelled.STUDY.tuning,
    "unlabelled": unlabelled.STUDY.comparison,
    "robustness": robustness.QUESTION,
    "breadth": breadth.QUESTION,
    "sweep": sweep.QUESTION,
}


def answer() -> str:
    """For the main README: a sentence for each primary comparison, and how they were measured."""
    asked = (smart.STUDY.comparison, unlabelled.STUDY.comparison, robustness.QUESTION)
    lines = [line for question in asked for line in question.lines()]
    measured = (listed(line[name] for line in lines) for name in ("precision", "processor"))
    found = (smart.STUDY.answer(), unlabelled.STUDY.answer(), robustness.answer(robustness.QUESTION.lines()))
    said = ["Accuracy beside tuned plain training, on SST's dev rows:", ""]
    said += [f"- {sentence}" for sentence in found]
    how = f"MiniLM, {', '.join(measured)}, last step's weights, no threshold fitted"
    said += ["", f"{how} ([experiments](experiments/README.md))."]
    wrapped = (textwrap.fill(line, 110, subsequent_indent="  " * line.startswith("-")) for line in said)
    return "\n".join(wrapped)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"answer": answer, "table1": table1.short_table, "best": best.recommended},
    "experiments/README.md": {
        **{name: question.page for name, question in QUESTIONS.items()},
        "best": best.page,
        "trainer": trainer.page,
    },
    "experiments/records.md": {"records": records.page},
}


def updated(page: str) -> str:
    """The text of a page with every block made anew. Raises ValueError if a block is not there once."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in BLOCKS[page].items():
        found = re.findall(rf"<!-- {name} -->\n\n.*?\n\n<!-- /{name} -->", text, re.DOTALL)
        if len(found) != 1:
            raise ValueError(f"{page}: {len(found)} blocks <!-- {name} -->")
        text = text.replace(found[0], f"<!-- {name} -->\n\n{make()}\n\n<!-- /{name} -->")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plot", action="store_true", help="draw the pictures")
    if parser.parse_args().plot:
        print(*(path for question in QUESTIONS.values() for path in question.plot()), sep="\n")
    else:
        for page in BLOCKS:
            (ROOT / page).write_text(updated(page), encoding="utf-8")
