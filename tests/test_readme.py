"""The README and the pages that it links: figures, commands and links."""

import re
import shlex
from pathlib import Path

import pytest

from config import SPLITS, TrainConfig, parse_arguments
from experiments import pages
from helpers import ROOT
from support.flags import flags
from tasks import TASKS

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/gpus.md",
    "experiments/README.md",
    "benchmarks/README.md",
    "data/README.md",
]
TOOLS = {
    "data_dir",
    "seeds",
    "table",
    "work_dir",
    "only",
    "scale",
    "output",
    "batch_size",
}  # of other programs
TOOLS |= {"plot", "quick", "help", "nproc_per_node", "kills", "folder", "encoder", "check", "collect"}
FLAGS = {setting.name for setting in flags(TrainConfig)}
FLAGS |= {f"{task}_{name}" for task in TASKS for name in (*SPLITS, "dev_out", "test_out")}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages.BLOCKS)
def test_the_figures_are_those_of_the_committed_lines(page):
    """Guards against a figure that was typed, or that stands after its run was thrown away."""
    assert pages.updated(page) == text_of(page), "python -m experiments.pages writes it anew"


def test_the_commands_can_be_pasted():
    """Guards against a README whose flags the program has since lost."""
    fences = re.findall(r"^```(?:bash|console)\n(.+?)^```", text_of("README.md"), re.DOTALL | re.MULTILINE)
    commands = re.findall(r"python multitask_classifier\.py ([^\n#]+)", "".join(fences).replace("\\\n", " "))
    assert len(commands) >= 7
    for command in commands:
        parse_arguments(shlex.split(command))


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_links_are_there(page):
    """Guards against a flag that does not exist, and a link into nothing."""
    text = text_of(page)
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z_]+)", text))
    assert named - {"confidence_weight", "nli_train"} <= FLAGS | TOOLS, page
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / Path(page).parent / link).exists(), link


def test_a_newcomer_reads_the_readme_in_five_minutes():
    """Guards against a README that grows until nobody reads it."""
    assert len(text_of("README.md").split()) <= 1300
