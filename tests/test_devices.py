"""What a run sets on its device: deterministic kernels, fp32 without TF32, attention's kernels, its clock."""

import json
import os

import pytest
import torch

from kill_and_resume import RUN, outcome
from support import devices
from support.devices import choose_precision, pick_device, start_watch
from support.progress import Progress
from tiny_bert import tiny_batch

SHORT = [*RUN, "--epochs=1", "--steps_per_epoch=6"]


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA device that says what was asked of it."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.append(("device", index)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: asked.append(("fp32", name)))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: asked.append(("cudnn", on)))
    return asked


def test_fp32_on_cuda_is_fp32(cuda, monkeypatch):
    """Guards against TF32, three digits, under the name of fp32, and a kernel that plans for each length."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv(devices.PRECISION_VARIABLE, raising=False)
    device = pick_device(use_gpu=True)
    assert device == torch.device("cuda", 1)
    assert set(cuda) == {("device", 1), ("fp32", "highest"), ("cudnn", False)}
    assert choose_precision(device, None).reason == "this CUDA device lacks bf16, TF32 off"
    assert choose_precision(device, "fp16") == ("fp16", "as --precision says")


# ------------------------------------------------------------------------------------ --deterministic


@pytest.fixture
def default_kernels(monkeypatch):
    """torch's switches as they were, after the test."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_deterministic_runs_and_stays_so_when_resumed(main, default_kernels, tmp_path, capsys):
    """Guards against a flag that sets half of torch's switches, that changes a number, or that a resumed run
    forgets."""
    assert main(*SHORT, "--output_dir", tmp_path / "plain") == 0
    assert main(*SHORT, "--deterministic", "--output_dir", tmp_path / "run") == 0
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert outcome(tmp_path / "plain") == outcome(tmp_path / "run")
    torch.use_deterministic_algorithms(False)
    assert main("--resume", "--epochs=2", "--output_dir", tmp_path / "run") == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["config"]["deterministic"]
    capsys.readouterr()
    assert main("--resume", "--deterministic", "--output_dir", tmp_path / "plain") == 2
    assert "--deterministic True: the run was started with False" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- clock


class Event:
    """An event in the queue of a GPU that takes 2 s of work between any two; `clock` is in milliseconds."""

    clock = 0
    waits = 0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self):
        Event.clock += 2000
        self.at = Event.clock

    def synchronize(self):
        Event.waits += 1

    def elapsed_time(self, end):
        return float(end.at - self.at)


def test_steps_on_a_gpu_are_timed_by_their_work(monkeypatch):
    """Guards against tokens per second of the launching, and against a wait for the GPU in every step."""
    monkeypatch.setattr(torch, "get_device_module", lambda device: type("Cuda", (), {"Event": Event}))
    progress = Progress()
    losses = {"total": torch.tensor(1.0), "grad_norm": torch.tensor(1.0), "task": torch.tensor(1.0)}
    for _ in range(3):
        stop_watch = start_watch(torch.device("cuda", 0))
        progress.add(["sst"], [losses], [tiny_batch("sst")], stop_watch())
    assert Event.waits == 0 and progress.seconds == 0
    progress.check({}, 0, torch.amp.GradScaler("cpu", enabled=False))
    assert progress.seconds == 6.0
    saved = json.loads(json.dumps(progress.to_dict()))
    assert saved["seconds"] == 6.0 and saved["interval"]["sst"][0][1:] == [22, 2.0]
    record = progress.interval.report(lr=1.0)["sst"]
    assert record["ms_per_step"] == 2000 and record["tokens_per_second"] == 22 / 2
