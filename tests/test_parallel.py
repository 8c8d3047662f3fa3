"""Several processes under `torchrun` on gloo: the same steps as one process, checkpoints, and what happens
when one is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kill_and_resume import HERE, PROGRAM, RUN, outcome, tiny_encoder, wait_for
from safetensors.torch import load_file

from datasets import Batch, collate, read_examples, tokenize
from run_files import HERE as PROJECT
from tasks import TASKS

SETTINGS = [*RUN, "--steps_per_epoch=5", "--save_steps=2"]  # the later of two values counts
# The program, whose process 1 dies in its sixth step as by the kernel's hand.
DIES = """
import os, signal, sys
sys.path.insert(0, {project!r})
import multitask_classifier as program
whole, steps = program.Learner.step, []
def step(*arguments, **named):
    steps.append(1)
    if len(steps) == 6 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **named)
program.Learner.step = step
sys.exit(program.main())
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


def start(processes: int, *arguments, script: Path = PROGRAM) -> subprocess.Popen:
    """The program in so many processes, on the sample data."""
    environment = {name: value for name, value in os.environ.items() if name != "SMART_BERT_DATA_DIR"} | {
        "OMP_NUM_THREADS": "1"
    }
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(processes: int, *arguments, script: Path = PROGRAM) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    process = start(processes, *arguments, script=script)
    said, complained = process.communicate(timeout=240)
    return process.returncode, said, complained


@pytest.fixture(scope="module")
def whole(encoder, tmp_path_factory) -> Path:
    """A run of two processes that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, said, complained = run(2, *SETTINGS, "--model_name_or_path", encoder, "--output_dir", folder)
    assert status == 0, complained
    assert said.count("everything is in") == 1, "each process speaks"
    return folder


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Guards against gradients that are summed or averaged over unequal shares, inner gradients of the ascent
    that reach the hooks, noise
    that differs from process to process, and a last batch of a single row."""
    encoder = tiny_encoder(tmp_path / "tiny", dropout=0.0)
    settings = [
        "--model_name_or_path",
        encoder,
        "--use_smart",
        "--hidden_dropout_prob=0",
        "--max_train_samples=41",
        "--epochs=1",
    ]
    settings += [
        "--steps_per_epoch=24",
        "--lr=1e-3",
        "--smart_epsilon=0.1",
        "--smart_step_size=0.1",
        "--max_eval_samples=21",
    ]
    weights = {}
    for processes in (1, 2):
        status, _, complained = run(
            processes, *settings, f"--batch_size={8 // processes}", "--output_dir", tmp_path / str(processes)
        )
        assert status == 0, complained
        weights[processes] = {
            f"{part}.{name}": tensor
            for part in ("student", "teacher")
            for name, tensor in load_file(tmp_path / str(processes) / "last" / f"{part}.safetensors").items()
        }
    torch.testing.assert_close(weights[2], weights[1], rtol=0, atol=1e-5)
    one, two = (outcome(tmp_path / str(processes))["scores"] for processes in (1, 2))
    assert one["dev"].keys() == two["dev"].keys() and one["dev_mean"] == pytest.approx(
        two["dev_mean"], abs=1e-4
    )


def test_a_lost_worker_ends_the_run_and_resuming_is_bit_identical(encoder, whole, tmp_path):
    """Guards against a run that hangs when a process is lost, a checkpoint that its end has harmed, and
    dropout masks that start anew."""
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(project=str(PROJECT)))
    status, _, complained = run(
        2, *SETTINGS, "--model_name_or_path", encoder, "--output_dir", tmp_path / "run", script=script
    )
    assert status != 0
    assert f"--resume --output_dir {tmp_path / 'run'}" in complained and "lost another one" in complained
    status, _, complained = run(2, "--resume", "--output_dir", tmp_path / "run")
    assert status == 0, complained
    assert outcome(tmp_path / "run") == outcome(whole)


def test_sigterm_saves_in_all_processes_at_the_same_step(encoder, tmp_path):
    """Guards against processes that stop at different steps and wait for each other for ever."""
    process = start(
        2, *RUN, "--epochs=500", "--model_name_or_path", encoder, "--output_dir", tmp_path / "run"
    )
    wait_for(process, tmp_path / "run" / "last" / "manifest.json")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=120)
    assert (
        "interrupted, and saved; go on with: python multitask_classifier.py --resume"
        f" --output_dir {tmp_path / 'run'}" in complained
    )


def test_another_number_of_processes_is_refused(whole):
    """Guards against a resumed run whose batches are not those it was started with."""
    status, _, complained = run(1, "--resume", "--epochs=3", "--output_dir", whole)
    assert (
        status == 2
        and complained.endswith("start torchrun with as many as then\n")
        and complained.count("\n") == 1
    )


# ------------------------------------------------------------------------------------------- shares


@pytest.fixture
def batch(tokenizer) -> Batch:
    task = TASKS["para"]
    examples = read_examples(PROJECT / "data" / "sample" / task.filename("train"), task)[:5]
    return collate(tokenize(examples, task, tokenizer, 64), torch.arange(5).numpy(), seed=7)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_shares_of_a_batch_make_up_the_batch(batch, size):
    """Guards against rows that no process computes or two do, and against means of unequal shares that count
    alike."""
    shares = [batch.share(rank, size) for rank in range(size)]
    values = torch.arange(5.0).square()
    assert sum(share.weight * values[share.part].mean() for share in shares).item() / size == pytest.approx(
        values.mean().item()
    )
    real = [share for share in shares if share.weight]
    assert sorted(row for share in real for row in share.rows[share.part]) == [0, 1, 2, 3, 4]
    for share in shares:
        assert torch.equal(share.input_ids, batch.input_ids[share.part]) and torch.equal(
            share.labels, batch.labels[share.part]
        )
        assert share.num_tokens == batch.num_tokens


def test_noise_of_a_row_is_the_same_in_every_share(batch):
    """Guards against SMART runs that depend on the number of processes."""
    embeddings = torch.zeros(*batch.input_ids.shape, 6, dtype=torch.bfloat16)
    everything = batch.noise(embeddings)
    assert everything.dtype == torch.float32 and everything.std().item() == pytest.approx(1, abs=0.1)
    for rank in range(3):
        share = batch.share(rank, 3)
        assert torch.equal(share.noise(embeddings[share.part]), everything[share.part])
