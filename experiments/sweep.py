"""The runs behind SMART's defaults.

The runs are older than the runner. Each trained one task on 1,000 rows, the same for all seeds, for 96 steps
of 32 rows (3 passes). The whole dev set was scored once, at the end, with the student. Where a setting says
nothing else: λ_s = 1, η = ε, μ = 0, β = `fitted`.
"""

import statistics
from collections.abc import Sequence

from experiments.tables import Line, Question, markdown


def shown(lines: Sequence[Line]) -> str:
    """A row for each setting: the score of each seed, since seeds differ by more than settings do."""
    found: dict[str, dict[str, dict[int, float]]] = {}  # by setting, task and seed
    for line in sorted(lines, key=lambda line: line["seed"]):
        found.setdefault(line["setting"], {}).setdefault(line["task"], {})[line["seed"]] = line["score"]
    rows = []
    for setting in dict.fromkeys(line["setting"] for line in lines):
        sst, sts = ([*found[setting][task].values()] for task in ("sst", "sts"))
        each = [", ".join(f"{score:.3f}" for score in scores) for scores in (sst, sts)]
        means = [statistics.fmean(pair) for pair in zip(sst, sts, strict=True)]
        both = f"{statistics.fmean(means):.4f}" if len(means) > 1 else ""
        rows.append([setting, *each, f"{means[0]:.4f}", both])
    heads = ("setting", "SST, seeds 0, 1", "STS, seeds 0, 1", "both tasks, seed 0", "both tasks, both seeds")
    return markdown(heads, rows)


QUESTION = Question("sweep", shown)
