"""A saved model in Python: `from_pretrained` from folder and hub, `predict`, the lines of the README."""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from helpers import ROOT
from multitask_classifier import MultitaskBERT, load_model
from support.errors import UserError

TEXTS = ["a slow film " * n for n in (9, 1, 19, 2, 5, 1)] + ["I loved it."]
PAIRS = [("a cat sleeps", "a cat naps " * n) for n in (3, 1, 9)]
ASKED = {"sst": TEXTS, "para": PAIRS, "sts": PAIRS}


@pytest.fixture(scope="module")
def model(sample_run) -> MultitaskBERT:
    return MultitaskBERT.from_pretrained(sample_run / "best", precision="fp32")


NAMES = {
    "sst": ["very negative", "negative", "neutral", "positive", "very positive"],
    "para": ["not a paraphrase", "paraphrase"],
}


def by_transformers(folder: Path, task: str) -> list[dict]:
    """Answers by transformers' BERT, one text at a time: [CLS] a [SEP] (b [SEP]), mean, head or cosine."""
    encoder = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    heads = safetensors.torch.load_file(folder / "heads.safetensors")

    @torch.no_grad()
    def vector(*texts: str) -> torch.Tensor:
        inputs = tokenizer(*texts, return_token_type_ids=True, return_tensors="pt")
        return encoder(**inputs).last_hidden_state[0].mean(0)

    answers = []
    for row in ASKED[task]:
        texts = [row] if isinstance(row, str) else row
        if task == "sts":
            cosine = torch.cosine_similarity(*map(vector, texts), dim=0)
            answers.append({"value": pytest.approx(5 * cosine.item(), abs=1e-4)})
            continue
        logits = vector(*texts) @ heads[f"{task}.weight"].T + heads[f"{task}.bias"]
        shares = torch.cat([torch.zeros(1), logits]) if task == "para" else logits
        shares = dict(zip(NAMES[task], shares.softmax(0).tolist(), strict=True))
        name = max(shares, key=shares.get)
        shares = pytest.approx(shares, abs=1e-5)
        answers.append({"label": NAMES[task].index(name), "name": name, "probabilities": shares})
    return answers


@pytest.mark.parametrize("task", ASKED)
def test_answers_are_transformers(model, ask, sample_run, task):
    """Guards against answers of another row or in the order of length, a second text left out, other names,
    softmax of the wrong axis, and numbers that depend on the rest of the batch; at the command line too."""
    rows = [[text] if isinstance(text, str) else text for text in ASKED[task]]
    lines = "".join(json.dumps(dict(zip(("text", "text_pair"), row, strict=False))) + "\n" for row in rows)
    status, answers, _ = ask("--task", task, stdin=lines.encode())
    assert status == 0 and [answer.pop("id") for answer in answers] == [*range(1, len(rows) + 1)]
    expected = by_transformers(sample_run / "best", task)
    for found in (answers, model.predict(task, ASKED[task], batch_size=2)):
        assert found == expected
        orders = [list(answer["probabilities"]) for answer in found if task != "sts"]
        assert all(order == NAMES[task] for order in orders)


def test_the_run_folder_opens_too_and_the_mode_stays(sample_run):
    """Guards against a model that no longer trains after it was asked, and against answers with dropout."""
    model = MultitaskBERT.from_pretrained(sample_run, precision="fp32")
    assert not model.training
    expected = model.predict("sst", TEXTS)
    model.train()
    assert model.predict("sst", iter(TEXTS)) == expected and model.training
    assert model.predict("sst", []) == [] and model.bert.training


@pytest.mark.parametrize(
    ("task", "texts", "words"),
    [
        ("sst", "one text", "a list of texts"),
        ("sst", ["good", ""], r"texts\[1\]: empty text"),
        ("sst", ["good", 3], r"texts\[1\]"),
        ("para", ["a"], r"texts\[0\]: para takes a pair of texts, not 1"),
        ("cfimdb", ["a"], "no head for 'cfimdb'; the model has heads for para, sst, sts"),
    ],
)
def test_wrong_texts_are_refused(model, task, texts, words):
    """Guards against letters taken for texts, and an error that does not say which of a million it is."""
    with pytest.raises(UserError, match=words):
        model.predict(task, texts)


def test_the_precision_is_that_of_the_command_line(sample_run, monkeypatch):
    """Guards against answers that differ from the command line's by their number type."""
    folder = sample_run / "best"
    monkeypatch.setenv("SMART_BERT_PRECISION", "bf16")
    assert MultitaskBERT.from_pretrained(folder).compute_type == torch.bfloat16
    assert MultitaskBERT.from_pretrained(folder, precision="fp32").compute_type is None
    with pytest.raises(UserError, match="precision 'int8': must be one of fp32, bf16, fp16"):
        MultitaskBERT.from_pretrained(folder, precision="int8")


def test_a_name_on_the_hub(sample_run, tmp_path, monkeypatch):
    """Guards against a shared model that opens by its path only, or that needs the network again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = tmp_path / "hub" / "models--someone--reviews"
    shutil.copytree(sample_run / "best", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    answers = [
        MultitaskBERT.from_pretrained(name, "fp32").predict("sst", ["fine"])
        for name in ("someone/reviews", sample_run)
    ]
    assert answers[0] == answers[1]
    with pytest.raises(UserError, match="'someone/else': not a folder"):
        MultitaskBERT.from_pretrained("someone/else")


def test_the_lines_of_the_readme_run(sample_run, tmp_path, monkeypatch, capsys):
    """Guards against a first example that ends in an error."""
    (fence,) = re.findall(r"^```python\n(.+?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    assert len([line for line in fence.splitlines() if line]) <= 5
    (tmp_path / "runs" / "finetune").mkdir(parents=True)
    shutil.copytree(sample_run / "best", tmp_path / "runs" / "finetune" / "best")
    monkeypatch.chdir(tmp_path)
    exec(fence, {})
    said = capsys.readouterr().out
    assert "very positive" in said and re.search(r"\d\.\d", said)


def test_an_older_model_answers():
    """Guards against models saved before that open for scores only."""
    folder = Path(__file__).parent.parent / "fixtures" / "old_model"
    model, _, _ = load_model(folder)
    expected = json.loads((folder.parent / "old_model_logits.json").read_text())
    answers = model.predict("sst", [row[0] for row in expected["texts"]])
    got = torch.tensor([list(answer["probabilities"].values()) for answer in answers])
    probabilities = torch.tensor(expected["logits"]["sst"]).softmax(-1)
    torch.testing.assert_close(got, probabilities, atol=1e-5, rtol=0)
