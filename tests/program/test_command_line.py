"""Flags, their defaults, and the one line that a mistake is answered with."""

import dataclasses
import re
import shlex

import pytest
import torch
import transformers

from config import parse_arguments, warn_of_unused_flags
from helpers import ROOT, SAMPLE, run_program, warnings_of
from support.other_flags import ANSWERS, answer

TASK_LIST = "the tasks are sst (sentiment), para (is_duplicate), sts (similarity), cfimdb (sentiment)"
PREDICT = "--option predict --checkpoint x"
ASK = f"{PREDICT} --task sst"
ADAPT = "--option adapt --tasks sst"
MISTAKES = {  # the command line -> what the error says, in parts that stand in this order
    "--lr x": "--lr",
    "--lr nan": "--lr",
    "--seed -1": "--seed",
    "--max_length 600": "--max_length",
    "--steps_per_epoch 2": "--steps_per_epoch",
    "--smart_weight sst=x": "--smart_weight",
    "--bregman_beta slow": "--bregman_beta",
    "--option pretrain --similarity cosine": "--similarity cosine: not with --option pretrain",
    "--option pretrain --contrastive_weight 0.1": "--contrastive_weight 0.1: not with --option pretrain",
    "--option evaluate": "--checkpoint",
    "--checkpoint x": "--checkpoint",
    "--option evaluate --checkpoint no/such/folder": "no/such/folder",
    f"{PREDICT} --text a": "--text a: needs --option predict and --task",
    f"{ASK} --text a --input b": "--input",
    f"{ASK} --text_pair b": "--text_pair",
    f"{ASK} --input no/such/file": "no/such/file",
    f"{ASK} --text a --output .": "--output",
    "--sst_dev_out .": "--sst_dev_out",
    "--sst_train no-such-file.csv": "--sst_train",
    "--data_dir no/such/folder": "no/such/folder",
    "--data_dir=": "--data_dir: must not be empty or hold a NUL",
    "--model_name_or_path no-such-org/no-such-model": "no-such-org/no-such-model",
    "--max_tokens 8 --model_name_or_path {encoder}": "--max_tokens 8: a row of ",
    f"{ADAPT},sts --unlabelled_file nothing.txt": "--unlabelled_task",
    f"{ADAPT} --checkpoint runs/a": "--checkpoint",
    f"{ADAPT} --model_name_or_path nowhere": "nowhere",
    # a setting that would be without effect
    "--task_weights cfimdb=1": "--task_weights cfimdb=1 ... --tasks",
    "--task_weights nothing=1": "--task_weights ... no task 'nothing'",
    "--task_weights -1": "--task_weights -1",
    "--task_weights nan": "--task_weights nan",
    "--task_weights 0": "--task_weights 0 ... nothing is left",
    "--schedule joint --tasks sst": "--schedule joint ... --tasks",
    "--schedule anealed": "--schedule anealed ... did you mean annealed",
    "--gradient_surgery pcgrad": "--gradient_surgery pcgrad ... --schedule joint",
    "--gradient_surgery cagrad": "--gradient_surgery cagrad ... pcgrad",
    "--unlabelled_task sst": "--unlabelled_task sst ... --unlabelled_file",
    "--unlabelled_file x --unlabelled_task cfimdb": "--unlabelled_task cfimdb ... --tasks",
    "--unlabelled_file x --unlabelled_task sst": "--unlabelled_file ... --use_smart",
    "--contrastive_weight sst=1": "--contrastive_weight sst=1 ... sst",
    "--select_by macro_f1 --tasks sts": "--select_by macro_f1: no metric of sts",
    "--use_smart --adversary freelb --smart_every 2": "smart_every 2: not with --adversary freelb",
    # what was probably meant
    "--epoch=3": "unknown flag --epoch; did you mean --epochs?",
    "\u2014epochs 3": "unknown flag \u2014epochs; did you mean --epochs?",
    "--sst_trian x": "unknown flag --sst_trian; did you mean --sst_train?",
    "--do_train": "unknown flag --do_train; leave it out",
    "--learning_rate=2e-5": "unknown flag --learning_rate; here it is --lr",
    "--per-device-train-batch-size 8": "unknown flag --per-device-train-batch-size; here it is --batch_size",
    "--num_train_epochs 3 --max_seq_length 128 --lr 1 --zzz -1": "unknown flags --num_train_epochs (here"
    " it is --epochs), --max_seq_length (here it is --max_length), --zzz (--help lists all flags)",
    "--no_tf32": "unknown flag --no_tf32; there is nothing like it here, leave it out",
    "--adv_k 1": "unknown flag --adv_k; here it is --smart_steps",
    "--dev x": "unknown flag --dev; here it is --dev_file, or --sst_dev, --para_dev, --sts_dev",
    "--zzz": "unknown flag --zzz; --help lists all flags",
    "use_smart": "unknown flag use_smart; did you mean --use_smart?",
    "--precision BF16": "--precision BF16: must be one of fp32, bf16, fp16; did you mean bf16?",
    "--tasks sst5": f"--tasks sst5: there is no task 'sst5'; did you mean sst? {TASK_LIST}",
    "--smart_weight qqp=2": f"--smart_weight qqp=2: there is no task 'qqp'; {TASK_LIST}",
    f"{PREDICT} --task STS": f"--task STS: there is no task 'STS'; did you mean sts? {TASK_LIST}",
    "--fine-tune-mode full-model --option pretrain": "--fine-tune-mode full-model: means --option finetune,"
    " not pretrain",
}
if not torch.cuda.is_available():  # or the run would train on the CPU without a word
    MISTAKES["--use_gpu"] = "--use_gpu"


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.items())
def test_a_mistake_is_one_line_and_status_2(
    arguments, said, encoder, capsys, tmp_path, monkeypatch, no_course_data
):
    """Guards against tracebacks, against a long run that starts although a flag is wrong or without effect,
    and against an error that sends the user to search a list of sixty flags."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = arguments.format(encoder=encoder).split()
    assert run_program(*words, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("multitask_classifier.py: error: ")
    assert re.search(".+".join(map(re.escape, said.split(" ... "))), error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["\x1b[2J\x07\x85no", "a\u202eb\u2028c\r\nd", "x" * 4000, "/".join("é" * 900)]
)
@pytest.mark.parametrize("flag", ["--data_dir", "--sst_train", "--model_name_or_path", "--no_such_flag"])
def test_a_message_is_short_and_leaves_the_screen_alone(flag, name, capsys, tmp_path, offline):
    """Guards against a stranger's file name that rewrites the terminal, and one that fills it."""
    assert run_program(flag, name, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("multitask_classifier.py: error: ") and error.endswith("\n")
    assert error[:-1].isprintable() and len(error) <= 301


# Flags of programs that have no class to ask. A line that begins with # names the program.
LINES = (ROOT / "tests/fixtures/strangers/flags.txt").read_text().splitlines()
TRAINING_ARGUMENTS = [field.name for field in dataclasses.fields(transformers.TrainingArguments)]
FOREIGN = TRAINING_ARGUMENTS + " ".join(line for line in LINES if line[0] != "#").split()


def test_no_flag_of_another_trainer_is_answered_by_its_letters(capsys):
    """Guards against `--do_train`, that is answered by `--sts_train`, and against an answer that names a flag
    which this program does not have."""
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    ours = set(re.findall(r"^  (?:-\w, )?--([\w-]+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert not ours & set(ANSWERS)
    assert len(FOREIGN) > 240
    for name in FOREIGN:
        assert name in ours or answer(f"--{name}"), name
    for words in ANSWERS.values():
        assert set(re.findall(r"--([\w-]+)", words)) <= ours, words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--smart_epsilon 1 --bregman_beta .5", ["--bregman_beta, --smart_epsilon: without --use_smart"]),
        ("--keep teacher --bregman_beta .5", []),
        ("--use_smart --adversary freelb --smart_norm 2", ["--smart_norm: with --adversary freelb"]),
        ("--option pretrain --layer_lr_decay .9", ["--layer_lr_decay: with --option pretrain"]),
        ("--similarity head --tasks sst,para", ["--similarity: without sts"]),
        ("--similarity head --tasks sst --eval_tasks sst,sts", []),
        ("--tasks sts --head_lr 1", ["--head_lr: sts alone, by a cosine"]),
        ("--option adapt --patience 1 --lr 1", ["--patience: with --option adapt"]),
        ("--option evaluate --checkpoint a --lr 1 --batch_size 2", ["--lr: with --option evaluate"]),
    ],
)
def test_a_flag_without_effect_is_said(arguments, said, caplog):
    """Guards against hours of training with a flag that does nothing."""
    warn_of_unused_flags(*parse_arguments(arguments.split()))
    assert warnings_of(caplog) == [f"{words} this has no effect" for words in said]


@pytest.mark.parametrize("words", ["sst,para,sts", "sst para sts", "sst, para sts", "sst , para ,sts"])
def test_every_setting_is_a_flag(words):
    """Guards against a setting that the command line ignores, and a run of the first task alone."""
    arguments = (
        "--option pretrain --lr 0.5 --use_smart --smart_norm 2 --sst_dev a.csv --cfimdb_test_out b.csv"
    )
    arguments = [*arguments.split(), "--eval_tasks", *words.split(" "), f"--tasks={words}"]
    config, given = parse_arguments(arguments)
    assert config.tasks == config.eval_tasks == ("sst", "para", "sts")
    assert (config.option, config.lr, config.use_smart, config.smart_norm) == ("pretrain", 0.5, True, "2")
    assert config.files == {"sst_dev": "a.csv", "cfimdb_test_out": "b.csv"}
    assert given == {"option", "tasks", "eval_tasks", "lr", "use_smart", "smart_norm", "files"}


# ------------------------------------- the course's starter code, as its students have typed it since 2023

STEMS = {"sst": "ids-sst", "para": "quora", "sts": "sts"}
FILES = {}  # of the course's flags, with their defaults
for task, stem in STEMS.items():
    FILES |= {f"{task}_{split}": f"data/{stem}-{split}.csv" for split in ("train", "dev")}
    FILES |= {f"{task}_test": f"data/{stem}-test-student.csv"}
    FILES |= {f"{task}_{split}_out": f"predictions/{task}-{split}-output.csv" for split in ("dev", "test")}
EVERY_FLAG = "--seed 11711 --epochs 10 --use_gpu --batch_size 8 --hidden_dropout_prob 0.3 --lr 1e-5 "
EVERY_FLAG += " ".join(f"--{name} {path}" for name, path in FILES.items())
COMMANDS = {
    "": "finetune",
    "--option=finetune --epochs=10 --lr=1e-05 --batch_size=64 --hidden_dropout_prob=0.3": "finetune",
    f"--option pretrain {EVERY_FLAG}": "pretrain",  # 2023
    "--fine-tune-mode last-linear-layer --lr 1e-3": "pretrain",
    "--fine-tune-mode=full-model --option finetune": "finetune",
    f"--fine-tune-mode full-model {EVERY_FLAG}": "finetune",  # 2024
}


@pytest.mark.parametrize(("words", "option"), COMMANDS.items())
def test_the_starter_codes_command_lines_are_understood(words, option):
    """Guards against a flag of the course that our program refuses, or takes for something else."""
    config, given = parse_arguments(shlex.split(words))
    assert config.option == option
    assert "fine_tune_mode" not in given and ("option" in given) == (words != "")
    if EVERY_FLAG in words:
        assert (config.seed, config.epochs, config.batch_size, config.lr) == (11711, 10, 8, 1e-5)
        assert config.use_gpu and config.hidden_dropout_prob == 0.3 and config.files == FILES


def test_a_starter_command_line_runs(encoder, tmp_path, monkeypatch, no_course_data):
    """Guards against files of the course's flags that are parsed and then not read, or not written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(SAMPLE)
    words = EVERY_FLAG.replace("--use_gpu ", "").replace("--epochs 10", "--epochs 1")
    ours = ["--model_name_or_path", encoder, "--steps_per_epoch", "3", "--output_dir", "out", "--no_report"]
    assert run_program("--fine-tune-mode", "last-linear-layer", *shlex.split(words), *ours) == 0
    assert all((tmp_path / path).exists() for name, path in FILES.items() if name.endswith("_out"))
