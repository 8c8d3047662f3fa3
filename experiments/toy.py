"""What smoothness looks like: decision regions on a toy in two dimensions, with and without R_s.

    python -m experiments.toy           # trains twice and draws, about 30 seconds

The paper's figure 3. Two moons, 100 noisy points, a small network that can learn them by heart. A point is an
"embedding" (B,1,2), so the regulariser is the project's own `SMARTLoss`, unchanged. Its lines are in
`toy.jsonl`: how many of 2,000 fresh points are right, and how many change their class within ε.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import make_moons
from torch import Tensor, nn

from experiments.pictures import Picture, save
from experiments.tables import HERE, Line, Question, markdown
from mysmartloss import SMARTLoss, sym_kl_loss
from support.files import write_text

STEPS = 1500
EPSILON = 0.15
WEIGHTS = {"plain": 0.0, "with R_s": 1.0}  # λ_s
SIDE = 220  # points a side of the picture's grid


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (count,1,2) as embeddings of one token, and their classes (count,)."""
    x, y = make_moons(count, noise=0.3, random_state=seed)
    return torch.tensor(x, dtype=torch.float32)[:, None], torch.tensor(y)


def regulariser(model: nn.Sequential) -> SMARTLoss:
    """R_s of the network, with two steps of the ascent."""
    return SMARTLoss(model, sym_kl_loss, epsilon=EPSILON, step_size=EPSILON, num_steps=2, noise_var=1e-4)


def train(weight: float) -> nn.Sequential:
    """A network (B,1,2) -> logits (B,2) after STEPS steps on 100 points; `weight` is λ_s."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
    )
    x, y = points(100, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    smart = regulariser(model)
    for _ in range(STEPS):
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        if weight:
            loss = loss + weight * smart(x, logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def measure(model: nn.Sequential) -> dict[str, float]:
    """Accuracy on the 100 points and on fresh ones; share of fresh points whose class changes within ε."""
    fresh, classes = points(2000, seed=1)
    moved = fresh + regulariser(model).perturbation(fresh, model(fresh))
    with torch.no_grad():
        before, after = model(fresh).argmax(-1), model(moved).argmax(-1)
        x, y = points(100, seed=0)
        return {
            "train_accuracy": float((model(x).argmax(-1) == y).float().mean()),
            "accuracy": float((before == classes).float().mean()),
            "changed": float((before != after).float().mean()),
        }


PICTURE = Picture(
    "toy",
    "Decision regions of two networks: the one trained with R_s has a softer and simpler border",
    height=4.0,
)


def draw(figure: Any, models: dict[str, nn.Sequential], lines: Sequence[Line]) -> None:
    """A panel for each model: the probability of class 1 by colour, the border, the training points."""
    across, up = np.meshgrid(np.linspace(-1.9, 2.9, SIDE), np.linspace(-1.5, 2.0, SIDE))
    plane = torch.tensor(np.stack([across, up], -1).reshape(-1, 1, 2), dtype=torch.float32)
    x, y = points(100, seed=0)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, model), line in zip(panels, models.items(), lines, strict=True):
        with torch.no_grad():
            shade = model(plane).softmax(-1)[:, 1].reshape(SIDE, SIDE)
        axes.contourf(across, up, shade, levels=np.linspace(0, 1, 11), cmap="PuOr", vmin=-0.4, vmax=1.4)
        axes.contour(across, up, shade, levels=[0.5], colors="#1F2328", linewidths=1.5)
        for number, marker in enumerate("os"):
            at = x[y == number, 0]
            colour = ("#7F3B08", "#2D004B")[number]
            axes.scatter(at[:, 0], at[:, 1], s=22, marker=marker, color=colour, edgecolors="white", lw=0.7)
        axes.set_title(
            f"{name}: {line['accuracy']:.1%} of fresh points right,\n"
            f"{line['changed']:.1%} change their class within ε = {EPSILON}"
        )
        axes.set_xticks([])
        axes.set_yticks([])


def shown(lines: Sequence[Line]) -> str:
    """A row for each network, in per cent."""
    names = ("train_accuracy", "accuracy", "changed")
    rows = [[line["training"], *(f"{line[name]:.1%}" for name in names)] for line in lines]
    return markdown(["training", "100 training points right", "fresh points right", "change within ε"], rows)


QUESTION = Question("toy", shown, (PICTURE,))


def main() -> None:
    """Train twice, write the lines, draw."""
    models = {name: train(weight) for name, weight in WEIGHTS.items()}
    lines = [{"training": name} | measure(model) for name, model in models.items()]
    write_text(QUESTION.file, "".join(json.dumps(line) + "\n" for line in lines))
    paths = save(PICTURE, partial(draw, models=models, lines=lines), HERE / "pictures")
    print(shown(lines), *paths, sep="\n")


if __name__ == "__main__":
    main()
