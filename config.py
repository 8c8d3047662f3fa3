"""Every setting of a run with its default, and the command line made from them.

    1. argv ─ Parser ─> the flags that were given, by name ─ parse_arguments ─> TrainConfig
    2. TrainConfig ─ to_dict ─> run.json, results.json ─ from_dict ─> TrainConfig

A field of TrainConfig is a flag of the same name, so a new setting is one field. Nothing here imports torch.
"""

import argparse
import json
import logging
import math
import os
import re
import shlex
import sys
import textwrap
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn, cast

from support.errors import UserError, did_you_mean, one_line
from support.files import read_json
from support.other_flags import answer
from support.schedules import SCHEDULES
from tasks import TASKS, name_rule, task_table

log = logging.getLogger("smart_bert")
SPLITS = ("train", "dev", "test")
OPTIONS = ("finetune", "pretrain", "evaluate", "predict", "submit", "adapt", "average")
TRAINING = ("finetune", "pretrain")
RESUMABLE = (*TRAINING, "adapt")
WRITES_A_RUN = (*RESUMABLE, "average")
COURSE_TASKS = ("sst", "para", "sts")
# the course's --fine-tune-mode (since 2024) and the --option that it means
FINE_TUNE_MODES = {"last-linear-layer": "pretrain", "full-model": "finetune"}
COLUMNS = ("text_column", "label_column")  # their values are names of columns, whatever letters these have
RAW_TEXT = ("task", "text", "text_pair", "input", "output")  # the flags for texts of the user's own
UNLABELLED = "unlabelled"  # stands for --unlabelled_file where a task's name would
SMART_TERMS = ("smart", "bregman")  # the terms of --use_smart; they need no labels
BETAS = ("fitted", "paper")
METRICS = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.metrics))

Weight = float | dict[str, float]  # one number for all tasks, or numbers by task

# ------------------------------------------------------------------------------------------ one flag


Rule = Callable[[Any], str]  # what is wrong with a value, or ""


def flag(default: Any, help: str, allowed: Rule | tuple[str, ...] | None = None, group: str = "") -> Any:
    """A field of TrainConfig that is also a flag.

    allowed: a rule, or the values to choose from. group: the title of a group of --help that opens here.
    """
    return field(default=default, metadata={"help": help, "allowed": allowed, "group": group})


def flags(settings: Any) -> list["Field[Any]"]:
    """The fields made by `flag`, in order; of TrainConfig or one of its objects."""
    return [item for item in fields(settings) if "help" in item.metadata]


def flag_groups(settings: Any) -> dict[str, list["Field[Any]"]]:
    """`flags` by the heading that they have in --help."""
    groups: dict[str, list[Field[Any]]] = {}
    group = ""
    for setting in flags(settings):
        group = setting.metadata["group"] or group
        groups.setdefault(group, []).append(setting)
    return groups


def must_be(words: str, holds: Callable[[Any], bool]) -> Rule:
    """The rule that `holds` is true; `words` say so."""
    return lambda value: "" if holds(value) else f"must be {words}"


AT_LEAST_0 = must_be("at least 0", lambda value: value >= 0)
AT_LEAST_1 = must_be("at least 1", lambda value: value >= 1)
AT_LEAST_8 = must_be("at least 8", lambda value: value >= 8)
SEED = must_be("a whole number from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
# TensorBoard needs it
UTF8 = must_be("a name in UTF-8", lambda name: name.encode(errors="ignore").decode() == name)
ABOVE_0 = must_be("above 0", lambda value: value > 0)
ABOVE_0_TO_1 = must_be("above 0 and at most 1", lambda value: 0 < value <= 1)
FROM_0_TO_BELOW_1 = must_be("at least 0 and below 1", lambda value: 0 <= value < 1)


def tasks_rule(names: str | tuple[str, ...], own: str | None = None) -> str:
    """The rule for the name or the names of tasks. own: the name of the user's own task."""
    names = (names,) if isinstance(names, str) else names
    for name in names:
        if name not in (*TASKS, own):
            hint = did_you_mean(name, filter(None, (*TASKS, own))) or ";"
            listed = ", ".join(f"{task} ({TASKS[task].label_column})" for task in TASKS)
            listed += f", {own}" if own else ""
            return f"there is no task {name!r}{hint} the tasks are {listed}"
    return "" if names and len(set(names)) == len(names) else "must be one task or more, each once"


def weight_rule(weight: Weight, own: str | None = None) -> str:
    """The rule for a weight, or weights by task."""
    unknown = tasks_rule(tuple(weight), own) if isinstance(weight, dict) else ""
    numbers = weight.values() if isinstance(weight, dict) else [weight]
    valid = all(0 <= number < math.inf for number in numbers)
    return unknown or ("" if valid else "must be at least 0 and finite")


def beta_rule(text: str) -> str:
    """The rule for --bregman_beta."""
    try:
        valid = text in BETAS or 0 <= float(text) < 1
    except ValueError:
        valid = False
    return "" if valid else f"must be {', '.join(BETAS)} or a number from 0 to below 1"


# ------------------------------------------------------------------------------------- all settings


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Raises UserError that names the flag that is wrong.

    A default that depends on other settings is filled in at once. `precision` and `max_length` depend on
    device and encoder, too: they are None until the program has looked at both.
    """

    option: str = flag(
        "finetune",
        "finetune: train encoder and heads; pretrain: train the heads on a frozen encoder; evaluate: score a"
        " saved model; predict: write its predictions; submit: check them and pack the course's zip; adapt:"
        " train the encoder on the texts alone; average: make one model of several",
        OPTIONS,
        group="what to do",
    )
    tasks: tuple[str, ...] = flag(
        None, f"tasks to train, of {', '.join(TASKS)} (default: {','.join(COURSE_TASKS)})", tasks_rule
    )
    eval_tasks: tuple[str, ...] = flag(
        None,
        "tasks to score and predict (default: --tasks; for predict, those whose test file is given)",
        tasks_rule,
    )
    model_name_or_path: str = flag(
        "minilm", "encoder: minilm (installed with the requirements), a folder, or a hub name", group="model"
    )
    checkpoint: tuple[str, ...] | None = flag(
        None, "folder of a saved model, for evaluate and predict; for average given for each model"
    )
    pooling: str = flag(
        "mean",
        "sentence vector of the heads: mean of all tokens, a point better than cls, BERT's pooler",
        ("mean", "cls"),
    )
    hidden_dropout_prob: float = flag(0.1, "dropout before the heads", FROM_0_TO_BELOW_1)
    max_length: int = flag(None, "longest input in tokens (default: 256 or the encoder's limit)", AT_LEAST_8)
    precision: str = flag(
        None,
        "data type of matrix products; weights stay fp32 (default: bf16 if the device computes in it)",
        ("fp32", "bf16", "fp16"),
    )
    similarity: str = flag(
        None,
        "score of sts: cosine, 5 times the cosine of the mean vectors of its two texts; or head, a linear"
        " layer on the vector of the pair (default: cosine, which gains 2 points with 1,000 rows and .3 with"
        " all; head for pretrain)",
        ("cosine", "head"),
    )
    use_gpu: bool = flag(False, "stop if there is no CUDA device (default: take the best device)")
    deterministic: bool = flag(False, "use deterministic CUDA kernels, which may be slower")
    compile: bool = flag(False, "compile the encoder's layers by torch.compile; slower on a CPU")
    data_dir: str | None = flag(
        None,
        "folder of the course's files (default: $SMART_BERT_DATA_DIR, data or data/sample)",
        group="data",
    )
    max_train_samples: int | None = flag(
        None, "train on N random rows of each task, the same for every seed (default: all)", AT_LEAST_1
    )
    max_eval_samples: int | None = flag(
        None, "evaluate on N random dev rows of each task, the same for every seed (default: all)", AT_LEAST_1
    )
    unlabelled_file: str | None = flag(
        None, "unlabelled texts for R_s and D_Breg: a text a line, a pair with a tab, or a file of the course"
    )
    unlabelled_task: str | None = flag(None, "task of --unlabelled_file (default: the only task)", tasks_rule)
    train_file: str | None = flag(
        None,
        "training rows: .csv or .tsv with a header, or .jsonl. Their labels say what the task is: words and"
        " whole numbers are classes, numbers with a dot and more than 20 numbers scores",
        group="your own task",
    )
    dev_file: str | None = flag(None, "dev rows (default: a tenth of the training rows, always the same)")
    test_file: str | None = flag(None, "rows to predict, without labels")
    text_column: tuple[str, ...] = flag(
        None, "column of texts, or two columns for pairs (default: the only one beside label and id)"
    )
    label_column: tuple[str, ...] = flag(
        ("label",),
        "column of labels",
        must_be("one column: several labels at once are not handled", lambda names: len(names) == 1),
    )
    task_name: str = flag("own", "name of the task, for --tasks and --task", name_rule)
    regression: bool | None = flag(None, "the labels are scores; --no-regression: they are classes")
    task: str | None = flag(
        None,
        "for predict: task of your own texts, which come from --text, --input or standard input",
        tasks_rule,
        "your own texts",
    )
    text: tuple[str, ...] | None = flag(None, "a text to predict; the flag can be repeated")
    text_pair: tuple[str, ...] | None = flag(None, "second text of a pair, one for each --text")
    input: str | None = flag(
        None, "file with a text, a pair with a tab, or a JSON object (text, text_pair, id) in each line"
    )
    output: str | None = flag(None, "file for the answers, a JSON object a line (default: the screen)")
    schedule: str = flag(
        "interleaved",
        "interleaved: a batch of each task in turn; sequential: one task after the other in each epoch;"
        " proportional: a task is drawn in proportion to its rows; annealed: from proportional in the first"
        " epoch to nearly equal in the last; joint: a batch of every task in each step, losses added",
        tuple(SCHEDULES),
        group="training",
    )
    task_weights: Weight = flag(1.0, "weight of each task's own loss, such as sst=1,para=0.5; left out: 1")
    gradient_surgery: str = flag(
        "none",
        "pcgrad: project away conflicts of the tasks' gradients; needs --schedule joint",
        ("none", "pcgrad"),
    )
    epochs: int = flag(3, "number of epochs, each of --steps_per_epoch steps", AT_LEAST_1)
    eval_steps: int | None = flag(None, "steps between evaluations on dev (default: an epoch)", AT_LEAST_1)
    patience: int | None = flag(
        None, "early stopping after N evaluations in a row without a new best (default: never)", AT_LEAST_1
    )
    steps_per_epoch: int | None = flag(
        None, "optimizer steps of an epoch (default: batches of the median task times the tasks)", AT_LEAST_1
    )
    batch_size: int = flag(
        32, "rows of a batch, in each process if torchrun starts several; 16 are no better", AT_LEAST_1
    )
    gradient_accumulation_steps: int = flag(
        1, "compute a batch of N times --batch_size rows in N parts, in the memory of one part", AT_LEAST_1
    )
    max_tokens: int | None = flag(
        None,
        "limit on the padded tokens of --batch_size rows: a batch of long rows gets fewer rows and a smaller"
        " weight, so every row counts the same (default: no limit)",
        AT_LEAST_1,
    )
    lr: float = flag(
        None,
        "peak learning rate (default: 2e-4, the best of three for MiniLM; for bert-base 2e-5 to 5e-5 are"
        " usual; 1e-3 for pretrain, 1e-4 for adapt)",
        ABOVE_0,
    )
    head_lr: float = flag(
        None,
        "peak learning rate of heads and of a new pooler, which learn too slowly at the encoder's (default:"
        " 3e-3, the best of four for accuracy and for rare classes; --lr for pretrain)",
        ABOVE_0,
    )
    layer_lr_decay: float = flag(
        1.0, "factor on the learning rate for each lower layer; .9 and .8 are no better", ABOVE_0_TO_1
    )
    warmup_steps: int | None = flag(None, "steps of linear warm-up (default: a tenth of all)", AT_LEAST_0)
    weight_decay: float = flag(0.01, "decoupled weight decay; biases and LayerNorms have none", AT_LEAST_0)
    max_grad_norm: float = flag(1.0, "clip gradients to this 2-norm", ABOVE_0)
    skip_nonfinite: int = flag(0, "number of NaN or infinite losses to skip before the run stops", AT_LEAST_0)
    seed: int = flag(11711, "seed of everything random", SEED)
    use_smart: bool = flag(False, "add SMART to the loss: λ_s R_s + μ D_Breg", group="regularisation")
    adversary: str = flag(
        "smart",
        "smart: R_s is added to the task loss; freelb: the task loss is replaced by its mean over"
        " --smart_steps perturbed passes (FreeLB), where --smart_epsilon and --smart_step_size are 2-norms of"
        " a whole text, such as 0.3 and 0.1, and --smart_weight is 1 or 0",
        ("smart", "freelb"),
    )
    smart_weight: Weight = flag(1.0, "λ_s, weight of R_s: a number, or by task such as sst=1,para=0.5")
    smart_epsilon: float = flag(
        0.01, "ε, largest perturbation; embeddings are about 0.5; 0.04 scores no better", ABOVE_0
    )
    smart_step_size: float = flag(None, "η, length of an ascent step (default: --smart_epsilon)", AT_LEAST_0)
    smart_noise_var: float = flag(1e-5, "σ², variance of the noise that the ascent starts from", AT_LEAST_0)
    smart_steps: int = flag(1, "T, number of ascent steps; with 0 the noise stays, as in R3F", AT_LEAST_0)
    smart_norm: str = flag("inf", "norm that ε limits: inf, the largest coordinate, or 2", ("inf", "2"))
    smart_every: int = flag(
        1,
        "lazy regularisation: R_s and D_Breg in every N-th batch of a task alone, with N times their weight;"
        " texts without labels have them in every batch",
        AT_LEAST_1,
    )
    bregman_weight: Weight = flag(1.0, "μ, weight of D_Breg: stay near the moving average, the teacher")
    bregman_beta: str = flag(
        "fitted",
        "β of the teacher's moving average: fitted to about the last tenth of the run; paper, 0.99 and then"
        " 0.999, for many thousand steps; or a number from 0 to below 1",
        beta_rule,
    )
    keep: str = flag(
        "best",
        "model to save: student, the trained weights; teacher, their moving average, with or without D_Breg;"
        " or best, whichever scores higher on dev where D_Breg is on",
        ("student", "teacher", "best"),
    )
    select_by: str | None = flag(
        None,
        "metric that picks the best epoch, for the tasks that have it, such as macro_f1 for rare classes"
        " (default: each task's main metric)",
        METRICS,
    )
    rdrop_weight: Weight = flag(
        0.0, "α of R-Drop: a second pass pays the task loss, too, and α/2 times the divergence of both"
    )
    contrastive_weight: Weight = flag(
        0.0,
        "weight of a contrastive loss on para (multiple negatives ranking): of all second questions in the"
        " batch, a question's paraphrase should be the nearest",
    )
    output_dir: str = flag(
        None, "folder of the run (default: runs/<option>; for submit runs/finetune)", UTF8, group="output"
    )
    logging_steps: int = flag(50, "steps between log lines", AT_LEAST_1)
    save_steps: int | None = flag(None, "steps between checkpoints (default: about two minutes)", AT_LEAST_1)
    no_report: bool = flag(False, "do not write <output_dir>/report.html")
    resume: bool = flag(False, "continue the run in --output_dir; flags that are left out stay as they were")
    overwrite_output_dir: bool = flag(False, "delete the run in --output_dir")
    log_level: str = flag("info", "info: a line an interval; debug: all that is logged", ("info", "debug"))
    # the course's path flags, where given: {"sst_train": path, "sst_dev_out": path}
    files: dict[str, str] = field(default_factory=dict)
    # the record of the user's own task, see `tasks.own_task`; its name alone until the training file is read
    own: dict[str, Any] = field(default_factory=dict)
    # for the report: the command line (a resumed run keeps its first), the settings that differ
    command: str = ""
    differing: str = ""

    def __post_init__(self) -> None:
        if self.train_file and not self.own:
            object.__setattr__(self, "own", {"name": self.task_name})
        for setting in flags(self):
            check_value(setting, getattr(self, setting.name), self.own.get("name"))
        self._fill_in()
        for name, wrong, why in self._conflicts():
            if wrong:
                raise UserError(f"{as_flag(name, getattr(self, name))}: {why}")

    def _fill_in(self) -> None:
        """The defaults that depend on other settings."""
        own = (self.own["name"],) if self.own else ()
        tasks = self.tasks or ((own or COURSE_TASKS) if self.option in RESUMABLE else None)
        eval_tasks = tasks
        if self.option == "submit":
            eval_tasks = tasks or COURSE_TASKS
        elif self.option == "predict" and not tasks:
            given = tuple(task for task in TASKS if f"{task}_test" in self.files)
            given += own if self.test_file else ()
            eval_tasks = (self.task,) if self.task else given or None
        lr = self.lr or {"pretrain": 1e-3, "adapt": 1e-4}.get(self.option, 2e-4)
        defaults = {
            "tasks": tasks,
            "eval_tasks": eval_tasks,
            "lr": lr,
            "head_lr": lr if self.option in ("pretrain", "adapt") else 3e-3,
            "similarity": "head" if self.option == "pretrain" else "cosine",  # a cosine has no weights
            "unlabelled_task": tasks[0] if self.unlabelled_file and tasks and len(tasks) == 1 else None,
            "smart_step_size": self.smart_epsilon,
            "output_dir": f"runs/{'finetune' if self.option == 'submit' else self.option}",
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _conflicts(self) -> Iterator[tuple[str, object, str]]:
        """Settings that don't go together: the flag that the error names, whether it is wrong, and why."""
        saved = self.option in ("evaluate", "predict", "average")
        yield "option", saved and not self.checkpoint, "needs --checkpoint, the folder of a saved model"
        yield "checkpoint", self.checkpoint and not saved, "only for --option evaluate, predict and average"
        several = len(self.checkpoint or ()) > 1 and self.option != "average"
        yield "checkpoint", several, "one model at a time; --option average makes one of several"
        why = f"not for --option {self.option}"
        yield "resume", self.resume and self.option not in RESUMABLE, why
        yield "overwrite_output_dir", self.overwrite_output_dir and self.option not in WRITES_A_RUN, why
        for name in RAW_TEXT:
            wrong = getattr(self, name) and (self.option != "predict" or not self.task)
            yield name, wrong, f"needs --option predict and --task, one of {', '.join(TASKS)}"
        yield from self._conflicts_of_own()
        others = self.eval_tasks != (self.task,) or self.files or self.test_file
        yield "task", self.task and others, "not with --tasks, --eval_tasks or one of the course's files"
        yield "input", self.text and self.input, "not with --text; give one of the two"
        yield "text_pair", self.text_pair and not self.text, "needs --text, the first text of the pair"
        if self.option == "adapt" and self.unlabelled_file:
            yield "unlabelled_file", not self.unlabelled_task, "needs --unlabelled_task"
        if self.option in TRAINING:
            yield from self._conflicts_of_steps()
            yield from self._conflicts_of_losses()

    def _conflicts_of_own(self) -> Iterator[tuple[str, object, str]]:
        """The task of the user's own, as `_conflicts`."""
        trains = self.option in TRAINING
        yield "train_file", self.train_file and not trains, "only for --option finetune and pretrain"
        no_task = not self.own or self.option == "submit"
        needs = "needs --train_file, or by --checkpoint a model with a task of its own"
        yield "dev_file", self.dev_file and (no_task or self.option == "predict"), needs
        yield "test_file", self.test_file and no_task, needs
        for name in (*COLUMNS, "task_name", "regression"):
            default = next(setting.default for setting in flags(self) if setting.name == name)
            wrong = getattr(self, name) != default and not self.train_file
            yield name, wrong, "needs --train_file"
        if trains and self.train_file:
            untrained = self.own["name"] not in self.tasks
            yield "train_file", untrained, f"its task, {self.own['name']}, is not one of --tasks"

    def _conflicts_of_steps(self) -> Iterator[tuple[str, object, str]]:
        """What a step trains on, as `_conflicts`."""
        if self.unlabelled_file:
            needs = f"needs --unlabelled_task, one of {', '.join(self.tasks)}"
            yield "unlabelled_file", not self.unlabelled_task, needs
            untrained = self.unlabelled_task not in self.tasks
            yield "unlabelled_task", untrained, f"it is not trained; --tasks are {','.join(self.tasks)}"
            no_loss = not self.weights(UNLABELLED)
            yield "unlabelled_file", no_loss, "has no loss without --use_smart and --smart_weight"
        yield "unlabelled_task", self.unlabelled_task and not self.unlabelled_file, "needs --unlabelled_file"
        count = len(self.sources)
        takes_turns = self.schedule in ("interleaved", "sequential")
        too_few = takes_turns and self.steps_per_epoch and self.steps_per_epoch < count
        yield "steps_per_epoch", too_few, f"fewer than the {count} tasks"
        joint = self.schedule == "joint"
        yield "schedule", joint and count < 2, f"needs two --tasks or more, not {self.tasks[0]} alone"
        yield "gradient_surgery", self.gradient_surgery != "none" and not joint, "needs --schedule joint"
        selecting = [task for task in self.eval_tasks if task in self.tasks] or self.eval_tasks
        known = task_table({} if set(self.own) == {"name"} else self.own)  # not before its file was read
        has_metric = any(task not in known or self.select_by in known[task].metrics for task in selecting)
        why = f"no metric of {', '.join(selecting)}"
        yield "select_by", self.select_by and not has_metric, why
        too_large = max(self.lr, self.head_lr) * self.weight_decay >= 1
        yield "weight_decay", too_large, "times the learning rate it must be below 1, or weights change sign"

    def _conflicts_of_losses(self) -> Iterator[tuple[str, object, str]]:
        """The terms of the loss, as `_conflicts`."""
        trained = f"--tasks are {','.join(self.tasks)}"
        frozen = self.option == "pretrain"
        for task in self.task_weights if isinstance(self.task_weights, dict) else ():
            yield "task_weights", task not in self.tasks, f"{task} is not trained; {trained}"
        some_loss = any(self.task_weight(task) or self.weights(task) for task in self.sources)
        yield "task_weights", not some_loss, "nothing is left to train on"
        why = "not with --option pretrain: a cosine has no weights to train"
        yield "similarity", frozen and self.similarity == "cosine", why
        if self.contrastive_weight:
            pairs = any("contrastive" in self.weights(task) for task in self.tasks)
            yield "contrastive_weight", not pairs, f"needs para, and {trained}"
            yield "contrastive_weight", frozen, "not with --option pretrain: it trains the encoder alone"
            why = "not with --contrastive_weight, whose negatives are those of one part of the batch"
            yield "gradient_accumulation_steps", self.gradient_accumulation_steps > 1, why
        if self.adversary == "freelb" and self.use_smart:
            yield "adversary", self.unlabelled_file, "needs labels, so it does not go with --unlabelled_file"
            needs = f"needs --smart_steps 1 or more, not {self.smart_steps}"
            yield "adversary", self.smart_steps < 1, needs
            partial = any(of_task(self.smart_weight, task) not in (0, 1) for task in self.tasks)
            why = "with --adversary freelb its loss takes the place of the task's own, so a weight is 1 or 0"
            yield "smart_weight", partial, why
            lazy = self.smart_every > 1
            yield "smart_every", lazy, "not with --adversary freelb, whose loss each batch needs"

    @property
    def sources(self) -> tuple[str, ...]:
        """Where a step can take its batch from: the trained tasks, and the unlabelled texts."""
        return (*self.tasks, UNLABELLED) if self.unlabelled_file else self.tasks

    @property
    def has_teacher(self) -> bool:
        """Whether the run keeps a moving average of its weights: for D_Breg, or as the model to be saved."""
        return self.keep == "teacher" or any("bregman" in self.weights(task) for task in self.sources)

    def task_weight(self, task: str) -> float:
        """The weight of this task's own loss."""
        return of_task(self.task_weights, task, left_out=1.0)

    def weights(self, task: str) -> dict[str, float]:
        """The terms of the loss that are on for this task, each with its weight: `smart`, `bregman`, ...

        A term's weight is the field `<term>_weight`. task: its name, or UNLABELLED.
        """
        if task == UNLABELLED:
            weights = self.weights(cast(str, self.unlabelled_task))
            return {term: weights[term] for term in SMART_TERMS if term in weights}
        names = [setting.name for setting in flags(self) if setting.name.endswith("_weight")]
        weights = {name.removesuffix("_weight"): of_task(getattr(self, name), task) for name in names}
        if not self.use_smart:
            weights |= dict.fromkeys(SMART_TERMS, 0.0)
        if self.adversary == "freelb":  # it takes the place of the task's own loss, see `has_freelb`
            weights["smart"] = 0.0
        if task not in TASKS or TASKS[task].alike_label is None:
            weights["contrastive"] = 0.0
        return {term: weight for term, weight in weights.items() if weight}

    def batch_weights(self, task: str, number: int) -> dict[str, float]:
        """`weights` in the task's batch 0, 1, ..., where --smart_every leaves out or enlarges R_s and D_Breg.

        Source: lazy regularisation, Karras et al. 2020 (StyleGAN2), section 3.1 and appendix B.
        """
        every = 1 if task == UNLABELLED else self.smart_every
        lazy = 0 if number % every else every
        weights = self.weights(task)
        weights |= {term: lazy * weights[term] for term in SMART_TERMS if term in weights}
        return {term: weight for term, weight in weights.items() if weight}

    def has_freelb(self, task: str) -> bool:
        """Whether this task's loss is FreeLB's."""
        return self.use_smart and self.adversary == "freelb" and of_task(self.smart_weight, task) == 1

    def beta(self, step: int, total_steps: int) -> float:
        """β of the Bregman teacher after step 0, 1, ..."""
        if self.bregman_beta in BETAS:
            import mysmartloss  # imported here, so that --help needs no torch

            schedule = {"fitted": mysmartloss.fitted_beta, "paper": mysmartloss.paper_beta}[self.bregman_beta]
            return schedule(step, total_steps)
        return float(self.bregman_beta)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return cast(dict[str, Any], json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, values: Any) -> "TrainConfig":
        """Inverse of `to_dict`; a setting that an older record lacks has the value of its time.

        Raises UserError if these are not settings.
        """
        try:
            tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            if isinstance(folder := values.get("checkpoint"), str):  # one alone, before average
                tuples["checkpoint"] = (folder,)
            # of their time: heads had the encoder's rate, and sts a head
            older = {"head_lr": values.get("lr"), "similarity": "head"}
            return cls(**older | values | tuples)
        except (TypeError, AttributeError) as error:  # a name or a type that a setting does not have
            raise UserError(f"not the settings of a run ({one_line(error)})") from None


def of_task(weight: Weight, task: str, left_out: float = 0.0) -> float:
    """The weight for one task. left_out: that of a task which `sst=1,para=0.5` leaves out."""
    return weight.get(task, left_out) if isinstance(weight, dict) else weight


def check_value(setting: "Field[Any]", value: Any, own: str | None = None) -> None:
    """Check a setting alone. own: the name of the user's own task. Raises UserError that names the flag."""
    if value is None and setting.default is None:  # filled in later
        return
    allowed = weight_rule if setting.type == Weight else setting.metadata["allowed"]
    problem = ""
    if setting.type is float and not math.isfinite(value):
        problem = "must be a finite number"
    elif isinstance(allowed, tuple) and value not in allowed:
        problem = f"must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
    elif callable(allowed):
        problem = allowed(value, own) if allowed in (tasks_rule, weight_rule) else allowed(value)
    if problem:
        raise UserError(f"{as_flag(setting.name, value)}: {problem}")


# --------------------------------------------------------------------------------- settings in words


def as_text(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_flag(name: str, value: Any) -> str:
    """A setting as its flag on the command line."""
    if (name, value) == ("regression", False):
        return "--no-regression"
    return f"--{name}" if value is True else f"--{name} {as_text(value)}"


def as_hparams(config: TrainConfig) -> dict[str, int | float | str]:
    """The settings for TensorBoard's table of runs: numbers, or text; without those left open."""
    hparams: dict[str, int | float | str] = {}
    for name, value in [(setting.name, getattr(config, setting.name)) for setting in flags(config)]:
        if value is not None:
            text = as_text(value).encode(errors="backslashreplace").decode()
            hparams[name] = value if type(value) in (int, float) else text
    return hparams


def describe_settings(config: TrainConfig, everything: bool = False) -> str:
    """The settings as flags, a group a line of 100 columns: those that are not the defaults, or all."""
    defaults = TrainConfig(option=config.option, checkpoint=config.checkpoint, own=config.own)
    # these follow another setting: --eval_tasks, under pretrain --head_lr, and --smart_step_size
    head_lr = config.lr if config.option == "pretrain" else defaults.head_lr
    defaults = replace(
        defaults,
        eval_tasks=config.tasks or defaults.eval_tasks,
        head_lr=head_lr,
        smart_step_size=config.smart_epsilon,
    )
    groups: dict[str, list[str]] = {}
    for group, settings in flag_groups(config).items():
        for setting in settings:
            value = getattr(config, setting.name)
            if everything or value != getattr(defaults, setting.name):
                groups.setdefault(group, []).append(as_flag(setting.name, value))
    if config.files:
        groups["files"] = [as_flag(name, path) for name, path in config.files.items()]
    wrapper = textwrap.TextWrapper(100, subsequent_indent=" " * 18, break_on_hyphens=False)
    lines = [
        line for group, words in groups.items() for line in wrapper.wrap(f"  {group:<16}{' '.join(words)}")
    ]
    return "\n".join(lines)


# flags of training that --option adapt does not read
NOT_ADAPTED = {"schedule", "task_weights", "gradient_surgery", "eval_steps", "patience", "head_lr"}
NOT_ADAPTED |= {"layer_lr_decay", "gradient_accumulation_steps", "eval_tasks", "max_eval_samples"}


def warn_of_unused_flags(config: TrainConfig, given: Collection[str]) -> None:
    """A line where flags are given that have no effect."""
    groups = {group: {setting.name for setting in found} for group, found in flag_groups(config).items()}
    of_model = {"pooling", "similarity", "hidden_dropout_prob"}
    regularisation = groups["regularisation"]
    cases = [(f"with --option {config.option}", True, groups["training"] | regularisation | of_model)]
    if config.option == "adapt":
        cases = [("with --option adapt", True, NOT_ADAPTED | regularisation | of_model)]
    elif config.option in RESUMABLE:
        of_smart = {name for name in given if name.startswith(("smart_", "bregman_", "adversary"))}
        if config.has_teacher:
            of_smart.discard("bregman_beta")
        cosine = config.tasks == ("sts",) and config.similarity == "cosine"
        cases = [
            ("without --use_smart", not config.use_smart, of_smart),
            ("with --adversary freelb", config.adversary == "freelb", {"smart_norm", "smart_noise_var"}),
            ("with --option pretrain", config.option == "pretrain", {"layer_lr_decay"}),
            ("without sts", "sts" not in (*config.tasks, *config.eval_tasks), {"similarity"}),
            ("sts alone, by a cosine", cosine, {"head_lr", "pooling", "hidden_dropout_prob"}),
        ]
    for where, holds, names in cases:
        unused = ", ".join(f"--{name}" for name in sorted(names.intersection(given) - {"batch_size"}))
        if unused and holds:
            log.warning("%s: %s this has no effect", unused, where)


# ------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """A parser of flags by their whole names that raises UserError where argparse would exit."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Raises UserError that says of each unknown flag what to give instead."""
        known, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            return known
        # a text editor may join two dashes; values of unknown flags are unknown words, too
        words = [word.partition("=")[0] for word in unknown if re.match(r"[-\u2013\u2014](?!\.?\d)", word)]
        hints = {word: self._instead_of(word) for word in words or unknown[:1]}
        if len(hints) == 1:
            raise UserError("unknown flag {}; {}".format(*hints.popitem()))
        said = [f"{word} ({hint})" for word, hint in hints.items()]
        shown = [text for k, text in enumerate(said) if len(", ".join(said[: k + 1])) < 220]  # whole ones
        rest = f", and {len(said) - len(shown)} more" if len(shown) < len(said) else ""
        raise UserError(f"unknown flags {', '.join(shown)}{rest}")

    def _instead_of(self, word: str) -> str:
        """What to give instead of an unknown flag: what is known of other trainers, or the nearest name."""
        names = [text.lstrip("-") for text in self._option_string_actions]
        near = did_you_mean(word.lstrip("-\u2013\u2014").replace("-", "_"), names, "--")
        return answer(word) or near.removeprefix("; ") or "--help lists all flags"


def parse_weight(text: str) -> Weight:
    """One number for all tasks, or `NAME=NUMBER` with commas between."""
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        if "=" not in text:
            return float(text)
        weights = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        wanted = "neither a number nor NAME=NUMBER with commas between"
        raise argparse.ArgumentTypeError(f"{text!r} is {wanted}") from None
    if len(weights) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names a task twice")
    return weights


HOW_TO_READ: dict[Any, dict[str, Any]] = {  # arguments of argparse, by the type of a field
    bool: {"action": "store_true"},
    bool | None: {"action": argparse.BooleanOptionalAction},
    int: {"type": int, "metavar": "N"},
    float: {"type": float, "metavar": "X"},
    str: {"metavar": "NAME"},
    Weight: {"type": parse_weight, "metavar": "X or NAME=X,..."},
    tuple[str, ...]: {"nargs": "+", "metavar": "NAME"},
    tuple[str, ...] | None: {"action": "append", "metavar": "VALUE"},
}


def add_flag(group: Any, setting: "Field[Any]") -> None:
    """The flag of a field, read as the field's type says."""
    how = HOW_TO_READ.get(setting.type) or HOW_TO_READ[typing.get_args(setting.type)[0]]  # of `int | None`
    allowed = setting.metadata["allowed"]
    if isinstance(allowed, tuple):
        how = {"metavar": "{" + ",".join(allowed) + "}"}
    words = setting.metadata["help"].replace("%", "%%")
    if setting.default is not None and setting.type is not bool:
        words += f" (default: {as_text(setting.default)})"
    group.add_argument(f"--{setting.name}", default=argparse.SUPPRESS, help=words, **how)


EXAMPLES = """examples:
  python multitask_classifier.py --option finetune --use_smart
      train on all three tasks with SMART
  python multitask_classifier.py --train_file my.csv --text_column review --label_column stars
      train on a file of your own
  python multitask_classifier.py --resume --output_dir runs/finetune
      continue an interrupted run
  python multitask_classifier.py --option predict --checkpoint runs/finetune --sst_test my-sentences.csv
      predict a file in the course's layout
  python multitask_classifier.py --option predict --checkpoint runs/finetune --task sst --text fine --text bad
      predict texts of your own
  python multitask_classifier.py --option submit --output_dir runs/finetune
      check the run's predictions and pack them into the course's zip
"""


def saved_own_record(settings: dict[str, Any]) -> dict[str, Any]:
    """The record of the own task of the saved model or of the run to be resumed; {} where it has none.

    Of a model that is not there yet, such as one that a page names, the task of --task may be one.
    """
    (folder, *_) = settings.get("checkpoint") or (
        settings.get("resume") and settings.get("output_dir", "runs/finetune"),
    )
    if not folder:
        return {}
    for place in ("best/run.json", "last/run.json", "last.previous/run.json", "run.json"):
        try:
            own = read_json(Path(folder) / place)["config"].get("own", {})
            task_table(own)
            return own
        except (UserError, LookupError, AttributeError, TypeError, ValueError):
            continue  # whoever opens the folder says what is wrong
    name = settings.get("task", "sst")
    return {} if os.path.exists(folder) or name.lower() in TASKS else {"name": name}


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, set[str]]:
    """The command line (`sys.argv` if None) as a TrainConfig, and the names of the settings that it gives.

    Raises UserError that names a wrong flag.
    """
    words = sys.argv[1:] if arguments is None else arguments
    parser = Parser(
        prog="multitask_classifier.py",
        description="Fine-tune BERT on several tasks at once with SMART regularisation.",
        usage="python multitask_classifier.py [--flag value ...]",
        epilog=EXAMPLES,
    )
    for heading, of_heading in flag_groups(TrainConfig).items():
        group = parser.add_argument_group(heading)
        for setting in of_heading:
            add_flag(group, setting)
    modes = "the course's name for --option: last-linear-layer is pretrain, full-model is finetune"
    parser.add_argument("--fine-tune-mode", choices=[*FINE_TUNE_MODES], default=argparse.SUPPRESS, help=modes)
    group = parser.add_argument_group("files", "one by one, where they are not all in --data_dir")
    for task in TASKS:
        for name in (*SPLITS, "dev_out", "test_out"):
            group.add_argument(f"--{task}_{name}", metavar="PATH", default=argparse.SUPPRESS)

    given = vars(parser.parse_args(words))
    for name, value in given.items():
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            # an unset variable of the shell, more often than not
            raise UserError(f"--{name}: must not be empty or hold a NUL")
    if mode := given.pop("fine_tune_mode", None):
        option = FINE_TUNE_MODES[mode]
        if given.setdefault("option", option) != option:
            raise UserError(f"--fine-tune-mode {mode}: means --option {option}, not {given['option']}")
    names = [setting.name for setting in flags(TrainConfig)]
    settings = {name: given.pop(name) for name in names if name in given}
    for name, value in settings.items():
        if isinstance(value, list):
            tasks = re.split(r"\s*,\s*|\s+", " ".join(value).strip())  # `sst,para`, `sst para`, `sst, para`
            settings[name] = tuple(value if name in (*RAW_TEXT, *COLUMNS, "checkpoint") else tasks)
    if given:
        settings["files"] = given
    settings["own"] = saved_own_record(settings)
    command = shlex.join(["python", "multitask_classifier.py", *words])
    return TrainConfig(**settings, command=command), {*settings} - {"own"}


def check_arguments() -> int:
    """0 if the command line (`sys.argv`) is right; --help ends the process. Raises UserError."""
    parse_arguments()
    return 0
