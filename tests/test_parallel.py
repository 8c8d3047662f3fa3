"""Several processes under `torchrun` on gloo: the steps of one process, checkpoints, and a lost worker."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.cuda import DIES
from checkpoint import locked
from helpers import ROOT, run_program, sample_batch
from kill_and_resume import HERE, PROGRAM, RUN, outcome, wait_for
from support.parallel import launched_size
from tiny_bert import tiny_encoder


def start(processes: int, *arguments, script: Path = PROGRAM) -> subprocess.Popen:
    """The program in that many processes, on the sample."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("SMART_BERT_DATA_DIR", None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        env=environment,
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(processes: int, *arguments, script: Path = PROGRAM) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    process = start(processes, *arguments, script=script)
    said, complained = process.communicate(timeout=240)
    return process.returncode, said, complained


def exact_run(folder: Path, steps: int, *flags: str) -> list[str]:
    """The flags of a run with SMART in which only the number of processes could change a number."""
    encoder = tiny_encoder(folder / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    size = ["--max_train_samples=25", "--max_eval_samples=21", "--epochs=1", f"--steps_per_epoch={steps}"]
    smart = ["--use_smart", "--smart_epsilon=0.1", "--smart_step_size=0.1", "--hidden_dropout_prob=0"]
    precision = ["--precision=fp32", "--no_report"]  # in bf16 rounding differs with the rows
    return ["--model_name_or_path", encoder, "--lr=1e-3", *size, *smart, *precision, *flags]


def assert_same_run(found: Path, expected: Path) -> None:
    for role in ("student", "teacher", "optimizer"):
        one, other = (load_file(folder / "last" / f"{role}.safetensors") for folder in (found, expected))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    means = [outcome(folder)["scores"]["dev_mean"] for folder in (found, expected)]
    assert means[0] == pytest.approx(means[1], abs=1e-4)


@pytest.mark.parametrize(
    ("mixing", "steps"),
    [
        (("--gradient_accumulation_steps=2", "--head_lr=1e-2", "--layer_lr_decay=.8", "--eval_steps=7"), 4),
        pytest.param(("--schedule=joint", "--gradient_surgery=pcgrad"), 12, marks=pytest.mark.slow),
    ],
    ids=["interleaved", "joint"],
)
def test_two_processes_take_the_steps_of_one(tmp_path, no_course_data, mixing, steps):
    """Guards against gradients summed over the processes or averaged over unequal shares,
    against hooks called by the ascent's own gradients,
    against noise that differs from process to process, and against a last batch of a single row.
    Where steps are joint, against gradients that PCGrad projects before they are summed, or in another order.
    """
    settings = exact_run(tmp_path, 12, *mixing)
    assert run_program(*settings, "--batch_size=8", "--output_dir", tmp_path / "1") == 0
    status, said, complained = run(2, *settings, "--batch_size=4", "--output_dir", tmp_path / "2")
    assert status == 0, complained
    assert said.count("everything is in") == 1, "each process says it"
    assert_same_run(tmp_path / "2", tmp_path / "1")
    # a head has made its own task's steps only: its moments and its count stay as they are on other tasks
    state = json.loads((tmp_path / "2" / "last" / "optimizer.json").read_text())["state"]
    counts = sorted(int(value) for name, value in state.items() if name.endswith(".step"))
    assert counts[:4] == [steps] * 4 and set(counts[4:]) == {12}


@pytest.mark.slow
def test_a_lost_worker_ends_the_run_and_resuming_is_bit_identical(encoder, tmp_path):
    """Guards against a run that hangs when a process is lost,
    a checkpoint damaged by the loss, and dropout masks that start anew."""
    settings = [*RUN, "--steps_per_epoch=5", "--save_steps=2", "--model_name_or_path", encoder]
    status, _, complained = run(2, *settings, "--output_dir", tmp_path / "whole")
    assert status == 0, complained
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(project=str(ROOT)))
    status, _, complained = run(2, *settings, "--output_dir", tmp_path / "run", script=script)
    assert status != 0
    assert f"--resume --output_dir {tmp_path / 'run'}" in complained and "lost another one" in complained
    status, _, complained = run(2, "--resume", "--output_dir", tmp_path / "run")
    assert status == 0, complained
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_processes_hold_their_folder_and_stop_together(encoder, no_course_data, tmp_path, capsys):
    """Guards against processes that lock each other out, against a second start beside a living run, against
    processes that stop at different steps and then wait for each other for ever, and against a lock that
    outlives its run."""
    folder = tmp_path / "run"
    places = ["--model_name_or_path", encoder, "--output_dir", folder]
    process = start(2, *RUN, "--epochs=500", *places)
    try:
        wait_for(process, folder / "last" / "manifest.json")
        assert run_program(*RUN, "--overwrite_output_dir", *places) == 2
        assert f"--output_dir {folder}: in use by process " in capsys.readouterr().err
        assert process.poll() is None, "the first run has ended"
        process.send_signal(signal.SIGTERM)
        _, complained = process.communicate(timeout=120)
        said = "interrupted, and saved; go on with: python multitask_classifier.py --resume --output_dir"
        assert f"{said} {folder}" in complained
    finally:
        process.kill()
    with locked(folder):
        pass


# The program, but its third step gets SIGTERM.
STOPS = """
import os, signal, sys
sys.path.insert(0, {project!r})
import multitask_classifier as program
from optimizer import AdamW
whole, steps = AdamW.step, []
def step(*arguments, **named):
    steps.append(1)
    if len(steps) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return whole(*arguments, **named)
AdamW.step = step
sys.exit(program.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 1, 2), (1, 3, 2)], ids=str)
def test_the_number_of_processes_may_change(tmp_path, no_course_data, counts):
    """Guards against a resumed run whose batches grow or shrink with the processes, against rows that one of
    three processes leaves out, and against other dropout masks without a word."""
    settings = exact_run(tmp_path, 9, "--max_tokens=250")
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    accumulated = [f"--batch_size={8 // counts[0]}", f"--gradient_accumulation_steps={counts[0]}"]
    assert run_program(*settings, *accumulated, "--output_dir", whole) == 0
    script = tmp_path / "stops.py"
    script.write_text(STOPS.format(project=str(ROOT)))
    arguments = [*settings, f"--batch_size={8 // counts[0]}"]
    for count, before in zip(counts, (None, *counts), strict=False):
        last = count == counts[2] and before == counts[1]
        status, said, complained = run(
            count, *arguments, "--output_dir", changed, script=PROGRAM if last else script
        )
        assert (status == 0) == last, complained
        moved = f"the run goes from {before} to {count} process(es): its dropout masks differ from here on"
        assert (moved in complained) == (before is not None)
        arguments = ["--resume"]
    assert "everything is in" in said
    assert_same_run(changed, whole)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ("", None),
        ("WORLD_SIZE=1 RANK=0", None),
        ("MASTER_ADDR=::1 MASTER_PORT=1", None),
        ("WORLD_SIZE=2", "has WORLD_SIZE=2 but no RANK"),
        ("RANK=0", "has RANK=0 but no WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2", "has RANK=0, WORLD_SIZE=2 but no MASTER_ADDR"),
        ("RANK=0 WORLD_SIZE= MASTER_ADDR=::1 MASTER_PORT=1", "but no WORLD_SIZE"),
        ("RANK=2 WORLD_SIZE=2 MASTER_ADDR=::1 MASTER_PORT=1", "has RANK=2, WORLD_SIZE=2, not a rank below"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=::1 MASTER_PORT=x", "cannot connect (invalid"),
    ],
)
def test_an_environment_without_a_launcher(monkeypatch, tmp_path, capsys, environment, said):
    """Guards against a traceback, or a wait for ever, in a shell that keeps a cluster's variables, and
    against a run of one process, under a launcher of one or none, that is refused."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for word in environment.split():
        monkeypatch.setenv(*word.split("="))
    if said is None:
        assert launched_size() == 1
        return
    assert run_program("--output_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and "torchrun" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [2, 5, 8])
def test_shares_of_a_batch_make_up_the_batch(tokenizer, size):
    """Guards against rows computed by no process or by two, and against unequal shares with equal weights."""
    batch = sample_batch("para", tokenizer, 5)
    shares = [batch.share(rank, size) for rank in range(size)]
    values = torch.arange(5.0).square()
    joined = sum(share.weight * values[share.part].mean() for share in shares).item() / size
    assert joined == pytest.approx(values.mean().item())
    real = [share for share in shares if share.weight]
    assert sorted(row for share in real for row in share.rows[share.part]) == [0, 1, 2, 3, 4]
    assert all(share.rows[share.part].tolist() == [0] for share in shares if not share.weight)
    assert all(torch.equal(share.labels, batch.labels[share.part]) for share in shares)
