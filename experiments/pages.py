"""Writes the figures of the pages from the committed lines.

    python -m experiments.pages           # writes the tables of this folder's pages and of the main README
    python -m experiments.pages --plot    # draws the pictures

A page has blocks between `<!-- name -->` and `<!-- /name -->`. Each is made anew by its function; a test
compares them with what stands there, so no figure is typed and none outlives its lines.
"""

import argparse
import re
import textwrap
from collections.abc import Callable

from experiments import (
    all_data,
    best,
    breadth,
    distance,
    mixing,
    precision,
    record_search,
    records,
    robustness,
    smart,
    sweep,
    table1,
    toy,
    trainer,
    unlabelled,
    wrong_labels,
)
from experiments.tables import HERE, Finding, markdown

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
    "distance": distance.QUESTION,
    "breadth": breadth.QUESTION,
    "sweep": sweep.QUESTION,
    "all data tuning": all_data.STUDY.study.tuning,
    "all data": all_data.STUDY.study.comparison,
    "wrong labels tuning": wrong_labels.STUDY.study.tuning,
    "wrong labels": wrong_labels.STUDY.study.comparison,
}
SHOULD = {"gain": "yes", "smoother": "yes", "loss": "no", "no gain": "no", "exploratory": "perhaps"}


def findings() -> dict[str, list[Finding]]:
    """What the lines say, by situation, in the order of the questions that people have."""
    asked: dict[str, list[Finding | None]] = {
        "all the data": [all_data.STUDY.study.finding() or robustness.clean()],
        "few labels": [smart.STUDY.finding(), breadth.fewest_labels(), unlabelled.STUDY.finding()],
        "wrong labels": [wrong_labels.STUDY.study.finding()],
        "hard to fool, by changed embeddings": [robustness.answer()],
        "cost": [all_data.STUDY.study.finding("SMART every 4")],
    }
    return {situation: [each for each in found if each] for situation, found in asked.items()}


def answer() -> str:
    """For the main README: a line for each question that has lines."""
    what = "95 % over seeds: accuracy and macro F1 in points, NLL, cost in forward passes"
    said = [f"SMART less plain on SST's dev rows ([more](experiments/README.md)), {what}.", ""]
    for first, *others in filter(None, findings().values()):
        said.append("; ".join([f"- {first.sentence()}", *(each.short() for each in others)]))
    said += ["", "MiniLM, bf16, last step's weights, no threshold fitted."]
    wrapped = (textwrap.fill(line, 110, subsequent_indent="  " * line.startswith("-")) for line in said)
    return "\n".join(wrapped)


def should() -> str:
    """Should I use SMART? A row for each situation: the answer of its first finding, and all findings."""
    rows = []
    for situation, found in findings().items():
        word = SHOULD.get(found[0].verdict, "not decided") if found else "not run yet"
        if situation != "cost":
            rows.append([situation, word, ". ".join(each.sentence() for each in found)])
    return markdown(["situation", "use SMART?", "SMART less plain, SST"], rows)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"answer": answer, "table1": table1.short_table, "best": records.recommended},
    "experiments/README.md": {
        "should": should,
        **{name: question.page for name, question in QUESTIONS.items()},
        "best": best.page,
        "trainer": trainer.page,
    },
    "experiments/records.md": {"records": records.page, "search": record_search.page},
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
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", action="store_true", help="draw the pictures")
    if parser.parse_args().plot:
        print(*(path for question in QUESTIONS.values() for path in question.plot()), sep="\n")
    else:
        for page in BLOCKS:
            (ROOT / page).write_text(updated(page), encoding="utf-8")
