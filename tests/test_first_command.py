"""What the README's first command gives: a model that a newcomer asks the first questions of their own."""

import pytest

from helpers import SAMPLE, run_program
from multitask_classifier import MultitaskBERT
from support.files import read_json

GOOD = ("I loved it", "A wonderful film, funny and moving.", "One of the best movies of the year.")
GOOD += ("a delight from start to finish",)
BAD = ("a dreadful bore", "The worst movie of the year.", "It is dull and far too long.")
BAD += ("a complete waste of time",)


@pytest.mark.slow
def test_the_first_model_tells_good_from_bad(tmp_path, no_course_data):
    """Guards against a first run that answers "very positive" to everything, or scores below .70 on dev."""
    training = (SAMPLE / "ids-sst-train.csv").read_text()
    assert not [text for text in (*GOOD, *BAD) if text in training]
    assert run_program("--option", "finetune", "--use_smart", "--output_dir", tmp_path / "run") == 0
    assert read_json(tmp_path / "run" / "results.json")["dev_mean"] >= 0.70
    answers = MultitaskBERT.from_pretrained(tmp_path / "run").predict("sst", [*GOOD, *BAD])
    names = [answer["name"] for answer in answers]
    right = [name.endswith("positive") for name in names[:4]] + [n.endswith("negative") for n in names[4:]]
    assert sum(right) >= 7, names
