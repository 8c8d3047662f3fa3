"""Pictures of the evidence: PNG, 800 pixels wide, for light and for dark pages, in colour-blind safe colours.

Colours: Okabe and Ito, "Color Universal Design" (2008).
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442"]
THEMES = {"light": ("#FFFFFF", "#1F2328"), "dark": ("#0D1117", "#E6EDF3")}  # GitHub's paper and ink


class Picture(NamedTuple):
    """A picture by name.

    draw: draw(figure, lines=lines). None: its question draws it while it runs. height: in hundreds of pixels.
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
    for theme, (paper, ink) in THEMES.items():
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        style = dict.fromkeys(names, ink) | {"font.size": 11, "axes.titlesize": 11}
        style |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper)
        style |= {"axes.spines.top": False, "axes.spines.right": False}
        with pyplot.rc_context(style):
            figure = pyplot.figure(figsize=(8, picture.height), dpi=100, layout="constrained")
            draw(figure)
            path = folder / f"{picture.name}-{theme}.png"
            figure.savefig(path, metadata={"Software": ""})
            pyplot.close(figure)
        paths.append(path)
    return paths


def picture_markdown(picture: Picture) -> str:
    """The picture for a Markdown page: GitHub shows the one that fits the reader's theme."""
    dark, light = (f"pictures/{picture.name}-{theme}.png" for theme in ("dark", "light"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{picture.description}" src="{light}" width="800"></picture>'
    )


def looks_of(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm."""
    return dict(zip(arms, zip(itertools.cycle(COLOURS), "osv^<>pDX*", strict=False), strict=False))


def gain_against_cost(
    axes: Any,
    points: Mapping[str, tuple[float, float, float, float]],
    looks: Mapping[str, tuple[str, str]],
    capsize: int = 4,
) -> None:
    """Gains over plain against their cost. Arms of one cost stand side by side.

    points: by arm its cost, its gain and the ends of the 95 % interval.
    """
    beside: dict[float, int] = {}  # how many arms of that cost there are already
    for arm, (cost, gain, low, high) in points.items():
        colour, marker = looks[arm]
        place = cost + 0.08 * beside.setdefault(cost, 0)
        beside[cost] += 1
        bars = [[gain - low], [high - gain]]
        axes.errorbar(place, gain, bars, fmt=marker, capsize=capsize, color=colour, label=arm)
