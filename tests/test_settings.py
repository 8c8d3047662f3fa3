"""The settings: which flags there are, what --help says of them, and how a run shows and stores them."""

import json
import re
from dataclasses import replace

import pytest

from config import SPLITS, TrainConfig, Weight, describe_settings, flags, parse_arguments
from helpers import ROOT
from support.errors import UserError
from tasks import TASKS

FLAGS = """
option tasks eval_tasks model_name_or_path checkpoint pooling hidden_dropout_prob max_length precision
similarity use_gpu deterministic compile
data_dir max_train_samples max_eval_samples unlabelled_file unlabelled_task
train_file dev_file test_file text_column label_column task_name regression
task text text_pair input output
schedule task_weights gradient_surgery epochs eval_steps patience steps_per_epoch batch_size
gradient_accumulation_steps max_tokens lr
head_lr layer_lr_decay warmup_steps
weight_decay max_grad_norm skip_nonfinite seed use_smart adversary smart_weight smart_epsilon smart_step_size
smart_noise_var smart_steps smart_norm smart_every bregman_weight bregman_beta keep select_by rdrop_weight
contrastive_weight output_dir logging_steps save_steps no_report resume overwrite_output_dir log_level
""".split()  # noqa: SIM905


def test_the_list_of_flags_is_frozen(capsys):
    """Guards against a new flag, or another name for one, that nobody decided on, and against an example in
    --help that the program does not understand."""
    assert [setting.name for setting in flags(TrainConfig)] == FLAGS
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    files = [f"{task}_{name}" for task in TASKS for name in (*SPLITS, "dev_out", "test_out")]
    named = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, flags=re.MULTILINE))
    assert named - {f"--{name}" for name in FLAGS + files} == {"--help", "--fine-tune-mode"}
    commands = re.findall(r"^  python multitask_classifier.py (.+)$", text, flags=re.MULTILINE)
    assert len([parse_arguments(command.split()) for command in commands]) >= 4


def test_every_term_of_the_loss_has_a_weight_and_every_weight_a_term():
    """Guards against a weight that nothing reads, one task's weight on every task, and a term that is
    computed though it is off."""
    weights = {setting.name for setting in flags(TrainConfig) if setting.type == Weight}
    terms = ("smart", "bregman", "rdrop", "contrastive")
    assert weights == {"task_weights", *(f"{term}_weight" for term in terms)}
    given = "--use_smart --smart_weight sst=1,para=0.5 --bregman_weight 0 --rdrop_weight sts=2"
    config, _ = parse_arguments([*given.split(), "--contrastive_weight", "0.1"])
    expected = {"sst": {"smart": 1.0}, "para": {"smart": 0.5, "contrastive": 0.1}, "sts": {"rdrop": 2.0}}
    assert {task: config.weights(task) for task in expected} == expected
    assert TrainConfig().weights("sst") == {}


def test_a_run_shows_the_settings_that_differ_in_lines_of_100_columns():
    """Guards against a changed setting that is not shown."""
    assert describe_settings(TrainConfig()) == ""
    weights = {"sst": 1.0, "para": 0.5}
    config = TrainConfig(use_smart=True, lr=3e-4, smart_weight=weights, tasks=("sst", "para"))
    assert describe_settings(replace(config, files={"sst_dev": "x.csv"})).splitlines() == [
        "  what to do      --tasks sst,para",
        "  training        --lr 0.0003",
        "  regularisation  --use_smart --smart_weight sst=1,para=0.5",
        "  files           --sst_dev x.csv",
    ]
    everything = describe_settings(config, everything=True)
    assert max(map(len, everything.splitlines())) <= 100
    assert set(re.findall(r"--(\w+)", everything)) == set(FLAGS)


def test_defaults_that_depend_on_others():
    """Guards against heads on a frozen encoder with the learning rate of a full fine-tune."""
    assert (TrainConfig().lr, TrainConfig().head_lr) == (2e-4, 3e-3)
    frozen = TrainConfig(option="pretrain")
    assert (frozen.lr, frozen.head_lr, TrainConfig(option="pretrain", lr=0.5).head_lr) == (1e-3, 1e-3, 0.5)
    assert TrainConfig().tasks == TrainConfig().eval_tasks == ("sst", "para", "sts")
    assert TrainConfig().precision is None and TrainConfig().max_length is None


def test_a_record_is_read_as_it_was_written():
    """Guards against a resumed run with other settings, an older record, without `head_lr`, whose heads would
    get another learning rate than they were trained with, and a record with what no flag could have given."""
    run = json.loads((ROOT / "tests" / "fixtures" / "old_model" / "run.json").read_text())
    config = TrainConfig.from_dict(run["config"])
    assert "head_lr" not in run["config"]
    assert (config.lr, config.head_lr, config.layer_lr_decay) == (0.01, 0.01, 1.0)
    assert config.tasks == ("sst", "para") and config.similarity == "head"
    given = TrainConfig(lr=0.5, head_lr=0.25, task_weights={"sst": 0.5}, files={"sst_dev": "a.csv"})
    assert TrainConfig.from_dict(json.loads(json.dumps(given.to_dict()))) == given
    for wrong in ({"epochs": "3"}, {"epochs": None}, {"pooling": 5}, {"unknown": 1}):
        with pytest.raises(UserError):
            TrainConfig.from_dict(given.to_dict() | wrong)
