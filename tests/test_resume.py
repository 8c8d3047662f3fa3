"""Interrupted runs: resuming is bit-identical, whatever the moment;
a folder with a run in it is not overwritten by accident."""

import hashlib
import json
import os
import shutil
import signal

import pytest
import torch

import kill_and_resume
import multitask_classifier
import resume
from helpers import SAMPLE, run_program
from kill_and_resume import compare, compare_chains, outcome
from support import checkpoint
from support.locks import locked

# The later of two values counts.
RUN = [*kill_and_resume.RUN, "--steps_per_epoch=7", "--save_steps=2"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it, so no code of the run is executed after it."""


@pytest.fixture(scope="module")
def uninterrupted(encoder, tmp_path_factory):
    """Folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        assert run_program("--model_name_or_path", encoder, *RUN, "--output_dir", folder) == 0
    return folder


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


@pytest.mark.parametrize(
    ("owner", "name", "n"),
    [
        (multitask_classifier, "training_loss", 6),  # between two checkpoints
        (checkpoint, "_write", 12),  # while one is written
        (checkpoint.os, "replace", 2),  # between its renames
        (multitask_classifier, "write_all_predictions", 1),  # after `best`, before `last`
        (multitask_classifier, "write_text", 1),  # at the very end
    ],
)
def test_a_killed_run_resumes_bit_identically(main, uninterrupted, tmp_path, monkeypatch, owner, name, n):
    """Guards against steps, dropout masks or log lines that are lost or doubled,
    and against a teacher that starts anew after an interruption."""
    with monkeypatch.context() as patch:
        raise_at(patch, owner, name, n, kill)
        with pytest.raises(Killed):
            main(*RUN, "--output_dir", tmp_path / "run")
    torch.manual_seed(99)  # the resumed process would start from another state
    assert main("--resume", "--output_dir", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_processes_killed_at_random_moments_resume_bit_identically(encoder, tmp_path, no_course_data, kills):
    """Guards against what only a real SIGKILL leaves: half a file,
    a log that is ahead of the checkpoint, no folder `last` between two renames."""
    assert compare(kills, tmp_path, encoder) == kills


@pytest.mark.slow
def test_chains_of_kills_and_damage_end_bit_identically(encoder, tmp_path, no_course_data):
    """Guards against what only a second or third interruption meets: a fall to the checkpoint before, a kill
    right after it, and another fall."""
    equal, falls = compare_chains(8, tmp_path, encoder)
    assert equal == 8 and falls >= 8


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_go_on(
    main, uninterrupted, tmp_path, monkeypatch, capsys, number, status
):
    """Guards against losing the work since the last checkpoint to Ctrl-C or a machine that shuts down."""
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        raise_at(patch, multitask_classifier, "training_loss", 4, lambda: os.kill(os.getpid(), number))
        assert main(*RUN, "--save_steps", 1000, "--output_dir", tmp_path / "run") == status
    assert f"--resume --output_dir {tmp_path / 'run'}" in capsys.readouterr().err
    assert main("--resume", "--output_dir", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted)
    assert signal.getsignal(number) == before


def test_resuming_with_another_setting(main, uninterrupted, tmp_path, capsys):
    """Guards against a resumed run that mixes two settings, and against refusing a harmless change."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    changes = {"--lr": "0.5", "--tasks": "sst", "--smart_epsilon": "1", "--epochs": "1", "--seed": "3"}
    for flag, value in changes.items():
        assert main("--resume", flag, value, "--output_dir", tmp_path / "run") == 2
        assert capsys.readouterr().err.startswith(f"multitask_classifier.py: error: {flag} ")
    assert main("--resume", "--epochs", 3, "--logging_steps", 2, "--output_dir", tmp_path / "run") == 0
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert steps == sorted(steps) and steps[-1] == 21


def test_resuming_with_other_data_is_refused(main, uninterrupted, tmp_path, capsys):
    """Guards against resuming with a data file that was changed in between."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    changed = tmp_path / "train.csv"
    changed.write_text((SAMPLE / "ids-sst-train.csv").read_text().replace("film", "movie"))
    given = ["--data_dir", SAMPLE, "--sst_train", changed]
    assert main("--resume", *given, "--output_dir", tmp_path / "run") == 2
    assert "--sst_train: its content" in capsys.readouterr().err


def test_a_folder_with_a_run_is_refused_and_overwritten_on_request(main, uninterrupted, tmp_path, capsys):
    """Guards against a second start that silently destroys the first run."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("the user's own")
    assert main(*RUN, "--output_dir", tmp_path / "run") == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert outcome(tmp_path / "run") == outcome(uninterrupted)
    assert main(*RUN, "--overwrite_output_dir", "--output_dir", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted) and (tmp_path / "run" / "notes.txt").exists()


def test_a_wrong_flag_does_not_delete_the_run(main, uninterrupted, tmp_path):
    """Guards against `--overwrite_output_dir` deleting a run before it is known that another can start."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    places = ["--data_dir", tmp_path / "none", "--output_dir", tmp_path / "run"]
    assert main(*RUN, "--overwrite_output_dir", *places) == 2
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_nonfinite_batches(main, tmp_path, monkeypatch, capsys):
    """Guards against weights that become NaN. The update is left out,
    the run goes on as often as the user allows, and `last` stays as it was."""
    real = multitask_classifier.training_loss

    def poisoned(*args, **kwargs):
        losses = real(*args, **kwargs)
        poisoned.calls += 1
        return losses | {"total": losses["total"] * float("nan")} if poisoned.calls in (5, 7) else losses

    monkeypatch.setattr(multitask_classifier, "training_loss", poisoned)
    poisoned.calls = 0
    assert main(*RUN, "--skip_nonfinite", 1, "--output_dir", tmp_path / "a") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in error and "step 6, task sst, rows " in error
    assert checkpoint.load_checkpoint(tmp_path / "a" / "last").records["progress"]["step"] == 6
    poisoned.calls = 0
    assert main(*RUN, "--skip_nonfinite", 2, "--output_dir", tmp_path / "b") == 0


def test_out_of_memory_says_what_to_try(main, tmp_path, monkeypatch, capsys):
    """Guards against the allocator's traceback where a smaller batch would help."""

    def no_memory():
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: not enough"
            " memory: you tried to allocate 9 bytes."
        )

    raise_at(monkeypatch, multitask_classifier, "training_loss", 4, no_memory)
    assert main(*RUN, "--output_dir", tmp_path / "run") == 2
    assert "--batch_size 2" in capsys.readouterr().err
    assert checkpoint.load_checkpoint(tmp_path / "run" / "last").records["progress"]["step"] == 2


def test_a_full_disk_leaves_the_last_checkpoint(main, tmp_path, monkeypatch, capsys):
    """Guards against a checkpoint destroyed by the attempt to replace it."""

    def full():
        raise OSError(28, "No space left on device")

    raise_at(monkeypatch, checkpoint, "_write", 12, full)
    assert main(*RUN, "--output_dir", tmp_path / "run") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert checkpoint.load_checkpoint(tmp_path / "run" / "last").records["progress"]["step"] == 2


def truncated(folder, file, marker):
    os.truncate(file, file.stat().st_size // 2)


def flipped(folder, file, marker):
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)


def missing(folder, file, marker):
    file.unlink()


def of_another_architecture(folder, file, marker):
    saved = checkpoint.load_checkpoint(folder)
    weights = saved.tensors[file.stem]
    tensors = {name: tensor[:-1] if tensor.ndim else tensor for name, tensor in weights.items()}
    changed = checkpoint.Checkpoint(saved.tensors | {file.stem: tensors}, saved.records)
    checkpoint.save_checkpoint(folder, changed)


def a_pickle_that_runs_code(folder, file, marker):
    file.write_bytes(f"cos\nmkdir\n(V{marker}\ntR.".encode())
    digests = json.loads((folder / "manifest.json").read_text())
    del digests["manifest.json"]
    digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()  # even where the checksum is right
    (folder / "manifest.json").write_text(json.dumps(digests))


@pytest.mark.parametrize(
    "harm", [truncated, flipped, missing, of_another_architecture, a_pickle_that_runs_code]
)
@pytest.mark.parametrize("option", ["evaluate", "predict", "resume"])
def test_a_harmed_checkpoint_is_refused_in_one_line(main, uninterrupted, tmp_path, capsys, option, harm):
    """Guards against what a file from the internet may cause:
    a traceback, scores of damaged weights, code that is executed."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "last.previous")  # it would take the place of the last one
    part, stem = ("last", "student") if option == "resume" else ("best", "model")
    harm(tmp_path / "run" / part, tmp_path / "run" / part / f"{stem}.safetensors", tmp_path / "executed")
    resuming = ["--resume", "--epochs", 3, "--output_dir", tmp_path / "run"]
    reading = ["--option", option, "--checkpoint", tmp_path / "run", "--output_dir", tmp_path / "out"]
    assert main(*(resuming if option == "resume" else reading)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"multitask_classifier.py: error: {tmp_path / 'run' / part}")
    assert error.count("\n") == 1
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


def emptied(folder, file, marker):
    file.write_bytes(b"")


@pytest.fixture(scope="module")
def killed(encoder, tmp_path_factory):
    """Folder of a run that was killed in step 9 of 14: `last` is of step 8, `last.previous` of step 7."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        raise_at(patch, multitask_classifier, "training_loss", 9, kill)
        with pytest.raises(Killed):
            run_program("--model_name_or_path", encoder, *RUN, "--output_dir", folder)
    return folder


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("manifest.json", flipped),
        ("progress.json", emptied),
        ("student.safetensors", truncated),
        ("random.safetensors", missing),
        ("run.json", flipped),
    ],
)
def test_a_damaged_file_costs_minutes(main, uninterrupted, killed, tmp_path, caplog, file, harm):
    """Guards against a run of days that one bad byte ends, and a fall back that changes its numbers."""
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    (run / "last.new").mkdir()
    harm(run / "last", run / "last" / file, None)
    assert main("--resume", "--output_dir", run) == 0
    (warning,) = [line for line in caplog.messages if "going on from the checkpoint before it" in line]
    assert warning.startswith(f"{run / 'last' / file}: ") and "at step 7: " in warning
    assert ("1 steps, " in warning) == (file != "progress.json")
    assert outcome(run) == outcome(uninterrupted)
    assert not (run / "last.new").exists() and (run / "last.damaged").exists()


def test_two_damaged_checkpoints_are_said(main, killed, tmp_path, capsys):
    """Guards against a run that starts anew, without a word, where nothing is left to go on from."""
    shutil.copytree(killed, tmp_path / "run")
    for name in ("last", "last.previous"):
        emptied(None, tmp_path / "run" / name / "student.safetensors", None)
    assert main("--resume", "--output_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "last/student.safetensors" in error and "last.previous/student.safetensors" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("source", ["killed", "uninterrupted"])
def test_a_damaged_best_is_said_before_the_rest_is_computed(main, request, tmp_path, caplog, source):
    """Guards against an error after all remaining training, and a best model that is missing at the end."""
    run = tmp_path / "run"
    shutil.copytree(request.getfixturevalue(source), run)
    flipped(None, run / "best" / "model.safetensors", None)
    assert main("--resume", "--output_dir", run) == 0
    assert any(line.startswith(f"{run / 'best' / 'model.safetensors'}: damaged") for line in caplog.messages)
    assert multitask_classifier.load_model(run / "best")[2]["best_step"] in (7, 14)
    results = json.loads((run / "results.json").read_text())
    assert results["best_step"] == multitask_classifier.load_model(run / "best")[2]["best_step"]


def test_lost_prediction_files_are_written_again(main, uninterrupted, tmp_path):
    """Guards against a finished run whose files are missing and that has nothing left to do."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "predictions")
    assert main("--resume", "--output_dir", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_a_run_in_use_is_left_alone(main, uninterrupted, tmp_path, capsys):
    """Guards against a second start, or an --overwrite_output_dir, while a run is alive."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    with locked(run):
        before = sorted(path for path in run.rglob("*"))
        for way in (["--resume"], RUN, [*RUN, "--overwrite_output_dir"]):
            assert main(*way, "--output_dir", run) == 2
            assert f"--output_dir {run}: in use by process {os.getpid()}" in capsys.readouterr().err
        assert sorted(path for path in run.rglob("*")) == before
    assert outcome(run) == outcome(uninterrupted)


# ----------------------------------------------------------------------------------- training state

ONE_NUMBER = {"0.exp_avg": torch.ones(1)}
NOT_THIS_STATE = {
    "a moment is missing": lambda tensors, record: tensors["optimizer"].pop("0.exp_avg"),
    "a moment of one number": lambda tensors, record: tensors["optimizer"].update(ONE_NUMBER),
    "before the first step": lambda tensors, record: tensors["optimizer"].update({"0.step": torch.tensor(0)}),
    "another parameter": lambda tensors, record: tensors["optimizer"].update({"9.step": torch.tensor(1)}),
    "another weight": lambda tensors, record: tensors["model"].update({"weight": torch.ones(1, 1)}),
    "beyond the generator's numbers": lambda tensors, record: record["numpy"].__setitem__(2, 10_000),
    "too few of the generator's numbers": lambda tensors, record: record["numpy"].__setitem__(1, [1, 2]),
}


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, "1", None])
def test_times_that_are_none_are_refused(seconds):
    """Guards against a traceback from the line that says how long is left; a fuzz test found NaN."""
    saved = resume.Progress().to_dict()
    assert resume.Progress.from_dict(saved)
    with pytest.raises((ValueError, TypeError)):
        resume.Progress.from_dict(saved | {"seconds": seconds})


@pytest.mark.parametrize("change", NOT_THIS_STATE.values(), ids=NOT_THIS_STATE)
def test_a_state_that_does_not_fit_is_not_taken(change, caplog):
    """Guards against one moment broadcast over a whole weight,
    a step that divides by zero, numpy reading memory beyond its generator's,
    and other dropout masks on another kind of device without a word."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    cpu = torch.device("cpu")
    tensors, record = resume.training_state({"model": model}, optimizer, cpu)
    record = json.loads(json.dumps(record))

    def restore() -> None:
        resume.restore_training_state(
            tensors, record, {"model": model}, torch.optim.AdamW(model.parameters()), cpu
        )

    restore()
    assert not caplog.records
    tensors["random"]["cuda.0"] = tensors["random"]["cpu.0"]
    restore()
    assert "was saved on cuda and goes on on cpu: its dropout masks differ" in caplog.text
    tensors["model"] = dict(tensors["model"])
    change(tensors, record)
    with pytest.raises((LookupError, RuntimeError, ValueError)):
        restore()


def test_a_process_that_has_lost_another_still_says_so():
    """Guards against the advice of `lost_worker_advice` that is lost: torchrun's SIGTERM must not end the
    process between the end of `signals_raise` and the message."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with resume.signals_raise(), resume.StopSignal():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    with resume.signals_raise():
        pass
    assert signal.getsignal(signal.SIGTERM) == before
