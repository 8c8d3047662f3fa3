"""The comparisons, one function for each row of the table. Each takes a `Setting` and returns measurements.

All models start from the same weights and train on the same files. Batches differ only where that is the
difference to measure. The timed step includes making the batch, for both sides by the same function. Where
whole programs are compared, each side runs in a separate process (`our_...`, `peer_...`). Where parts of a
program are compared, both sides share this process.
Shapes: B batch.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import evaluation
import multitask_classifier as program
from base_bert import load_tokenizer
from benchmarks import peers
from benchmarks.measure import GROUPS, Goal, Measurement, compare, evenly, separate_processes, take_turns
from bert import BertModel
from config import TrainConfig
from datasets import (
    Batch,
    Example,
    Loader,
    Task,
    TokenizedDataset,
    collate,
    read_examples,
    sample_rows,
    tokenize,
)
from mysmartloss import BregmanProximal
from optimizer import AdamW, decay_groups
from support.devices import keep_freed_memory
from tasks import TASKS
from training import Learner

HERE = Path(__file__).resolve().parent
MAX_LENGTH = 256  # tokens
MAX_ROWS = 20_000  # of a training file, which every separate process reads
PREDICTED_ROWS = 1_200  # of a test file
MIXED = ("sst", "para", "sts")
PLAIN = TrainConfig()
SMART = TrainConfig(use_smart=True, bregman_weight=0.0)
BREGMAN = TrainConfig(use_smart=True)
# The main program, stopped after its first optimizer step. os._exit skips the interpreter's clean-up, which
# is not part of the measured time.
FIRST_STEP = """
import os, sys, multitask_classifier as program
whole = program.Learner.step
def step(*arguments, **named):
    whole(*arguments, **named)
    os._exit(0)
program.Learner.step = step
sys.exit(program.main(sys.argv[1:]) or "the program ended without a step")
"""
IMPORTS = "import os, torch, transformers; transformers.BertModel; os._exit(0)"


@dataclass(frozen=True)
class Setting:
    """The folder of the data and the amount of work."""

    data_dir: Path
    scale: float = 1.0  # factor on the number of steps, rounds and predicted rows
    batch_size: int = PLAIN.batch_size

    def count(self, full: int) -> int:
        """The scaled number, at least 1."""
        return max(1, round(self.scale * full))

    def path(self, task: str, split: str) -> Path:
        """The file of a task's split: train, dev or test."""
        return self.data_dir / TASKS[task].filename(split)


@functools.cache
def training_data(path: Path, task: str) -> TokenizedDataset:
    """A training file's rows, or `MAX_ROWS` of them. A process reads each file once."""
    examples = sample_rows(read_examples(path, TASKS[task]), MAX_ROWS)
    return tokenize(examples, TASKS[task], load_tokenizer(), MAX_LENGTH)


def new_models() -> tuple[program.MultitaskBERT, peers.Peer]:
    """Our model and the peer's model, with the same weights, in train mode."""
    torch.manual_seed(0)
    ours = program.MultitaskBERT(BertModel.from_pretrained())
    return ours.train(), peers.Peer(ours).train()


def new_learner(model: program.MultitaskBERT, config: TrainConfig = PLAIN) -> Learner:
    """The learner that `multitask_classifier.train` makes."""
    teacher = BregmanProximal(model) if config.weights("sst").get("bregman") else None
    return Learner(program.TrainingLoss(model, config, teacher), config)


def our_step(learner: Learner, dataset: TokenizedDataset, rows: np.ndarray) -> None:
    """A step of `multitask_classifier.train` without log and schedule. rows: (B,), row numbers."""
    learner.step(dataset.task, collate(dataset, rows), lr=1e-5, beta=0.99)


def epoch_in_buckets(dataset: TokenizedDataset, batch_size: int) -> list[np.ndarray]:
    """The full batches of one of our epochs, so that ours and the peer's have the same number of rows."""
    return [rows for rows in Loader(dataset, batch_size, (0,)).epoch_batches(0) if len(rows) == batch_size]


Epoch = Callable[[TokenizedDataset, int], list[np.ndarray]]  # dataset, batch size -> batches of row numbers


def mixed_batches(
    setting: Setting, count: int, epoch: Epoch = epoch_in_buckets
) -> list[tuple[TokenizedDataset, np.ndarray]]:
    """`count` batches of each task's `epoch`, one of each task in turn as in training."""
    datasets = [training_data(setting.path(name, "train"), name) for name in MIXED]
    samples = [evenly(epoch(dataset, setting.batch_size), dataset.lengths, count) for dataset in datasets]
    return [
        (dataset, sample[k]) for k in range(count) for dataset, sample in zip(datasets, samples, strict=True)
    ]


# ----------------------------------------------------------------------------------------- training


PeerLoss = Callable[[peers.Peer, Task, Batch], torch.Tensor]


def our_training(setting: Setting, count: int, config: TrainConfig) -> Callable[[int], None]:
    """Steps on batches of similar length. Freed memory is kept, as in the main program."""
    keep_freed_memory()
    learner = new_learner(new_models()[0], config)
    batches = mixed_batches(setting, count)
    return lambda k: our_step(learner, *batches[k])


def peer_training(setting: Setting, count: int, loss: PeerLoss) -> Callable[[int], None]:
    """Steps on random batches. Each batch is padded to its longest row."""
    _, peer = new_models()
    optimizer = peers.fused_adamw(decay_groups(peer, PLAIN.weight_decay))
    batches = mixed_batches(setting, count, peers.random_batches)

    def step(k: int) -> None:
        dataset, rows = batches[k]
        peers.step(peer, optimizer, loss(peer, dataset.task, collate(dataset, rows)))

    return step


def training(
    setting: Setting, what: str, goal: Goal, steps: int, config: TrainConfig, peer_loss: PeerLoss
) -> list[Measurement]:
    """Examples/s of each task and of all three together."""
    count = setting.count(steps)
    with separate_processes(
        (our_training, setting, count, config), (peer_training, setting, count, peer_loss)
    ) as contenders:
        seconds = take_turns(count * len(MIXED), *contenders, warm_up=-(-count // GROUPS) * len(MIXED))
    of_tasks = [
        compare(f"{what}: {name}", "examples/s", goal, seconds[first :: len(MIXED)], setting.batch_size)
        for first, name in enumerate(MIXED)
    ]
    return [*of_tasks, compare(f"{what}: all three", "examples/s", goal, seconds, setting.batch_size)]


def plain(setting: Setting) -> list[Measurement]:
    """Training without SMART."""
    return training(setting, "plain training", Goal("speed", 2.5), 15, PLAIN, peers.plain_loss)


def smart(setting: Setting) -> list[Measurement]:
    """Training with SMART's smoothness term, one ascent step."""
    return training(setting, "SMART training, T = 1", Goal("speed", 3.0), 6, SMART, peers.smart_loss)


def dense_batch(setting: Setting) -> tuple[TokenizedDataset, np.ndarray]:
    """A batch of SST whose rows have the same length, about 25 tokens, so that no side pads or masks."""
    dataset = training_data(setting.path("sst", "train"), "sst")
    length = dataset.lengths[np.abs(dataset.lengths - 25).argmin()]
    return dataset, np.resize(np.flatnonzero(dataset.lengths == length), setting.batch_size)


def our_dense_training(setting: Setting) -> Callable[[int], None]:
    """Steps on the dense batch."""
    keep_freed_memory()
    learner = new_learner(new_models()[0])
    dataset, rows = dense_batch(setting)
    return lambda k: our_step(learner, dataset, rows)


def peer_dense_training(setting: Setting) -> Callable[[int], None]:
    """Steps on the dense batch."""
    _, peer = new_models()
    dataset, rows = dense_batch(setting)
    optimizer = peers.fused_adamw(decay_groups(peer, PLAIN.weight_decay))
    return lambda k: peers.step(peer, optimizer, peers.plain_loss(peer, dataset.task, collate(dataset, rows)))


def dense(setting: Setting) -> list[Measurement]:
    """A plain step on the same batch of SST, whose rows have about 25 tokens each: no padding, no mask."""
    with separate_processes((our_dense_training, setting), (peer_dense_training, setting)) as contenders:
        seconds = take_turns(setting.count(18), *contenders)
    return [
        compare("plain step, dense batch", "examples/s", Goal("speed", 1.05), seconds, setting.batch_size)
    ]


def terms(setting: Setting) -> list[Measurement]:
    """The cost of SMART's terms: our own steps with and without them on the same batches of three tasks."""
    learners = [new_learner(new_models()[0], config) for config in (PLAIN, SMART, BREGMAN)]
    batches = mixed_batches(setting, setting.count(3))
    seconds = take_turns(
        len(batches), *(lambda k, learner=learner: our_step(learner, *batches[k]) for learner in learners)
    )
    return [
        compare("SMART / plain step", "s/step", Goal("time", 2.75), seconds[:, [1, 0]]),
        compare("SMART + Bregman / plain step", "s/step", Goal("time", 3.1), seconds[:, [2, 0]]),
    ]


def products(hidden: int, intermediate: int, tokens: int) -> Callable[[], None]:
    """A function that does all matrix products of one layer's training step, forward and backward."""
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, intermediate), (intermediate, hidden))
    operands = [
        (torch.randn(tokens, wide), torch.randn(out, wide), torch.randn(tokens, out)) for wide, out in shapes
    ]

    def multiply() -> None:
        for x, weight, gradient in operands:
            x @ weight.T
            gradient @ weight
            gradient.T @ x

    return multiply


def rate(setting: Setting) -> list[Measurement]:
    """Useful arithmetic of training, with and without SMART, against bare matrix products.

    Useful are the flops for the parameters of the layers on the real tokens.
    """
    models = [new_models()[0] for _ in range(2)]
    learners = [new_learner(model, config) for model, config in zip(models, (PLAIN, SMART), strict=True)]
    batches = mixed_batches(setting, setting.count(4))
    bert = models[0].bert
    shape = bert.config
    encoder = sum(parameter.numel() for parameter in bert.bert_layers.parameters())
    tokens = 800  # about one batch
    multiply = products(shape.hidden_size, shape.intermediate_size, tokens)
    # parameters in one layer's products
    matrices = 4 * shape.hidden_size**2 + 2 * shape.hidden_size * shape.intermediate_size
    seconds = take_turns(
        len(batches),
        *(lambda k, learner=learner: our_step(learner, *batches[k]) for learner in learners),
        lambda k: [multiply() for _ in range(shape.num_hidden_layers)],
    )
    real = np.array([dataset.lengths[rows].sum() for dataset, rows in batches])
    bare = np.full_like(real, tokens * matrices * shape.num_hidden_layers)
    # (steps, 3) GFLOP. Flops for each parameter and token: 2 forward, 4 backward, so 6 for a plain step.
    # SMART: three forward passes, two full backward passes, one to the input only (2), so 16.
    work = 1e-9 * np.stack([6 * real * encoder, 16 * real * encoder, 6 * bare], axis=1)
    return [
        compare(
            f"{what} / bare products",
            "GFLOP/s",
            Goal("speed", 0.60),
            seconds[:, [column, 2]],
            work[:, [column, 2]],
        )
        for column, what in enumerate(("useful arithmetic", "useful arithmetic with SMART"))
    ]


# ----------------------------------------------------------------------------------------- the rest


def unlabelled_parts(setting: Setting, name: str) -> list[list[Example]]:
    """`PREDICTED_ROWS` rows of a test file in `GROUPS` parts."""
    examples = read_examples(setting.path(name, "test"), TASKS[name], labelled=False)
    examples = sample_rows(examples, max(GROUPS, setting.count(PREDICTED_ROWS)))
    return [examples[k::GROUPS] for k in range(GROUPS)]


def our_prediction(setting: Setting, name: str) -> Callable[[int], np.ndarray]:
    """From texts to predictions. Freed memory is kept, as in the main program."""
    keep_freed_memory()
    ours = new_models()[0].eval()
    tokenizer = load_tokenizer()
    parts = unlabelled_parts(setting, name)

    def predict(k: int) -> np.ndarray:
        dataset = tokenize(parts[k], TASKS[name], tokenizer, MAX_LENGTH)
        return evaluation.predict(ours, dataset, PLAIN.batch_size)

    return predict


def peer_prediction(setting: Setting, name: str) -> Callable[[int], np.ndarray]:
    """From texts to predictions."""
    peer = new_models()[1].eval()
    tokenizer = peers.load_tokenizer()
    parts = unlabelled_parts(setting, name)
    return lambda k: peers.predict(peer, tokenizer, TASKS[name], parts[k], PLAIN.batch_size, MAX_LENGTH)


def sentence_transformers_prediction(setting: Setting, name: str) -> Callable[[int], np.ndarray]:
    """From texts to vectors or scores."""
    predict = peers.sentence_transformers_predict(TASKS[name])
    parts = unlabelled_parts(setting, name)
    return lambda k: predict(parts[k])


def prediction(setting: Setting) -> list[Measurement]:
    """Rows/s from text to predictions on the test files of SST (sentences) and Quora (pairs).

    Rows are sorted by length, 32 rows in a batch.
    """
    measured = []
    others = {
        "sentence-transformers": sentence_transformers_prediction,
        "a transformers loop": peer_prediction,
    }
    for name in ("sst", "para"):
        with separate_processes(
            *((make, setting, name) for make in (our_prediction, *others.values()))
        ) as contenders:
            seconds = take_turns(GROUPS, *contenders)
        rows = np.array([[len(part)] for part in unlabelled_parts(setting, name)])
        for column, other in enumerate(others, start=1):
            what = f"prediction: {name}, {other}"
            measured.append(compare(what, "rows/s", Goal("speed", 1.2), seconds[:, [0, column]], rows))
    return measured


def adamw(setting: Setting) -> list[Measurement]:
    """One optimizer step on the encoder's 22.7 M parameters, all with a gradient."""
    ours = BertModel.from_pretrained()
    peer = BertModel.from_pretrained()
    for our_parameter, peer_parameter in zip(ours.parameters(), peer.parameters(), strict=True):
        our_parameter.grad = torch.randn_like(our_parameter)
        peer_parameter.grad = our_parameter.grad.clone()
    optimizer = AdamW(decay_groups(ours, PLAIN.weight_decay))
    peer_optimizer = peers.fused_adamw(decay_groups(peer, PLAIN.weight_decay))
    seconds = take_turns(setting.count(100), lambda k: optimizer.step(), lambda k: peer_optimizer.step())
    return [compare("AdamW step, 22.7 M parameters", "s/step", Goal("time", 1.2), seconds)]


def reading(setting: Setting) -> list[Measurement]:
    """Reading and tokenising Quora's training file."""
    path = setting.path("para", "train")
    task = TASKS["para"]
    tokenizer = load_tokenizer()
    peer_tokenizer = peers.load_tokenizer()
    seconds = take_turns(
        setting.count(3),
        lambda k: tokenize(read_examples(path, task), task, tokenizer, MAX_LENGTH),
        lambda k: peers.read_and_tokenize(path, task, peer_tokenizer, MAX_LENGTH),
    )
    return [compare("reading and tokenising Quora", "s", Goal("time", 1.1), seconds)]


def start(setting: Setting) -> list[Measurement]:
    """From the command line to the end of the first step on SST with whole files, against imports alone."""

    def run(code: str, *arguments: str) -> None:
        output = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=HERE.parent, capture_output=True, text=True
        )
        if output.returncode:
            raise RuntimeError(f"{code}\n{output.stderr}")

    with tempfile.TemporaryDirectory() as folder:
        data = ("--tasks", "sst", "--data_dir", os.path.abspath(setting.data_dir))
        flags = (*data, "--output_dir", folder, "--overwrite_output_dir")
        seconds = take_turns(setting.count(3), lambda k: run(FIRST_STEP, *flags), lambda k: run(IMPORTS))
    return [compare("start to first step, SST", "s", Goal("time", 2.0), seconds)]


ROWS = {row.__name__: row for row in (plain, smart, dense, terms, rate, prediction, adamw, reading, start)}
