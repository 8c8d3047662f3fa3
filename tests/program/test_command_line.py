"""Flags, their defaults, and the one line that a mistake is answered with."""

import dataclasses
import re

import pytest
import torch
import transformers

from config import parse_arguments, warn_of_unused_flags
from helpers import run_program, warnings_of
from support.other_flags import ANSWERS, answer

PREDICT = "--option predict --checkpoint x"
ASK = f"{PREDICT} --task sst"
MISTAKES = {  # what names the mistake in the error
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
    "--model_name_or_path no-such-org/no-such-model": "no-such-org/no-such-model",
}


@pytest.mark.parametrize(("arguments", "named"), MISTAKES.items())
def test_a_mistake_is_one_line_and_status_2(arguments, named, capsys, tmp_path, monkeypatch, no_course_data):
    """Guards against tracebacks, and against a long run that starts although a flag is wrong."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_program(*arguments.split(), "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("multitask_classifier.py: error: ") and named in error
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


# Flags of run_glue.py, of the CS 224N project's scripts and of mt-dnn's train.py, which have no class to ask.
RUN_GLUE = """
task_name dataset_name dataset_config_name max_seq_length overwrite_cache pad_to_max_length
max_train_samples max_eval_samples max_predict_samples train_file validation_file test_file
model_name_or_path config_name tokenizer_name cache_dir use_fast_tokenizer model_revision token
use_auth_token trust_remote_code ignore_mismatched_sizes num_warmup_steps max_train_steps use_slow_tokenizer
checkpointing_steps
"""
OLDER = """
evaluation_strategy warmup_ratio no_cuda use_mps_device overwrite_output_dir group_by_length logging_dir
fp16_opt_level half_precision_backend per_gpu_train_batch_size per_gpu_eval_batch_size adafactor
save_safetensors tpu_num_cores ray_scope include_inputs_for_metrics hub_token
"""
COURSE = """
train dev test seed epochs option fine-tune-mode use_gpu dev_out test_out batch_size lr filepath
hidden_dropout_prob local_files_only sst_train sst_dev_out para_test model_size temperature top_p
sonnet_path held_out_sonnet_path sonnet_out
"""
MT_DNN = """
update_bert_opt multi_gpu_on mtl_opt ratio mix_opt max_seq_len init_ratio encoder_type num_hidden_layers
bert_model_type do_lower_case masked_lm_prob bin_on bin_size local_rank world_size master_addr backend
log_file tensorboard tensorboard_logdir init_checkpoint data_dir data_sort_on name task_def train_datasets
test_datasets glue_format_on mkd_opt do_padding tokenizer dataloader_num_workers cuda log_per_updates epochs
save_per_updates save_per_updates_on batch_size batch_size_eval optimizer grad_clipping global_grad_clipping
weight_decay learning_rate momentum warmup warmup_schedule adam_eps vb_dropout dropout_p dropout_w
bert_dropout_p model_ckpt resume scheduler_type output_dir seed grad_accumulation_step fp16 fp16_opt_level
adv_train adv_opt adv_norm_level adv_p_norm adv_alpha adv_k adv_step_size adv_noise_var adv_epsilon
encode_mode debug transformer_cache
"""
SMART_PYTORCH = "eval_fn loss_fn loss_last_fn norm_fn num_steps step_size epsilon noise_var"
TRAINING_ARGUMENTS = [field.name for field in dataclasses.fields(transformers.TrainingArguments)]
FOREIGN = [*TRAINING_ARGUMENTS, *" ".join([OLDER, RUN_GLUE, COURSE, MT_DNN, SMART_PYTORCH]).split()]


def test_no_flag_of_another_trainer_is_answered_by_its_letters(capsys):
    """Guards against `--do_train`, that is answered by `--sts_train`, and against an answer that names a flag
    which this program does not have."""
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    ours = set(re.findall(r"^  (?:-\w, )?--([\w-]+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert not ours & set(ANSWERS)
    for name in FOREIGN:
        assert name in ours or answer(f"--{name}"), name
    for words in ANSWERS.values():
        assert set(re.findall(r"--([\w-]+)", words)) <= ours, words


TASK_LIST = "the tasks are sst (sentiment), para (is_duplicate), sts (similarity), cfimdb (sentiment)"
HINTS = {
    "--epoch=3": "unknown flag --epoch; did you mean --epochs?",
    "\u2014epochs 3": "unknown flag \u2014epochs; did you mean --epochs?",
    "--sst_trian x": "unknown flag --sst_trian; did you mean --sst_train?",
    "--do_train": "unknown flag --do_train; leave it out: a run trains, scores dev and predicts the test"
    " files",
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
    "--data_dir=": "--data_dir: must not be empty or hold a NUL",
}


@pytest.mark.parametrize(("arguments", "words"), HINTS.items())
def test_a_mistake_is_answered_with_what_was_probably_meant(arguments, words, capsys):
    """Guards against an error that sends the user to search a list of sixty flags."""
    assert run_program(*arguments.split()) == 2
    assert capsys.readouterr().err == f"multitask_classifier.py: error: {words}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--smart_epsilon 1 --bregman_beta .5", ["--bregman_beta, --smart_epsilon: without --use_smart"]),
        ("--keep teacher --bregman_beta .5", []),
        ("--use_smart --adversary freelb --smart_norm 2", ["--smart_norm: with --adversary freelb"]),
        ("--option pretrain --layer_lr_decay .9", ["--layer_lr_decay: with --option pretrain"]),
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_use_gpu_without_one_is_an_error(capsys, tmp_path):
    """Guards against a run that silently trains on the CPU although a GPU was asked for."""
    assert run_program("--use_gpu", "--output_dir", tmp_path / "out") == 2
    assert "--use_gpu" in capsys.readouterr().err
