"""What a run shows on the screen: tables and lines that fit 100 columns. Knows names and numbers only."""

COLUMNS = 100


def table(rows: list[list[str]]) -> str:
    """Rows of cells as aligned text. The first row is the header, the first column left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def cut(text: str, columns: int = COLUMNS) -> str:
    """The text, or its beginning and an ellipsis where it is longer than so many columns."""
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def duration(seconds: float) -> str:
    """Seconds as `1.2 s`, `12 s`, `3:05 min` or `2:03 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"


def step_line(
    step: int, total: int, task: str, loss: float | None, added: dict[str, float], seconds_left: float
) -> str:
    """One line an interval: step, task, its loss, what each further term adds to it, the time left.

    loss: None for rows without labels.
    """
    terms = "".join(f"  {name} +{value:.3g}" for name, value in added.items())
    shown = "" if loss is None else f" loss {loss:.4f}"
    line = f"step {step:>{len(str(total))}}/{total}  {task:<7}{shown}{terms}"
    return cut(f"{line}  ({duration(seconds_left)} left)")


def numbers_line(step: int, kind: str, record: dict[str, float]) -> str:
    """Every number of a record, for `--log_level debug`."""
    numbers = (f"{name} {value:.4g}" for name, value in record.items())
    return f"step {step}  {kind}  " + "  ".join(numbers)


def scores_table(dev: dict[str, dict[str, float]], untrained: dict[str, float] | None = None) -> str:
    """Dev scores of each task, a row a task. `dev`: by task, then by metric; the main metric comes first.

    untrained: by task the main metric of the untrained encoder's cosine; without any there is no such column.
    """
    rows = [["task", "main metric", "dev", *(["untrained cosine"] if untrained else []), "also", "dev"]]
    for task, scores in dev.items():
        (main, value), *others = [(name, score) for name, score in scores.items() if name != "trained"]
        mark = "" if scores.get("trained", True) else " (not trained)"
        cells = [task + mark, main, f"{value:.3f}"]
        if untrained:
            cells.append(f"{untrained[task]:.3f}" if task in untrained else "")
        other = [others[0][0], f"{others[0][1]:.3f}"] if others else ["", ""]
        rows.append(cells + other)
    return table(rows)


def epoch_table(
    title: str, scores: dict[str, dict[str, float]], before: dict[str, dict[str, float]], best: str | None
) -> str:
    """Main dev scores after an epoch, a row a task and a pair of columns for each role (student, teacher).

    scores, before: by role, then by row (tasks and their mean, which comes last), now and one epoch earlier.
    best: the role whose mean is the best so far, which gets a star; None if it is an earlier epoch's.
    """
    rows = [[title, *(cell for role in scores for cell in (role, "change"))]]
    names = list(next(iter(scores.values())))
    for name in names:
        cells = [name]
        for role, values in scores.items():
            star = "*" if name == names[-1] and role == best else " "
            earlier = before.get(role, {}).get(name)
            change = "" if earlier is None else f"{values[name] - earlier:+.3f}"
            cells += [f"{values[name]:.3f}{star}", change]
        rows.append(cells)
    return table(rows)
