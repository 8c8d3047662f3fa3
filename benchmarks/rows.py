"""The comparisons, one function for each row of the table. Each takes a `Setting` and returns measurements.

All models start from the same weights and train on the same files. The timed step includes making the batch,
for both sides by the same function. `plain` and `smart` compare whole programs: each side has a process of
its own. `dropout`, `lazy` and `adamw` compare parts of a program: both sides share this process. Our side
computes in the program's default precision on this processor. The peer takes a turn in fp32 and one in our
precision.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

import bert
import multitask_classifier as program
import support.dropout
from base_bert import load_tokenizer
from benchmarks import peers
from benchmarks.measure import STRATA, Goal, Measurement, compare, evenly, separate_processes, take_turns
from benchmarks.training import Training
from bert import BertModel
from config import TrainConfig
from datasets import Batch, Loader, Task, TokenizedDataset, collate, read_examples, sample_rows, tokenize
from optimizer import AdamW, parameter_groups
from support.devices import keep_freed_memory
from tasks import TASKS

MAX_LENGTH = 256  # tokens
MAX_ROWS = 20_000  # of a training file, which every separate process reads
MIXED = ("sst", "para", "sts")
LAZY = 4  # --smart_every
PLAIN = TrainConfig()
SMART = TrainConfig(use_smart=True, bregman_weight=0.0)
BREGMAN = TrainConfig(use_smart=True)
OUR_DROPOUT = support.dropout.dropout
# The columns. Ours computes in the program's default precision in both.
DEFAULTS = "at defaults"  # the peer as it comes, in fp32
EQUAL = "at equal precision"  # the peer under the same autocast type as ours
NEITHER = "-"  # a row that no precision touches, or that has the same on both sides
# what is measured, default precision of the processor, column -> goal of the ratio
GOALS: dict[tuple[str, str, str], float] = {
    ("plain training: all three", "bf16", DEFAULTS): 4.1,
    ("plain training: all three", "bf16", EQUAL): 2.6,
    ("plain training: all three", "fp32", DEFAULTS): 2.5,
    ("SMART training: all three", "bf16", DEFAULTS): 4.5,
    ("SMART training: all three", "bf16", EQUAL): 2.9,
    ("SMART training: all three", "fp32", DEFAULTS): 3.0,
    ("SMART, every 4th step / plain step", "bf16", NEITHER): 1.6,
    ("SMART, every 4th step / plain step", "fp32", NEITHER): 1.6,
    ("AdamW step, 22.7 M parameters", "bf16", NEITHER): 1.2,
    ("AdamW step, 22.7 M parameters", "fp32", NEITHER): 1.2,
}


@dataclass(frozen=True)
class Setting:
    """The folder of the data, the amount of work, and the precision that the program takes by default."""

    data_dir: Path
    scale: float = 1.0  # factor on the number of steps and rounds
    batch_size: int = PLAIN.batch_size
    precision: str = "fp32"

    @property
    def columns(self) -> dict[str, str]:
        """Column -> precision of the peer. Where ours is fp32, both columns would be the same measurement."""
        return {DEFAULTS: "fp32"} | ({} if self.precision == "fp32" else {EQUAL: self.precision})

    def compare(self, what: str, column: str, seconds: np.ndarray, calls: int = 1) -> Measurement:
        """Examples/s beside a peer, seconds a step of a row without columns. calls: how many make a round."""
        bound = GOALS.get((what, self.precision, column))
        if column == NEITHER:
            return compare(what, column, "s/step", Goal("time", bound), seconds, calls=calls)
        return compare(what, column, "examples/s", Goal("speed", bound), seconds, self.batch_size, calls)

    def count(self, full: int) -> int:
        """The scaled number, at least 1."""
        return max(1, round(self.scale * full))

    def path(self, task: str) -> Path:
        """A task's training file."""
        return self.data_dir / TASKS[task].filename("train")


@functools.cache
def training_data(path: Path, task: str) -> TokenizedDataset:
    """A training file's rows, or `MAX_ROWS` of them. A process reads each file once."""
    examples = sample_rows(read_examples(path, TASKS[task]), MAX_ROWS)
    return tokenize(examples, TASKS[task], load_tokenizer(), MAX_LENGTH)


def new_model(precision: str = "fp32") -> program.MultitaskBERT:
    """Our model, in train mode."""
    torch.manual_seed(0)
    return program.MultitaskBERT(BertModel.from_pretrained(), precision=precision).train()


def new_training(precision: str, config: TrainConfig) -> Training:
    """A new model in this precision, and what trains it."""
    return Training(new_model(precision), replace(config, precision=precision))


def epoch_in_buckets(dataset: TokenizedDataset, batch_size: int) -> list[np.ndarray]:
    """The full batches of one of our epochs, so that ours and the peer's have the same number of rows."""
    return [rows for rows in Loader(dataset, batch_size, (0,)).epoch_batches(0) if len(rows) == batch_size]


Epoch = Callable[[TokenizedDataset, int], list[np.ndarray]]  # dataset, batch size -> batches of row numbers


def mixed_batches(
    setting: Setting, count: int, epoch: Epoch = epoch_in_buckets
) -> list[tuple[TokenizedDataset, np.ndarray]]:
    """`count` batches of each task's `epoch`, one of each task in turn as in training."""
    datasets = [training_data(setting.path(name), name) for name in MIXED]
    samples = [
        evenly(epoch(dataset, setting.batch_size), dataset.lengths, count, shift)
        for shift, dataset in enumerate(datasets)
    ]
    return [
        (dataset, sample[k]) for k in range(count) for dataset, sample in zip(datasets, samples, strict=True)
    ]


# ---------------------------------------------------------------------------------- beside the peers

PeerLoss = Callable[[peers.Peer, Task, Batch], torch.Tensor]


def our_training(setting: Setting, count: int, config: TrainConfig) -> Callable[[int], None]:
    """Steps on batches of similar length. Freed memory stays with the process, as in the main program."""
    keep_freed_memory()
    ours = new_training(setting.precision, config)
    batches = mixed_batches(setting, count)
    return lambda k: ours.step_on(*batches[k])


def peer_training(setting: Setting, count: int, loss: PeerLoss, precision: str) -> Callable[[int], None]:
    """Steps on random batches. Each batch is padded to its longest row."""
    peer = peers.Peer(new_model()).train()
    optimizer = peers.fused_adamw(parameter_groups(peer, PLAIN.weight_decay))
    batches = mixed_batches(setting, count, peers.random_batches)

    def step(k: int) -> None:
        dataset, rows = batches[k]
        with peers.autocast(precision):
            value = loss(peer, dataset.task, collate(dataset, rows))
        peers.step(peer, optimizer, value)

    return step


def beside_peer(
    setting: Setting, what: str, count: int, config: TrainConfig, peer_loss: PeerLoss
) -> list[Measurement]:
    """Examples/s of each task and of all three together. count: batches of each task."""
    peer_makers = [
        (peer_training, setting, count, peer_loss, precision) for precision in setting.columns.values()
    ]
    with separate_processes((our_training, setting, count, config), *peer_makers) as contenders:
        seconds = take_turns(count * len(MIXED), *contenders, warm_up=len(MIXED))
    measured = []
    for place, column in enumerate(setting.columns, start=1):
        pair = seconds[:, [0, place]]
        for first, name in enumerate(MIXED):
            measured.append(setting.compare(f"{what}: {name}", column, pair[first :: len(MIXED)], STRATA))
        measured.append(setting.compare(f"{what}: all three", column, pair, len(MIXED)))
    return measured


def plain(setting: Setting) -> list[Measurement]:
    """Training without SMART, beside transformers."""
    return beside_peer(setting, "plain training", setting.count(12), PLAIN, peers.plain_loss)


def smart(setting: Setting) -> list[Measurement]:
    """Training with SMART's smoothness term, one ascent step, beside smart-pytorch."""
    return beside_peer(setting, "SMART training", setting.count(9), SMART, peers.smart_loss)


# ------------------------------------------------------------------------------------------- tricks


def dropout(setting: Setting) -> list[Measurement]:
    """A step with our dropout, whose draws are 64-bit numbers, beside the same with torch's dropout."""
    measured = []
    batches = mixed_batches(setting, setting.count(10))

    def step(ours: Training, function: Callable[..., torch.Tensor], k: int) -> None:
        with patch.object(support.dropout, "dropout", function), patch.object(bert, "dropout", function):
            ours.step_on(*batches[k])

    for name, config in {"plain": PLAIN, "SMART + Bregman": BREGMAN}.items():
        ours = new_training(setting.precision, config)
        sides = [functools.partial(step, ours, function) for function in (OUR_DROPOUT, F.dropout)]
        seconds = take_turns(len(batches), *sides, warm_up=len(MIXED))
        measured.append(setting.compare(f"{name} step / with torch's dropout", NEITHER, seconds, len(MIXED)))
    return measured


def lazy(setting: Setting) -> list[Measurement]:
    """A step with both of SMART's terms, in every batch and in every 4th, beside a plain step."""
    batches = mixed_batches(setting, setting.count(2 * LAZY * STRATA))
    configs = (BREGMAN, replace(BREGMAN, smart_every=LAZY), PLAIN)
    trainings = [new_training(setting.precision, config) for config in configs]

    def step(training: Training, k: int) -> None:
        training.step_on(*batches[k], k // len(MIXED))

    sides = (functools.partial(step, training) for training in trainings)
    seconds = take_turns(len(batches), *sides, warm_up=len(MIXED))
    names = ("SMART step / plain step", f"SMART, every {LAZY}th step / plain step")
    calls = LAZY * STRATA * len(MIXED)  # in a round SMART has a short, a medium and a long batch of each task
    return [
        setting.compare(name, NEITHER, seconds[:, [place, -1]], calls) for place, name in enumerate(names)
    ]


def adamw(setting: Setting) -> list[Measurement]:
    """One optimizer step on the encoder's 22.7 M parameters, all with a gradient, beside torch's fused."""
    ours = BertModel.from_pretrained()
    peer = BertModel.from_pretrained()
    for our_parameter, peer_parameter in zip(ours.parameters(), peer.parameters(), strict=True):
        our_parameter.grad = torch.randn_like(our_parameter)
        peer_parameter.grad = our_parameter.grad.clone()
    optimizer = AdamW(parameter_groups(ours, PLAIN.weight_decay))
    peer_optimizer = peers.fused_adamw(parameter_groups(peer, PLAIN.weight_decay))
    seconds = take_turns(setting.count(100), lambda k: optimizer.step(), lambda k: peer_optimizer.step())
    return [setting.compare("AdamW step, 22.7 M parameters", NEITHER, seconds)]


ROWS: dict[str, Callable[[Setting], Sequence[Measurement]]] = {
    "plain": plain,
    "smart": smart,
    "dropout": dropout,
    "lazy": lazy,
    "adamw": adamw,
}
