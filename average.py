"""Averages of weights, `--option average`: one model out of several runs that began from one encoder.

    python multitask_classifier.py --option average --checkpoint runs/a --checkpoint runs/b

A uniform soup (Wortsman et al. 2022, arXiv 2203.05482, section 2): every weight is the mean over the models,
heads included.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from support.errors import UserError

SAME = ("model_name_or_path", "pooling", "similarity", "max_length", "own")  # settings that must agree


def averaged(folders: Sequence[str], load: Callable[[str], tuple[Any, Any, dict]]) -> tuple[Any, Any, dict]:
    """The model whose weights are the means, its tokenizer, and its record.

    load: opens a folder, as `load_model` does. Raises UserError if there are not two models or more, if one
    is given twice, or if they have other shapes, tasks or encoders.
    """
    if len(folders) < 2:
        raise UserError("--option average: needs --checkpoint twice or more, a saved model each")
    places = [str(Path(folder).resolve()) for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise UserError(f"--checkpoint {folder}: given twice")
    model, tokenizer, run = load(folders[0])
    total = {name: value.double() for name, value in model.state_dict().items()}
    for folder in folders[1:]:
        other, _, record = load(folder)
        check_same(folders[0], run, model, folder, record, other)
        state = other.state_dict()
        if all(torch.equal(state[name], value) for name, value in model.state_dict().items()):
            raise UserError(f"--checkpoint {folder}: has the weights of {folders[0]}, the same run twice")
        for name, value in state.items():
            total[name] += value
    model.load_state_dict({name: value / len(folders) for name, value in total.items()})
    kept = ("config", "trained_tasks", "data", "processes", "versions")
    record = {name: run[name] for name in kept if name in run} | {"averaged": list(map(str, folders))}
    return model, tokenizer, record


def check_same(first: str, run: dict, model: nn.Module, folder: str, record: dict, other: nn.Module) -> None:
    """Raises UserError where the second model cannot be averaged with the first."""
    for name in SAME:
        mine, theirs = run["config"].get(name), record["config"].get(name)
        if mine != theirs:
            raise UserError(f"--checkpoint {folder}: its {name} is {theirs}, that of {first} is {mine}")
    if set(run["trained_tasks"]) != set(record["trained_tasks"]):
        tasks = ", ".join(record["trained_tasks"])
        raise UserError(f"--checkpoint {folder}: was trained on {tasks}, {first} on other tasks")
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (model, other)]
    if shapes[0] != shapes[1]:
        raise UserError(f"--checkpoint {folder}: its weights have other shapes than those of {first}")
