"""Data of the user's own: a folder in the course's layout, and a task made from a file alone."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from base_bert import seeded_linear
from bert import BertModel
from config import TrainConfig
from datasets import held_out, read_examples, read_own_record
from helpers import run_program, sample_examples
from multitask_classifier import MultitaskBERT, training_loss
from mysmartloss import BregmanProximal
from support.errors import UserError
from tasks import TASKS, name_rule, own_record, own_task
from tiny_bert import TINY, tiny_batch

SIZE = ["--epochs=1", "--steps_per_epoch=4", "--batch_size=4"]
DEV = dict.fromkeys(("sst-dev-output.csv", "sts-dev-output.csv"), [str(i) for i in range(1, 13)])


def write_csv(path: Path, header: list[str], rows: list[list]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Folder with training and dev files of sst and sts, with commas, without ids; sst's labels are names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for task in (TASKS["sst"], TASKS["sts"]):
        for split in ("train", "dev"):
            rows = [[*row.texts, row.label] for row in sample_examples(task.name, split, 12)]
            if names := task.label_names:
                rows = [[*texts, names[int(label)]] for *texts, label in rows]
            write_csv(tmp_path / "own" / task.filename(split), [*task.text_columns, task.label_column], rows)
    return tmp_path / "own"


def predictions(folder) -> dict[str, list[str]]:
    """Ids of each prediction file, by the file's name."""
    files = sorted((folder / "predictions").glob("*-output.csv"))
    return {file.name: [line.split(" , ")[0] for line in file.read_text().splitlines()[1:]] for file in files}


def test_a_run_needs_no_test_files(main, own, capsys):
    """Guards against data that must have a test file nobody needs, a run that can't be resumed without it, a
    test file that changes in between, and a prediction of nothing."""
    assert main("--data_dir", own, "--tasks", "sst", "sts", *SIZE, "--output_dir", "run") == 0
    run = own.parent / "run"
    said = capsys.readouterr().out
    for task in ("sst", "sts"):
        path = own / TASKS[task].filename("test")
        assert said.count(f"no test file {path}: no test predictions for {task}\n") == 1
    results = json.loads((run / "results.json").read_text())
    assert set(results["dev"]) == {"sst", "sts"} and results["data"] == str(own)
    assert predictions(run) == DEV
    use = ["--checkpoint", run, "--batch_size", 4, "--data_dir", own, "--output_dir", "again"]
    assert main("--option", "evaluate", *use) == 0
    again = json.loads((own.parent / "again" / "results.json").read_text())
    assert again["dev"] == results["dev"] and predictions(own.parent / "again") == DEV
    capsys.readouterr()
    assert main("--option", "predict", *use) == 2
    assert "ids-sst-test-student.csv: no such file; give it with --sst_test" in capsys.readouterr().err

    test = own / TASKS["sts"].filename("test")
    test.write_text("sentence1,sentence2\na,b\n")
    assert main("--resume", "--epochs", 2, "--output_dir", "run") == 0
    said = capsys.readouterr().out
    assert said.count("no test file") == 1 and "no test predictions for sst" in said
    assert predictions(run) == DEV | {"sts-test-output.csv": ["1"]}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sst_test", "mine.csv"], "mine.csv: no such file; give it with --sst_test"),
        (["--sst_test_out", "out.csv"], "ids-sst-test-student.csv: no such file"),
        (["--tasks", "sst,para"], "quora-train.csv: no such file; give it with --para_train"),
    ],
)
def test_what_is_named_or_needed_must_be_there(main, own, capsys, arguments, named):
    """Guards against a mistyped path that is taken for a file nobody needs."""
    assert main("--data_dir", own, "--tasks", "sst,sts", *SIZE, *arguments, "--output_dir", "run") == 2
    printed = capsys.readouterr()
    assert named in printed.err and printed.err.count("\n") == 1 and "no test file" not in printed.out
    assert not (own.parent / "run").exists() and not (own.parent / "out.csv").exists()


# ------------------------------------------------------------------------- a task from a file alone


STARS = ["--text_column", "review", "--label_column", "stars", "--task_name", "stars"]


@pytest.fixture
def reviews(tmp_path, monkeypatch) -> Path:
    """A file of 60 reviews with 1, 2, 4 or 5 stars, and a dev file of 12; here is the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = [example for example in sample_examples("sst") if example.label != 2]
    for name, part in {"my.csv": rows[:60], "dev.csv": rows[60:72]}.items():
        lines = [[example.texts[0], int(example.label) + 1] for example in part]
        write_csv(tmp_path / name, ["review", "stars"], lines)
    return tmp_path


def lines_of(path: Path | str) -> list[dict]:
    """The JSON of each line of a file, or of a text."""
    text = path.read_text(encoding="utf-8") if isinstance(path, Path) else path
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("labels", "regression", "expected"),
    [
        ("10 9 2 9", None, [2, 9, 10]),  # by value, not as text
        ("0 1 1", None, [0, 1]),
        ("-1 1 01", None, [-1, 1]),
        ("good bad Ugly bad", None, ["Ugly", "bad", "good"]),
        ("1 2 n/a", None, ["1", "2", "n/a"]),
        ("0.5 3 5", None, (0.5, 5.0)),
        ("1.0 2.0 5.0", None, (1.0, 5.0)),
        ("1.0 2.0 5.0", False, [1, 2, 5]),
        ("1 2 5", True, (1.0, 5.0)),
        (" ".join(map(str, range(20))), None, list(range(20))),
        (" ".join(map(str, range(21))), None, (0.0, 20.0)),
        (" ".join(f"{i % 40}" for i in range(80)), False, list(range(40))),
        (" ".join(["n/a", *(f"{i}.5" for i in range(100))]), None, (0.5, 99.5)),  # a bad row in a hundred
    ],
)
def test_labels_say_what_the_task_is(labels, regression, expected):
    """Guards against classes in another order than written, and numbers that are taken for the other kind."""
    record = own_record("t", ["x"], "y", labels.split(), regression)
    assert record == json.loads(json.dumps(record))
    assert record.get("labels", tuple(record.get("range", ()))) == expected
    task = own_task(record)
    names = expected if isinstance(expected, list) else []
    assert [task.read_label(str(name)) for name in names] == list(range(len(names)))
    assert [task.written(i) for i in range(len(names))] == names


@pytest.mark.parametrize(
    ("labels", "regression", "words"),
    [
        (["1", "1", ""], None, "has one label"),
        ([], None, "no row has a label"),
        (["1.5", "1.50"], True, "has one label"),
        (["1", "2", "high"], True, "needs numbers, and 'y' has 'high'"),
        (["['a', 'b']", "['a']"], None, "several labels at once"),
        (["a", "b", "a, b"], None, "several labels at once"),
        (["a", "b", "a|b"], None, "several labels at once"),
        ([f"text {i}" for i in range(50)], None, "50 labels in 50 rows"),
    ],
)
def test_labels_that_make_no_task(labels, regression, words):
    """Guards against a head with one class, a class for each list of labels, and one for each row."""
    with pytest.raises(UserError) as error:
        own_record("t", ["x"], "y", labels, regression)
    assert words in str(error.value)


def test_a_name_must_be_free():
    """Guards against a head that torch refuses with a traceback, and a score that stands for the mean."""
    assert [name_rule(name) for name in ("stars", "Task_2")] == ["", ""]
    for name in ("sst", "STS", "mean", "unlabelled", "train", "keys", "two words", "a.b", "9", "", "ä"):
        assert name_rule(name), name


TEXT = 'He said "fine", and\tleft.'
RAW_TSV = """review\tstars\n"Open quote\t1\nA "b" c\t2\n"Closed," he said\t1\n"""
ONE = json.dumps({"stars": 1, "review": TEXT})
OWN_FILES = {
    "a.csv": ('"review","stars"\n"He said ""fine"", and\tleft.",1\nok,2\n', [TEXT, "ok"]),
    "a.tsv": ('review\tstars\n"He said ""fine"", and left."\t1\nok\t2\n', [TEXT.replace("\t", " "), "ok"]),
    "raw.tsv": (RAW_TSV, ['"Open quote', 'A "b" c', '"Closed," he said']),
    "a.jsonl": (f'{ONE}\n\n{{"review": "ok", "stars": 2}}\n', [TEXT, "ok"]),
    "a.JSON": (f'[{ONE}, {{"stars": 2, "review": "ok"}}]', [TEXT, "ok"]),
}


@pytest.mark.parametrize("name", OWN_FILES)
def test_kinds_of_files(tmp_path, name):
    """Guards against rows that are joined at a quote, and quotes or tabs that a text loses."""
    content, texts = OWN_FILES[name]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    record = read_own_record(path, "t", ("review",), "stars", None)
    assert record == read_own_record(path, "t", None, "stars", None)  # the only other column
    task = own_task(record)
    examples = read_examples(path, task)
    assert [example.texts for example in examples] == [(text,) for text in texts]
    assert [example.label for example in examples] == [0.0, 1.0, 0.0][: len(texts)]


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
JSON_QQP = '{"question1": "A?", "question2": "B?", "is_duplicate": 1}\n'
SBERT = "sentence1,sentence2,score\nA,B,0.5\nC,D,1.0\n"
GLUE_QQP = QQP + '7\t1\t2\t"Why?\tWhy "so?\t1\n8\t3\t4\tA?\tB?"\t0\n'
ELSEWHERE = [  # file, task, content, and the id, texts and label of each row
    ("glue-qqp.tsv", "para", GLUE_QQP, [("7", '"Why?', 'Why "so?', 1), ("8", "A?", 'B?"', 0)]),
    ("kaggle-test.csv", "para", "test_id,question1,question2\n5,A?,B?\n", [("5", "A?", "B?", None)]),
    ("qqp.jsonl", "para", JSON_QQP, [("1", "A?", "B?", 1)]),
    ("glue-stsb.tsv", "sts", STSB + '0\tx\tx\t2012\t1\tn\tn\t"A\tB\t0.500\n', [("0", '"A', "B", 0.5)]),
    ("sbert-stsb.csv", "sts", SBERT, [("1", "A", "B", 2.5), ("2", "C", "D", 5)]),
]


@pytest.mark.parametrize(("name", "task", "content", "expected"), ELSEWHERE)
def test_columns_of_glue_and_kaggle(tmp_path, name, task, content, expected):
    """Guards against GLUE's quotes that swallow rows, and scores of 0 to 1 among those of 0 to 5. More of
    them: tests/reading/test_strangers_files.py."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    rows = read_examples(path, TASKS[task], labelled=expected[0][-1] is not None)
    assert [(row.id, *row.texts, row.label) for row in rows] == expected


def test_held_out_rows_have_every_label_in_its_share():
    """Guards against dev rows that are in training, other dev rows in each run, and a class without any."""
    rows = [example._replace(id=str(i)) for i, example in enumerate(sample_examples("sst"))]  # 60 of each
    parts = held_out(rows)
    ids = {name: [int(row.id) for row in part] for name, part in parts.items()}
    assert sorted(ids["train"] + ids["dev"]) == list(range(300)) and len(ids["dev"]) == 30
    assert ids["train"] == sorted(ids["train"]) and ids["dev"] == sorted(ids["dev"])
    assert [sum(row.label == label for row in parts["dev"]) for label in range(5)] == [6] * 5
    assert held_out(rows) == parts and [len(part) for part in held_out(rows[:2]).values()] == [1, 1]


@pytest.mark.parametrize("labels", [["good", "bad"], ["0", "1", "2"], ["0.5", "9"]])
def test_smart_works_on_an_own_task(labels):
    """Guards against a divergence of the wrong kind, which is 0 or has no gradient in the encoder."""
    task = own_task(own_record("t", ["x"], "y", labels, None))
    model = MultitaskBERT(BertModel(TINY), tasks=[task]).train()
    losses = training_loss(
        model, task, tiny_batch("sst"), TrainConfig(use_smart=True), BregmanProximal(model)
    )
    assert losses["smart"].item() > 0
    losses["smart"].backward()
    layers = [*model.bert.bert_layers.parameters()]
    assert sum(layer.grad is not None and layer.grad.abs().max() > 0 for layer in layers) >= 8


def test_scores_are_learned_on_the_scale_of_sts():
    """Guards against scores from 0 to 1000, whose loss would be a million times that of others.

    By hand: 20 of 10 to 30 is 2.5 of 0 to 5, and (2 - 2.5)² = 0.25.
    """
    task = own_task({"name": "t", "text_columns": ["x"], "label_column": "y", "range": [10, 30]})
    outputs, scores = torch.tensor([[2.0], [5.0]]), torch.tensor([20.0, 30.0])
    assert task.loss(outputs, scores).item() == pytest.approx(0.125)
    assert task.predict(outputs).tolist() == [18.0, 30.0]
    assert seeded_linear(TINY, 1, task.first_output, (0,)).bias.item() == 2.5
    sts = own_task({"name": "t", "text_columns": ["x"], "label_column": "y", "range": [0, 5]})
    assert sts.loss(outputs, scores) == TASKS["sts"].loss(outputs, scores)


def test_a_run_on_a_file_alone(main, reviews, capsys, monkeypatch):
    """Guards against a model or a run that needs the training file again, other rows after resuming, which
    `load_last` would refuse, and labels that come back as the numbers of classes."""
    size = ["--use_smart", "--max_length=32", "--steps_per_epoch=4", "--batch_size=4", "--precision=fp32"]
    own = ["--train_file", "my.csv", *STARS, *size]
    assert main(*own, "--epochs", 1, "--output_dir", "run") == 0
    said = capsys.readouterr().out
    rows = lines_of(reviews / "run" / "own_data" / "dev.jsonl")
    counts = [sum(row["stars"] == label for row in rows) for label in (1, 2, 4, 5)]
    assert "stars: 4 classes, rows for training + dev: 1 (" in said and f"+ {counts[0]})" in said
    assert "a tenth of my.csv is held out for dev" in said and len(rows) == 6
    (reviews / "my.csv").rename(reviews / "gone.csv")

    assert main("--resume", "--epochs", 2, "--output_dir", "run") == 0

    capsys.readouterr()
    shutil.copytree(reviews / "run" / "best", reviews / "elsewhere" / "model")
    for folder in ("run", "elsewhere/model"):
        ask = ["--option", "predict", "--checkpoint", folder, "--task", "stars", "--text", "fine"]
        assert run_program(*ask, "--precision", "fp32") == 0
    answers = lines_of(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0]["label"] in (1, 2, 4, 5)
    assert answers[0]["name"] == str(answers[0]["label"])
    assert list(answers[0]["probabilities"]) == ["1", "2", "4", "5"]
    model = MultitaskBERT.from_pretrained(reviews / "elsewhere" / "model", "fp32")
    (answer,) = model.predict("stars", ["fine"])
    assert answer.items() <= answers[0].items()

    results = json.loads((reviews / "run" / "results.json").read_text())
    assert results["data"] == "my.csv"  # not the sample
    evaluate = ["--option", "evaluate", "--checkpoint", "run", "--precision", "fp32", "--output_dir", "again"]
    assert run_program(*evaluate) == 0
    assert json.loads((reviews / "again" / "results.json").read_text())["dev"] == results["dev"]
    test = write_csv(reviews / "test.csv", ["review", "other"], [["fine", 1], ["bad", 2]])
    predict = ["--option", "predict", "--checkpoint", "run", "--test_file", test, "--output_dir", "new"]
    assert run_program(*predict) == 0
    header, *lines = (reviews / "new" / "predictions" / "stars-test-output.csv").read_text().splitlines()
    assert header == "id \t stars " and [line.split(" , ")[0] for line in lines] == ["1", "2"]
    assert {line.split(" , ")[1].strip() for line in lines} <= {"1", "2", "4", "5"}

    capsys.readouterr()
    assert run_program("--option", "evaluate", "--checkpoint", "elsewhere/model", "--output_dir", "x") == 2
    assert "give them with --dev_file" in capsys.readouterr().err
    assert main(*own, "--epochs", 2, "--resume", "--output_dir", "run") == 0  # the whole command again
    card = (reviews / "run" / "best" / "README.md").read_text()
    assert "a tenth of my.csv, held out" in card and str(reviews) not in card
    assert "stars" in (reviews / "run" / "report.html").read_text()


def test_words_pairs_and_scores(main, tmp_path, monkeypatch, capsys):
    """Guards against a pair whose second text is lost, words that come back as numbers, and a regression that
    answers on the scale of its loss."""
    monkeypatch.chdir(tmp_path)
    pairs = sample_examples("sts")
    rows = [[*pair.texts, "same" if pair.label > 2.5 else "other", pair.label * 100] for pair in pairs]
    for name, part in {"pairs.csv": rows[:60], "dev.csv": rows[60:80]}.items():
        write_csv(tmp_path / name, ["a", "b", "kind", "price"], part)
    texts = ["--train_file", "pairs.csv", "--dev_file", "dev.csv", "--text_column", "a,b"]
    ask = ["--text", rows[0][0], "--text_pair", rows[0][1], "--option", "predict"]
    assert main(*texts, "--label_column", "kind", *SIZE, "--task_name", "kind", "--output_dir", "kind") == 0
    assert len(lines_of(tmp_path / "kind" / "predictions" / "kind-dev-rows.jsonl")) == 20
    capsys.readouterr()
    assert run_program(*ask, "--checkpoint", "kind", "--task", "kind") == 0
    (answer,) = lines_of(capsys.readouterr().out)
    assert answer["label"] == answer["name"] and list(answer["probabilities"]) == ["other", "same"]

    both = ["--tasks", "sst,price", "--task_name", "price", "--label_column", "price"]
    assert main(*texts, *both, *SIZE, "--output_dir", "price") == 0
    results = json.loads((tmp_path / "price" / "results.json").read_text())
    assert list(results["dev"]) == ["sst", "price"]
    assert list(results["dev"]["price"]) == ["pearson", "spearman"]
    assert results["untrained_cosine"].keys() == {"price"}
    rows_of_dev = lines_of(tmp_path / "price" / "predictions" / "price-dev-rows.jsonl")
    assert all(100 < row["prediction"] < 400 for row in rows_of_dev)  # the head begins in the middle, at 250
    capsys.readouterr()
    assert run_program(*ask, "--checkpoint", "price", "--task", "price") == 0
    assert 100 < lines_of(capsys.readouterr().out)[0]["value"] < 400


MISTAKES = {
    "--train_file my.csv --text_column reviw --label_column stars": "no column 'reviw' in the header (it has"
    " 'review', 'stars'); did you mean review?",
    "--train_file my.csv --text_column review": "no column 'label' in the header",
    "--train_file my.csv --text_column review --label_column review": "each other than the label's",
    "--train_file my.csv --text_column review --label_column stars review": "several labels at once",
    "--train_file my.csv --text_column review --label_column stars,review": "several labels at once",
    "--train_file my.csv --label_column stars --task_name sst": "--task_name sst: there is a task",
    "--train_file my.csv --label_column stars --task_name my-task": "--task_name my-task: is not a",
    "--train_file my.csv --label_column stars --tasks sst": "its task, own, is not one of --tasks",
    "--train_file no.csv --label_column stars": "no.csv: cannot be read",
    "--train_file empty.csv --label_column stars": "empty.csv:1: the file is empty",
    "--train_file header.csv --label_column stars": "header.csv: no row has a label in 'stars'",
    "--train_file one.csv --label_column stars": "one.csv: 'stars' has one label (1)",
    "--train_file three.csv --label_column stars": "--text_column must name the column of texts",
    "--train_file my.csv --label_column stars --dev_file other.csv": "other.csv:2: stars '3' is not one",
    "--train_file my.csv --label_column stars --dev_file no.csv": "--dev_file no.csv: no such file",
    "--train_file my.csv --label_column stars --test_file three.csv": "three.csv:1: no column 'review'",
    "--train_file bad.jsonl --label_column stars": "bad.jsonl:2: not JSON",
    "--dev_file my.csv": "--dev_file my.csv: needs --train_file",
    "--label_column stars": "--label_column stars: needs --train_file",
    "--regression": "--regression: needs --train_file",
    "--option evaluate --checkpoint x --train_file my.csv": "--train_file my.csv: only for --option finetune",
    "--tasks sst,stars": "there is no task 'stars'",
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.items())
def test_a_mistake_is_one_line(main, reviews, capsys, arguments, words):
    """Guards against tracebacks, half-written folders, and a dev label that is skipped in silence."""
    contents = {"empty.csv": "", "header.csv": "review,stars\n", "one.csv": "review,stars\na,1\nb,1\n"}
    contents |= {"other.csv": "review,stars\na,3\n", "three.csv": "a,b,stars\nx,y,1\nx,y,2\n"}
    contents["bad.jsonl"] = '{"review": "a", "stars": 1}\n{"review": "b"\n'
    for name, content in contents.items():
        (reviews / name).write_text(content)
    assert main(*arguments.split(), *SIZE, "--output_dir", "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert not (reviews / "run").exists()


def test_an_own_file_beside_dev_rows_of_another_task(main, reviews):
    """Guards against scores on another task that end in a traceback."""
    flags = ["--train_file", "my.csv", "--label_column", "stars", "--eval_tasks", "sst", *SIZE]
    assert main(*flags, "--max_eval_samples", 8, "--no_report", "--output_dir", "run") == 0
