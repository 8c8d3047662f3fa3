"""The pages in docs/: what they name is there, and they can be read in a terminal."""

import importlib
import re

from helpers import ROOT

COMPARISON = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, without the line below the header; a row is a list of cells."""
    blocks = re.findall(r"(?:^\|.+\n)+", text, flags=re.MULTILINE)
    rows = [[line.strip("|\n").split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in (block[0], *block[2:])] for block in rows]


def test_every_project_has_a_commit():
    """Guards against a claim about another project that nobody can look up."""
    found = tables(COMPARISON.split("## 6. ")[0])
    projects = [row[0] for row in found[0][1:]]
    assert all([row[0] for row in table[1:]] == projects for table in found)
    *sections, _ = re.split(r"^### ", COMPARISON, flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == projects
    for section in sections:
        assert section.startswith("SMART-BERT") or re.search(r"`[0-9a-f]{40}`", section), section


def test_the_courses_table_names_what_is_there():
    """Guards against a student who is sent to a function that was renamed."""
    rows = tables((ROOT / "docs" / "course.md").read_text(encoding="utf-8"))[0][1:]
    same = {"the same name", "the same names"}
    named = [row[1] if row[2] in same else row[2] for row in rows]
    found = [name for cell in named for name in re.findall(r"`([\w/.]+)`", cell)]
    assert len(found) > 20
    for name in found:
        if name.endswith(".py"):
            assert (ROOT / name).is_file(), name
        elif "." in name:
            module, *parts = name.split(".")
            value = importlib.import_module(module)
            for part in parts:
                value = getattr(value, part)
        else:  # without its module: of the main program, or of mysmartloss
            modules = [importlib.import_module(module) for module in ("multitask_classifier", "mysmartloss")]
            owners = [*modules, modules[0].MultitaskBERT]
            assert any(hasattr(owner, name) for owner in owners), name
