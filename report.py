"""Pages about runs, made from the files in their folders alone.

    python report.py runs/finetune     # the page of a run, runs/finetune/report.html
    python report.py runs/*            # a table that compares runs, and runs/comparison.html

    1. read_run           results.json, last/, metrics.jsonl, predictions/*-dev-rows.jsonl -> Run
    2. verdict, tables    Run -> is the model any good; scores with intervals and baselines; mistakes
    3. pictures           metrics.jsonl, dev rows -> inline SVG by matplotlib
    4. write_report       all of it -> support/report.html (a jinja2 template) -> <folder>/report.html
    5. write_comparison   several Runs -> support/comparison.html -> comparison.html beside the folders

The pages need no script, no network and no torch. The same files give the same page, byte for byte.
"""

import argparse
import glob
import io
import itertools
import math
import re
import shlex
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from support.errors import UserError, exit_status, one_line
from support.files import parse_json, read_bytes, read_json, write_text
from support.screen import cut, duration, table

TEMPLATES = Path(__file__).resolve().parent / "support"
WORST = 10  # mistakes of a task that are shown
SAMPLE = "the project’s own sample, which is too small to learn much from"
RESAMPLES = 1000  # of the dev rows, for an interval
TERM_NAMES = {"task": "task loss", "smart": "R_s (smart)", "bregman": "D_Breg (bregman)", "rdrop": "R-Drop"}
# Settings that do not make another experiment. `seed` is the one that means are taken over.
NOT_COMPARED = {"seed", "output_dir", "command", "differing", "resume", "overwrite_output_dir"}
NOT_COMPARED |= {"logging_steps", "save_steps", "no_report", "log_level"}
Record = dict[str, Any]
Span = tuple[float, float]  # the ends of a 95 % interval

# -------------------------------------------------------------------------------------------- files


class Row(NamedTuple):
    """A dev row and its prediction. Classes are names, scores are numbers.

    probabilities: by class; empty for scores, and for a task that has none.
    """

    id: str
    texts: list[str]
    label: str | float
    prediction: str | float
    probabilities: Mapping[str, float] = MappingProxyType({})

    @property
    def loss(self) -> float:
        """Cross entropy of a class (0 without probabilities), squared error of a score."""
        if isinstance(self.label, str):
            probability = self.probabilities.get(self.label, 1.0)
            return -math.log(probability) if probability else math.inf
        return (float(self.prediction) - self.label) ** 2


class Run(NamedTuple):
    """What the files of a run say.

    ended: whether all of its steps are done and tested. results: `results.json`; of a run that has not ended,
    the same about its best epoch so far. records: `metrics.jsonl`, by kind. rows: dev rows by task.
    """

    folder: Path
    ended: bool
    results: Record
    records: dict[str, list[Record]]
    rows: dict[str, list[Row]]

    @property
    def tasks(self) -> list[str]:
        """The tasks that have training records."""
        return [kind.removeprefix("train/") for kind in self.records if kind.startswith("train/")]

    def points(self, kind: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of each log record of this kind that has such a value."""
        return [(record["step"], record[name]) for record in self.records.get(kind, []) if name in record]


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises UserError if there is none, or that names the damaged file."""
    names = ("results.json", "last/run.json", "last/progress.json")
    results, record, progress = (
        read_json(folder / name) if (folder / name).exists() else {} for name in names
    )
    if not results and not record:
        raise UserError(f"{folder}: holds no run, neither a results.json nor a checkpoint in last/")
    # results.json may be that of fewer epochs, before the run was resumed
    ended = bool(results) and progress.get("step") in (None, results.get("steps"))
    if not ended:
        times = {"train_seconds": progress["seconds"], "save_seconds": progress["save_seconds"]}
        results = progress["best"] | times | {"steps": progress["step"]}
    records = defaultdict(list)
    for line in json_lines(folder / "metrics.jsonl"):
        records[line["kind"]].append(line)
    rows = {}
    for task in results.get("dev", {}):
        lines = json_lines(folder / "predictions" / f"{task}-dev-rows.jsonl")
        rows[task] = [Row(**line) for line in lines]
    return Run(folder, ended, record | results, dict(records), rows)


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a file of JSON lines; none if there is no file. Raises UserError with file and line."""
    data = read_bytes(path) if path.exists() else b""
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=1):
        yield parse_json(f"{path}:{number}", line)


# ------------------------------------------------------------------------------------------- scores


def has_classes(rows: Sequence[Row]) -> bool:
    """Whether the rows have classes and not scores."""
    return bool(rows) and isinstance(rows[0].label, str)


def majority(rows: Sequence[Row]) -> str:
    """The most frequent class; of several the one that the model says most, so that a tie flatters nobody."""
    labels, said = (Counter(str(getattr(row, name)) for row in rows) for name in ("label", "prediction"))
    return max(labels, key=lambda name: (labels[name], said[name]))


def constant_scores(rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
    """The best constant prediction in words, and its scores by metric.

    Of classes it is the most frequent label of these rows, of scores their mean.
    """
    labels = [row.label for row in rows]
    if not labels:
        return "", {}
    if has_classes(rows):
        name = majority(rows)
        share = labels.count(name) / len(labels)
        # F1 of this class is 2 · share · 1 / (share + 1), that of every other class 0
        return f"always “{name}”", {"accuracy": share, "macro_f1": 2 * share / (1 + share) / len(set(labels))}
    values = [float(label) for label in labels]
    return f"always {statistics.fmean(values):.2f}, the mean", {
        "mean squared error": statistics.pvariance(values)
    }


def resampled_scores(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Scores of RESAMPLES samples of so many rows with replacement (Efron 1979), by metric: (RESAMPLES,).

    `constant` has the accuracy of the best constant prediction on the same samples.
    """
    random = np.random.default_rng(0)
    if not has_classes(rows):
        pairs = np.array([[row.label, row.prediction] for row in rows], dtype=np.float64)  # (rows,2)
        drawn = random.integers(len(rows), size=(RESAMPLES, len(rows)))
        with np.errstate(invalid="ignore", divide="ignore"):  # all predictions equal: no correlation
            pearson = [np.corrcoef(pairs[sample].T)[0, 1] for sample in drawn]
        errors = (pairs[:, 0] - pairs[:, 1]) ** 2
        return {"pearson": np.nan_to_num(pearson), "mean squared error": errors[drawn].mean(1)}
    counts = np.array([list(row.values()) for row in confusion(rows).values()])  # (classes,classes)
    # a sample of rows is a sample of the matrix's cells
    samples = random.multinomial(len(rows), counts.ravel() / len(rows), RESAMPLES).reshape(-1, *counts.shape)
    right = np.einsum("sii->si", samples)  # (RESAMPLES,classes)
    true, said = samples.sum(2), samples.sum(1)
    f1 = 2 * right / np.maximum(true + said, 1)
    return {
        "accuracy": right.sum(1) / len(rows),
        "macro_f1": f1.sum(1) / (true > 0).sum(1),
        "constant": true[:, list(confusion(rows)).index(majority(rows))] / len(rows),
    }


def span(values: np.ndarray) -> Span:
    """The middle 95 %."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class Verdict(NamedTuple):
    """A task's main score minus that of the best baseline, with its interval over dev rows."""

    task: str
    difference: float
    interval: Span
    baseline: str

    def __str__(self) -> str:
        low, high = self.interval
        interval = f"(95 % interval {low:+.3f} to {high:+.3f})"
        if low > 0 or high < 0:
            word = "better" if low > 0 else "worse"
            return f"{self.task} is {word} than {self.baseline} by {abs(self.difference):.3f} {interval}"
        return f"{self.task} can’t be told from {self.baseline}: {self.difference:+.3f} {interval}"


def verdict(run: Run, task: str) -> Verdict | None:
    """Is the model any good on this task? None if it was not trained on it, or has no dev rows.

    The untrained encoder's score is taken as it is: its predictions are not in the folder.
    """
    rows = run.rows[task]
    scores = run.results["dev"][task]
    if not rows or not scores.get("trained", True):
        return None
    metric = next(iter(scores))
    samples = resampled_scores(rows)
    if metric not in samples:  # a task of the user's own may have another
        return None
    words, constant = constant_scores(rows)
    value = constant.get(metric, 0.0)
    baselines: list[tuple[float, str, Any]] = [(value, words, samples.get("constant", 0.0))]
    if metric not in constant:
        baselines = [(0.0, "a constant, which correlates with nothing,", 0.0)]
    if (cosine := run.results.get("untrained_cosine", {}).get(task)) is not None:
        baselines.append((cosine, "the untrained encoder’s cosine", cosine))
    value, words, of_samples = max(baselines, key=lambda baseline: baseline[0])
    return Verdict(task, scores[metric] - value, span(samples[metric] - of_samples), words)


def score_table(run: Run, task: str) -> dict[str, Any]:
    """The scores of a task, a line a metric: model, its interval, the constant, the untrained cosine."""
    rows = run.rows[task]
    scores = dict(run.results["dev"][task])
    trained = scores.pop("trained", True)
    main_metric = next(iter(scores))
    words, constant = constant_scores(rows)
    samples = resampled_scores(rows) if rows else {}
    if "mean squared error" in constant:
        scores["mean squared error"] = statistics.fmean(row.loss for row in rows)
    lines = []
    for metric, value in scores.items():
        cosine = run.results.get("untrained_cosine", {}).get(task) if metric == main_metric else None
        interval = "{:.3f} to {:.3f}".format(*span(samples[metric])) if metric in samples else ""
        others = [f"{other:.3f}" if other is not None else "–" for other in (constant.get(metric), cosine)]
        lines.append((metric.replace("_", " "), f"{value:.3f}", interval, *others))
    return {"trained": trained, "rows": len(rows), "constant": words, "lines": lines}


def remarks(task: str, rows: Sequence[Row]) -> list[str]:
    """What a reader of the matrix or the scatter plot should see: rare answers, flat predictions."""
    if has_classes(rows):
        labels = Counter(str(row.label) for row in rows)
        said = Counter(str(row.prediction) for row in rows)
        if len(said) == 1:
            return [f"{task}: every answer is “{next(iter(said))}”."]
        return [
            f"{task}: “{name}” is {count / len(rows):.0%} of the rows and {said[name] / len(rows):.0%} of the"
            " answers."
            for name, count in labels.items()
            if count >= 0.05 * len(rows) and said[name] < 0.5 * count
        ]
    pairs = [[row.label, row.prediction] for row in rows]
    (label_low, low), (label_high, high) = np.percentile(pairs, [5, 95], axis=0)
    if high - low >= 0.5 * (label_high - label_low):
        return []
    flat = f"nine of ten predictions lie between {low:.2f} and {high:.2f}"
    return [f"{task}: {flat}, nine of ten labels between {label_low:.2f} and {label_high:.2f}."]


def confusion(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How many rows of each true class were given which class: counts[true][predicted]."""
    found = {str(name) for row in rows for name in (row.label, row.prediction)}
    names = list(dict.fromkeys([*rows[0].probabilities, *sorted(found)]))
    pairs = Counter((row.label, row.prediction) for row in rows)
    return {true: {said: pairs[true, said] for said in names} for true in names}


def worst_mistakes(rows: Sequence[Row]) -> list[Row]:
    """The rows with the highest loss among those that are wrong, the worst first."""
    wrong = [row for row in rows if row.prediction != row.label]
    return sorted(wrong, key=lambda row: -row.loss)[:WORST]


def cost_rows(run: Run) -> list[tuple[str, str]]:
    """Time and memory, by what they were spent on."""
    results = run.results
    table = []
    for name, words in {"train_seconds": "training steps", "save_seconds": "writing checkpoints"}.items():
        if results.get(name):
            table.append((words, duration(results[name])))
    if "examples_per_second" in results:
        table.append(("speed", f"{results['examples_per_second']:,.1f} rows a second"))
    for task in run.tasks:
        names = ("ms_per_step", "tokens_per_second")
        pace, tokens = (statistics.median(r[name] for r in run.records[f"train/{task}"]) for name in names)
        table.append((f"a step on {task}", f"{pace:,.0f} ms, {tokens:,.0f} tokens a second (medians)"))
    peaks = {"peak_memory_gib": "peak memory", "peak_gpu_memory_gib": "peak memory of the GPU"}
    return table + [(words, f"{results[name]:.2f} GiB") for name, words in peaks.items() if name in results]


def facts(run: Run) -> list[tuple[str, str]]:
    """What else decides the numbers."""
    results, config = run.results, run.results["config"]
    return [
        ("option", config["option"]),
        ("encoder", results.get("checkpoint") or config["model_name_or_path"]),
        ("trained tasks", ", ".join(results["trained_tasks"])),
        ("precision", ", ".join(filter(None, [config["precision"], results.get("precision_reason")]))),
        *results.get("versions", {}).items(),
    ]


# ----------------------------------------------------------------------------------------- pictures

# The page has colours of its own, in light and in dark; those of matplotlib are replaced in the SVG. They are
# Okabe and Ito's, made for colour-blind readers.
INK = "#0a0b0c"
COLOURS = {"#0072b2": "blue", "#d55e00": "orange", "#009e73": "green", "#cc79a7": "purple"}
BLUE, VERMILLION, *_ = COLOURS
PAGE_COLOURS = {INK: "currentColor"} | {colour: f"var(--{name})" for colour, name in COLOURS.items()}
DASHES = ("-", "--", ":", "-.")
LINES = [(colour, DASHES[(k + shift) % 4]) for shift in range(3) for k, colour in enumerate(COLOURS)]
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE = dict.fromkeys((*INKED, "grid.color"), INK) | {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same picture gets the same ids
    "text.parse_math": False,
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "lines.linewidth": 1.4,
    "lines.markersize": 2.5,
    "legend.frameon": False,
}


def picture(title: str, draw: Callable[[Figure], None], size: tuple[float, float] = (3.2, 2.1)) -> Markup:
    """What `draw` draws, as SVG for the page, without background. size: in inches of 72 points."""
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # matplotlib numbers its groups in every picture alike, and an id must be unique on the page
    svg = re.sub(r' (?:id="[a-zA-Z0-9.]+_\d+"|xmlns(?::xlink)?="[^"]*"|(?<=pt" )height="[^"]*")', "", svg)
    for colour, replacement in PAGE_COLOURS.items():
        svg = svg.replace(colour, replacement)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1))


def plain_number(value: float, _: Any = None) -> str:
    """A tick's number without exponent: 0.0004."""
    return np.format_float_positional(value, precision=4, unique=False, fractional=False, trim="-")


class Line(NamedTuple):
    """A line of a plot: its name in the legend, points (step, value), colour and dashes."""

    name: str
    points: list[tuple[int, float]]
    style: tuple[str, str] = (BLUE, "-")


def draw_lines(axes: Axes, title: str, lines: Sequence[Line], scale: str = "loss") -> None:
    """Lines over steps.

    scale: `loss` begins at 0, `score` shows a tenth at least, so that two rows' difference looks small;
    `log` where all values are above 0.
    """
    for name, points, (colour, dashes) in lines:
        marker = "o" if len(points) < 30 else ""
        axes.plot(*zip(*points, strict=True), dashes, color=colour, label=name, marker=marker)
    axes.set_title(cut(title, 32), loc="left")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    low, high = axes.get_ylim()
    if scale == "log" and all(value > 0 for _, points, _ in lines for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    elif scale == "score":
        margin = max(0.0, 0.1 - (high - low)) / 2
        axes.set_ylim(low - margin, high + margin)
    elif low > 0:
        axes.set_ylim(0, high)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(plain_number)


def line_plot(title: str, lines: Sequence[Line], scale: str = "loss") -> Markup:
    """Lines over steps as SVG, with a legend below where there are several."""

    def draw(figure: Figure) -> None:
        draw_lines(figure.subplots(), title, lines, scale)
        if len(lines) > 1:
            figure.legend(loc="outside lower left", ncols=2)

    return picture(title, draw, (3.2, 2.1 + 0.09 * len(lines)))


def curves(run: Run) -> dict[str, list[Markup]]:
    """Plots of main scores on dev, terms of each task's loss, R_s before and after the ascent.

    A single point is no curve, and is left out.
    """
    weights = [name for name in run.results["config"] if name.endswith("_weight")]
    plots: dict[str, list[Markup]] = {"dev": [], "loss": [], "smart": []}
    lines = []
    for (task, scores), colour in zip(run.results.get("dev", {}).items(), itertools.cycle(COLOURS)):
        metric = next(iter(scores))
        lines.append(Line(f"{task}, {metric}", run.points(f"dev/{task}", metric), (colour, "-")))
        lines.append(Line(f"{task}, teacher", run.points(f"teacher/{task}", metric), (colour, ":")))
    if lines := [line for line in lines if len(line.points) > 1]:
        plots["dev"].append(line_plot("scores on dev", lines, "score"))
    for task in run.tasks:
        kind = f"train/{task}"
        for term in ["task", *(name.removesuffix("_weight") for name in weights)]:
            if len(found := run.points(kind, term)) > 1:
                plots["loss"].append(line_plot(f"{task}: {TERM_NAMES.get(term, term)}", [Line(term, found)]))
        if len(after := run.points(kind, "ascent_divergence")) > 1:
            before = Line("before", run.points(kind, "random_divergence"), LINES[1])
            plots["smart"].append(line_plot(f"{task}: R_s", [Line("after the ascent", after), before], "log"))
    return plots


def scatter_plot(task: str, rows: Sequence[Row]) -> Markup:
    """Predicted against true scores, with the line on which they are equal."""
    title = f"{task}: predicted against true"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = [min(row.label for row in rows), max(row.label for row in rows)]
        axes.plot(ends, ends, "--", color=VERMILLION, linewidth=1)
        shown = rows[:: 1 + len(rows) // 2000]  # more points would only make the page large
        x, y = [row.label for row in shown], [row.prediction for row in shown]
        axes.plot(x, y, "o", color=BLUE, alpha=0.6, markeredgewidth=0, markersize=3.5)
        axes.set(xlabel="true", ylabel="predicted")
        axes.set_title(cut(title, 32), loc="left")

    return picture(title, draw)


# --------------------------------------------------------------------------------------------- page


def rendered(template: str, **values: Any) -> str:
    """A page as HTML. Everything that a run wrote is escaped."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)


def page(run: Run) -> str:
    """The page of a run."""
    with_rows = {task: rows for task, rows in run.rows.items() if rows}
    measured = {
        task: [record for record in run.records[f"train/{task}"] if "ascent_divergence" in record]
        for task in run.tasks
    }
    config = run.results["config"]
    resume = ["python", "multitask_classifier.py", "--resume", "--output_dir", config["output_dir"]]
    return rendered(
        "report.html",
        run=run,
        results=run.results,
        config=config,
        time=duration(run.results.get("train_seconds") or 0.0),
        data=SAMPLE if run.results["data"] == "sample" else run.results["data"],
        verdicts=[found for task in run.rows if (found := verdict(run, task))],
        resume_command=shlex.join(resume),
        score_tables={task: score_table(run, task) for task in run.rows},
        remarks=[remark for task, rows in with_rows.items() for remark in remarks(task, rows)],
        confusions={task: confusion(rows) for task, rows in with_rows.items() if has_classes(rows)},
        scatter_plots=[scatter_plot(task, rows) for task, rows in with_rows.items() if not has_classes(rows)],
        mistakes={task: worst_mistakes(rows) for task, rows in run.rows.items()},
        smart={task: records[-1] for task, records in measured.items() if records},
        cost_rows=cost_rows(run),
        facts=facts(run),
        curves=curves(run),
    )


def opened(folder: Path, make: Callable[[Run], Any]) -> Any:
    """What `make` makes of the run in the folder. Raises UserError if its files are not those of a run."""
    try:
        return make(read_run(folder))
    except UserError:
        raise
    except Exception as error:  # a damaged file can hold anything in the place of a number
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{folder}: its files are not those of a run ({problem})") from None


def write_report(folder: Path) -> Path:
    """Make `folder`/report.html, whole or not at all, and return its path.

    Raises UserError if the folder holds no run, if a file of it is damaged, or if the page can't be written.
    """
    html = opened(folder, page)
    path = folder / "report.html"
    write_text(path, html)
    return path


# --------------------------------------------------------------------------------------- comparison


class Setting(NamedTuple):
    """Runs that differ in the seed alone."""

    runs: list[Run]

    @property
    def name(self) -> str:
        """The first run's folder."""
        run = self.runs[0]
        step = "" if run.ended else f" (step {run.results['steps']} of {run.results['total_steps']})"
        return run.folder.name + step

    def scores(self) -> dict[str, list[float]]:
        """The main dev score of each task that all runs were trained on, and their mean, a number a run."""
        of_runs = [main_scores(run) for run in self.runs]
        return {name: [scores[name] for scores in of_runs if name in scores] for name in of_runs[0]}

    def time(self) -> str:
        return duration(statistics.fmean(run.results.get("train_seconds") or 0.0 for run in self.runs))


def main_scores(run: Run) -> dict[str, float]:
    """The main dev score of each trained task, and their mean."""
    dev = run.results.get("dev", {})
    found = {task: next(iter(scores.values())) for task, scores in dev.items() if scores.get("trained", True)}
    return found | ({"mean": statistics.fmean(found.values())} if len(found) > 1 else {})


def compared_settings(run: Run) -> dict[str, str]:
    """What makes the run another experiment: its settings, as words of a command line."""

    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ",".join(f"{name}={word}" for name, word in value.items())
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    config = run.results["config"]
    left_out = {*NOT_COMPARED, "files", "checkpoint", "own"}
    # a version without the flag did what None does
    found = {
        name: words(value) for name, value in config.items() if name not in left_out and value is not None
    }
    if model := run.results.get("checkpoint"):  # an evaluation of a saved model
        found["checkpoint"] = str(model)
    files = {name: path for name, path in config.get("files", {}).items() if not name.endswith("_out")}
    return found | files | {"data": run.results["data"]}


def seed_of(run: Run) -> int:
    """The run's seed."""
    return run.results["config"]["seed"]


def grouped(runs: Sequence[Run]) -> tuple[list[Setting], list[dict[str, str]]]:
    """The settings in the order of their first runs, and of each the flags in which the settings differ."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        group = groups.setdefault(tuple(sorted(compared_settings(run).items())), [])
        if seed_of(run) in map(seed_of, group):
            print(f"left out: {run.folder} has settings and seed of {group[0].folder}", file=sys.stderr)
        else:
            group.append(run)
    flags = [dict(key) for key in groups]
    names = dict.fromkeys(name for found in flags for name in found)
    differing = [name for name in names if len({found.get(name) for found in flags}) > 1]
    return [Setting(group) for group in groups.values()], [
        {name: found.get(name, "None") for name in differing} for found in flags
    ]


def comparison_rows(settings: Sequence[Setting]) -> list[list[tuple[str, str]]]:
    """A row a setting: name, runs, each score, time. Each cell has a value and the change to the first row.

    A value is the mean, with its standard error where there are several seeds.
    """
    columns = list(dict.fromkeys(name for setting in settings for name in setting.scores()))
    first = {name: statistics.fmean(values) for name, values in settings[0].scores().items() if values}
    rows = [[(name, "") for name in ("run", "seeds", *columns, "time")]]
    for place, setting in enumerate(settings):
        cells = [(setting.name, ""), (str(len(setting.runs)), "")]
        for name in columns:
            values = setting.scores().get(name, [])
            mean = statistics.fmean(values) if values else math.nan
            error = f" ±{statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
            comparable = name != "mean" or setting.scores().keys() == settings[0].scores().keys()
            compared = place and values and name in first and comparable
            change = f"{mean - first[name]:+.3f}" if compared else ""
            cells.append((f"{mean:.3f}{error}" if values else "", change))
        rows.append([*cells, (setting.time(), "")])
    return rows


def warnings_of(runs: Sequence[Run]) -> list[str]:
    """A line for each run whose dev rows are not those of the first run with that task."""
    ids: dict[str, tuple[str, list[str]]] = {}
    found = []
    for run in runs:
        for task, rows in run.rows.items():
            name, first = ids.setdefault(task, (run.folder.name, [row.id for row in rows]))
            if [row.id for row in rows] != first:
                found.append(f"{task}: {run.folder.name} was scored on other dev rows than {name}")
    return found


def comparison_picture(settings: Sequence[Setting]) -> Markup:
    """Dev scores and task losses over steps, a panel a task; runs of a setting have the same line."""
    shown = list(zip(settings, LINES, strict=False))
    tasks = list(dict.fromkeys(task for setting in settings for task in setting.scores() if task != "mean"))

    def lines(kind: str, name: str | None) -> list[Line]:
        found = []
        for setting, style in shown:
            for place, run in enumerate(setting.runs):
                scores = run.results["dev"].get(kind.partition("/")[2], {})
                points = run.points(kind, name or next(iter(scores), ""))
                label = setting.name if place == 0 else f"_{place}"  # matplotlib leaves `_` out of legends
                found += [Line(label, points, style)] if points else []
        return found

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(tasks), 2, squeeze=False)
        for (left, right), task in zip(panels, tasks, strict=True):
            draw_lines(left, f"{task}: dev", lines(f"dev/{task}", None), "score")
            draw_lines(right, f"{task}: task loss", lines(f"train/{task}", "task"))
        found: dict[str, Any] = {}
        for axes in panels.flat:
            found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        labels = [cut(label, 40) for label in found]
        figure.legend(list(found.values()), labels, loc="outside lower left", ncols=2)

    height = 1.7 * len(tasks) + 0.16 * (1 + len(shown))
    return picture("dev scores and task losses over steps", draw, (6.6, height))


def write_comparison(folders: Sequence[Path]) -> Path:
    """Print a table that compares the runs, and write comparison.html beside the first run's folder.

    Folders without a run are left out, with a line. Returns the page's path. Raises UserError if no folder
    holds a run, if a file is damaged, or if the page can't be written.
    """
    runs = []
    for folder in folders:
        try:
            run = opened(folder, lambda run: run if main_scores(run) else None)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if run:
            runs.append(run)
        else:
            print(f"left out: {folder} has no scores on dev", file=sys.stderr)
    if not runs:
        raise UserError("none of the folders holds a run that was scored on dev")
    settings, flags = grouped(runs)
    rows = comparison_rows(settings)
    warnings = warnings_of(runs)
    for setting, found in zip(settings, flags, strict=True):
        print(cut(f"{setting.name}: " + (" ".join(f"--{name} {value}" for name, value in found.items()))))
    lines = [[cut(cells[0][0], 30), *(value for value, _ in cells[1:])] for cells in rows]
    for place in range(len(rows) - 1, 1, -1):
        lines.insert(place + 1, ["", *(change for _, change in rows[place][1:])])
    print("\n" + table(lines))
    print(*warnings, sep="\n", end="\n" if warnings else "")
    path = runs[0].folder.resolve().parent / "comparison.html"
    html = rendered(
        "comparison.html",
        rows=rows,
        settings=settings,
        flags=flags,
        warnings=warnings,
        picture=comparison_picture(settings),
        not_drawn=settings[len(LINES) :],
    )
    write_text(path, html)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a user's mistake (one line on stderr)."""
    parser = argparse.ArgumentParser(description="Make the page of a run, or compare several runs.")
    words = "a run's --output_dir, such as runs/finetune; several, such as runs/*, are compared"
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help=words)
    # Windows does not expand runs/*
    given = [
        name for word in parser.parse_args(arguments).folders for name in sorted(glob.glob(word)) or [word]
    ]
    folders = [Path(name) for name in given if len(given) == 1 or Path(name).is_dir()]

    def program() -> int:
        print(write_report(folders[0]) if len(folders) == 1 else write_comparison(folders))
        return 0

    return exit_status("report.py", program)


if __name__ == "__main__":
    sys.exit(main())
