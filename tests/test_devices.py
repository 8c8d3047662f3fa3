"""What a run sets on its device: compute type, deterministic kernels, fp32 without TF32, its clock."""

import json
import os

import pytest
import torch

from helpers import warnings_of
from kill_and_resume import RUN, outcome
from support import devices
from support.devices import choose_precision, pick_device, start_watch
from support.progress import Progress
from tiny_bert import tiny_batch

CAPABILITIES = {"none": {}, "avx512": {"avx512_bf16": True}, "amx": {"amx_bf16": True, "avx512_bf16": False}}


@pytest.fixture
def cpu(monkeypatch):
    """Makes the processor one with these capabilities, and nothing forced from outside."""
    monkeypatch.delenv(devices.PRECISION_VARIABLE, raising=False)
    return lambda name: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: CAPABILITIES[name])


@pytest.mark.parametrize(
    ("name", "expected", "has"),
    [
        ("none", "fp32", "neither amx_bf16 nor avx512_bf16"),
        ("avx512", "bf16", "avx512_bf16"),
        ("amx", "bf16", "amx_bf16"),
    ],
)
def test_the_default_is_bf16_where_the_processor_has_it(cpu, name, expected, has):
    """Guards against bf16 in software, which is slow, and against fp32 where bf16 takes half the time."""
    cpu(name)
    device = torch.device("cpu")
    assert choose_precision(device, None) == (expected, f"this CPU has {has}")
    assert choose_precision(device, "fp16") == ("fp16", "as --precision says")


def test_fp32_on_cuda_is_fp32(monkeypatch):
    """Guards against TF32, three digits, under the name of fp32, and a kernel that plans for each length."""
    asked = set()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.add(("device", index)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: asked.add(("fp32", name)))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: asked.add(("cudnn", on)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv(devices.PRECISION_VARIABLE, raising=False)
    device = pick_device(use_gpu=True)
    assert device == torch.device("cuda", 1)
    assert asked == {("device", 1), ("fp32", "highest"), ("cudnn", False)}
    assert choose_precision(device, None).reason == "this CUDA device lacks bf16, TF32 off"


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


def test_a_resumed_run_keeps_its_precision_and_its_kernels(
    main, cpu, default_kernels, tmp_path, caplog, capsys
):
    """Guards against a run that changes its type when it moves to another processor; against --deterministic
    that sets half of torch's switches, that changes a number, or that a resumed run forgets."""
    short = [*RUN, "--epochs=1", "--steps_per_epoch=6", "--output_dir"]
    cpu("avx512")
    assert main(*short, tmp_path / "plain") == 0
    capsys.readouterr()
    assert main(*short, tmp_path / "run", "--deterministic") == 0
    assert "precision: bf16, this CPU has avx512_bf16" in capsys.readouterr().out
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert outcome(tmp_path / "plain") == outcome(tmp_path / "run")
    torch.use_deterministic_algorithms(False)
    cpu("none")
    assert main("--resume", "--epochs=2", "--output_dir", tmp_path / "run") == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert "precision: bf16, as the run was started" in capsys.readouterr().out
    (slow,) = (said for said in warnings_of(caplog) if "slow here" in said)
    assert "neither amx_bf16 nor avx512_bf16" in slow
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["deterministic"] and results["config"]["precision"] == "bf16"
    assert main("--resume", "--deterministic", "--output_dir", tmp_path / "plain") == 2
    assert "--deterministic True: the run was started with False" in capsys.readouterr().err


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
    assert Progress.from_dict(saved).to_dict() == progress.to_dict()
    for restored in (progress, Progress.from_dict(saved)):
        record = restored.report(lr=1.0)["sst"]
        assert record["ms_per_step"] == 2000 and record["tokens_per_second"] == 22 / 2
