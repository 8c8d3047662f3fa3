"""What a run can be: every setting with its default, and the command line made from them.

Not handled: configuration files; a run's settings are in its `results.json`.
"""

import argparse
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import mysmartloss
from base_bert import EMBEDDED
from datasets import SCHEDULES
from support.devices import COMPUTE_TYPES
from support.errors import UserError
from tasks import TASKS

SPLITS = ("train", "dev", "test")

BETAS = {"fitted": mysmartloss.fitted_beta, "paper": mysmartloss.paper_beta}
Weight = (
    float | dict[str, float]
)  # of a term of the loss: one for all tasks, or by task (0 where a task is not named)
OPTIONS = ("finetune", "pretrain", "evaluate", "predict")
TRAINING = ("finetune", "pretrain")
NORMS = {"inf": mysmartloss.inf_norm, "2": mysmartloss.l2_norm}

# ------------------------------------------------------------------------------------ configuration


def flag(default, help: str, choices=None):
    """A field of TrainConfig that is also a flag of the command line."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Each field but `files` is a flag of the same name; UserError names the
    flag that is wrong."""

    option: str = flag(
        "finetune",
        "finetune all weights, pretrain the heads on a frozen encoder, evaluate or predict with --checkpoint",
        OPTIONS,
    )
    tasks: tuple[str, ...] | None = flag(
        None, "tasks to train, in order: any of sst,para,sts,cfimdb (default: the first three)"
    )
    eval_tasks: tuple[str, ...] | None = flag(
        None,
        "tasks to evaluate (default: those of --tasks, else of --checkpoint; for predict those"
        " whose --<task>_test is given)",
    )
    schedule: str = flag(
        "interleaved",
        "interleaved: a batch of each task in turn; sequential: task after task",
        tuple(SCHEDULES),
    )
    epochs: int = flag(3, "epochs; dev scores are taken after each")
    steps_per_epoch: int | None = flag(
        None, "optimizer steps an epoch (default: as many batches of every task as the median task has)"
    )
    batch_size: int = flag(32, "rows a batch, of each process where torchrun starts several")
    lr: float | None = flag(None, "peak learning rate (default: 1e-4 for finetune, 1e-3 for pretrain)")
    warmup_steps: int | None = flag(None, "steps of linear warm-up (default: 10 %% of all)")
    weight_decay: float = flag(0.01, "decoupled weight decay of matrices")
    max_grad_norm: float = flag(1.0, "gradients are clipped to this 2-norm")
    hidden_dropout_prob: float = flag(
        0.1, "dropout before the heads (the encoder's own is in its config.json)"
    )
    pooling: str = flag(
        "mean", "sentence vector: mean of the real tokens, or cls through BERT's pooler", ("mean", "cls")
    )
    max_length: int | None = flag(
        None, "longest input in tokens, the rest is cut (default: 256 or what the encoder has)"
    )
    max_train_samples: int | None = flag(
        None, "train on N random rows of each task, the same ones whatever the seed"
    )
    max_eval_samples: int | None = flag(
        None, "evaluate on N random dev rows of each task, the same ones whatever the seed"
    )
    model_name_or_path: str = flag(
        EMBEDDED, "minilm (comes with the requirements), a folder, or a hub id such as bert-base-uncased"
    )
    data_dir: str | None = flag(
        None, "folder of the course's files (default: $SMART_BERT_DATA_DIR, else data, else data/sample)"
    )
    output_dir: str | None = flag(None, "where everything is written (default: runs/<option>)")
    checkpoint: str | None = flag(None, "folder of a saved model, for evaluate and predict")
    seed: int = flag(11711, "seed of everything random")
    use_gpu: bool = flag(False, "insist on CUDA (without the flag the best device there is)")
    precision: str | None = flag(
        None,
        "compute type of the encoder's layers, by autocast (default: bf16 on a CUDA device that"
        " has it, else fp32)",
        tuple(COMPUTE_TYPES),
    )
    logging_steps: int = flag(50, "steps between log lines")
    save_steps: int | None = flag(
        None, "steps between checkpoints in <output_dir>/last (default: about every two minutes)"
    )
    resume: bool = flag(
        False, "go on with the run in --output_dir; flags not given are those it was started with"
    )
    overwrite_output_dir: bool = flag(False, "delete the run that is in --output_dir")
    skip_nonfinite: int = flag(0, "batches with a non-finite loss or gradient to leave out before stopping")
    use_smart: bool = flag(False, "train with SMART: the smoothness term and the Bregman term")
    smart_weight: Weight = flag(
        1.0, "λ_s, weight of the smoothness term: a number, or numbers by task such as sst=1,para=0.5"
    )
    smart_epsilon: float = flag(
        0.01, "ε, radius of the perturbation's ball per token; an embedding coordinate is about 0.5"
    )
    smart_step_size: float = flag(0.01, "η, length of an ascent step")
    smart_noise_var: float = flag(1e-5, "σ², variance of the perturbation's first noise")
    smart_steps: int = flag(1, "T, ascent steps; 0 is random noise (R3F)")
    smart_norm: str = flag("inf", "norm of the ball", tuple(NORMS))
    bregman_weight: Weight = flag(1.0, "μ, weight of the Bregman term: a number, or numbers by task")
    bregman_beta: str = flag(
        "fitted",
        "β of the teacher: fitted (horizon of a tenth of the run), paper (.99, then .999), or a number",
    )
    keep: str = flag(
        "best",
        "which model the run keeps: the student, its teacher, or whichever is best on dev",
        ("student", "teacher", "best"),
    )
    rdrop_weight: Weight = flag(
        0.0, "weight of R-Drop, a second pass with other dropout masks (a control, independent of SMART)"
    )
    files: dict[str, str] = field(
        default_factory=dict
    )  # the course's path flags, where given: {"sst_train": path, "sst_dev_out": path}

    def __post_init__(self):
        self._check_values()
        defaults = {"output_dir": f"runs/{self.option}"}  # those that depend on other settings
        if self.option in TRAINING:
            defaults |= {"tasks": ("sst", "para", "sts"), "lr": 1e-3 if self.option == "pretrain" else 1e-4}
        named = (
            tuple(name for name in TASKS if f"{name}_test" in self.files)
            if self.option == "predict"
            else None
        )
        defaults["eval_tasks"] = self.tasks or defaults.get("tasks") or named
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.option in TRAINING and self.steps_per_epoch and self.steps_per_epoch < len(self.tasks):
            raise UserError(
                f"--steps_per_epoch {self.steps_per_epoch}: fewer than the {len(self.tasks)} tasks"
            )
        if self.option in TRAINING and self.lr * self.weight_decay >= 1:
            raise UserError(
                f"--weight_decay {self.weight_decay}: times --lr {self.lr} it must stay below 1,"
                " or weights change sign"
            )
        if self.keep == "teacher" and not any("bregman" in self.weights(task) for task in self.tasks or ()):
            raise UserError(
                "--keep teacher: there is no teacher without --use_smart and a --bregman_weight"
                " for a task that is trained"
            )

    def _check_values(self) -> None:
        texts = {setting.name: getattr(self, setting.name) for setting in fields(self)} | self.files
        for name, value in texts.items():
            if isinstance(value, str) and (not value.strip() or "\0" in value):
                raise UserError(
                    f"--{name}: must not be empty or hold a NUL"
                )  # an unset variable of the shell, more often than not
        for name in (
            "epochs",
            "batch_size",
            "steps_per_epoch",
            "max_train_samples",
            "max_eval_samples",
            "logging_steps",
            "save_steps",
        ):
            self._check(name, lambda value: value >= 1, "must be at least 1")
        for name in ("smart_weight", "bregman_weight", "rdrop_weight"):
            self._check_weight(name)
        for name in (
            "warmup_steps",
            "weight_decay",
            "smart_noise_var",
            "smart_steps",
            "smart_step_size",
            "skip_nonfinite",
        ):
            self._check(name, lambda value: value >= 0, "must be at least 0")
        for name in ("lr", "max_grad_norm", "smart_epsilon"):
            self._check(name, lambda value: value > 0, "must be above 0")
        self._check("hidden_dropout_prob", lambda value: value < 1, "must be below 1")
        self._check("hidden_dropout_prob", lambda value: value >= 0, "must be at least 0")
        self._check(
            "output_dir",
            lambda value: value.encode(errors="ignore").decode() == value,
            "must be a name in UTF-8, for TensorBoard",
        )
        self._check(
            "smart_steps", lambda value: value <= 1000, "must be at most 1000"
        )  # each costs a forward and a backward pass
        self._check("max_length", lambda value: value >= 8, "must be at least 8")
        self._check("seed", lambda value: 0 <= value < 2**63, "must be a whole number from 0 to 2**63 - 1")
        for setting in fields(self):
            choices = setting.metadata.get("choices")
            if choices and getattr(self, setting.name) is not None:
                self._check(
                    setting.name,
                    lambda value, choices=choices: value in choices,
                    f"must be one of {', '.join(choices)}",
                )
        for name in ("tasks", "eval_tasks"):
            chosen = getattr(self, name)
            if chosen is not None and (
                not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(TASKS)
            ):
                raise UserError(
                    f"--{name} {','.join(chosen)}: must be one or more of {', '.join(TASKS)}, each once"
                )
        try:
            beta_is_right = self.bregman_beta in BETAS or 0 <= float(self.bregman_beta) < 1
        except ValueError:
            beta_is_right = False
        if not beta_is_right:
            raise UserError(
                f"--bregman_beta {self.bregman_beta}: must be {', '.join(BETAS)} or a number from"
                " 0 to below 1"
            )
        if self.option in TRAINING:
            if self.checkpoint is not None:
                raise UserError("--checkpoint: only for --option evaluate and predict")
        elif self.checkpoint is None:
            raise UserError(f"--option {self.option}: needs --checkpoint, the folder of a saved model")
        elif self.resume or self.overwrite_output_dir:
            raise UserError(
                f"--{'resume' if self.resume else 'overwrite_output_dir'}: not for --option {self.option}"
            )

    def _check(self, name: str, is_right, rule: str) -> None:
        value = getattr(self, name)
        if isinstance(value, float) and not abs(value) < 1e38:  # beyond, it is no 32-bit number
            rule = "must be a finite number below 1e38"
        elif value is None or is_right(value):
            return
        raise UserError(f"--{name} {value}: {rule}")

    def _check_weight(self, name: str) -> None:
        value = getattr(self, name)
        for task, weight in value.items() if isinstance(value, dict) else [(None, value)]:
            if task is not None and task not in TASKS:
                raise UserError(f"--{name}: unknown task {task!r}, it must be one of {', '.join(TASKS)}")
            if not (weight >= 0 and math.isfinite(weight)):
                raise UserError(f"--{name} {weight}: must be at least 0 and finite")

    def weights(self, task: str) -> dict[str, float]:
        """Weight of each term that is switched on for this task: `smart`, `bregman`, `rdrop`."""
        terms = {"smart": self.smart_weight, "bregman": self.bregman_weight} if self.use_smart else {}
        terms["rdrop"] = self.rdrop_weight
        by_task = {
            term: weight.get(task, 0.0) if isinstance(weight, dict) else weight
            for term, weight in terms.items()
        }
        return {term: weight for term, weight in by_task.items() if weight}

    def beta(self, step: int, total_steps: int) -> float:
        """β of the Bregman teacher after step 0, 1, ..."""
        return (
            BETAS[self.bregman_beta](step, total_steps)
            if self.bregman_beta in BETAS
            else float(self.bregman_beta)
        )

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Inverse of `to_dict`. Raises UserError if they are not such settings."""
        if not isinstance(values, dict):
            raise UserError(f"settings must be a JSON object, not {type(values).__name__}")
        hints, settings = typing.get_type_hints(cls), {}
        for name, value in values.items():
            settings[name] = tuple(value) if isinstance(value, list) else value
            if name not in hints or not _is_of(settings[name], hints[name]):
                raise UserError(f"{name!r} is not a setting that can be {str(value)[:40]!r}")
        return cls(**settings)


def _is_of(value, hint) -> bool:
    """Whether the value is of the type of a field of TrainConfig, where an int is a float but no bool is a
    number."""
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if typing.get_origin(hint) is dict:
        key_hint, value_hint = typing.get_args(hint)
        return isinstance(value, dict) and all(
            _is_of(key, key_hint) and _is_of(part, value_hint) for key, part in value.items()
        )
    return isinstance(value, (int, float) if hint is float else hint) and (
        hint is bool or not isinstance(value, bool)
    )


# ------------------------------------------------------------------------------------- command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, set[str]]:
    """The command line (`sys.argv` if None) as a TrainConfig, and which settings it gives. Raises UserError
    naming a wrong flag."""
    parser = _Parser(
        prog="multitask_classifier.py",
        description="Fine-tune BERT on several tasks at once with SMART regularisation.",
        usage="python multitask_classifier.py [--flag value ...]",
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        if setting.name == "files":
            continue
        if hints[setting.name] is bool:
            parser.add_argument(
                f"--{setting.name}",
                action="store_true",
                default=argparse.SUPPRESS,
                help=setting.metadata["help"],
            )
            continue
        kind = hints[setting.name]
        if isinstance(kind, types.UnionType) and kind != Weight:  # X | None
            kind = typing.get_args(kind)[0]
        parser.add_argument(
            f"--{setting.name}",
            type=_weight if kind == Weight else _names if typing.get_origin(kind) is tuple else kind,
            default=argparse.SUPPRESS,
            metavar="{" + ",".join(setting.metadata["choices"]) + "}"
            if setting.metadata["choices"]
            else None,
            help=setting.metadata["help"]
            + ("" if setting.default is None else f" (default: {setting.default})"),
        )
    paths = parser.add_argument_group(
        "files", "one by one, where they are not all in --data_dir under the course's names"
    )
    for task in TASKS:
        for name in (*SPLITS, "dev_out", "test_out"):
            paths.add_argument(f"--{task}_{name}", metavar="PATH", default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    settings = {
        setting.name: given.pop(setting.name) for setting in fields(TrainConfig) if setting.name in given
    }
    settings |= {"files": given} if given else {}
    return TrainConfig(**settings), set(settings)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _weight(text: str) -> Weight:
    if "=" not in text:
        return float(text)
    pairs = [part.partition("=") for part in text.split(",")]
    weights = {name.strip(): float(value) for name, _, value in pairs}
    if len(weights) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names a task twice")
    return weights


_weight.__name__ = "weight"  # argparse says "invalid weight value: ..."
