"""The plan of a run, the learner's step, and what a run says about itself beforehand.

    plan_steps ─> for each step a task and a batch
    Learner.joint_step: TrainingLoss(batch) ─> {task, smart, ..., total} ─ backward, clip, AdamW, teacher

Knows modules and numbers, not the model's class. B batch, T tokens, H hidden, C outputs.
"""

import bisect
import contextlib
import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

import mysmartloss
from config import UNLABELLED, TrainConfig
from datasets import SCHEDULES, Batch, Loader, Mix, Task, TokenizedDataset
from evaluation import rows_at_a_time
from losses import TERMS
from optimizer import AdamW, parameter_groups
from support import devices, memory, parallel
from support.errors import UserError, one_line
from support.log import RunLog, SilentLog
from support.screen import cut, duration, numbers_line, step_line, table

log = logging.getLogger("smart_bert")
FLOOR_MARGIN = 3.0  # R_s should be this many times its rounding floor
MAX_STEPS = 10**7  # months of training; a longer plan would not fit into memory

# --------------------------------------------------------------------------------------------- plan


class Plan(NamedTuple):
    """Which batches each step takes.

    steps: for each step of the run the tasks that it trains, each with the number of the task's batch.
    per_epoch, warmup: in steps.
    """

    steps: list[tuple[tuple[str, int], ...]]
    per_epoch: int
    warmup: int


def plan_steps(config: TrainConfig, loaders: dict[str, Loader]) -> Plan:
    """The plan of a run.

    An epoch has as many batches for each task, on average, as the median task needs to see each of its rows
    once. Raises UserError for a plan of more than MAX_STEPS.
    """
    median = round(statistics.median(loaders[name].batches_per_epoch for name in config.tasks))
    names = tuple(loaders)
    per_epoch = config.steps_per_epoch or median * (1 if config.schedule == "joint" else len(names))
    total = config.epochs * per_epoch
    if total > MAX_STEPS:
        raise UserError(
            f"--epochs {config.epochs}: with {per_epoch} steps each, more than {MAX_STEPS:,} steps"
        )
    rows = tuple(len(loader.dataset) for loader in loaders.values())
    mix = Mix(rows, config.epochs, per_epoch, config.seed)
    taken: Counter[str] = Counter()
    steps = []
    for epoch in range(config.epochs):
        for numbers in SCHEDULES[config.schedule](mix, epoch):
            tasks = [names[number] for number in numbers]
            steps.append(tuple((task, taken[task]) for task in tasks))
            taken.update(tasks)
    warmup = round(0.1 * total) if config.warmup_steps is None else config.warmup_steps
    return Plan(steps, per_epoch, warmup)


# --------------------------------------------------------------------------------------------- step


def lr_factors(model: nn.Module, config: TrainConfig) -> Callable[[str], float]:
    """From a parameter's name to its learning rate, in units of --lr, which the last layer has.

    Each layer below has --layer_lr_decay times the rate of the one above, the embeddings the lowest (Howard &
    Ruder 2018, arXiv 1801.06146, section 3.2). Heads, and a pooler that was not pre-trained, have --head_lr.
    """
    layers = sum(name.endswith(".out_dense.weight") for name, _ in model.named_parameters())
    bert = cast(Any, getattr(model, "bert", None))

    def factor(name: str) -> float:
        if name.startswith("heads.") or (name.startswith("bert.pooler_dense.") and bert.new_pooler):
            return config.head_lr / config.lr
        if name.startswith("bert.bert_layers."):
            return config.layer_lr_decay ** (layers - 1 - int(name.split(".")[2]))
        return 1.0 if name.startswith("bert.pooler_dense.") else config.layer_lr_decay**layers

    return factor


class Learner:
    """A model, its optimizer, its teacher if there is one, and the step that moves them.

    loss: has the attributes `model` and `bregman` (or None), and loss(task, batch, measure) is the whole
    training loss by its parts, `total` among them. Under torchrun each process gives the step its share of a
    batch, and all end up with the same weights.
    """

    def __init__(self, loss: Any, config: TrainConfig) -> None:
        self.model = cast(nn.Module, loss.model)
        self.bregman = cast("mysmartloss.BregmanProximal | None", loss.bregman)
        self.max_grad_norm = config.max_grad_norm
        self.surgery = config.gradient_surgery == "pcgrad"
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        groups = parameter_groups(self.model, config.weight_decay, lr_factors(self.model, config))
        self.optimizer = AdamW(groups, lr=config.lr)
        # fp16 would round small gradients to 0, so the loss is scaled up there
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.loss = loss

    def step(
        self, task: Task, batch: Batch, lr: float, beta: float, measure: bool = False
    ) -> dict[str, Tensor]:
        """Train on one batch of one task; see `joint_step`."""
        return self.joint_step([(task, [batch])], lr, beta, measure)[0]

    def joint_step(
        self, parts: Sequence[tuple[Task, Sequence[Batch]]], lr: float, beta: float, measure: bool = False
    ) -> list[dict[str, Tensor]]:
        """Train once on a batch of each of the tasks: their losses are added. lr: of the last layer.

        A batch is given in parts, each with a backward pass of its own (gradient accumulation).

        Returns each task's loss by its parts, means over all processes, and `grad_norm` of the whole step
        before clipping; detached.
        Where a total or the norm is not finite, no weight is changed. The CPU sees that at once. A GPU is not
        waited for: there AdamW counts the step all the same, and the teacher moves towards weights that stand
        still.
        """
        found = []
        of_tasks = []  # the gradients of each task, where they are not simply added
        for task, batches in parts:
            sums: dict[str, Tensor] = {}  # over the parts of the batch
            for batch in batches:
                # the mean over parts and processes is a sum of shares
                share = batch.weight / len(batches)
                with out_of_memory_advice(batch):
                    losses: dict[str, Tensor] = self.loss(task, batch, measure)
                    weight = share * batch.fullness / parallel.size()
                    self.scaler.scale(losses["total"] * weight).backward()
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * share
            found.append(parallel.all_reduce_mean(sums))
            if self.surgery:
                of_tasks.append(self._taken_gradients())
        if self.surgery:
            for losses, conflict in zip(found, self._operate(of_tasks, parts[0][1][0].seed), strict=True):
                losses["conflict"] = conflict
        else:
            parallel.sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        bad = ~torch.isfinite(torch.stack([norm, *(losses["total"] for losses in found)])).all()
        if self.device.type != "cpu" or not bad:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            # clips as `clip_grad_norm_` does
            excess = ((norm + 1e-6) / self.max_grad_norm).clamp_min(1.0)
            self.optimizer.step(grad_scale=excess, found_inf=bad.to(excess.dtype))
            if self.bregman:
                self.bregman.update(self.model, beta)
        self.scaler.update()
        self.optimizer.zero_grad()
        return [losses | {"grad_norm": norm} for losses in found]

    def _taken_gradients(self) -> Tensor:
        """One task's gradients, summed over the processes, as one vector (P,); none are left behind."""
        parallel.sum_gradients(self.parameters)
        flat = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in self.parameters
        ]
        self.optimizer.zero_grad()
        return torch.cat(flat)

    def _operate(self, of_tasks: list[Tensor], seed: int) -> Tensor:
        """Put the combined gradient of PCGrad in place. Returns each task's share of conflicts (K,)."""
        # the same order in every process
        random = np.random.default_rng(seed)
        others = [[j for j in range(len(of_tasks)) if j != i] for i in range(len(of_tasks))]
        combined, conflicts = pcgrad(of_tasks, [list(random.permutation(js)) for js in others])
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, combined.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        return conflicts


def pcgrad(gradients: Sequence[Tensor] | Tensor, orders: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Gradient surgery (Yu et al. 2020, arXiv 2001.06782, Algorithm 1).

    gradients: of each of K tasks (P,). orders: for each task the others, in the order in which they are
    looked at; the algorithm draws it. Returns the combined gradient (P,), and for each task the share of the
    other tasks whose gradients conflict with its own (K,).
    """
    combined = torch.zeros_like(gradients[0])
    conflicts = []
    for gradient, order in zip(gradients, orders, strict=True):  # line 3
        projected = gradient.clone()  # line 2: g_i^PC ← g_i
        for j in order:  # line 4: j ≠ i in random order
            # lines 5 to 7: where g_i^PC · g_j < 0, take away the part of g_i^PC along g_j
            size = gradients[j].square().sum().clamp_min(torch.finfo(gradient.dtype).tiny)
            projected -= (projected @ gradients[j]).clamp_max(0) / size * gradients[j]
        combined += projected  # line 10: Δθ = Σ g_i^PC
        conflicts.append(torch.stack([gradient @ gradients[j] < 0 for j in order]).float().mean())
    return combined, torch.stack(conflicts)


def check_compiled(model: nn.Module, config: TrainConfig) -> None:
    """Try the compiled layers: compiling, and repeating a pass with its dropout masks, which SMART needs.

    Leaves the random generator where it was. Raises UserError if one of the two fails on this machine.
    """
    bert = cast(Any, model).bert
    device = next(model.parameters()).device
    embeddings = torch.randn(8, 2, bert.config.hidden_size, generator=torch.Generator().manual_seed(0))
    embeddings = embeddings.to(device).requires_grad_()
    repeat = mysmartloss.DropoutReplay(lambda x: cast(Any, model).logits(config.tasks[0], x))
    with mysmartloss.generator_at(device, mysmartloss.generator_state(device)):
        try:
            clean = repeat(embeddings).detach()
            with torch.no_grad():  # compiled anew, and so perhaps with other random numbers
                again = [repeat(embeddings)]
            again.append(repeat(embeddings + 0).detach())
        except Exception as error:  # compilers raise anything: no C++ compiler, no Triton, no Python headers
            why = f"the encoder can't be compiled on this machine ({one_line(error)[:100]})"
            raise UserError(f"--compile: {why}; leave the flag out") from None
    # other masks change the logits by a fifth, rounding in bf16 by less than a hundredth
    off = max(float((other - clean).norm() / clean.norm()) for other in again)
    if off > 0.05 and any(config.weights(name) for name in config.tasks):
        why = "compiled passes draw new dropout masks when they are repeated on this machine"
        raise UserError(f"--compile: {why}, and SMART needs the same ones; leave out one of the two")


def not_finite(
    losses: dict[str, Tensor], step: int, dataset: TokenizedDataset, rows: np.ndarray
) -> UserError:
    """The error that says which loss was inf or NaN, at which step, on which rows."""
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
    ids = ", ".join(dataset.ids[row] for row in rows)
    where = f"step {step}, task {dataset.task.name}, rows {ids}"
    return UserError(
        f"loss or gradient is not finite ({values}) at {where}; no update was made; try a smaller --lr"
    )


@contextlib.contextmanager
def out_of_memory_advice(batch: Batch) -> Iterator[None]:
    """Within, running out of memory is a UserError that says which flag to lower."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a bare one
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        rows, tokens = batch.input_ids.shape
        advice = f"--batch_size {rows // 2}" if rows > 1 else f"--max_length {tokens // 2}"
        raise UserError(f"out of memory with {rows} rows of {tokens} tokens; try {advice}") from None


# -------------------------------------------------------------------------------------- what it says


def describe(
    model: nn.Module, tokenizer: Tokenizer, loaders: dict[str, Loader], plan: Plan, config: TrainConfig
) -> None:
    """Print what the run is about to do and what it will cost."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed, plain = (
        sum(parameter.numel() for parameter in trained if (parameter.ndim >= 2) == is_matrix)
        for is_matrix in (True, False)
    )
    device = next(model.parameters()).device
    processes = f", {parallel.size()} processes" if parallel.size() > 1 else ""
    if config.gradient_accumulation_steps > 1:
        processes += f", {config.gradient_accumulation_steps} batches a step"
    print(
        f"{config.option} on {device} in {config.precision}{processes}: {decayed + plain:,} parameters to"
        f" train, {decayed:,} of them with weight decay"
    )
    rows = [["task", "rows", "batches", "tokens/row", "padding", "steps", "passes"]]
    examples = []
    tokens = {}  # real ones that the run trains on, by task
    for name, loader in loaders.items():
        lengths = loader.dataset.lengths
        batches = loader.epoch_batches(0)
        padded = sum(lengths[batch].max() * len(batch) for batch in batches)
        count = sum(task == name for tasks in plan.steps for task, _ in tasks)
        tokens[name] = count * lengths.sum() / len(batches)
        padding = 1 - lengths.sum() / padded
        sizes = [f"{len(loader.dataset):,}", f"{len(batches):,}", f"{lengths.mean():.1f}", f"{padding:.1%}"]
        rows.append([name, *sizes, f"{count:,}", f"{count / len(batches):.2f}"])
        first_row = loader.dataset.tokens[: loader.dataset.starts[1]].tolist()
        text = tokenizer.decode(first_row, skip_special_tokens=False)
        examples.append(cut(f"{name}, for example: {text}"))
    print(table(rows))
    print("\n".join(examples))
    encoder = sum(parameter.numel() for name, parameter in model.named_parameters() if "bert_layers" in name)
    flops = sum(2 * encoder * count * forward_passes(config, name) for name, count in tokens.items())
    length = f"{len(plan.steps):,} steps, {plan.per_epoch:,} an epoch ({config.schedule})"
    work = f"{sum(tokens.values()):,.0f} tokens, about {flops / 1e12:,.1f} TFLOP of arithmetic"
    print(f"{length}, warm-up {plan.warmup:,}; {work}")


def memory_price(
    model: nn.Module, config: TrainConfig, batch: tuple[int, int], evaluation: tuple[int, int]
) -> memory.Price:
    """What training on batches, and scoring batches, of (rows, tokens) needs of the device."""
    bert = cast(Any, model).bert
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    encoder = memory.Encoder(
        layers=bert.config.num_hidden_layers,
        hidden=bert.config.hidden_size,
        heads=bert.config.num_attention_heads,
        intermediate=bert.config.intermediate_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=trained,
    )
    frozen = not any(parameter.requires_grad for parameter in bert.parameters())
    return memory.price(
        encoder,
        batch,
        evaluation,
        passes=max(passes_kept(config, name, frozen) for name in config.sources),
        teacher=config.has_teacher,
        # PCGrad holds every task's, the sum, and one that is being projected
        gradients=len(config.sources) + 2 if config.gradient_surgery == "pcgrad" else 1,
        narrow=config.precision != "fp32",
        fused=next(model.parameters()).device.type != "cpu",
    )


def passes_kept(config: TrainConfig, task: str, frozen: bool) -> int:
    """How many passes' activations wait for a backward pass at the same time.

    They are those of the clean pass and of each term that goes backward through its own pass, which costs 3
    or more. Of a frozen encoder only the ascent keeps any.
    """
    terms = [TERMS[name] for name in config.weights(task)]
    others = [term.kept(config) for term in terms if term.cost(config) >= 3]
    return max(others, default=0) if frozen else 1 + sum(others)


def check_memory(
    model: nn.Module, data: Mapping[tuple[str, str], TokenizedDataset], config: TrainConfig
) -> None:
    """Print what the run needs of the device's memory, before an hour is spent on it.

    Raises UserError that says which flag to lower, and to what, if the longest batch cannot fit.
    """
    device = next(model.parameters()).device
    train = [rows.lengths for (_, split), rows in data.items() if split in ("train", UNLABELLED)]
    dev = [data[name, "dev"].lengths for name in config.eval_tasks]

    def priced(rows: int, tokens: int) -> memory.Price:
        """With other values of --batch_size and --max_length."""
        batch = longest_batch(train, rows, tokens, config.max_tokens)
        return memory_price(
            model,
            config,
            batch,
            longest_batch(dev, devices.workers(device) * rows_at_a_time(rows, device), tokens),
        )

    price = priced(config.batch_size, config.max_length)
    rows, tokens = longest_batch(train, config.batch_size, config.max_length, config.max_tokens)
    free = min(parallel.gather(memory.free_bytes(device)), key=lambda found: found or 0)
    parts = [f"{name} {memory.size_text(size)}" for name, size in price._asdict().items() if size]
    needed = f"{rows} rows of {tokens} tokens need about {memory.size_text(price.total)}"
    print(f"memory: {needed} ({', '.join(parts)})" + (f"; {memory.size_text(free)} free" if free else ""))
    there = price.weights  # the model is on the device already
    if free is None or price.total - there <= free:
        return
    # both are monotonic: the largest value below today's that fits
    fitting = {
        "batch_size": bisect.bisect_right(
            range(1, config.batch_size), free, key=lambda n: priced(n, config.max_length).total - there
        ),
        "max_length": 7
        + bisect.bisect_right(
            range(8, config.max_length), free, key=lambda n: priced(config.batch_size, n).total - there
        ),
    }
    advice = " or ".join(
        f"--{name} {n}" for name, n in fitting.items() if n >= (8 if name == "max_length" else 1)
    )
    raise UserError(
        f"--batch_size {config.batch_size}: {needed}, and {memory.size_text(free)} of {device} are free; "
        + (f"{advice} would fit" if advice else "take a smaller --model_name_or_path")
    )


def longest_batch(
    lengths: Iterable[np.ndarray], rows: int, tokens: int, max_tokens: int | None = None
) -> tuple[int, int]:
    """Rows and tokens of the largest batch, of at most that many; lengths: (rows,) of each data set."""
    sizes = [(min(rows, len(each)), min(tokens, int(each.max()))) for each in lengths if len(each)]
    if max_tokens:
        sizes = [(min(count, max(1, max_tokens // longest)), longest) for count, longest in sizes]
    return max(sizes, key=math.prod, default=(0, 0))


def check_max_tokens(data: Mapping[tuple[str, str], TokenizedDataset], config: TrainConfig) -> None:
    """Raises UserError if a training row is longer than a whole batch may be."""
    for (task, split), dataset in data.items():
        longest = int(dataset.lengths.max(initial=0))
        if config.max_tokens and split in ("train", UNLABELLED) and longest > config.max_tokens:
            found = f"a row of {task} has {longest} tokens"
            mend = f"take {longest} or more, or cut rows by --max_length {config.max_tokens}"
            raise UserError(f"--max_tokens {config.max_tokens}: {found}; {mend}")


def forward_passes(config: TrainConfig, task: str) -> int:
    """What a step on this task costs, in forward passes; a plain step costs 3."""
    return 3 + sum(TERMS[name].cost(config) for name in config.weights(task))


def say_first_steps(
    first_losses: list[tuple[str, dict[str, Tensor]]],
    step: int,
    seconds: float,
    total: int,
    config: TrainConfig,
) -> None:
    """After step 1 say that the run works, after step 20 how long it will take. seconds: of all steps."""
    if step == 1 and first_losses:
        name, losses = first_losses[0]
        loss = float(losses["task" if "task" in losses else "total"])
        tqdm.write(f"the first step worked: {name} loss {loss:.4f}, {duration(seconds)}")
    if step == 20:
        pace = f"about {duration(seconds / 20 * total)} of training"
        tqdm.write(f"{pace} at the pace of the first 20 steps, evaluation apart")
        warn_of_terms_without_effect(first_losses, config)
        say_rounding_floor(first_losses, config)


def say_interval(
    diary: RunLog | SilentLog,
    records: dict[str, dict[str, float]],
    step: int,
    seconds: float,
    total: int,
    config: TrainConfig,
    ends_epoch: bool,
) -> None:
    """Log the record of each task, and show a short line; with --log_level debug every number of it."""
    left = seconds / step * (total - step)
    for task in filter(records.get, config.sources):
        record = records[task]
        diary.write(f"train/{task}", step, record)
        added = {name: weight * record[name] for name, weight in config.weights(task).items()}
        tqdm.write(step_line(step, total, task, record.get("task"), added, left))
        if config.log_level == "debug":
            tqdm.write(numbers_line(step, f"train/{task}", record))
    if ends_epoch:
        warn_of_rounding(records, config)


def say_rounding_floor(first_losses: list[tuple[str, dict[str, Tensor]]], config: TrainConfig) -> None:
    """Say once what R_s reads from rounding alone, and warn where R_s is hardly above that."""
    records = {}
    for task in config.sources:
        steps = [losses for name, losses in first_losses if name == task]
        floors = [float(losses["smart_floor"]) for losses in steps if "smart_floor" in losses]
        if floors:
            value = statistics.fmean(float(losses["smart"]) for losses in steps)
            records[task] = {"smart": value, "smart_floor": statistics.fmean(floors)}
            floor = f"{config.precision} alone makes {records[task]['smart_floor']:.2g}"
            tqdm.write(f"{task}: R_s is {value:.2g}; the rounding of {floor}")
    warn_of_rounding(records, config)


def warn_of_rounding(records: dict[str, dict[str, float]], config: TrainConfig) -> None:
    """Warn where R_s, as the records of an interval have it, is less than FLOOR_MARGIN times its floor."""
    for task, record in records.items():
        floor = record.get("smart_floor", 0.0)
        if floor and record["smart"] < FLOOR_MARGIN * floor:
            found = f"R_s on {task} is {record['smart']:.2g}, less than {FLOOR_MARGIN:g} times {floor:.2g}"
            made = f"which the rounding of {config.precision} alone makes"
            log.warning("%s, %s: --smart_epsilon %g is too small", found, made, config.smart_epsilon)


def constant_loss(task: Task, labels: Tensor) -> float:
    """The lowest mean loss of a model that gives every row the same outputs; labels (rows,)."""
    outputs = torch.zeros(1, task.num_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=100)

    def loss() -> float:
        optimizer.zero_grad()
        value = task.loss(outputs.expand(len(labels), -1), labels)
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return loss()


def warn_of_nothing_learned(
    records: dict[str, dict[str, float]], datasets: dict[str, TokenizedDataset], step: int, plan: Plan
) -> None:
    """A line for each task whose loss, in the records of an interval, is not below a constant prediction's.

    Said at the end of the run, and after the first epoch if that was not a short one.
    """
    long = plan.per_epoch >= 50 * len(datasets)
    if step != len(plan.steps) and not (step == plan.per_epoch and long):
        return
    for name, record in records.items():
        labels = datasets[name].labels
        if labels is None:
            continue
        constant = constant_loss(datasets[name].task, labels)
        if not record["task"] < constant:
            found = f"{name}: after {step} steps its training loss is {record['task']:.4f}, not below"
            found += f" {constant:.4f}, that of always giving the same answer"
            log.warning("%s: it has learned nothing yet; try another --lr, or more --epochs", found)


def warn_of_terms_without_effect(
    first_losses: list[tuple[str, dict[str, Tensor]]], config: TrainConfig
) -> None:
    """One warning if a term that is on has stayed below a millionth of the task loss."""
    dead = set()
    for name in dict(first_losses):
        for term, weight in config.weights(name).items():
            steps = [losses for task, losses in first_losses if task == name]
            added = abs(weight * sum(float(losses[term]) for losses in steps))
            if added < 1e-6 * abs(sum(float(losses.get("task", 1.0)) for losses in steps)):
                dead.add((term, name))
    if dead:
        said = "; ".join(f"{term} on {name} (raise {TERMS[term].advice})" for term, name in sorted(dead))
        log.warning(
            "no measurable effect in the first %d batches, below a millionth of the task loss: %s",
            len(first_losses),
            said,
        )
