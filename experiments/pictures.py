"""Pictures of the evidence: PNG, 800 pixels wide, for light and for dark pages, in colour-blind safe colours.

Colours: Okabe and Ito, "Color Universal Design" (2008).
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442"]
THEMES = {
    "light": {"background": "#FFFFFF", "ink": "#1F2328"},
    "dark": {"background": "#0D1117", "ink": "#E6EDF3"},  # GitHub's two pages
}


class Picture(NamedTuple):
    """A picture by name. draw(figure, lines=lines) draws it; None: its question draws it while it runs.

    height: in units of 100 pixels.
    """

    name: str
    description: str
    draw: Callable[..., None] | None = None
    height: float = 4.2


def save(picture: Picture, draw: Callable[[Any], None], folder: Path) -> list[Path]:
    """Write `<folder>/<name>-light.png` and `-dark.png`, each by draw(figure). Returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for theme, colours in THEMES.items():
        ink, background = colours["ink"], colours["background"]
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        style = dict.fromkeys(names, ink) | {"font.size": 11, "axes.titlesize": 11}
        style |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), background)
        style |= {"axes.spines.top": False, "axes.spines.right": False}
        with pyplot.rc_context(style):
            figure = pyplot.figure(figsize=(8, picture.height), dpi=100, layout="constrained")
            draw(figure)
            path = folder / f"{picture.name}-{theme}.png"
            figure.savefig(path, metadata={"Software": ""})
            pyplot.close(figure)
        paths.append(path)
    return paths


def markdown(picture: Picture, folder: str) -> str:
    """The picture for a Markdown page: GitHub shows the one that fits the reader's theme."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{folder}/{picture.name}-dark.png">'
        f'<img alt="{picture.description}" src="{folder}/{picture.name}-light.png" width="800"></picture>'
    )


class Point(NamedTuple):
    """An arm beside plain: its cost, its gain and the ends of the 95 % interval, in points."""

    arm: str
    cost: float
    gain: float
    low: float
    high: float


def looks_of(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm."""
    return dict(zip(arms, zip(COLOURS, "osv^<>p", strict=True), strict=False))


def gain_against_cost(
    axes: Any, points: Iterable[Point], looks: Mapping[str, tuple[str, str]], capsize: int = 4
) -> None:
    """Gains over plain against their cost. Arms of one cost stand side by side."""
    beside: dict[float, int] = {}  # how many arms of that cost there are already
    for point in points:
        colour, marker = looks[point.arm]
        bars = [[point.gain - point.low], [point.high - point.gain]]
        place = point.cost + 0.08 * beside.setdefault(point.cost, 0)
        beside[point.cost] += 1
        axes.errorbar(place, point.gain, bars, fmt=marker, capsize=capsize, color=colour, label=point.arm)
