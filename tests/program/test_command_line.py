"""Flags, their defaults, and the one line that a mistake is answered with."""

import pytest
import torch

from config import TrainConfig, parse_arguments
from helpers import SAMPLE, run_program


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
        ("--tasks sst para,", "--tasks"),
        ("--tasks", "--tasks"),
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
        ("--task sst", "--task"),
        ("--option evaluate --checkpoint x --text a", "--text"),
        ("--option predict --checkpoint x --text a", "--text"),
        ("--option predict --checkpoint x --task stt --text a", "--task"),
        ("--option predict --checkpoint x --task sst --text a --input b", "--input"),
        ("--option predict --checkpoint x --task sst --text a --sst_test b", "--sst_test"),
        ("--option predict --checkpoint x --task sst --eval_tasks sts", "--eval_tasks"),
        ("--option predict --checkpoint x --task sst --text= ", "--text"),
        ("--option predict --checkpoint x --task sst --text a --text_pair b", "--text_pair"),
        ("--option predict --checkpoint x --task sst --text_pair b", "--text_pair"),
        ("--option predict --checkpoint x --task sts --text a --text b --text_pair c", "--text_pair"),
        ("--option predict --checkpoint x --task sst --input no/such/file", "--input no/such/file"),
        ("--option predict --checkpoint x --task sst --text a --output .", "--output"),
        ("--option predict --checkpoint x --overwrite_output_dir", "--overwrite_output_dir"),
        ("--option predict --checkpoint no/such/folder", "no/such/folder"),
        ("--data_dir no/such/folder", "no/such/folder"),
        ("--sst_train no-such-file.csv", "--sst_train"),
        ("--model_name_or_path no-such-org/no-such-model", "no-such-org/no-such-model"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, named, capsys, tmp_path, monkeypatch, no_course_data):
    """Guards against tracebacks, and against a long run that starts although a flag is wrong."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_program(*arguments.split(), "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("multitask_classifier.py: error: ") and named in error
    assert not (tmp_path / "out").exists()


TASK_LIST = "The tasks are sst (sentiment, SST-5), para (paraphrase, Quora, QQP), sts (similarity, STS-B), "
TASK_LIST += "cfimdb (IMDB, long film reviews)"
HINTS = {
    "--use_smrt": "unknown flag --use_smrt; did you mean --use_smart?",
    "--epoch=3": "unknown flag --epoch; did you mean --epochs?",
    "--taks sst para": "unknown flag --taks; did you mean --tasks?",
    "--use-smart": "unknown flag --use-smart; did you mean --use_smart?",
    "-epochs 3": "unknown flag -epochs; did you mean --epochs?",
    "\u2014epochs 3": "unknown flag \u2014epochs; did you mean --epochs?",
    "--sst_trian x": "unknown flag --sst_trian; did you mean --sst_train?",
    "--zzz": "unknown flag --zzz; --help lists all flags",
    "use_smart": "'use_smart' belongs to no flag; did you mean --use_smart?",
    "--resume twice": "'twice' belongs to no flag; --help lists all flags",
    "--schedule interleavd": "--schedule interleavd: must be one of interleaved, sequential, proportional,"
    " annealed, joint; did you mean interleaved?",
    "--precision BF16": "--precision BF16: must be one of fp32, bf16, fp16; did you mean bf16?",
    "--pooling zzz": "--pooling zzz: must be one of mean, cls",
    "--tasks quora": f"--tasks quora: there is no task 'quora'; did you mean para? {TASK_LIST}",
    "--tasks sst QQP": f"--tasks sst,QQP: there is no task 'QQP'; did you mean para? {TASK_LIST}",
    "--tasks sentiment": f"--tasks sentiment: there is no task 'sentiment'; did you mean sst? {TASK_LIST}",
    "--tasks sst5": f"--tasks sst5: there is no task 'sst5'; did you mean sst? {TASK_LIST}",
    "--tasks STS": f"--tasks STS: there is no task 'STS'; did you mean sts? {TASK_LIST}",
    "--tasks zzz": f"--tasks zzz: there is no task 'zzz'. {TASK_LIST}",
    "--eval_tasks sts-b": f"--eval_tasks sts-b: there is no task 'sts-b'; did you mean sts? {TASK_LIST}",
    "--smart_weight qqp=2": f"--smart_weight qqp=2: there is no task 'qqp'; did you mean para? {TASK_LIST}",
}


@pytest.mark.parametrize(("arguments", "words"), HINTS.items())
def test_a_mistake_is_answered_with_what_was_probably_meant(arguments, words, capsys):
    """Guards against an error that sends the user to search a list of forty flags."""
    assert run_program(*arguments.split()) == 2
    error = capsys.readouterr().err
    assert error == f"multitask_classifier.py: error: {words}\n"


@pytest.mark.parametrize(
    "words", ["sst,para,sts", "sst para sts", "sst, para, sts", "sst,para sts", "sst , para ,sts"]
)
def test_tasks_are_separated_by_commas_or_spaces(words):
    """Guards against a run of the first task alone."""
    config, given = parse_arguments(["--tasks", *words.split(" "), "--eval_tasks", words, "--lr", "0.5"])
    assert config.tasks == config.eval_tasks == ("sst", "para", "sts") and config.lr == 0.5
    assert given == {"tasks", "eval_tasks", "lr"}
    config, _ = parse_arguments([f"--tasks={words}"])
    assert config.tasks == ("sst", "para", "sts")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_use_gpu_without_one_is_an_error(capsys, tmp_path):
    """Guards against a run that silently trains on the CPU although a GPU was asked for."""
    assert run_program("--use_gpu", "--output_dir", tmp_path / "out") == 2
    assert "--use_gpu" in capsys.readouterr().err


def test_a_broken_row_is_named(capsys, tmp_path):
    """Guards against a bad file that is trained on, or reported without saying where."""
    broken = tmp_path / "train.csv"
    broken.write_text("\tid\tsentence\tsentiment\n0\ta\tgood\t4\n1\tb\tbad\t9\n")
    files = ["--data_dir", SAMPLE, "--sst_train", broken]
    assert run_program("--tasks", "sst", *files, "--output_dir", tmp_path / "out") == 2
    assert f"{broken}:3:" in capsys.readouterr().err


def test_every_setting_is_a_flag():
    """Guards against a setting that the command line ignores."""
    arguments = "--option pretrain --tasks sts,cfimdb --eval_tasks sst --lr 0.5 --use_smart --smart_norm 2"
    files = "--sst_dev a.csv --cfimdb_test_out b.csv"
    config, given = parse_arguments([*arguments.split(), *files.split()])
    assert (config.option, config.lr) == ("pretrain", 0.5)
    assert (config.tasks, config.eval_tasks) == (("sts", "cfimdb"), ("sst",))
    assert config.use_smart and config.smart_norm == "2"
    assert config.files == {"sst_dev": "a.csv", "cfimdb_test_out": "b.csv"}
    assert given == {"option", "tasks", "eval_tasks", "lr", "use_smart", "smart_norm", "files"}


def test_weights_by_task():
    """Guards against one task's weight applied to every task, and a term computed though it is off."""
    given = "--use_smart --smart_weight sst=1,para=0.5 --bregman_weight 0 --rdrop_weight sts=2"
    config, _ = parse_arguments(given.split())
    expected = {"sst": {"smart": 1.0}, "para": {"smart": 0.5}, "sts": {"rdrop": 2.0}}
    assert {task: config.weights(task) for task in expected} == expected
    assert TrainConfig().weights("sst") == {}
    assert TrainConfig(use_smart=True).weights("sst") == {"smart": 1.0, "bregman": 1.0}


def test_defaults_that_depend_on_others():
    """Guards against heads on a frozen encoder trained with the learning rate of a full fine-tune."""
    assert (TrainConfig().lr, TrainConfig(option="pretrain").lr) == (1e-4, 1e-3)
    assert TrainConfig().tasks == TrainConfig().eval_tasks == ("sst", "para", "sts")
