"""Interrupted runs: resuming is bit-identical, whatever the moment;
a folder with a run in it is not overwritten by accident."""

import json
import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)
from tensorboard.util import tensor_util

import checkpoint
import kill_and_resume
import multitask_classifier
from config import TrainConfig, parse_arguments
from helpers import SAMPLE, TRIALS, run_program
from kill_and_resume import compare, killed_and_resumed, outcome
from run_files import prepare_folder

# The later of two values counts.
RUN = [*kill_and_resume.RUN, "--steps_per_epoch=7", "--save_steps=2", "--smart_weight=sst=1,para=0.5"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it, so no code of the run is executed after it."""


def raise_at(monkeypatch, owner, name: str, n: int, action) -> None:
    """Makes the n-th call of a function perform `action` first."""
    real = getattr(owner, name)
    calls = []

    def wrapper(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            action()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


def kill():
    raise Killed


@pytest.fixture(scope="module")
def runs(encoder, tmp_path_factory):
    """Folders of a run that nothing has interrupted, and of one that was killed in step 9 of 14: there `last`
    is of step 8, `last.previous` of step 7."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--model_name_or_path", encoder, *RUN, "--output_dir"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        assert run_program(*flags, folder / "whole") == 0
        raise_at(patch, multitask_classifier, "training_loss", TRIALS + 9, kill)
        with pytest.raises(Killed):
            run_program(*flags, folder / "killed")
    return folder


@pytest.fixture(scope="module")
def expected(runs) -> dict:
    """What a run leaves that nothing has interrupted."""
    return outcome(runs / "whole")


@pytest.fixture
def whole(runs, tmp_path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(runs / "whole", tmp_path / "run")


@pytest.fixture
def killed(runs, tmp_path) -> Path:
    """A copy of the killed run."""
    return shutil.copytree(runs / "killed", tmp_path / "mine")


@pytest.mark.parametrize(
    ("owner", "name", "n"),
    [
        (checkpoint.os, "replace", 3),  # between the renames of one
        (multitask_classifier, "write_all_predictions", 1),  # after `best`, before `last`
    ],
)
def test_a_killed_run_resumes_bit_identically(main, expected, tmp_path, monkeypatch, owner, name, n):
    """Guards against steps, dropout masks or log lines that are lost or doubled,
    and against a teacher that starts anew after an interruption."""
    with monkeypatch.context() as patch:
        raise_at(patch, owner, name, n, kill)
        with pytest.raises(Killed):
            main(*RUN, "--output_dir", tmp_path / "run")
    torch.manual_seed(99)  # the resumed process would start from another state
    assert main("--resume", "--output_dir", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == expected


def test_a_run_that_gets_sigkill_resumes_bit_identically(encoder, expected, tmp_path, no_course_data):
    """Guards against what only a real SIGKILL leaves: half a file,
    a log that is ahead of the checkpoint, no folder `last` between two renames."""
    arguments = [*RUN, "--model_name_or_path", encoder]
    killed_and_resumed(tmp_path / "run", arguments, 1.0, random.Random(0), kills=1, damaging=False)
    assert outcome(tmp_path / "run") == expected


@pytest.mark.slow
def test_runs_killed_at_random_moments_resume_bit_identically(encoder, tmp_path, no_course_data):
    """Guards against a moment that no other test has thought of."""
    assert compare(6, tmp_path, encoder) == (6, 0)


@pytest.mark.slow
def test_chains_of_kills_and_damage_end_bit_identically(encoder, tmp_path, no_course_data):
    """Guards against what only a second or third interruption meets: a fall to the checkpoint before, a kill
    right after it, and another fall."""
    equal, falls = compare(4, tmp_path, encoder, chains=True)
    assert equal == 4 and falls >= 4


def test_a_signal_saves_and_says_how_to_go_on(main, expected, tmp_path, monkeypatch, capsys):
    """Guards against losing the work since the last checkpoint to Ctrl-C or a machine that shuts down."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop = partial(os.kill, os.getpid(), signal.SIGTERM)
        raise_at(patch, multitask_classifier, "training_loss", TRIALS + 4, stop)
        assert main(*RUN, "--save_steps", 1000, "--output_dir", tmp_path / "run") == 143
    assert f"--resume --output_dir {tmp_path / 'run'}" in capsys.readouterr().err
    assert main("--resume", "--output_dir", tmp_path / "run") == 0
    assert "the learning rate goes" not in capsys.readouterr().out
    assert outcome(tmp_path / "run") == expected
    assert signal.getsignal(signal.SIGTERM) == before


def test_resuming_with_other_settings_or_data(main, whole, tmp_path, capsys):
    """Guards against a resumed run that mixes two settings, or data whose texts, or whose labels alone, were
    changed; and against refusing a harmless change."""
    text = (SAMPLE / "ids-sst-train.csv").read_text()
    for name, change in {"text": ("film", "movie"), "label": ("\t0\n", "\t1\n")}.items():
        (tmp_path / name).write_text(text.replace(*change))
    changes = {
        "--lr": ["0.5"],
        "--tasks": ["sst"],
        "--smart_epsilon": ["1"],
        "--epochs": ["1"],
        "--seed": ["3"],
    }
    changes["--sst_train"] = [tmp_path / "text", tmp_path / "label"]
    for flag, values in changes.items():
        for value in values:
            assert main("--resume", flag, value, "--data_dir", SAMPLE, "--output_dir", whole) == 2
            assert capsys.readouterr().err.startswith(f"multitask_classifier.py: error: {flag}")
    assert main("--resume", "--epochs", 3, "--logging_steps", 2, "--output_dir", whole) == 0
    steps = [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 21
    # 2e-4 times (14 - 13) / (14 - 1), and times (21 - 14) / (21 - 2)
    assert "the learning rate goes from 1.54e-05 to 7.37e-05 at step 15" in capsys.readouterr().out


def test_a_file_flag_keeps_the_other_files():
    """Guards against a resumed run that scores, without a word, another dev file than before."""
    files = {"sst_train": "a.csv", "sst_dev": "dev.csv", "sst_dev_out": "out.csv"}
    started = TrainConfig(lr=0.5, files=files).to_dict()
    given = parse_arguments(["--resume", "--sst_train", "b.csv", "--sts_dev", "c.csv"])
    config = checkpoint.resumed_config(*given, started)
    assert config.files == files | {"sst_train": "b.csv", "sts_dev": "c.csv"} and config.lr == 0.5
    assert checkpoint.resumed_config(*parse_arguments(["--resume"]), started).files == files


def test_a_folder_with_a_run_is_refused_and_overwritten_on_request(main, whole, expected, tmp_path, capsys):
    """Guards against a second start that silently destroys the first run, be it because of a wrong flag."""
    (whole / "notes.txt").write_text("the user's own")
    assert main(*RUN, "--output_dir", whole) == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    for wrong in (["--data_dir", tmp_path / "none"], ["--max_tokens", 9], ["--epochs", 10**7]):
        assert main(*RUN, *wrong, "--overwrite_output_dir", "--output_dir", whole) == 2
    before = (whole / "last" / "manifest.json").stat().st_mtime_ns
    assert outcome(whole) == expected
    assert main(*RUN, "--overwrite_output_dir", "--output_dir", whole) == 0
    assert outcome(whole) == expected and (whole / "notes.txt").exists()
    assert (whole / "last" / "manifest.json").stat().st_mtime_ns > before


def test_a_best_model_that_is_newer_than_the_checkpoint(main, tmp_path, monkeypatch, caplog):
    """Guards against scores of one model beside the weights of another: a run that dies after it saved `best`
    and before `last`, and that goes on with fewer evaluations."""
    means = iter([0.1, 0.2, 0.3, 0.2, 0.1])
    evaluate = multitask_classifier.evaluate

    def given(*arguments):
        return evaluate(*arguments)._replace(selection_mean=next(means))

    monkeypatch.setattr(multitask_classifier, "evaluate", given)
    run = [*RUN, "--keep", "student", "--bregman_weight", 0, "--output_dir", tmp_path]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        raise_at(patch, checkpoint, "save_last", 3, kill)
        main(*run, "--eval_steps", 1)
    assert run_program("--resume", "--output_dir", tmp_path, "--eval_steps", 7) == 0
    assert "is of step 3, later than step 2; the best of the remaining evaluations" in caplog.text
    saved, results = (json.loads((tmp_path / name).read_text()) for name in ("best/run.json", "results.json"))
    assert saved["best_step"] == results["best_step"] == 7 and saved["dev"] == results["dev"]


def test_nonfinite_batches(main, tmp_path, monkeypatch, capsys):
    """Guards against weights that become NaN. The update is left out,
    the run goes on as often as the user allows, and `last` stays as it was."""
    real = multitask_classifier.training_loss

    def poisoned(*args, **kwargs):
        losses = real(*args, **kwargs)
        poisoned.calls += 1
        return losses | {"total": losses["total"] * float("nan")} if poisoned.calls in (5, 7) else losses

    monkeypatch.setattr(multitask_classifier, "training_loss", poisoned)
    poisoned.calls = -TRIALS
    assert main(*RUN, "--skip_nonfinite", 1, "--output_dir", tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 6, task sst, rows " in error and "not finite" in error
    assert checkpoint.load_checkpoint(tmp_path / "last").records["progress"]["step"] == 6


def test_out_of_memory_says_what_to_try(main, tmp_path, monkeypatch, capsys):
    """Guards against the allocator's traceback where a smaller batch would help."""

    def no_memory():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory")

    raise_at(monkeypatch, multitask_classifier, "training_loss", TRIALS + 4, no_memory)
    assert main(*RUN, "--output_dir", tmp_path / "run") == 2
    assert "--batch_size 2" in capsys.readouterr().err
    assert checkpoint.load_checkpoint(tmp_path / "run" / "last").records["progress"]["step"] == 2


def truncated(file):
    os.truncate(file, file.stat().st_size // 2)


DAMAGES = [("progress.json", Path.unlink), ("student.safetensors", truncated)]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_damaged_file_costs_minutes(main, killed, expected, caplog, file, damage):
    """Guards against a run of days that one bad byte ends, and a fall back that changes its numbers."""
    damage(killed / "last" / file)
    assert main("--resume", "--output_dir", killed) == 0
    (warning,) = [line for line in caplog.messages if "going on from the checkpoint before it" in line]
    assert warning.startswith(f"{killed / 'last' / file}: ") and "at step 7: " in warning
    assert outcome(killed) == expected and (killed / "last.damaged").exists()


def test_two_damaged_checkpoints_are_said(main, killed, capsys):
    """Guards against a run that starts anew, without a word, where nothing is left to go on from."""
    for name in ("last", "last.previous"):
        truncated(killed / name / "student.safetensors")
    assert main("--resume", "--output_dir", killed) == 2
    error = capsys.readouterr().err
    assert "last/student.safetensors" in error and "last.previous/student.safetensors" in error
    assert error.count("\n") == 1


def test_a_damaged_best_is_said_before_the_rest_is_computed(main, killed, caplog):
    """Guards against an error after all remaining training, and a best model that is missing at the end."""
    damaged = killed / "best" / "model.safetensors"
    truncated(damaged)
    assert main("--resume", "--output_dir", killed) == 0
    assert any(line.startswith(f"{damaged}: damaged") for line in caplog.messages)
    results = json.loads((killed / "results.json").read_text())
    assert results["best_step"] == multitask_classifier.load_model(killed / "best")[2]["best_step"]


def test_a_second_signal_acts_at_once():
    """Guards against a run that cannot be stopped because its step, or its save, hangs."""
    stop = checkpoint.StopSignal()
    with pytest.raises(KeyboardInterrupt) as stopped, checkpoint.signals_raise(), stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.args == (signal.SIGTERM,)


def test_tensorboard_has_a_run_under_its_name_with_flags_and_scores_once(main, killed, expected, tmp_path):
    """Guards against rows of TensorBoard's table (HParams) under a second name, without scores, or twice. The
    run was killed between two checkpoints."""
    for _ in range(2):  # the second time nothing is left to do
        assert main("--resume", "--output_dir", killed) == 0
    assert outcome(killed) == expected
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert set(runs.Runs()) == {"mine"}
    tags = [
        value.tag
        for file in sorted(killed.glob("*tfevents*"))
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    once = (EXPERIMENT_TAG, SESSION_START_INFO_TAG, SESSION_END_INFO_TAG)
    assert [tags.count(tag) for tag in once] == [1, 1, 1]
    started = runs.SummaryMetadata("mine", SESSION_START_INFO_TAG).plugin_data.content
    shown = parse_session_start_info_plugin_data(started).hparams
    assert shown["batch_size"].number_value == 4 and shown["smart_weight"].string_value == "sst=1,para=0.5"
    results = json.loads((killed / "results.json").read_text())
    expected = {"mean": results["dev_mean"], "sts/spearman": results["dev"]["sts"]["spearman"]}
    for tag, value in expected.items():
        (score,) = runs.Tensors("mine", f"best/{tag}")
        assert tensor_util.make_ndarray(score.tensor_proto) == pytest.approx(value)
    prepare_folder(killed, overwrite=True)
    assert not list(killed.glob("*tfevents*"))
