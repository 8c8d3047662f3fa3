"""What the README's first command gives: a model that a newcomer asks the first questions of their own."""

import json
import subprocess
import sys

import pytest

from helpers import ROOT, SAMPLE
from support.files import read_json

GOOD = ("I loved it", "A wonderful film, funny and moving.", "One of the best movies of the year.")
GOOD += ("a delight from start to finish",)
BAD = ("a dreadful bore", "The worst movie of the year.", "It is dull and far too long.")
BAD += ("a complete waste of time",)


@pytest.mark.slow
def test_the_first_model_tells_good_from_bad(tmp_path):
    """Guards against a first run that answers "very positive" to everything, or scores below .70 on dev."""
    training = (SAMPLE / "ids-sst-train.csv").read_text()
    assert not [text for text in (*GOOD, *BAD) if text in training]

    def program(*words: str) -> str:
        command = [sys.executable, "multitask_classifier.py", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = str(tmp_path / "run")
    program("--option", "finetune", "--use_smart", "--data_dir", str(SAMPLE), "--output_dir", folder)
    assert read_json(tmp_path / "run" / "results.json")["dev_mean"] >= 0.70
    texts = [word for text in (*GOOD, *BAD) for word in ("--text", text)]
    said = program("--option", "predict", "--checkpoint", folder, "--task", "sst", *texts)
    names = [json.loads(line)["name"] for line in said.splitlines()]
    right = [name.endswith("positive") for name in names[:4]] + [n.endswith("negative") for n in names[4:]]
    assert sum(right) >= 7, names
