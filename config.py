"""Every setting of a run with its default, and the command line made from them.

    command line ─ parse_arguments ─> TrainConfig, and the names of the flags that were given

A field of TrainConfig is a flag of the same name. Its rule, choices and help stand beside it, so a new
setting is one field. Not handled: configuration files; a run's settings are in its `results.json`.
"""

import argparse
import json
import logging
import math
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast

import mysmartloss
from base_bert import EMBEDDED
from datasets import SCHEDULES
from support.devices import COMPUTE_TYPES
from support.errors import UserError
from support.flags import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    FROM_0_TO_BELOW_1,
    Parser,
    Rule,
    Weight,
    as_text,
    check_text,
    check_values,
    describe,
    did_you_mean,
    fits,
    flag,
    flags,
)
from tasks import TASKS

log = logging.getLogger("smart_bert")
SPLITS = ("train", "dev", "test")
OPTIONS = ("finetune", "pretrain", "evaluate", "predict", "submit")
TRAINING = ("finetune", "pretrain")
COURSE_TASKS = ("sst", "para", "sts")
BETAS = {"fitted": mysmartloss.fitted_beta, "paper": mysmartloss.paper_beta}
RAW_TEXT = ("task", "text", "text_pair", "input", "output")  # the flags for texts of the user's own
# the course's --fine-tune-mode (since 2024) and the --option that it means
FINE_TUNE_MODES = {"last-linear-layer": "pretrain", "full-model": "finetune"}
UNLABELLED = "unlabelled"  # stands for --unlabelled_file where a task's name would
WITHOUT_LABELS = ("smart", "bregman")  # the terms of the loss for its texts
NORMS = {"inf": mysmartloss.inf_norm, "2": mysmartloss.l2_norm}

# ------------------------------------------------------------------------------------ configuration


def _is_beta(text: str) -> bool:
    try:
        return text in BETAS or 0 <= float(text) < 1
    except ValueError:
        return False


# What people call the built-in tasks. Messages say it; these are not accepted as names.
ALSO_CALLED = {
    "sst": ("sentiment", "SST-5"),
    "para": ("paraphrase", "Quora", "QQP"),
    "sts": ("similarity", "STS-B"),
    "cfimdb": ("IMDB", "long film reviews"),
}


def unknown_task(name: str) -> str:
    """What to say of a name that is no task's: which task is probably meant, and which tasks there are."""
    plain = {re.sub(r"[\W_]", "", other).lower(): task for task in ALSO_CALLED for other in ALSO_CALLED[task]}
    meant = plain.get(re.sub(r"[\W_]", "", name).lower())
    hint = f"; did you mean {meant}?" if meant in TASKS else did_you_mean(name, TASKS)
    known = (f"{task} ({', '.join(ALSO_CALLED.get(task, (TASKS[task].label_column,)))})" for task in TASKS)
    return f"there is no task {name[:40]!r}{hint or '.'} The tasks are {', '.join(known)}"


def _wrong_tasks(names: tuple[str, ...]) -> str:
    unknown = [name for name in names if name and name not in TASKS]
    return unknown_task(unknown[0]) if unknown else f"must be one or more of {', '.join(TASKS)}, each once"


TASK_NAMES = Rule(
    lambda names: len(names) > 0 and len(set(names)) == len(names) and set(names) <= set(TASKS), _wrong_tasks
)
BETA = Rule(_is_beta, f"must be {', '.join(BETAS)} or a number from 0 to below 1")
SEED = Rule(lambda value: 0 <= value < 2**63, "must be a whole number from 0 to 2**63 - 1")
UTF8 = Rule(
    lambda name: name.encode(errors="ignore").decode() == name, "must be a name in UTF-8, for TensorBoard"
)


def _trained_tasks(config: "TrainConfig") -> tuple[str, ...] | None:
    return COURSE_TASKS if config.option in TRAINING else None


def _evaluated_tasks(config: "TrainConfig") -> tuple[str, ...] | None:
    if config.option == "predict" and config.task:
        return config.tasks or (config.task,)
    if config.option == "predict" and not config.tasks:
        return tuple(name for name in TASKS if f"{name}_test" in config.files)
    if config.option == "submit" and not config.tasks:
        return COURSE_TASKS
    return config.tasks


def _unlabelled_task(config: "TrainConfig") -> str | None:
    return config.tasks[0] if config.unlabelled_file and config.tasks and len(config.tasks) == 1 else None


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Raises UserError that names the flag that is wrong.

    The types are those of the settings that a run has. A default that depends on other settings is filled in
    at once (`derive`). `precision` and `max_length` depend on device and encoder: where they are not given,
    they are None until the program has looked at both, which it does before anything else.
    """

    option: str = flag(
        "finetune",
        "finetune: train encoder and heads; pretrain: train the heads on a frozen encoder; evaluate: score a"
        " saved model on dev; predict: let a saved model predict unlabelled files; submit: check a run's"
        " predictions and pack them into the course's zip",
        choices=OPTIONS,
        group="what to do",
    )
    tasks: tuple[str, ...] = flag(
        None,
        f"tasks to train, separated by commas or spaces, of {', '.join(TASKS)} (default: sst,para,sts)",
        rule=TASK_NAMES,
        derive=_trained_tasks,
    )
    eval_tasks: tuple[str, ...] = flag(
        None,
        "tasks to score and to predict (default: the trained ones; for predict those whose --<task>_test is"
        " given; for submit sst,para,sts)",
        rule=TASK_NAMES,
        derive=_evaluated_tasks,
    )
    model_name_or_path: str = flag(
        EMBEDDED,
        "the encoder: minilm (comes with the requirements), a folder, or a hub id such as bert-base-uncased",
        group="model",
    )
    checkpoint: str | None = flag(None, "folder of a saved model, for evaluate and predict")
    pooling: str = flag(
        "mean",
        "sentence vector: mean of all real tokens, or cls: the first token through BERT's pooler",
        choices=("mean", "cls"),
    )
    hidden_dropout_prob: float = flag(
        0.1, "dropout before the heads (the encoder's own is in its config.json)", rule=FROM_0_TO_BELOW_1
    )
    max_length: int = flag(
        None,
        "longest input in tokens; the rest is cut off (default: 256, or what the encoder has positions for)",
        rule=Rule(lambda value: value >= 8, "must be at least 8"),
    )
    precision: str = flag(
        None,
        "number type of the encoder's matrix products, by autocast; weights stay fp32 (default: bf16 on a"
        " CPU or a CUDA device with instructions for it, else fp32)",
        choices=tuple(COMPUTE_TYPES),
    )
    similarity: str = flag(
        "head",
        "how sts is scored: head, a linear layer on the vector of the whole pair; or cosine, 5 times the"
        " cosine of the two sentences' mean vectors, each from a pass of its own",
        choices=("head", "cosine"),
    )
    use_gpu: bool = flag(False, "stop if there is no CUDA device (without the flag the best device is used)")
    deterministic: bool = flag(
        False,
        "the same bits in every run on a CUDA device, by kernels that may be slower (a CPU needs no flag)",
    )
    compile: bool = flag(
        False, "compile the encoder's layers by torch.compile: for CUDA devices, on a CPU it is slower"
    )
    data_dir: str | None = flag(
        None,
        "folder of the course's files (default: $SMART_BERT_DATA_DIR, else data, else data/sample)",
        group="data",
    )
    max_train_samples: int | None = flag(
        None, "train on N random rows of each task, the same rows for every seed", rule=AT_LEAST_1
    )
    max_eval_samples: int | None = flag(
        None, "evaluate on N random dev rows of each task, the same rows for every seed", rule=AT_LEAST_1
    )
    unlabelled_file: str | None = flag(
        None,
        "texts without labels for SMART's two terms, which need none: a text a line, or two with a tab"
        " between them; or a file in the course's layout",
    )
    unlabelled_task: str | None = flag(
        None,
        "the task to which --unlabelled_file belongs; its batches take their turn like a further task's"
        " (default: the task that is trained, if there is one alone)",
        rule=Rule(lambda name: name in TASKS, unknown_task),
        derive=_unlabelled_task,
    )
    task: str | None = flag(
        None,
        "for predict: the task to ask about texts of your own; without --text and --input they are read from"
        " standard input",
        rule=Rule(lambda name: name in TASKS, unknown_task),
        group="your own texts",
    )
    text: tuple[str, ...] | None = flag(
        None, "a text to ask about; may be given several times", repeated=True
    )
    text_pair: tuple[str, ...] | None = flag(
        None, "for a task of pairs: the second text, one for each --text", repeated=True
    )
    input: str | None = flag(
        None,
        "file of texts, one a line; of pairs with a tab between the two; or of JSON objects, one a line, with"
        " text, text_pair and id",
    )
    output: str | None = flag(None, "file of the answers, a JSON object a line (default: the screen)")
    schedule: str = flag(
        "interleaved",
        "interleaved: a batch of each task in turn; sequential: one task after the other in each epoch;"
        " proportional: a task with twice the rows is drawn twice as often; annealed: from proportional in"
        " the first epoch to nearly equal in the last; joint: a batch of every task in each step, losses"
        " added",
        choices=tuple(SCHEDULES),
        group="training",
    )
    task_weights: Weight = flag(
        1.0, "weight of each task's own loss, such as sst=1,para=0.5; a task that is left out has 1"
    )
    gradient_surgery: str = flag(
        "none",
        "pcgrad: for --schedule joint; where the gradients of two tasks conflict, take away the part of each"
        " that works against the other",
        choices=("none", "pcgrad"),
    )
    epochs: int = flag(3, "passes over the data; dev is scored after each", rule=AT_LEAST_1)
    eval_steps: int | None = flag(
        None,
        "optimizer steps between two scorings of dev; the best model so far is kept (default: an epoch)",
        rule=AT_LEAST_1,
    )
    patience: int | None = flag(
        None,
        "early stopping: end after N scorings of dev in a row that are not the best so far (default: never)",
        rule=AT_LEAST_1,
    )
    steps_per_epoch: int | None = flag(
        None,
        "optimizer steps of an epoch, all tasks together (default: on average as many for every task as the"
        " median task needs to see each of its rows once)",
        rule=AT_LEAST_1,
    )
    batch_size: int = flag(32, "rows of a batch, in each process if torchrun starts several", rule=AT_LEAST_1)
    gradient_accumulation_steps: int = flag(
        1,
        "batches, in each process, whose gradients are added up before an optimizer step: the same as one"
        " batch of so many times the rows",
        rule=AT_LEAST_1,
    )
    max_tokens: int | None = flag(
        None,
        "padded tokens of a training batch, in each process: a batch of long rows gets fewer rows, and its"
        " loss a smaller weight, so that every row counts the same (default: no limit)",
        rule=AT_LEAST_1,
    )
    lr: float = flag(
        None,
        "peak learning rate (default: 1e-4 for finetune, 1e-3 for pretrain)",
        rule=ABOVE_0,
        derive=lambda config: 1e-3 if config.option == "pretrain" else 1e-4,
    )
    head_lr: float = flag(
        None,
        "peak learning rate of the task heads, and of a pooler that was not pre-trained (default: --lr)",
        rule=ABOVE_0,
        derive=lambda config: config.lr,
    )
    layer_lr_decay: float = flag(
        1.0,
        "factor on the learning rate for each layer below the last; the embeddings have the lowest rate",
        rule=Rule(lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    )
    warmup_steps: int | None = flag(
        None,
        "steps in which the learning rate rises from 0 to its peak (default: a tenth of all steps)",
        rule=AT_LEAST_0,
    )
    weight_decay: float = flag(
        0.01, "decoupled weight decay of matrices; biases and LayerNorms do not decay", rule=AT_LEAST_0
    )
    max_grad_norm: float = flag(1.0, "gradients are scaled down to this 2-norm if longer", rule=ABOVE_0)
    skip_nonfinite: int = flag(
        0,
        "how many batches may give an infinite or NaN loss before the run stops; such a batch changes no"
        " weight",
        rule=AT_LEAST_0,
    )
    seed: int = flag(11711, "seed of everything random", rule=SEED)
    use_smart: bool = flag(
        False,
        "add SMART's two terms to the loss: the smoothness term R_s and the Bregman term D_Breg",
        group="regularisation",
    )
    adversary: str = flag(
        "smart",
        "smart: R_s compares the outputs under the worst move of the embeddings with the clean ones; freelb:"
        " instead of the task's own loss its mean over the moves on the way there (FreeLB). There"
        " --smart_epsilon and --smart_step_size are lengths of a whole text's move, such as .3 and .1, and"
        " --smart_steps is 2 or 3",
        choices=("smart", "freelb"),
    )
    smart_weight: Weight = flag(
        1.0, "λ_s, weight of R_s: a number, or numbers by task such as sst=1,para=0.5", needs="use_smart"
    )
    smart_epsilon: float = flag(
        0.01,
        "ε: how far R_s may move each token's embedding; a coordinate of an embedding is about 0.5",
        rule=ABOVE_0,
    )
    smart_step_size: float = flag(
        0.01, "η: length of one step towards the worst move within ε", rule=AT_LEAST_0
    )
    smart_noise_var: float = flag(
        1e-5,
        "σ²: variance of the random move from which the search for the worst one starts",
        rule=AT_LEAST_0,
    )
    smart_steps: int = flag(
        1,
        "T: steps of that search; 0 leaves the random move as it is (the method R3F)",
        rule=Rule(lambda value: 0 <= value <= 1000, "must be at least 0 and at most 1000"),
    )
    smart_norm: str = flag(
        "inf", "norm in which the move is at most ε: inf (largest coordinate) or 2", choices=tuple(NORMS)
    )
    bregman_weight: Weight = flag(
        1.0,
        "μ, weight of D_Breg, which keeps the model near its own moving average (the teacher): a number, or"
        " numbers by task",
        needs="use_smart",
    )
    bregman_beta: str = flag(
        "fitted",
        "β: how slowly the teacher follows the model. fitted: it averages about the last tenth of the run;"
        " paper: .99, later .999, which suits runs of many thousand steps; or a number from 0 to below 1",
        rule=BETA,
    )
    keep: str = flag(
        "best",
        "which weights are saved as the model: student (those that were trained), teacher (their exponential"
        " moving average, by --bregman_beta; works without D_Breg, too), or best (whichever scores higher on"
        " dev, where there is D_Breg)",
        choices=("student", "teacher", "best"),
    )
    rdrop_weight: Weight = flag(
        0.0,
        "α of R-Drop: the task loss of two passes with different dropout masks, and α times half their symmetric"
        " divergence (independent of SMART)",
    )
    contrastive_weight: Weight = flag(
        0.0,
        "weight of a contrastive loss on para: of all second questions of the batch, a question's own"
        " paraphrase should be the nearest (multiple negatives ranking)",
        only=lambda task: TASKS[task].alike_label is not None,
    )
    output_dir: str = flag(
        None,
        "where everything is written (default: runs/<option>); for submit the folder of the run (default:"
        " runs/finetune)",
        rule=UTF8,
        derive=lambda config: f"runs/{'finetune' if config.option == 'submit' else config.option}",
        group="output",
    )
    logging_steps: int = flag(50, "steps between log lines", rule=AT_LEAST_1)
    save_steps: int | None = flag(
        None,
        "steps between checkpoints in <output_dir>/last (default: about every two minutes)",
        rule=AT_LEAST_1,
    )
    no_report: bool = flag(False, "do not make <output_dir>/report.html (for grids of runs)")
    resume: bool = flag(
        False, "go on with the run in --output_dir; flags that are left out stay as the run was started"
    )
    overwrite_output_dir: bool = flag(False, "delete the run that is in --output_dir")
    log_level: str = flag(
        "info",
        "info: a short line an interval; debug: every setting and every number that is logged",
        choices=("info", "debug"),
    )
    # the course's path flags, where given: {"sst_train": path, "sst_dev_out": path}
    files: dict[str, str] = field(default_factory=dict)
    # what the report says: the command line (a resumed run keeps its first), the settings that differ
    command: str = ""
    differing: str = ""

    def __post_init__(self) -> None:
        for name, path in self.files.items():
            check_text(name, path)
        check_values(self)
        for setting in flags(self):
            if setting.type == Weight:
                self._check_weight(setting.name)
            derive = setting.metadata["derive"]
            if derive and getattr(self, setting.name) is None:
                object.__setattr__(self, setting.name, derive(self) or None)
        self._check_together()

    def _check_weight(self, name: str) -> None:
        value: Weight = getattr(self, name)
        for task, weight in value.items() if isinstance(value, dict) else [(None, value)]:
            if task is not None and task not in TASKS:
                raise UserError(f"--{name} {as_text(value)}: {unknown_task(task)}")
            if name == "task_weights" and task and self.option in TRAINING and task not in self.tasks:
                trained = f"{task} is not trained; --tasks are {','.join(self.tasks)}"
                raise UserError(f"--{name} {as_text(value)}: {trained}")
            only = next(setting.metadata["only"] for setting in flags(self) if setting.name == name)
            if only and task is not None and not only(task):
                raise UserError(f"--{name} {as_text(value)}: {task} has no pairs that are marked as alike")
            if not (weight >= 0 and math.isfinite(weight)):
                raise UserError(f"--{name} {weight}: must be at least 0 and finite")

    def _check_together(self) -> None:
        """Settings that must fit each other."""
        self._check_raw_text()
        opens_model = self.option in ("evaluate", "predict")
        if opens_model and self.checkpoint is None:
            raise UserError(f"--option {self.option}: needs --checkpoint, the folder of a saved model")
        if not opens_model and self.checkpoint is not None:
            raise UserError("--checkpoint: only for --option evaluate and predict")
        if self.option not in TRAINING:
            if self.resume or self.overwrite_output_dir:
                name = "resume" if self.resume else "overwrite_output_dir"
                raise UserError(f"--{name}: not for --option {self.option}")
            return
        self._check_unlabelled()
        if self.adversary == "freelb" and self.use_smart and self.smart_steps < 1:
            raise UserError(f"--adversary freelb: needs --smart_steps 1 or more, not {self.smart_steps}")
        if self.adversary == "freelb" and self.use_smart:
            given = self.smart_weight.values() if isinstance(self.smart_weight, dict) else [self.smart_weight]
            if not set(given) <= {0.0, 1.0}:
                why = "its loss takes the place of the task's own, so a weight is 1 or 0"
                raise UserError(f"--smart_weight {as_text(self.smart_weight)}: with --adversary freelb {why}")
        takes_turns = self.schedule in ("interleaved", "sequential")
        if takes_turns and self.steps_per_epoch and self.steps_per_epoch < len(self.sources):
            raise UserError(
                f"--steps_per_epoch {self.steps_per_epoch}: fewer than the {len(self.sources)} tasks"
            )
        if self.schedule == "joint" and len(self.sources) < 2:
            raise UserError(f"--schedule joint: needs two --tasks or more, not {self.tasks[0]} alone")
        if self.similarity == "cosine" and not any(TASKS[task].cosine_scale for task in self.sources):
            raise UserError(f"--similarity cosine: needs sts, and --tasks are {','.join(self.tasks)}")
        if self.contrastive_weight and not any("contrastive" in self.weights(task) for task in self.tasks):
            trained = f"needs para, and --tasks are {','.join(self.tasks)}"
            raise UserError(f"--contrastive_weight {as_text(self.contrastive_weight)}: {trained}")
        if self.contrastive_weight and self.gradient_accumulation_steps > 1:
            raise UserError(
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps}: not with"
                " --contrastive_weight, whose negatives are those of one batch; raise --batch_size"
            )
        if self.gradient_surgery != "none" and self.schedule != "joint":
            raise UserError(f"--gradient_surgery {self.gradient_surgery}: needs --schedule joint")
        if not any(self.task_weight(task) or self.weights(task) for task in self.sources):
            raise UserError(f"--task_weights {as_text(self.task_weights)}: nothing is left to train on")
        name = max(("lr", "head_lr"), key=lambda name: getattr(self, name))
        if getattr(self, name) * self.weight_decay >= 1:
            product = f"times --{name} {getattr(self, name)} it must stay below 1, or weights change sign"
            raise UserError(f"--weight_decay {self.weight_decay}: {product}")

    def _check_unlabelled(self) -> None:
        """The texts without labels: of which task, and whether a term of the loss takes them."""
        if self.unlabelled_file is None:
            if self.unlabelled_task is not None:
                raise UserError(f"--unlabelled_task {self.unlabelled_task}: needs --unlabelled_file")
            return
        if self.unlabelled_task is None:
            raise UserError(f"--unlabelled_file: needs --unlabelled_task, one of {', '.join(self.tasks)}")
        if self.unlabelled_task not in self.tasks:
            trained = f"{self.unlabelled_task} is not trained; --tasks are {','.join(self.tasks)}"
            raise UserError(f"--unlabelled_task {self.unlabelled_task}: {trained}")
        if not self.weights(UNLABELLED):
            needed = f"--use_smart and a --smart_weight or --bregman_weight for {self.unlabelled_task}"
            raise UserError(f"--unlabelled_file: without labels there is no loss; it needs {needed}")
        if self.adversary == "freelb":
            raise UserError("--adversary freelb: needs labels, so it does not go with --unlabelled_file")

    def _check_raw_text(self) -> None:
        """The flags for the user's own texts: all of them need --task, and only `predict` has it."""
        given = [name for name in RAW_TEXT if getattr(self, name) is not None]
        if not given:
            return
        if self.option != "predict":
            raise UserError(f"--{given[0]}: only for --option predict")
        if self.task is None:
            raise UserError(f"--{given[0]}: needs --task, one of {', '.join(TASKS)}")
        if self.eval_tasks != (self.task,):
            raise UserError("--task: not with --tasks or --eval_tasks; it says which task is asked")
        if self.files:
            raise UserError(f"--task: not with --{next(iter(self.files))}, which is for the course's files")
        if self.text is not None and self.input is not None:
            raise UserError("--input: not with --text; give one of the two")
        if self.text_pair is not None and self.text is None:
            raise UserError("--text_pair: needs --text, the first text of the pair")

    @property
    def sources(self) -> tuple[str, ...]:
        """What a step can take its batch from: the tasks that are trained, and the texts without labels."""
        return (*self.tasks, UNLABELLED) if self.unlabelled_file else self.tasks

    @property
    def has_teacher(self) -> bool:
        """Whether the run keeps a moving average of its weights: for D_Breg, or as the model to be saved."""
        return self.keep == "teacher" or any("bregman" in self.weights(task) for task in self.sources)

    def task_weight(self, task: str) -> float:
        """The weight of this task's own loss."""
        return self.task_weights.get(task, 1.0) if isinstance(self.task_weights, dict) else self.task_weights

    def weights(self, task: str) -> dict[str, float]:
        """Weight of each term of the loss that is on for this task, by the term's name: `smart`, ...

        task: its name, or UNLABELLED.
        """
        if task == UNLABELLED:
            weights = self.weights(cast(str, self.unlabelled_task))
            return {name: weights[name] for name in WITHOUT_LABELS if name in weights}
        weights = {}
        for setting in flags(self):
            if setting.type != Weight or not setting.name.endswith("_weight"):
                continue
            value: Weight = getattr(self, setting.name)
            weight = value.get(task, 0.0) if isinstance(value, dict) else value
            needs = setting.metadata["needs"]
            only = setting.metadata["only"]
            if weight and (needs is None or getattr(self, needs)) and (only is None or only(task)):
                weights[setting.name.removesuffix("_weight")] = weight
        if self.adversary == "freelb":  # which is no further term, see `has_freelb`
            weights.pop("smart", None)
        return weights

    def has_freelb(self, task: str) -> bool:
        """Whether this task's loss is FreeLB's."""
        weight = self.smart_weight.get(task, 0) if isinstance(self.smart_weight, dict) else self.smart_weight
        return self.use_smart and self.adversary == "freelb" and weight == 1

    def beta(self, step: int, total_steps: int) -> float:
        """β of the Bregman teacher after step 0, 1, ..."""
        if self.bregman_beta in BETAS:
            return BETAS[self.bregman_beta](step, total_steps)
        return float(self.bregman_beta)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return cast(dict[str, Any], json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, values: object) -> "TrainConfig":
        """Inverse of `to_dict`. Raises UserError if they are not such settings."""
        if not isinstance(values, dict):
            raise UserError(f"settings must be a JSON object, not {type(values).__name__}")
        kinds = {item.name: item for item in fields(cls)}
        settings: dict[str, Any] = {}
        for name, value in values.items():
            settings[name] = tuple(value) if isinstance(value, list) else value
            if name not in kinds or not fits(kinds[name], settings[name]):
                raise UserError(f"{name!r} is not a setting that can be {str(value)[:40]!r}")
        return cls(**settings)


def warn_of_unused_flags(config: TrainConfig, given: Collection[str]) -> None:
    """A line where flags of SMART are given and SMART is off."""
    if config.option not in TRAINING:
        return
    unused = [f"--{name}" for name in given if name.startswith(("smart_", "bregman_", "adversary"))]
    if config.has_teacher:
        unused = [flag for flag in unused if flag != "--bregman_beta"]
    if unused and not config.use_smart:
        log.warning("%s: without --use_smart this changes nothing", ", ".join(sorted(unused)))
    of_smart = [f"--{name}" for name in given if name in ("smart_norm", "smart_noise_var")]
    if of_smart and config.use_smart and config.adversary == "freelb":
        log.warning("%s: with --adversary freelb this changes nothing", ", ".join(sorted(of_smart)))


def describe_settings(config: TrainConfig, everything: bool = False) -> str:
    """The settings as flags, a group a line: those that are not the defaults, or all."""
    defaults = TrainConfig(option=config.option, checkpoint=config.checkpoint)
    # where only --tasks is given, --eval_tasks follows it; so does --head_lr the flag --lr
    defaults = replace(defaults, eval_tasks=config.tasks or defaults.eval_tasks, head_lr=config.lr)
    files = [f"  {'files':<16}--{name} {path}" for name, path in config.files.items()]
    return "\n".join([describe(config, defaults, everything), *files]).strip("\n")


# ------------------------------------------------------------------------------------- command line

EXAMPLES = """examples:
  python multitask_classifier.py --option finetune --use_smart
      train on all three tasks with SMART
  python multitask_classifier.py --tasks sst --lr 5e-5 --output_dir runs/sst
      train on one task, without SMART
  python multitask_classifier.py --resume --output_dir runs/finetune
      go on with a run that was interrupted
  python multitask_classifier.py --option predict --checkpoint runs/finetune --sst_test my-sentences.csv
      predict a file in the course's layout
  python multitask_classifier.py --option predict --checkpoint runs/finetune --task sst --text fine --text bad
      ask the model about texts of your own
  python multitask_classifier.py --option predict --checkpoint runs/finetune --task sts --input pairs.tsv
      ask it about a file, and print a JSON line for each of its lines
  python multitask_classifier.py --option submit --output_dir runs/finetune
      check the run's predictions and pack them into the course's zip
"""


def _with_option(given: dict[str, Any]) -> dict[str, Any]:
    """The flags with --option where the course's --fine-tune-mode was given.

    Raises UserError if both are given and disagree.
    """
    if "fine_tune_mode" not in given:
        return given
    others = dict(given)
    mode = others.pop("fine_tune_mode")
    option = FINE_TUNE_MODES[mode]
    if others.setdefault("option", option) != option:
        words = f"means --option {option}, and --option is {others['option']}; give one of the two"
        raise UserError(f"--fine-tune-mode {mode}: {words}")
    return others


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, set[str]]:
    """The command line (`sys.argv` if None) as a TrainConfig, and the names of the settings that it gives.

    Raises UserError that names a wrong flag.
    """
    parser = Parser(
        prog="multitask_classifier.py",
        description="Fine-tune BERT on several tasks at once with SMART regularisation.",
        usage="python multitask_classifier.py [--flag value ...]",
        epilog=EXAMPLES,
    )
    parser.add_flags(TrainConfig)
    parser.add_argument(
        "--fine-tune-mode",
        choices=tuple(FINE_TUNE_MODES),
        default=argparse.SUPPRESS,
        help="the course's name for --option: last-linear-layer is pretrain, full-model is finetune",
    )
    paths = parser.add_argument_group(
        "files", "one by one, where they are not all in --data_dir under the course's names"
    )
    for task in TASKS:
        for name in (*SPLITS, "dev_out", "test_out"):
            paths.add_argument(f"--{task}_{name}", metavar="PATH", default=argparse.SUPPRESS)
    given = _with_option(vars(parser.parse_args(arguments)))
    settings = {item.name: given.pop(item.name) for item in flags(TrainConfig) if item.name in given}
    settings |= {"files": given} if given else {}
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = tuple(value)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "multitask_classifier.py", *words])
    return TrainConfig(**settings, command=command), set(settings)
