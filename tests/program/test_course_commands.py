"""The command lines of the course's starter code, as its students have typed them since 2023."""

import shlex

import pytest

from config import parse_arguments
from helpers import SAMPLE, run_program

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
