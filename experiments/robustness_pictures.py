"""The three pictures of experiments/robustness.py, from what its lines say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import pictures
from experiments.inference import paired
from experiments.measures import ATTACKED_ROWS, EPSILONS
from experiments.runner import Line

COLOUR = {"plain": 0, "SMART": 5, "R3F": 2}  # of pictures.COLOURS
Arms = Mapping[str, Sequence[dict[str, Any]]]  # what the lines of each arm say of sst


def curves(arms: Arms, folder: Path) -> list[Path]:
    """Accuracy against ε, under attack and under noise, with 95 % intervals over seeds."""
    places = range(len(EPSILONS) + 1)

    def draw(figure: Any, colours: list[str]) -> None:
        axes = figure.subplots()
        for shift, (arm, found) in enumerate(arms.items()):
            seeds = f"{len(found)} seed{'s' * (len(found) > 1)}"
            for kind, style in (("attack", "-"), ("noise", ":")):
                values = [[each[kind][place]["accuracy"] for each in found] for place in places]
                means, lows, highs = np.array([paired([0.0] * len(side), side) for side in values]).T
                axes.errorbar(
                    np.array(places) + 0.04 * (shift - 1),  # so that no interval hides another
                    means,
                    [means - lows, highs - means],
                    fmt=f"o{style}",
                    capsize=4,
                    color=colours[COLOUR[arm]],
                    label=f"{arm}, {kind} ({seeds})",
                )
        axes.set_xticks(places, [f"{epsilon:g}" for epsilon in (0, *EPSILONS)])
        axes.set_xlabel("ε: how far each coordinate of an embedding, about .5, may move")
        axes.set_ylabel(f"accuracy on {ATTACKED_ROWS['sst']} dev rows")
        axes.set_title("SST-5: mean over seeds, 95 % intervals")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    return pictures.save("robustness", draw, folder)


def pooled_bins(found: Sequence[dict[str, Any]], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and accuracy of the bins that hold rows, over all seeds."""
    bins = np.array([each["calibration"][side]["bins"] for each in found])  # (seeds, bins, 3)
    counts = bins[:, :, 0]
    filled = counts.sum(0) > 0
    confidence, accuracy = ((bins[:, :, i] * counts).sum(0)[filled] / counts.sum(0)[filled] for i in (1, 2))
    return confidence, accuracy


def reliability(arms: Arms, folder: Path) -> list[Path]:
    """Accuracy against confidence, before and after temperature scaling."""

    def draw(figure: Any, colours: list[str]) -> None:
        for axes, side in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
            axes.plot([0.2, 1], [0.2, 1], color="gray", linewidth=1)
            for arm, found in arms.items():
                axes.plot(*pooled_bins(found, side), "o-", color=colours[COLOUR[arm]], label=arm)
            axes.set_title(f"{side} temperature scaling")
            axes.set_xlabel("confidence")
        figure.axes[0].set_ylabel("accuracy on SST's dev rows")
        figure.axes[0].legend(loc="upper left", frameon=False)

    return pictures.save("reliability", draw, folder)


def epochs(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Training loss and dev accuracy over the epochs of sst, a curve a seed."""

    def draw(figure: Any, colours: list[str]) -> None:
        left, right = figure.subplots(1, 2)
        named = set()
        for line in lines:
            dev = line["dev"]["sst"]["epochs"]
            label = None if line["arm"] in named else line["arm"]
            named.add(line["arm"])
            style = {"color": colours[COLOUR[line["arm"]]], "linewidth": 1.2, "label": label}
            steps, losses = zip(*line["train_loss"]["sst"], strict=True)
            left.plot(np.array(steps) * len(dev) / line["steps"], losses, **style)
            right.plot(range(1, len(dev) + 1), dev, **style)
        left.set_title("training loss (cross entropy)")
        right.set_title("accuracy on dev, a curve a seed")
        for axes in (left, right):
            axes.set_xlabel("epochs over SST")
        left.legend(frameon=False)

    return pictures.save("train-dev", draw, folder)
