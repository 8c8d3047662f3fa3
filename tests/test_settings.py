"""The settings: which flags there are, what --help says of them, and how a run shows those that it has."""

import re
from dataclasses import replace

import pytest

from config import SPLITS, TrainConfig, describe_settings, parse_arguments
from support.errors import UserError
from support.flags import Weight, flags
from tasks import TASKS

FLAGS = """
option tasks eval_tasks model_name_or_path checkpoint pooling hidden_dropout_prob max_length precision
similarity use_gpu deterministic compile
data_dir max_train_samples max_eval_samples unlabelled_file unlabelled_task
task text text_pair input output
schedule task_weights gradient_surgery epochs eval_steps patience steps_per_epoch batch_size
gradient_accumulation_steps max_tokens lr
head_lr layer_lr_decay warmup_steps
weight_decay max_grad_norm skip_nonfinite seed use_smart adversary smart_weight smart_epsilon smart_step_size
smart_noise_var smart_steps smart_norm bregman_weight bregman_beta keep rdrop_weight contrastive_weight
output_dir logging_steps save_steps no_report resume overwrite_output_dir log_level
""".split()  # noqa: SIM905


# Flags that are other names of these. Each is a decision, too: --fine-tune-mode is the course's since 2024.
OTHER_NAMES = ["--fine-tune-mode"]


def help_text(capsys) -> str:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    return capsys.readouterr().out


def test_the_list_of_flags_is_frozen():
    """Guards against a new flag that nobody decided on: each is something more to explain and to test."""
    assert [setting.name for setting in flags(TrainConfig)] == FLAGS


def test_no_flag_has_another_name_that_nobody_decided_on(capsys):
    """Guards against an alias, which is one more thing to explain and to keep working."""
    files = [f"{task}_{name}" for task in TASKS for name in (*SPLITS, "dev_out", "test_out")]
    named = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_text(capsys), flags=re.MULTILINE))
    assert named - {f"--{name}" for name in FLAGS + files} == {"--help", *OTHER_NAMES}


def test_help_comes_in_groups_and_ends_with_examples(capsys):
    """Guards against one list of forty flags, and an example that the program does not understand."""
    text = help_text(capsys)
    headings = re.findall(r"^([a-z][\w ]+):$", text, flags=re.MULTILINE)
    assert headings == [
        "options",
        "what to do",
        "model",
        "data",
        "your own texts",
        "training",
        "regularisation",
        "output",
        "files",
        "examples",
    ]
    commands = re.findall(r"^  python multitask_classifier.py (.+)$", text, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        parse_arguments(command.split())


def test_help_names_the_tasks_of_the_table(capsys):
    """Guards against a list of tasks that is typed twice."""
    words = " ".join(help_text(capsys).split())
    assert f"of {', '.join(TASKS)} (default" in words


def test_every_term_of_the_loss_has_a_weight_and_every_weight_a_term():
    """Guards against a weight that nothing reads, and a term that can't be switched on."""
    weights = [setting.name for setting in flags(TrainConfig) if setting.type == Weight]
    assert weights == [
        "task_weights",
        *(f"{name}_weight" for name in ("smart", "bregman", "rdrop", "contrastive")),
    ]
    config = TrainConfig(use_smart=True, rdrop_weight={"sst": 2.0})
    assert config.weights("sst") == {"smart": 1.0, "bregman": 1.0, "rdrop": 2.0}


def test_a_run_shows_the_settings_that_differ_in_lines_of_100_columns():
    """Guards against a wall of a thousand characters, and against a changed setting that is not shown."""
    assert describe_settings(TrainConfig()) == ""
    config = TrainConfig(
        use_smart=True, lr=3e-4, smart_weight={"sst": 1.0, "para": 0.5}, tasks=("sst", "para")
    )
    shown = describe_settings(replace(config, files={"sst_dev": "x.csv"}))
    assert shown.splitlines() == [
        "  what to do      --tasks sst,para",
        "  training        --lr 0.0003",
        "  regularisation  --use_smart --smart_weight sst=1,para=0.5",
        "  files           --sst_dev x.csv",
    ]
    everything = describe_settings(config, everything=True)
    assert max(map(len, everything.splitlines())) <= 100
    assert set(re.findall(r"--(\w+)", everything)) == set(FLAGS)


def test_defaults_that_depend_on_device_and_encoder_are_left_open():
    """Guards against a precision or a length that is fixed before device and encoder are known."""
    config, given = parse_arguments(["--seed", "3"])
    assert config.precision is None and config.max_length is None and given == {"seed"}
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("value", ["loud", "", "INFO"])
def test_a_wrong_log_level_is_refused(value):
    """Guards against a run without the log that was asked for."""
    with pytest.raises(UserError, match="--log_level"):
        parse_arguments([f"--log_level={value}"])
