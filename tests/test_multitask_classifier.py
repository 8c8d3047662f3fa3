"""The main job: schedules, command line, and whole runs on the sample and on real data."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch

import multitask_classifier
import run_files
from bert import BertModel
from config import TrainConfig, parse_arguments
from datasets import Loader, read_examples, tokenize
from multitask_classifier import main, plan_steps
from support.checkpoint import load_checkpoint, save_checkpoint
from support.errors import UserError
from tasks import TASKS

FAST = [
    "--max_train_samples=32",
    "--max_eval_samples=24",
    "--batch_size=8",
    "--epochs=1",
    "--steps_per_epoch=6",
    "--logging_steps=3",
]


def run(*arguments: str) -> int:
    return main([*map(str, arguments)])


# ---------------------------------------------------------------------------------------- schedules


def loaders_of(tokenizer, sizes: dict[str, int]) -> dict[str, Loader]:
    loaders = {}
    for name, size in sizes.items():
        task = TASKS[name]
        examples = read_examples(run_files.HERE / "data" / "sample" / task.filename("train"), task)[:size]
        loaders[name] = Loader(tokenize(examples, task, tokenizer, 64), 8, (0,))
    return loaders


def test_plan_interleaves_and_numbers_each_tasks_batches(tokenizer):
    """Guards against a task that repeats or skips batches when tasks alternate."""
    loaders = loaders_of(tokenizer, {"sst": 16, "para": 80, "sts": 24})
    plan = plan_steps(TrainConfig(epochs=2), loaders)
    assert plan.per_epoch == 9  # the median task, sts, has 3 batches
    assert plan.steps[:7] == [
        ("sst", 0),
        ("para", 0),
        ("sts", 0),
        ("sst", 1),
        ("para", 1),
        ("sts", 1),
        ("sst", 2),
    ]
    assert len(plan.steps) == 18 and plan.steps[-1] == ("sts", 5) and plan.warmup == 2


def test_plan_in_sequence(tokenizer):
    """Guards against `--schedule sequential` changing the order of tasks or their share."""
    loaders = loaders_of(tokenizer, {"sts": 24, "sst": 16})
    plan = plan_steps(
        TrainConfig(tasks=("sts", "sst"), schedule="sequential", steps_per_epoch=5, epochs=2, warmup_steps=1),
        loaders,
    )
    epoch = [name for name, _ in plan.steps[:5]]
    assert epoch == ["sts"] * 3 + ["sst"] * 2 and [name for name, _ in plan.steps[5:]] == epoch
    assert plan.steps[5] == ("sts", 3) and plan.warmup == 1


# ------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--lr x", "--lr"),
        ("--lr nan", "--lr"),
        ("--lr 0", "--lr"),
        ("--lr inf", "--lr"),
        ("--epochs 0", "--epochs"),
        ("--epochs 1.5", "--epochs"),
        ("--batch_size -1", "--batch_size"),
        ("--no_such_flag", "--no_such_flag"),
        ("--use_smar", "--use_smar"),
        ("--tasks sst,nonsense", "nonsense"),
        ("--tasks sst,sst", "--tasks"),
        ("--tasks=", "--tasks"),
        ("--schedule random", "--schedule"),
        ("--option train", "--option"),
        ("--pooling max", "--pooling"),
        ("--hidden_dropout_prob 1", "--hidden_dropout_prob"),
        ("--smart_epsilon 0", "--smart_epsilon"),
        ("--smart_norm 3", "--smart_norm"),
        ("--smart_steps -1", "--smart_steps"),
        ("--smart_weight sst=1,foo=2", "--smart_weight"),
        ("--smart_weight sst=x", "--smart_weight"),
        ("--bregman_weight -1", "--bregman_weight"),
        ("--bregman_beta 1", "--bregman_beta"),
        ("--bregman_beta slow", "--bregman_beta"),
        ("--keep teacher", "--keep"),
        ("--use_smart --keep teacher --bregman_weight cfimdb=1", "--keep"),
        ("--resume", "--resume"),
        ("--seed -1", "--seed"),
        ("--max_length 600", "--max_length"),
        ("--steps_per_epoch 2", "--steps_per_epoch"),
        ("--option evaluate", "--checkpoint"),
        ("--checkpoint x", "--checkpoint"),
        ("--option evaluate --checkpoint x --resume", "--resume"),
        ("--option evaluate --checkpoint no/such/folder", "no/such/folder"),
        ("--option predict", "--checkpoint"),
        ("--sst_dev_out .", "--sst_dev_out"),
        ("--sts_test_out /dev/null/below/it.csv", "--sts_test_out"),
        ("--option predict --checkpoint x --overwrite_output_dir", "--overwrite_output_dir"),
        ("--option predict --checkpoint no/such/folder", "no/such/folder"),
        ("--data_dir no/such/folder", "no/such/folder"),
        ("--sst_train no-such-file.csv", "--sst_train"),
        ("--model_name_or_path no-such-org/no-such-model", "no-such-org/no-such-model"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, named, capsys, tmp_path, monkeypatch):
    """Guards against tracebacks, and against a long run that starts although a flag is wrong."""
    monkeypatch.delenv("SMART_BERT_DATA_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(*arguments.split(), "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("multitask_classifier.py: error: ") and named in error
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_use_gpu_without_one_is_an_error(capsys, tmp_path):
    """Guards against a run that silently trains on the CPU although a GPU was asked for."""
    assert run("--use_gpu", "--output_dir", tmp_path / "out") == 2
    assert "--use_gpu" in capsys.readouterr().err


def test_a_broken_row_is_named(capsys, tmp_path, monkeypatch):
    """Guards against a bad file that is trained on, or reported without saying where."""
    monkeypatch.delenv("SMART_BERT_DATA_DIR", raising=False)
    broken = tmp_path / "train.csv"
    broken.write_text("\tid\tsentence\tsentiment\n0\ta\tgood\t4\n1\tb\tbad\t9\n")
    data = run_files.HERE / "data" / "sample"
    assert (
        run("--tasks", "sst", "--data_dir", data, "--sst_train", broken, "--output_dir", tmp_path / "out")
        == 2
    )
    assert f"{broken}:3:" in capsys.readouterr().err


def test_every_setting_is_a_flag():
    """Guards against a setting that the command line ignores."""
    arguments = [
        "--option",
        "pretrain",
        "--tasks",
        "sts,cfimdb",
        "--eval_tasks",
        "sst",
        "--lr",
        "0.5",
        "--use_smart",
        "--smart_norm",
        "2",
    ]
    config, given = parse_arguments([*arguments, "--sst_dev", "a.csv", "--cfimdb_test_out", "b.csv"])
    assert (config.option, config.tasks, config.eval_tasks, config.lr) == (
        "pretrain",
        ("sts", "cfimdb"),
        ("sst",),
        0.5,
    )
    assert config.use_smart and config.smart_norm == "2"
    assert config.files == {"sst_dev": "a.csv", "cfimdb_test_out": "b.csv"}
    assert given == {"option", "tasks", "eval_tasks", "lr", "use_smart", "smart_norm", "files"}


def test_weights_by_task():
    """Guards against a per-task weight applied to every task, and against a term that is off but paid for."""
    config, _ = parse_arguments(
        [
            "--use_smart",
            "--smart_weight",
            "sst=1,para=0.5",
            "--bregman_weight",
            "0",
            "--rdrop_weight",
            "sts=2",
        ]
    )
    assert [config.weights(task) for task in ("sst", "para", "sts")] == [
        {"smart": 1.0},
        {"smart": 0.5},
        {"rdrop": 2.0},
    ]
    assert TrainConfig().weights("sst") == {} and TrainConfig(use_smart=True).weights("sst") == {
        "smart": 1.0,
        "bregman": 1.0,
    }


def test_defaults_that_depend_on_others():
    """Guards against the frozen encoder's heads being trained with the learning rate of a full fine-tune."""
    assert (TrainConfig().lr, TrainConfig(option="pretrain").lr) == (1e-4, 1e-3)
    assert TrainConfig().tasks == TrainConfig().eval_tasks == ("sst", "para", "sts")


# --------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory):
    """A short run on the sample with SMART, with its console output."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert run("--use_smart", "--bregman_beta", 0.5, *FAST, "--output_dir", folder) == 0
    return folder


def test_results_and_files(sample_run):
    """Guards against results that lack what was asked for, or that hide that the sample was used."""
    results = json.loads((sample_run / "results.json").read_text())
    assert set(results["dev"]) == {"sst", "para", "sts"} and results["data"] == "sample"
    assert set(results["dev"]["sst"]) == set(results["dev"]["para"]) == {"accuracy", "macro_f1"}
    assert set(results["dev"]["sts"]) == {"pearson", "spearman"}
    main_scores = [
        results["dev"]["sst"]["accuracy"],
        results["dev"]["para"]["accuracy"],
        results["dev"]["sts"]["pearson"],
    ]
    assert results["dev_mean"] == pytest.approx(sum(main_scores) / 3)
    assert results["trained_tasks"] == ["sst", "para", "sts"] and results["config"]["use_smart"] is True
    assert results["train_seconds"] > 0 and results["examples_per_second"] > 0
    records = [json.loads(line) for line in (sample_run / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"].startswith("train/")]
    assert [record["kind"] for record in trained] == ["train/sst", "train/para", "train/sts"] * 2
    assert all(record["smart"] > 0 and record["task"] > 0 for record in trained)


@pytest.mark.parametrize(
    ("task", "column"),
    [("sst", "Predicted_Sentiment"), ("para", "Predicted_Is_Paraphrase"), ("sts", "Predicted_Similiary")],
)
def test_prediction_files_hold_every_id_in_order(sample_run, task, column):
    """Guards against predictions in length order, dropped rows, or a header that the course's grader does not
    know."""
    for split, rows in (("dev", 24), ("test", 50)):
        lines = (
            (sample_run / "predictions" / f"{task}-{split}-output.csv").read_text().splitlines(keepends=True)
        )
        assert lines[0] == f"id \t {column} \n"
        ids, values = zip(*(line.removesuffix(" \n").split(" , ") for line in lines[1:]), strict=True)
        assert len(ids) == rows
        if split == "test":
            file = run_files.HERE / "data" / "sample" / TASKS[task].filename(split)
            assert list(ids) == [example.id for example in read_examples(file, TASKS[task], labelled=False)]
        allowed = {"sst": {"0", "1", "2", "3", "4"}, "para": {"0.0", "1.0"}}.get(task)
        assert set(values) <= allowed if allowed else all(np.isfinite(float(value)) for value in values)


def test_evaluate_repeats_the_scores_from_a_moved_folder(sample_run, tmp_path, monkeypatch):
    """Guards against a checkpoint that needs the place it was made in, or that is not the model that was
    scored."""
    monkeypatch.delenv("SMART_BERT_DATA_DIR", raising=False)
    moved = tmp_path / "moved"
    shutil.copytree(sample_run / "best", moved)
    monkeypatch.chdir(tmp_path)
    status = run(
        "--option",
        "evaluate",
        "--checkpoint",
        moved,
        "--max_eval_samples",
        24,
        "--batch_size",
        8,
        "--output_dir",
        tmp_path / "again",
    )
    assert status == 0
    first, again = (
        json.loads((folder / "results.json").read_text()) for folder in (sample_run, tmp_path / "again")
    )
    assert again["dev"] == first["dev"] and again["dev_mean"] == first["dev_mean"]
    for file in (sample_run / "predictions").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / "predictions" / file.name).read_bytes()


def test_best_holds_student_and_teacher_of_its_step(sample_run):
    """Guards against a model that is saved under the other role's name, or after another step."""
    results = json.loads((sample_run / "results.json").read_text())
    best, last = (load_checkpoint(sample_run / name) for name in ("best", "last"))
    assert results["best_step"] == last.records["progress"]["step"]  # or the two would be of different steps
    kept = best.records["run"]["kept"]
    saved = {kept: {f"heads.{name}": bias for name, bias in best.tensors["heads"].items()}}
    for role, task in itertools.product(("student", "teacher"), ("sst", "para", "sts")):
        name = f"heads.{task}.bias"
        torch.testing.assert_close((saved | best.tensors)[role][name], last.tensors[role][name])
    assert not torch.equal(
        last.tensors["student"]["heads.para.bias"], last.tensors["teacher"]["heads.para.bias"]
    )


def test_predict_needs_the_checkpoint_alone(sample_run, tmp_path, monkeypatch):
    """Guards against predictions of a moved model that are not those of the run it was made in."""
    moved, tests = tmp_path / "moved", run_files.HERE / "data" / "sample"
    shutil.copytree(sample_run / "best", moved)
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            "--option",
            "predict",
            "--checkpoint",
            "moved",
            "--sts_test",
            tests / TASKS["sts"].filename("test"),
            "--batch_size",
            8,
        )
        == 0
    )
    assert [file.name for file in (tmp_path / "runs" / "predict" / "predictions").iterdir()] == [
        "sts-test-output.csv"
    ]  # as asked
    monkeypatch.setenv("SMART_BERT_DATA_DIR", str(tests))
    assert (
        run(
            "--option",
            "predict",
            "--checkpoint",
            "moved",
            "--output_dir",
            "all",
            "--sst_test_out",
            "mine.csv",
            "--batch_size",
            8,
        )
        == 0
    )
    for task, path in {
        "sst": "mine.csv",
        **{task: f"all/predictions/{task}-test-output.csv" for task in ("para", "sts")},
    }.items():
        assert (tmp_path / path).read_bytes() == (
            sample_run / "predictions" / f"{task}-test-output.csv"
        ).read_bytes()


ODD_TEXTS = {
    "empty": "",
    "blank": "   ",
    "long": "word " * 10_000,
    "one long word": "w" * 20_000,
    "nul": "a\0b",
    "emoji": "so good \N{GRINNING FACE}\N{ZERO WIDTH JOINER}",
    "quoted": '"two\nlines and ""quotes"""',
    "no vocabulary": "\ue000\U0010ffff",
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("task", ["sst", "sts"])
def test_predict_gives_every_id_a_value_whatever_its_text(sample_run, tmp_path, task, end):
    """Guards against rows that are dropped, joined or end a prediction: the file would no longer match the
    ids."""
    columns = TASKS[task].text_columns
    header = "\t".join(["", "id", *columns])
    rows = [
        f"{i}\t{name}\t" + "\t".join([text] * len(columns))
        for i, (name, text) in enumerate(ODD_TEXTS.items())
    ]
    (tmp_path / "odd.csv").write_bytes(("\ufeff" + end.join([header, "", *rows, "", ""])).encode())
    arguments = [
        "--checkpoint",
        sample_run / "best",
        f"--{task}_test",
        tmp_path / "odd.csv",
        "--output_dir",
        tmp_path / "out",
    ]
    assert run("--option", "predict", *arguments) == 0
    lines = (tmp_path / "out" / "predictions" / f"{task}-test-output.csv").read_text().splitlines()
    assert [line.split(" , ")[0] for line in lines[1:]] == list(ODD_TEXTS)
    assert all(np.isfinite(float(line.split(" , ")[1])) for line in lines[1:])


def test_a_lone_surrogate_is_one_line_naming_file_and_line(sample_run, tmp_path, capsys):
    """Guards against a traceback from bytes that only look like UTF-8, and against an output folder left by a
    run that did nothing."""
    (tmp_path / "odd.csv").write_bytes(b"\tid\tsentence\n0\ta\tfine\n1\tb\t\xed\xa0\x80\n")
    status = run(
        "--option",
        "predict",
        "--checkpoint",
        sample_run,
        "--sst_test",
        tmp_path / "odd.csv",
        "--output_dir",
        tmp_path / "out",
    )
    assert (
        status == 2
        and f"{tmp_path / 'odd.csv'}:3: not UTF-8" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )


def test_the_best_folder_is_a_model_to_start_from(sample_run):
    """Guards against a saved encoder that transformers, or `--model_name_or_path`, reads as something
    else."""
    import transformers

    theirs = transformers.BertModel.from_pretrained(sample_run / "best").eval()
    ours = BertModel.from_pretrained(str(sample_run / "best"))
    ids = torch.tensor([[101, 2023, 2003, 1037, 3185, 102]])
    with torch.no_grad():
        torch.testing.assert_close(
            ours(ids)["last_hidden_state"], theirs(ids).last_hidden_state, atol=1e-5, rtol=0
        )


def test_same_seed_same_losses_and_untrained_tasks_are_marked(tmp_path, monkeypatch):
    """Guards against runs that can't be repeated, and against scores of an untrained head passing for
    results."""
    monkeypatch.delenv("SMART_BERT_DATA_DIR", raising=False)
    arguments = ["--tasks", "sts", "--eval_tasks", "sts,sst", "--use_smart", *FAST]
    records = []
    for name in ("a", "b"):
        assert run(*arguments, "--output_dir", tmp_path / name) == 0
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        records.append([{key: value for key, value in line.items() if "per_" not in key} for line in lines])
    assert records[0] == records[1]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert (
        results["dev"]["sst"]["trained"] is False
        and "trained" not in results["dev"]["sts"]
        and results["trained_tasks"] == ["sts"]
    )


def test_pretrain_changes_the_heads_only(tmp_path, monkeypatch):
    """Guards against a 'frozen' encoder that weight decay or a stray gradient moves."""
    monkeypatch.delenv("SMART_BERT_DATA_DIR", raising=False)
    assert run("--option", "pretrain", "--tasks", "sst", *FAST, "--output_dir", tmp_path / "out") == 0
    model, _, _ = multitask_classifier.load_model(tmp_path / "out")
    for name, weight in BertModel.from_pretrained().state_dict().items():
        assert torch.equal(weight, model.bert.state_dict()[name]), name
    assert model.heads["sst"].bias.abs().max() > 0


def test_a_non_finite_loss_stops_before_the_update(tmp_path, monkeypatch, capsys):
    """Guards against weights full of NaN, found hours later."""
    monkeypatch.delenv("SMART_BERT_DATA_DIR", raising=False)
    broken = dataclasses.replace(TASKS["sst"], loss=lambda logits, labels: logits.sum() * float("nan"))
    monkeypatch.setitem(TASKS, "sst", broken)
    assert run("--tasks", "sst", *FAST, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "not finite" in error and "step 0" in error and "task sst" in error


@pytest.mark.parametrize(
    ("task", "metric", "floor", "extra"),
    [("sst", "accuracy", 0.3, ["--use_smart"]), ("para", "accuracy", 0.65, []), ("sts", "pearson", 0.5, [])],
)
def test_real_data_is_learned(course_data, tmp_path, task, metric, floor, extra):
    """Guards against a pipeline that runs to the end and learns nothing (a constant prediction scores .26,
    .63 and 0)."""
    few = run_files.HERE / "data" / "sample" / TASKS[task].filename("test")
    arguments = [
        "--data_dir",
        course_data,
        "--tasks",
        task,
        f"--{task}_test",
        few,
        "--epochs",
        2,
        "--output_dir",
        tmp_path / "out",
    ]
    assert run(*arguments, "--max_train_samples", 640, "--max_eval_samples", 300, *extra) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["dev"][task][metric] > floor and results["data"] == str(course_data)


def test_unusable_checkpoint_settings_are_refused(sample_run, tmp_path):
    """Guards against loading a folder that is a checkpoint of something else."""
    saved = load_checkpoint(sample_run / "best")
    del saved.records["run"]["config"]
    save_checkpoint(tmp_path / "other", saved)
    with pytest.raises(UserError, match="not a model saved by this program"):
        multitask_classifier.load_model(tmp_path / "other")


def test_the_notebooks_commands_are_right(sample_run, monkeypatch, capsys):
    """Guards against a notebook whose flags the program has since lost, and a plot that no longer reads the
    log."""
    cells = json.loads((run_files.HERE / "colab.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    commands = [line for text in code for line in text.splitlines() if "multitask_classifier.py" in line]
    assert len(commands) == 4
    for command in commands:
        parse_arguments(command.split()[2:])
    (plot,) = [text for text in code if "matplotlib" in text]
    monkeypatch.setenv("MPLBACKEND", "Agg")
    exec(plot.replace('"runs/plain"', repr(str(sample_run))), {})
    assert '"accuracy"' in capsys.readouterr().out.replace("'", '"')
