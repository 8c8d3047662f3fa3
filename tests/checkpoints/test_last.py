"""save_last and load_last: any torch.optim optimizer goes on bit for bit, and a state that does not fit is
refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from checkpoint import load_checkpoint, load_last, restore_generators, save_checkpoint, save_last
from optimizer import AdamW
from support import parallel
from support.errors import UserError
from support.progress import Progress

RECORD = {"content": {}, "processes": 1, "versions": {}}
OFF = torch.amp.GradScaler("cpu", enabled=False)
OPTIMIZERS = {
    "ours": lambda params: AdamW(params, lr=0.1, weight_decay=0.01),
    "torch.optim.AdamW": lambda params: torch.optim.AdamW(params, lr=0.1, amsgrad=True, fused=True),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.1),  # row and column statistics
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.1),  # a product of momenta
}


def new_model(seed: int, width: int = 4) -> nn.Module:
    """With dropout, and a layer that is trained in every second step only."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 2), nn.Linear(2, 1))


def groups(model: nn.Module) -> list[dict]:
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        hidden = model[:3](torch.randn(5, 3))
        (model[3](hidden) if step % 2 else hidden).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def saved(folder: Path, make=OPTIMIZERS["ours"]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after 3 steps, which `folder`/last holds."""
    model = new_model(0)
    optimizer = make(groups(model))
    train(model, optimizer, range(3))
    save_last(folder, {"student": model}, optimizer, OFF, RECORD, Progress(step=3))
    return model, optimizer


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_resumes_bit_for_bit(tmp_path, make):
    """Guards against moments, step counts or settings of a group that start anew, or are rounded."""
    model, optimizer = saved(tmp_path, make)
    train(model, optimizer, range(3, 7))
    other = new_model(1)
    resumed = make(groups(other))
    progress = load_last(tmp_path, {"student": other}, resumed, OFF, RECORD)
    train(other, resumed, range(progress.step, 7))
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    states = [optimizer.state_dict(), resumed.state_dict()]
    assert json.dumps(states[0]["param_groups"]) == json.dumps(states[1]["param_groups"])
    for i, entry in states[0]["state"].items():
        assert entry.keys() == states[1]["state"][i].keys()
        for key, value in entry.items():
            other_value = states[1]["state"][i][key]
            assert type(value) is type(other_value) and (torch.as_tensor(value) == other_value).all()


@pytest.mark.parametrize(
    ("width", "trained", "make", "said"),
    [
        (4, 4, "torch.optim.AdamW", "its optimizer is optimizer.AdamW, not torch.optim.adamw.AdamW"),
        (5, 4, "ours", "size mismatch for 0.weight"),
        (4, 3, "ours", "parameter group that doesn't match the size"),
    ],
)
def test_another_model_or_optimizer_is_refused(tmp_path, width, trained, make, said):
    """Guards against AdamW's moments that are silently loaded into another optimizer or for another
    parameter, and against a traceback."""
    saved(tmp_path)
    other = new_model(1, width)
    with pytest.raises(UserError, match=said) as error:
        load_last(tmp_path, {"student": other}, OPTIMIZERS[make](groups(other[:trained])), OFF, RECORD)
    assert str(error.value).startswith(f"{tmp_path / 'last'}: ") and "\n" not in str(error.value)


def test_the_scale_of_fp16_comes_back(tmp_path):
    """Guards against a resumed run in fp16 whose first steps overflow, and are left out."""
    model, optimizer = saved(tmp_path)
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 2.0)]
    scalers[0].scale(torch.ones(()))  # makes its state
    save_last(tmp_path, {"student": model}, optimizer, scalers[0], RECORD, Progress())
    load_last(tmp_path, {"student": model}, optimizer, scalers[1], RECORD)
    assert scalers[1].get_scale() == 8.0


def test_another_number_of_processes_is_said(tmp_path, caplog, monkeypatch):
    """Guards against a refusal, and against two ranks that draw the same masks: rank 1 was not saved."""
    saved(tmp_path)
    states = load_checkpoint(tmp_path / "last").tensors["random"]
    drawn = []
    for rank in (0, 1, 2):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(parallel, "size", lambda: 3)
        restore_generators(states, torch.device("cpu"))
        drawn.append(torch.rand(4))
    assert "goes from 1 to 3 process(es): its dropout masks differ from here on" in caplog.text
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    monkeypatch.setattr(parallel, "rank", lambda: 0)
    restore_generators(states, torch.device("cpu"))
    assert torch.equal(torch.rand(4), drawn[0])  # rank 0 goes on where it was


def test_another_kind_of_device_is_said(tmp_path, caplog):
    """Guards against other dropout masks without a word."""
    saved(tmp_path)
    last = load_checkpoint(tmp_path / "last")
    last.tensors["random"]["cuda.0"] = last.tensors["random"]["cpu.0"].clone()
    save_checkpoint(tmp_path / "last", last)
    other = new_model(1)
    load_last(tmp_path, {"student": other}, AdamW(groups(other)), OFF, RECORD)
    assert "moves from cuda to cpu: its dropout masks differ" in caplog.text
