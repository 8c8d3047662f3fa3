"""The README and the pages that it links: figures, commands, examples and links."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from config import SPLITS, TrainConfig, flags, parse_arguments
from datasets import Example, read_examples
from experiments import pages
from helpers import ROOT
from tasks import TASKS

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/colab.md",
    "docs/course.md",
    "docs/gpus.md",
    "docs/runs.md",
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
TOOLS |= {
    "plot",
    "quick",
    "help",
    "nproc_per_node",
    "kills",
    "folder",
    "encoder",
    "check",
    "collect",
    "revision",
}
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


# ------------------------------------------------------------------------------------------ commands

# Fences whose commands are left out where a page is run: they make an environment, or they are these tests.
NOT_RUN = re.compile(r"\bpytest\b|\bvenv\b")
HARMLESS = {".", "pre-commit", "cd", "echo", "printf", "cat", "head"}


def commands(fence: str) -> list[list[str]]:
    """The words of each command of a fence; redirections count as words."""
    found = []
    for line in fence.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts = groupby(lexer, lambda word: word in ("&&", "||", "|", ";"))
        found += [list(words) for is_separator, words in parts if not is_separator]
    return found


def needed_and_written(words: list[str]) -> tuple[set[str], set[str]]:
    """The paths that a command reads, and those that it writes. Fails where a command is unknown."""
    needed = {after for word, after in zip(words, words[1:], strict=False) if word == "<"}
    written = {after for word, after in zip(words, words[1:], strict=False) if word == ">"}
    plain = [word for i, word in enumerate(words) if not {word, *words[max(i - 1, 0) : i]} & {"<", ">"}]
    program, *arguments = plain
    if program == "pip":
        assert arguments[:2] == ["install", "-r"] and len(arguments) == 3
        needed.add(arguments[2])
    elif program == "pytest":
        needed |= {word for word in arguments if word.startswith("tests/")}
    elif program in ("python", "python3") and arguments[0] == "-m":
        if arguments[1] != "venv":
            path = arguments[1].replace(".", "/")
            needed.add(f"{path}.py" if (ROOT / f"{path}.py").exists() else f"{path}/__main__.py")
    elif program == "python":
        needed.add(arguments[0])
        if arguments[0] == "multitask_classifier.py":
            config, _ = parse_arguments(arguments[1:])
            values = vars(config) | config.files
            outputs = [name for name in values if name.endswith("_out")] + ["output", "output_dir"]
            inputs = [
                "checkpoint",
                "data_dir",
                "input",
                *(name for name in config.files if name not in outputs),
            ]
            inputs += ["output_dir"] * (config.resume or config.option == "submit")
            needed |= {str(values[name]) for name in inputs if values.get(name)}
            written |= {str(values[name]) for name in outputs if values.get(name)}
    else:
        assert program in HARMLESS, f"nobody knows what {words} does"
    return needed, written


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_what_they_need(page, no_course_data):
    """Guards against a command whose flags the program has lost, or that reads a file which a clone lacks
    and no command before it has written."""
    there: set[str] = set()
    for fence in fences(page, "bash"):
        for words in commands(fence):
            needed, written = needed_and_written(words)
            for path in needed:
                made = there & {path, *map(str, Path(path).parents)}
                in_clone = (ROOT / path).exists() and not path.startswith("runs")
                assert made or in_clone, f"{page}: {' '.join(words)} needs {path}"
            there |= written


def test_the_pages_commands_are_found():
    """Guards against a fence that the tests above no longer see."""
    found = [words for page in PAGES for fence in fences(page, "bash") for words in commands(fence)]
    assert sum("multitask_classifier.py" in words for words in found) >= 5
    assert ["python", "-m", "experiments.pages"] in found


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_need_more_than_a_clone_say_so(page):
    """Guards against a command that a newcomer pastes in vain."""
    for fence in fences(page, "console"):
        assert fence.startswith("# "), f"{page}: {fence}"
        for words in commands(fence):
            if words[:2] == ["python", "multitask_classifier.py"]:
                parse_arguments(words[2:])


RUN = {page: [fence for fence in fences(page, "bash") if not NOT_RUN.search(fence)] for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]])
def test_commands_run_as_they_stand(page, tmp_path):
    """Guards against a first command that fails in a fresh clone. Requirements count as installed."""
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".git", "runs", "__pycache__", ".venv", ".*_cache")
    shutil.copytree(ROOT, clone, ignore=ignored)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in {"pip": "exit 0", "python": f'exec {shlex.quote(sys.executable)} "$@"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SMART_BERT_DATA")
    }
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    for fence in RUN[page]:
        command = ["bash", "-e", "-o", "pipefail", "-c", fence]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, fence + done.stdout + done.stderr


# ------------------------------------------------------------------------------------------ examples

CSV_EXAMPLES = [  # of data/README.md: task, whether with labels, rows
    (
        "sst",
        True,
        [
            Example("1", ("Slow, long, and I loved it.",), 4.0),
            Example("2", ('He says "masterpiece"; I say no.',), 1.0),
            Example("3", ("It is a film.",), 2.0),
        ],
    ),
    (
        "para",
        True,
        [
            Example("q1", ("How do I learn to swim?", "How can I learn swimming, as an adult?"), 1.0),
            Example("q2", ("How do I learn to swim?", "Where is the pool?"), 0.0),
            Example("q3", ("Is tea healthy?", "Is green tea good for me?"), 1.0),
        ],
    ),
    (
        "sts",
        True,
        [
            Example("a1", ("A man plays a guitar.", "Someone plays music, outside."), 3.4),
            Example("a2", ("A dog sleeps.", "The market opens at nine."), 0.0),
        ],
    ),
    (
        "sst",
        False,
        [
            Example("1", ("I came for the music, and stayed for the story.",), None),
            Example("2", ("Never again.",), None),
        ],
    ),
]


def test_the_layouts_are_read_as_the_page_says(tmp_path):
    """Guards against a page of layouts that the program does not read, or reads as something else."""
    for content, (task, labelled, rows) in zip(fences("data/README.md", "csv"), CSV_EXAMPLES, strict=True):
        path = tmp_path / "own.csv"
        path.write_text(content, encoding="utf-8")
        assert read_examples(path, TASKS[task], labelled) == rows


# --------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_links_are_there(page):
    """Guards against a flag that does not exist, and a link into nothing."""
    text = text_of(page)
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z_-]+)", text))
    assert named - {"confidence_weight", "nli_train"} <= FLAGS | TOOLS, page
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / Path(page).parent / link).exists(), link


def test_a_newcomer_reads_the_readme_in_five_minutes():
    """Guards against a README that grows until nobody reads it."""
    assert len(text_of("README.md").split()) <= 1300
