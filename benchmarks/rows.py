"""The comparisons, one function for each row of the table. Each takes a `Setting` and returns measurements.

All models start from the same weights and train on the same files. Batches differ only where that is the
difference to measure. The timed step includes making the batch, for both sides by the same function. Where
whole programs are compared, each side runs in a separate process (`our_...`, `peer_...`). Where parts of a
program are compared, both sides share this process. Our side computes in the precision that the program takes
on this processor by default. The peer takes a turn in fp32 and one in our precision, in the same rounds.
Shapes: B batch.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import evaluation
import multitask_classifier as program
from base_bert import BertConfig, load_tokenizer
from benchmarks import peers
from benchmarks.figures import DEFAULTS, EQUAL, FIGURES, NEITHER
from benchmarks.learner import Learner, TrainingLoss
from benchmarks.measure import STRATA, Measurement, compare, evenly, separate_processes, take_turns
from benchmarks.shares import Shares, shares_of
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
from optimizer import AdamW, parameter_groups
from support.devices import COMPUTE_TYPES, keep_freed_memory
from tasks import TASKS

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
    """The folder of the data, the amount of work, and the precision that the program takes by default."""

    data_dir: Path
    scale: float = 1.0  # factor on the number of steps, rounds and predicted rows
    batch_size: int = PLAIN.batch_size
    precision: str = "fp32"

    @property
    def columns(self) -> dict[str, str]:
        """Column -> precision of the peer. Where ours is fp32, both columns would be the same measurement."""
        return {DEFAULTS: "fp32"} | ({} if self.precision == "fp32" else {EQUAL: self.precision})

    def measurement(
        self, what: str, column: str, seconds: np.ndarray, work: float | np.ndarray = 1.0, calls: int = 1
    ) -> Measurement:
        """`compare` with what FIGURES says of this line."""
        figure = FIGURES[what]
        goal = figure.goal(column, self.precision)
        return compare(what, column, figure.unit, goal, seconds, work, calls)

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


def new_model(precision: str) -> program.MultitaskBERT:
    """Our model, in train mode."""
    torch.manual_seed(0)
    return program.MultitaskBERT(BertModel.from_pretrained(), precision=precision).train()


def new_models(precision: str = "fp32") -> tuple[program.MultitaskBERT, peers.Peer]:
    """Our model in this precision and the peer's model, with the same weights, in train mode."""
    ours = new_model(precision)
    return ours, peers.Peer(ours).train()


def new_learner(model: program.MultitaskBERT, config: TrainConfig = PLAIN) -> Learner:
    """The learner that `multitask_classifier.train` makes."""
    teacher = BregmanProximal(model) if config.weights("sst").get("bregman") else None
    return Learner(TrainingLoss(model, config, teacher), config)


def own_learner(precision: str, config: TrainConfig) -> Learner:
    """A learner of a new model in this precision."""
    return new_learner(new_model(precision), replace(config, precision=precision))


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
    samples = [
        evenly(epoch(dataset, setting.batch_size), dataset.lengths, count, shift)
        for shift, dataset in enumerate(datasets)
    ]
    return [
        (dataset, sample[k]) for k in range(count) for dataset, sample in zip(datasets, samples, strict=True)
    ]


# ----------------------------------------------------------------------------------------- training


PeerLoss = Callable[[peers.Peer, Task, Batch], torch.Tensor]


def our_training(setting: Setting, count: int, config: TrainConfig) -> Callable[[int], None]:
    """Steps on batches of similar length. Freed memory is kept, as in the main program."""
    keep_freed_memory()
    learner = own_learner(setting.precision, config)
    batches = mixed_batches(setting, count)
    return lambda k: our_step(learner, *batches[k])


def peer_training(setting: Setting, count: int, loss: PeerLoss, precision: str) -> Callable[[int], None]:
    """Steps on random batches. Each batch is padded to its longest row."""
    _, peer = new_models()
    optimizer = peers.fused_adamw(parameter_groups(peer, PLAIN.weight_decay))
    batches = mixed_batches(setting, count, peers.random_batches)

    def step(k: int) -> None:
        dataset, rows = batches[k]
        with peers.autocast(precision):
            value = loss(peer, dataset.task, collate(dataset, rows))
        peers.step(peer, optimizer, value)

    return step


def training(
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
            of_task = pair[first :: len(MIXED)]
            measured.append(
                setting.measurement(f"{what}: {name}", column, of_task, setting.batch_size, STRATA)
            )
        whole = f"{what}: all three"
        measured.append(setting.measurement(whole, column, pair, setting.batch_size, len(MIXED)))
    return measured


def plain(setting: Setting) -> list[Measurement]:
    """Training without SMART, beside transformers."""
    return training(setting, "plain training", setting.count(12), PLAIN, peers.plain_loss)


def smart(setting: Setting) -> list[Measurement]:
    """Training with SMART's smoothness term, one ascent step, beside smart-pytorch."""
    return training(setting, "SMART training", setting.count(9), SMART, peers.smart_loss)


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
    optimizer = peers.fused_adamw(parameter_groups(peer, PLAIN.weight_decay))
    return lambda k: peers.step(peer, optimizer, peers.plain_loss(peer, dataset.task, collate(dataset, rows)))


def dense(setting: Setting) -> list[Measurement]:
    """A plain step in fp32 on the same batch of SST, whose rows have about 25 tokens: no padding, no mask."""
    with separate_processes((our_dense_training, setting), (peer_dense_training, setting)) as contenders:
        seconds = take_turns(setting.count(12), *contenders)
    return [setting.measurement("plain step in fp32, dense batch", NEITHER, seconds, setting.batch_size)]


def products(config: BertConfig, tokens: int, precision: str) -> tuple[Callable[[], None], int]:
    """A function that does all matrix products of the layers' training step, forward and backward.

    The other value is the number of parameters in these products.
    """
    hidden = config.hidden_size
    wide = config.intermediate_size
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden))
    compute_type = COMPUTE_TYPES[precision] or torch.float32
    operands = [
        [torch.randn(shape).to(compute_type) for shape in ((tokens, i), (o, i), (tokens, o))]
        for i, o in shapes
    ]

    def multiply() -> None:
        for _ in range(config.num_hidden_layers):
            for x, weight, gradient in operands:
                x @ weight.T
                gradient @ weight
                gradient.T @ x

    return multiply, config.num_hidden_layers * sum(i * o for i, o in shapes)


def own(setting: Setting) -> list[Measurement]:
    """Our own steps on the same batches: both precisions, each term of SMART, and beside bare products."""
    default = setting.precision
    steps = {"plain": (default, PLAIN), "SMART": (default, SMART), "SMART + Bregman": (default, BREGMAN)}
    if default != "fp32":
        steps |= {"plain fp32": ("fp32", PLAIN), "SMART fp32": ("fp32", SMART)}
    learners = [own_learner(*settings) for settings in steps.values()]
    batches = mixed_batches(setting, setting.count(6))
    bert = new_model(default).bert
    tokens = 800  # about one batch
    multiply, parameters = products(bert.config, tokens, default)
    seconds = take_turns(
        len(batches),
        *(lambda k, learner=learner: our_step(learner, *batches[k]) for learner in learners),
        lambda k: multiply(),
        warm_up=len(MIXED),
    )
    times = dict(zip([*steps, "products"], seconds.T, strict=True))  # (steps,) each

    def line(what: str, ours: str, peer: str, work: float | np.ndarray = 1.0) -> Measurement:
        pair = np.stack([times[ours], times[peer]], axis=1)
        return setting.measurement(what, DEFAULTS, pair, work, len(MIXED))

    # Useful are the flops for the parameters of the layers on the real tokens. For each parameter and token:
    # 2 forward, 4 backward, so 6 for a plain step. SMART: three forward passes, two full backward passes, one
    # to the input only (2), so 16.
    encoder = sum(parameter.numel() for parameter in bert.bert_layers.parameters())
    real = np.array([dataset.lengths[rows].sum() for dataset, rows in batches])
    bare = np.full_like(real, 6 * tokens * parameters)

    def gflop(flops: int) -> np.ndarray:
        return 1e-9 * np.stack([flops * real * encoder, bare], axis=1)  # (steps, 2)

    measured = [
        line("SMART / plain step", "SMART", "plain"),
        line("SMART + Bregman / plain step", "SMART + Bregman", "plain"),
        line("useful arithmetic / bare products", "plain", "products", gflop(6)),
        line("useful SMART arithmetic / bare products", "SMART", "products", gflop(16)),
    ]
    if default != "fp32":
        rows = setting.batch_size
        measured += [
            line("plain step / the same in fp32", "plain", "plain fp32", rows),
            line("SMART step / the same in fp32", "SMART", "SMART fp32", rows),
        ]
    return measured


def shares(setting: Setting) -> list[Shares]:
    """The share of a SMART step's time by the kind of operation, in the program's default precision."""
    learner = own_learner(setting.precision, SMART)
    batches = mixed_batches(setting, 1)
    what = f"shares of a SMART step in {setting.precision}"
    return [shares_of(what, len(batches), lambda k: our_step(learner, *batches[k]))]


# ----------------------------------------------------------------------------------------- the rest


PREDICTED = ("sst", "para")  # sentences, pairs
PARTS = 5  # of the predicted rows


def unlabelled_parts(setting: Setting) -> list[tuple[Task, list[Example]]]:
    """`PREDICTED_ROWS` rows of each test file in `PARTS` parts, a part of each file in turn."""
    count = max(PARTS, setting.count(PREDICTED_ROWS))
    files = [
        sample_rows(read_examples(setting.path(name, "test"), TASKS[name], labelled=False), count)
        for name in PREDICTED
    ]
    return [
        (TASKS[name], examples[k::PARTS])
        for k in range(PARTS)
        for name, examples in zip(PREDICTED, files, strict=True)
    ]


def our_prediction(setting: Setting) -> Callable[[int], np.ndarray]:
    """From texts to predictions. Freed memory is kept, as in the main program."""
    keep_freed_memory()
    ours = new_model(setting.precision).eval()
    tokenizer = load_tokenizer()
    parts = unlabelled_parts(setting)

    def predict(k: int) -> np.ndarray:
        task, examples = parts[k]
        dataset = tokenize(examples, task, tokenizer, MAX_LENGTH)
        return evaluation.predict(ours, dataset, PLAIN.batch_size)

    return predict


def peer_prediction(setting: Setting, precision: str) -> Callable[[int], np.ndarray]:
    """From texts to predictions."""
    peer = new_models()[1].eval()
    tokenizer = peers.load_tokenizer()
    parts = unlabelled_parts(setting)

    def predict(k: int) -> np.ndarray:
        with peers.autocast(precision):
            return peers.predict(peer, tokenizer, *parts[k], PLAIN.batch_size, MAX_LENGTH)

    return predict


def sentence_transformers_prediction(setting: Setting, precision: str) -> Callable[[int], np.ndarray]:
    """From texts to vectors or scores."""
    predict = {name: peers.sentence_transformers_predict(TASKS[name]) for name in PREDICTED}
    parts = unlabelled_parts(setting)

    def predict_part(k: int) -> np.ndarray:
        task, examples = parts[k]
        with peers.autocast(precision):
            return predict[task.name](examples)

    return predict_part


def prediction(setting: Setting) -> list[Measurement]:
    """Rows/s from text to predictions on the test files of SST (sentences) and Quora (pairs).

    Rows are sorted by length, 32 rows in a batch.
    """
    others = {
        "sentence-transformers": sentence_transformers_prediction,
        "a transformers loop": peer_prediction,
    }
    sides = [(other, column) for other in others for column in setting.columns]
    makers = [(others[other], setting, setting.columns[column]) for other, column in sides]
    rows = np.array([[len(examples)] for _, examples in unlabelled_parts(setting)])
    with separate_processes((our_prediction, setting), *makers) as contenders:
        seconds = take_turns(len(rows), *contenders, warm_up=len(PREDICTED))
    return [
        setting.measurement(
            f"prediction: {name}, {other}",
            column,
            seconds[first :: len(PREDICTED), [0, place]],
            rows[first :: len(PREDICTED)],
        )
        for place, (other, column) in enumerate(sides, start=1)
        for first, name in enumerate(PREDICTED)
    ]


def adamw(setting: Setting) -> list[Measurement]:
    """One optimizer step on the encoder's 22.7 M parameters, all with a gradient."""
    ours = BertModel.from_pretrained()
    peer = BertModel.from_pretrained()
    for our_parameter, peer_parameter in zip(ours.parameters(), peer.parameters(), strict=True):
        our_parameter.grad = torch.randn_like(our_parameter)
        peer_parameter.grad = our_parameter.grad.clone()
    optimizer = AdamW(parameter_groups(ours, PLAIN.weight_decay))
    peer_optimizer = peers.fused_adamw(parameter_groups(peer, PLAIN.weight_decay))
    seconds = take_turns(setting.count(100), lambda k: optimizer.step(), lambda k: peer_optimizer.step())
    return [setting.measurement("AdamW step, 22.7 M parameters", NEITHER, seconds)]


def reading(setting: Setting) -> list[Measurement]:
    """Reading and tokenising Quora's training file."""
    path = setting.path("para", "train")
    task = TASKS["para"]
    tokenizer = load_tokenizer()
    peer_tokenizer = peers.load_tokenizer()
    seconds = take_turns(
        setting.count(2),
        lambda k: tokenize(read_examples(path, task), task, tokenizer, MAX_LENGTH),
        lambda k: peers.read_and_tokenize(path, task, peer_tokenizer, MAX_LENGTH),
    )
    return [setting.measurement("reading and tokenising Quora", NEITHER, seconds)]


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
    return [setting.measurement("start to first step, SST", NEITHER, seconds)]


Row = Callable[[Setting], Sequence[Measurement | Shares]]
ROWS: dict[str, Row] = {
    "plain": plain,
    "smart": smart,
    "own": own,
    "shares": shares,
    "dense": dense,
    "prediction": prediction,
    "adamw": adamw,
    "reading": reading,
    "start": start,
}
