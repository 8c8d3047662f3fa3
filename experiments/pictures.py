"""Pictures of the evidence: PNG, 800 pixels wide, for light and for dark pages, in colour-blind safe colours.

Colours: Okabe and Ito, "Color Universal Design" (2008).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442"]
THEMES = {
    "light": {"background": "#FFFFFF", "ink": "#1F2328"},
    "dark": {"background": "#0D1117", "ink": "#E6EDF3"},  # GitHub's two pages
}


def save(name: str, draw: Callable[[Any, list[str]], None], folder: Path, height: float = 4.2) -> list[Path]:
    """Write `<folder>/<name>-light.png` and `-dark.png`; `draw(figure, colours)` draws one of them.

    height: in units of 100 pixels. Returns the paths.
    """
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
            figure = pyplot.figure(figsize=(8, height), dpi=100, layout="constrained")
            draw(figure, COLOURS)
            path = folder / f"{name}-{theme}.png"
            figure.savefig(path, metadata={"Software": ""})
            pyplot.close(figure)
        paths.append(path)
    return paths


def markdown(name: str, description: str, folder: str) -> str:
    """The picture for a Markdown page: GitHub shows the one that fits the reader's theme."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.png">'
        f'<img alt="{description}" src="{folder}/{name}-light.png" width="800"></picture>'
    )


def drawn(descriptions: Mapping[str, str], folder: Path) -> list[str]:
    """Markdown for those pictures of a folder that are there, by name and description."""
    names = [name for name in descriptions if (folder / f"{name}-light.png").exists()]
    return [markdown(name, descriptions[name], folder.name) for name in names]
