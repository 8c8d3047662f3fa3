"""The README and the pages that it links: figures, commands, examples and links."""

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

import multitask_classifier
import mysmartloss
from config import SPLITS, TrainConfig, flags, parse_arguments
from datasets import Example, read_examples
from experiments import pages
from helpers import ROOT, clone_of_project
from tasks import TASKS

PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += [f"docs/{name}.md" for name in ("colab", "course", "gpus", "platforms", "runs")]
PAGES += [f"{folder}/README.md" for folder in ("experiments", "benchmarks", "data")]
OTHERS = "data_dir seeds table work_dir only scale output batch_size plot quick help nproc_per_node kills"
OTHERS += " folder encoder check collect revision logdir index-url"
TOOLS = set(OTHERS.split())  # flags of other programs
FLAGS = {setting.name for setting in flags(TrainConfig)}
FLAGS |= {"fine-tune-mode"}  # the course's name for --option
FLAGS |= {f"{task}_{name}" for task in TASKS for name in (*SPLITS, "dev_out", "test_out")}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str, kind: str) -> list[str]:
    """The content of the page's fences that are marked so."""
    return re.findall(rf"^```{kind}\n(.+?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", pages.BLOCKS)
def test_the_figures_are_those_of_the_committed_lines(page):
    """Guards against a figure that was typed, or that stands after its run was thrown away."""
    assert pages.updated(page) == text_of(page), "python -m experiments.pages writes it anew"


# Fences whose commands are left out where a page is run: they make an environment, or they are these tests.
NOT_RUN = re.compile(r"\bpytest\b|\bvenv\b")


def commands(fence: str) -> list[list[str]]:
    """The words of each command of a fence; redirections count as words."""
    found = []
    for line in fence.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts = groupby(lexer, lambda word: word in ("&&", "||", "|", ";"))
        found += [list(words) for is_separator, words in parts if not is_separator]
    return found


def test_commands_name_programs_and_flags_that_are_there():
    """Guards against a command whose program or flags are gone."""
    seen = 0
    for page in PAGES:
        for fence in fences(page, "bash") + fences(page, "console"):
            for words in commands(fence):
                if words[:2] == ["python", "multitask_classifier.py"]:
                    parse_arguments(words[2:])
                    seen += 1
                elif words[:2] == ["python", "-m"] and words[2] != "venv":
                    module = ROOT / words[2].replace(".", "/")
                    assert module.is_dir() or module.with_suffix(".py").is_file(), words
                elif words[0] == "python" and words[1] != "-m":
                    assert (ROOT / words[1]).is_file(), words
    assert seen >= 5


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_need_more_than_a_clone_say_so(page):
    """Guards against a command that a newcomer pastes in vain."""
    assert [fence for fence in fences(page, "console") if not fence.startswith("# ")] == []


def test_the_readmes_commands_can_be_typed_in_powershell():
    """Guards against commands that PowerShell 5.1 cannot read, for a user who sees no other way."""
    (block,) = fences("README.md", "powershell")
    assert not re.search(r"&&|\\$|activate", block, re.MULTILINE)
    programs = [line.split(maxsplit=1) for line in block.splitlines()[1:]]  # the first makes .venv
    assert {program for program, _ in programs} == {r".venv\Scripts\python"}
    said = [words.removeprefix("-m ") for _, words in programs]
    one_line = [fence for fence in fences("README.md", "bash") if "&&" in fence]
    assert " ".join(f"python {words}" if ".py" in words else words for words in said) == " ".join(
        " ".join(one_line).replace("&&", "").split()
    )
    others = fences("README.md", "bash") + fences("README.md", "console")
    assert not [fence for fence in others if "\\\n" in fence]


RUN = {page: [fence for fence in fences(page, "bash") if not NOT_RUN.search(fence)] for page in PAGES}


WITHOUT = {"SMART_BERT_DATA_DIR", "PYTHONPATH"}  # of the environment


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]])
def test_commands_run_as_they_stand(page, tmp_path):
    """Guards against a first command that fails in a fresh clone. Requirements count as installed."""
    clone = clone_of_project(tmp_path / "clone")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in {"pip": "exit 0", "python": f'exec {shlex.quote(sys.executable)} "$@"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    for fence in RUN[page]:
        command = ["bash", "-e", "-o", "pipefail", "-c", fence]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, fence + done.stdout + done.stderr


SWIM = "How do I learn to swim?"
CSV_EXAMPLES = [  # of data/README.md: task, whether with labels, the first row, the number of rows
    ("sst", True, Example("1", ("Slow, long, and I loved it.",), 4.0), 3),
    ("para", True, Example("q1", (SWIM, "How can I learn swimming, as an adult?"), 1.0), 3),
    ("sts", True, Example("a1", ("A man plays a guitar.", "Someone plays music, outside."), 3.4), 2),
    ("sst", False, Example("1", ("I came for the music, and stayed for the story.",), None), 2),
]


def test_the_layouts_are_read_as_the_page_says(tmp_path):
    """Guards against a page of layouts that the program does not read, or reads as something else."""
    for content, expected in zip(fences("data/README.md", "csv"), CSV_EXAMPLES, strict=True):
        task, labelled, first, count = expected
        path = tmp_path / "own.csv"
        path.write_text(content, encoding="utf-8")
        rows = read_examples(path, TASKS[task], labelled)
        assert rows[0] == first and len(rows) == count


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_links_are_there(page):
    """Guards against a flag that does not exist, and a link into nothing."""
    text = text_of(page)
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z_-]+)", text))
    assert named - {"confidence_weight", "nli_train", "no-regression"} <= FLAGS | TOOLS, page
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / Path(page).parent / link).exists(), link


def test_a_newcomer_reads_the_readme_in_five_minutes():
    """Guards against a README that grows until nobody reads it."""
    assert len(text_of("README.md").split()) <= 1300


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, without the line below the header; a row is a list of cells."""
    blocks = re.findall(r"(?:^\|.+\n)+", text, flags=re.MULTILINE)
    rows = [[line.strip("|\n").split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in (block[0], *block[2:])] for block in rows]


def test_every_project_has_a_commit():
    """Guards against a claim about another project that nobody can look up."""
    page = text_of("docs/comparison.md")
    found = tables(page.split("## 6. ")[0])
    projects = [row[0] for row in found[0][1:]]
    assert all([row[0] for row in table[1:]] == projects for table in found)
    *sections, _ = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == projects
    for section in sections:
        assert section.startswith("SMART-BERT") or re.search(r"`[0-9a-f]{40}`", section), section


def test_the_courses_table_names_what_is_there():
    """Guards against a student who is sent to a function that was renamed."""
    rows = tables(text_of("docs/course.md"))[0][1:]
    same = {"the same name", "the same names"}
    named = [row[1] if row[2] in same else row[2] for row in rows]
    found = [name for cell in named for name in re.findall(r"`([\w/.]+)`", cell)]
    assert len(found) > 20
    for name in found:
        if name.endswith(".py"):
            assert (ROOT / name).is_file(), name
        elif "." in name:
            assert pkgutil.resolve_name(name)
        else:  # without its module: of the main program, or of mysmartloss
            owners = (multitask_classifier, multitask_classifier.MultitaskBERT, mysmartloss)
            assert any(hasattr(owner, name) for owner in owners), name
