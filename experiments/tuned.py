"""A comparison of two sides that were tuned alike, with every measure: the fourth and the fifth primary ones.

    <name>_tuning.jsonl      nine settings a side, seeds 500 to 502, scored on held-out rows of train
    <name>_winners.json      the setting of each side; committed before the comparison
    <name>_comparison.jsonl  the winners on paired seeds from 600 on, then exploratory arms at their settings

The winner of a side has the highest accuracy; of all settings within a standard error of it, the lowest NLL.

Rule, fixed before the first run. A gain or a loss is claimed if the exact p of the paired permutation over
seeds is below .01 and the 95 % interval over seeds and dev rows leaves out 0. It is "no gain" if that
interval lies within ±1 point, else "not decided". Secondary measures have p by Holm. All other arms are
exploratory. All arms of a seed run on one type of processor and in one precision: those of the machine that
begins it.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config import TrainConfig
from datasets import read_examples, tokenize
from evaluation import model_outputs
from experiments import tables
from experiments.calibration import cross_fitted
from experiments.held_out import HELD_OUT, held_out_folder
from experiments.inference import NEGLIGIBLE, SIGNIFICANT, bootstrap, exact_p, holm
from experiments.runner import Run, finished_model, machine, parse, run_grid
from experiments.tables import HERE, Line, Measure, Question, Row
from support.files import write_text
from tasks import TASKS, score

SST = TASKS["sst"]
ALL_ROWS = 8_544  # of SST's training file
PRIMARY = {"plain", "SMART"}
TUNING_SEEDS = (500, 501, 502)
SEEDS = tuple(range(600, 620))
EXPLORATORY_SEEDS = SEEDS[:10]
RATES = ("5e-5", "1e-4", "2e-4")  # --lr
SMART = ("--use_smart", "--smart_epsilon", "0.04", "--smart_step_size", "0.04")  # λ_s = μ = 1, the defaults
# measure -> whether more is better. The first decides.
MEASURES = {
    "accuracy": True,
    "macro_f1": True,
    "nll_scaled": False,
    "brier": False,
    "surest_half": True,
    "risk_coverage": False,
}
Setting = dict[str, Any]  # passes, lr


def measures_of(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Every measure of SST's logits (rows,5) with labels (rows,).

    nll_scaled: NLL after one temperature, fitted on half of the rows and applied to the other (Guo et al.
    2017). brier: sum over the classes, mean over the rows. surest_half: accuracy on the half of the rows with
    the largest probability. risk_coverage: area under the error among the surest rows (Geifman et al. 2019).
    """
    probabilities = logits.softmax(-1).double()
    confidence, predicted = probabilities.max(-1)
    wrong = (predicted != labels).double()[confidence.argsort(descending=True, stable=True)]
    scaled, _ = cross_fitted(SST, logits, labels)
    one_hot = torch.nn.functional.one_hot(labels.long(), logits.shape[1])
    return {
        **score(SST, predicted.numpy(), labels.numpy()),
        "nll": float(SST.loss(logits, labels)),
        "nll_scaled": float(SST.loss(scaled, labels)),
        "brier": float((probabilities - one_hot).square().sum(-1).mean()),
        "surest_half": 1 - float(wrong[: len(wrong) // 2].mean()),
        "risk_coverage": float((wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)).mean()),
    }


def outcome(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a line says of a run's last weights on dev, and logits on dev and test, labels on dev.

    With SMART also R_s, its rounding floor and the ascent's gain, as the log has them at the end.
    """
    model, tokenizer, config = finished_model(folder)
    found = {}
    for split in ("dev", "test"):
        examples = read_examples(data_dir / SST.filename(split), SST, labelled=split == "dev")
        dataset = tokenize(examples, SST, tokenizer, config.max_length)
        found[split] = model_outputs(model, dataset, config.batch_size)
        if dataset.labels is not None:
            labels = dataset.labels
    dev: dict[str, Any] = measures_of(found["dev"], labels)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("smart", "smart_floor", "ascent_gain", "bregman"):
        if values := [line[name] for line in log if name in line]:
            dev[name] = values[-1]
    arrays = {"sst labels": labels.numpy()} | {f"sst {split}": found[split].numpy() for split in found}
    return {"sst": dev}, arrays


class Arm(NamedTuple):
    """An arm of the comparison. flags: beside --lr. side: whose winner it takes. cost: its steps, factor."""

    side: str
    flags: tuple[str, ...] = ()
    cost: float = 1.0
    seeds: tuple[int, ...] = EXPLORATORY_SEEDS


@dataclass(frozen=True)
class Tuned:
    """The two questions of a comparison.

    passes: by side the numbers of passes that are tried. rows: drawn of SST's training rows; None for all.
    wrong: share of wrong training labels while tuning. arms: plain and SMART first. more: measures that
    a question adds for each model, of (run, data_dir, folder).
    """

    name: str
    passes: Mapping[str, tuple[int, ...]]
    arms: Mapping[str, Arm]
    rows: int | None = None
    wrong: float = 0.0
    comparison_wrong: tuple[float, ...] = (0.0,)
    more: Callable[[Run, Path, Path], dict[str, Any]] = field(default=lambda *_: {})

    @property
    def judged(self) -> str:
        """The arm that has a verdict: SMART, with the largest share of wrong labels."""
        return self.label("SMART", max(self.comparison_wrong))

    def label(self, arm: str, wrong: float) -> str:
        """An arm's name in the lines."""
        return f"{arm}, {wrong:.0%} wrong" if len(self.comparison_wrong) > 1 else arm

    @property
    def tuning(self) -> Question:
        """What was run to tune both sides."""
        return Question(f"{self.name}_tuning", self.tuning_table)

    @property
    def comparison(self) -> Question:
        """What was run to compare the winners."""
        return Question(f"{self.name}_comparison", self.comparison_table)

    @property
    def winners_file(self) -> Path:
        """The setting of each side."""
        return HERE / f"{self.name}_winners.json"

    def steps(self, passes: float, rows: int) -> int:
        """Steps of so many passes over the rows that are trained on."""
        return round(passes * -(-(self.rows or rows) // TrainConfig().batch_size))

    def tuning_grid(self) -> list[Run]:
        """Nine settings a side."""
        rows = ALL_ROWS - HELD_OUT["sst"]
        return [
            Run(
                f"{side} {passes} passes lr {rate}",
                ("sst",),
                seed,
                (*(SMART if side == "SMART" else ()), "--lr", rate),
                self.steps(passes, rows),
                self.rows,
                self.wrong,
            )
            for seed in TUNING_SEEDS
            for side in self.passes
            for passes in self.passes[side]
            for rate in RATES
        ]

    def comparison_grid(self, winners: Mapping[str, Setting]) -> list[Run]:
        """Plain and SMART seed by seed, then the exploratory arms."""
        grid = []
        for arms in (PRIMARY, set(self.arms) - PRIMARY):
            for seed in SEEDS:
                for name, arm in self.arms.items():
                    if name not in arms or seed not in arm.seeds:
                        continue
                    won = winners[arm.side]
                    steps = self.steps(won["passes"] * arm.cost, ALL_ROWS)
                    flags = (*arm.flags, "--lr", won["lr"])
                    for wrong in self.comparison_wrong:
                        run = Run(self.label(name, wrong), ("sst",), seed, flags, steps, self.rows, wrong)
                        grid.append(run)
        return grid

    def winner(self, lines: Sequence[Line], side: str) -> Setting:
        """Of the settings within a standard error of the best accuracy, the one with the lowest NLL."""
        settings = {}
        for passes in self.passes[side]:
            for rate in RATES:
                found = tables.of_arm(lines, f"{side} {passes} passes lr {rate}")
                settings[passes, rate] = [line["dev"]["sst"] for line in found]
        accuracy = {key: [dev["accuracy"] for dev in devs] for key, devs in settings.items()}
        best = max(accuracy, key=lambda key: statistics.fmean(accuracy[key]))
        error = statistics.stdev(accuracy[best]) / len(accuracy[best]) ** 0.5
        limit = statistics.fmean(accuracy[best]) - error
        near = [key for key in settings if statistics.fmean(accuracy[key]) >= limit]
        passes, rate = min(near, key=lambda key: statistics.fmean(dev["nll"] for dev in settings[key]))
        return {"passes": passes, "lr": rate}

    def program(self, description: str | None) -> int:
        """The command line of a question. Returns the exit status."""
        options = parse(description)
        if not options.table:
            self.run(options.data_dir, options.work_dir, options.seeds)
        for question in (self.tuning, self.comparison):
            if question.lines():
                print(question.page())
        return 0

    def run(self, data_dir: Path, work_dir: Path, seeds: Sequence[int] | None) -> None:
        """Tune, write the winners, compare. The winners are to be committed before the comparison goes on."""
        held_out = held_out_folder(data_dir, work_dir / "held-out")

        def go(question: Question, grid: list[Run], folder: Path) -> bool:
            here = tables.processor_type(machine())
            elsewhere = {line["seed"] for line in question.lines() if tables.processor_type(line) != here}
            mine = [run for run in grid if run.seed not in elsewhere and (not seeds or run.seed in seeds)]
            run_grid(question, mine, folder, work_dir, self.outcome)
            return {run.name for run in grid} <= {line["name"] for line in question.lines()}

        if not go(self.tuning, self.tuning_grid(), held_out):
            return
        lines = self.tuning.lines()
        winners = {side: self.winner(lines, side) for side in self.passes}
        text = json.dumps(winners, indent=1) + "\n"
        if not self.winners_file.exists():
            write_text(self.winners_file, text)
            print(f"{self.winners_file} is written: commit it, then run the same command again")
            return
        assert self.winners_file.read_text() == text, "the winners are those of the lines"
        go(self.comparison, self.comparison_grid(winners), data_dir)

    def outcome(self, run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """`outcome`, and what the question adds."""
        dev, arrays = outcome(run, data_dir, folder)
        dev["sst"] |= self.more(run, data_dir, folder)
        return dev, arrays

    # ---------------------------------------------------------------------------------------- tables

    def tuning_table(self, lines: Sequence[Line]) -> str:
        """Every setting that was tried, the best of a side first."""
        rows = [
            tables.beside((arm.split()[0], arm), tables.of_arm(lines, arm))
            for arm in dict.fromkeys(line["arm"] for line in lines)
        ]
        rows.sort(key=lambda row: (row.labels[0], -statistics.fmean(map(of("accuracy"), row.lines))))
        columns = [(name, tables.mean(of(name), 4)) for name in ("accuracy", "macro_f1", "nll")]
        return tables.table(("side", "setting"), rows, (tables.SEEDS, *columns))

    def rows_of(self, lines: Sequence[Line]) -> list[Row]:
        """Each arm beside plain with as many wrong labels."""
        rows = []
        for wrong in self.comparison_wrong:
            plain = tables.of_arm(lines, self.label("plain", wrong))
            for arm in self.arms:
                found = tables.of_arm(lines, self.label(arm, wrong))
                base = () if arm == "plain" else plain
                rows += [tables.beside((self.label(arm, wrong),), found, base)] if found else []
        return rows

    def comparison_table(self, lines: Sequence[Line]) -> str:
        """Each arm beside plain: levels, then gains."""
        rows = self.rows_of(lines)
        compared = [row for row in rows if row.base]
        levels = [(name.replace("_", " "), tables.mean(of(name), 4)) for name in MEASURES]
        gains = [(name.replace("_", " "), tables.gain(of(name), 4)) for name in MEASURES]
        gains += [("accuracy over seeds and rows", self.interval_over_rows), ("verdict", self.verdict)]
        parts = [
            tables.table(("arm",), rows, (tables.SEEDS, *levels)),
            tables.table(("arm, less plain",), compared, (tables.SEEDS, *gains)),
        ]
        for row in compared:
            if row.labels == (self.judged,):
                names = list(MEASURES)[1:]
                values = holm([exact_p(*tables.pairs(row, of(name))) for name in names])
                said = (f"{name.replace('_', ' ')} {p:.4f}" for name, p in zip(names, values, strict=True))
                parts.append(f"{self.judged}, secondary measures, p by Holm: {', '.join(said)}.")
        return "\n\n".join(parts)

    def right_rows(self, lines: Sequence[Line]) -> np.ndarray:
        """(seeds, dev rows): 1 where the prediction of a run is right."""
        found = []
        for line in lines:
            with np.load(self.comparison.predictions(line["name"])) as arrays:
                found.append(arrays["sst dev"].argmax(1) == arrays["sst labels"])
        return np.array(found, dtype=np.float64)

    def interval(self, row: Row) -> tuple[float, float]:
        """95 % interval of the gain in accuracy over seeds and dev rows."""
        return bootstrap(self.right_rows(row.base), self.right_rows(row.lines))

    def interval_over_rows(self, row: Row) -> str:
        """`interval` as a cell."""
        low, high = self.interval(row)
        return f"{low:+.4f} to {high:+.4f}"

    def verdict(self, row: Row) -> str:
        """By the rule; the primary arm alone has one."""
        if row.labels != (self.judged,):
            return "exploratory"
        p = exact_p(*tables.pairs(row, of("accuracy")))
        low, high = self.interval(row)
        if p < SIGNIFICANT and (low > 0 or high < 0):
            return f"{'gain' if low > 0 else 'loss'} (p = {p:.5f})"
        word = "no gain" if low > -NEGLIGIBLE and high < NEGLIGIBLE else "not decided"
        return f"{word} (p = {p:.3f})"


def of(name: str) -> Measure:
    """A measure of a line."""
    return lambda line: line["dev"]["sst"].get(name)
