"""What the seeds of one recipe say: the mean with its interval, and whether recipes differ."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from cifar_jax.report.charts import Histories
from cifar_jax.report.runs import Run
from cifar_jax.report.tables import flat, last_evaluation

_BESIDE_THE_RECIPE = ("seed", "data.dir")  # may differ among the runs of one mean
_LEVEL, _POWER = 0.05, 0.8  # of tests: a difference by chance, and one that is found
_MOST_SEEDS = 10_000


class Recipe(NamedTuple):
    """Runs of which only the seed differs."""

    runs: tuple[str, ...]
    steps: tuple[int, ...]  # at which they were evaluated
    accuracies: dict[str, float]  # by seed


def recipes(runs: Sequence[Run], histories: Histories) -> list[Recipe]:
    """The recipes of which two seeds or more were evaluated."""
    groups: dict[str, dict[str, tuple[str, int, float]]] = defaultdict(dict)
    for run in runs:
        config = flat(run.record["config"])
        last = last_evaluation(run, histories[run.name])
        recipe = {path: v for path, v in config.items() if path not in _BESIDE_THE_RECIPE}
        if math.isfinite(last.get("accuracy", math.nan)):
            of_seed = run.name, last["step"], last["accuracy"]
            groups[json.dumps(recipe, sort_keys=True)][str(config.get("seed", 0))] = of_seed
    found = []
    for group in groups.values():
        names, steps, values = zip(*group.values(), strict=True)
        if len(values) > 1:
            found.append(
                Recipe(names, tuple(sorted(set(steps))), dict(zip(group, values, strict=True)))
            )
    return found


def means(found: Sequence[Recipe]) -> list[dict[str, str]]:
    """Of the accuracy of each recipe: the deviation is of a sample, the interval of the mean."""
    lines = []
    for recipe in found:
        values = list(recipe.accuracies.values())
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        half = _quantile(1 - _LEVEL / 2, len(values)) * deviation / math.sqrt(len(values))
        lines.append(
            {
                "runs": ", ".join(recipe.runs),
                "seeds": ", ".join(recipe.accuracies),
                "evaluated at step": ", ".join(f"{step:,}" for step in recipe.steps),
                "accuracy, EMA": f"{mean:.4f} ± {deviation:.4f}",
                "95% interval of the mean": f"{mean - half:.4f} to {mean + half:.4f}",
            }
        )
    return lines


def comparisons(found: Sequence[Recipe]) -> list[dict[str, str]]:
    """For each two recipes with two seeds or more in common, whether they differ: the paired
    t-test over these seeds, and how many it would take to find a difference as large as theirs."""
    lines = []
    for one, other in combinations(found, 2):
        common = [seed for seed in one.accuracies if seed in other.accuracies]
        if len(common) < 2:
            continue
        each = [one.accuracies[seed] - other.accuracies[seed] for seed in common]
        mean, deviation = statistics.mean(each), statistics.stdev(each)
        half = _quantile(1 - _LEVEL / 2, len(each)) * deviation / math.sqrt(len(each))
        p = p_value(each)
        lines.append(
            {
                "recipes": f"{one.runs[0]}, … against {other.runs[0]}, …",
                "seeds": str(len(common)),
                "difference": f"{mean:+.4f}",
                "95% interval": f"{mean - half:+.4f} to {mean + half:+.4f}",
                "p": f"{p:.2g}",
                "differ": "yes" if p < _LEVEL else "not shown",
                "seeds to show it": seeds_to_show(mean, deviation),
            }
        )
    return lines


def p_value(differences: Sequence[float]) -> float:
    """Of the two-sided paired t-test: how probable so large a mean is where there is none."""
    from scipy.special import stdtr

    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if not deviation:
        return 1.0 if not mean else 0.0
    t = mean / (deviation / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def seeds_to_show(mean: float, deviation: float) -> str:
    """The fewest pairs with which that test finds such a difference in four of five cases."""
    if not mean:
        return "–"
    for count in range(2, _MOST_SEEDS):
        wanted = _quantile(1 - _LEVEL / 2, count) + _quantile(_POWER, count)
        if abs(mean) >= wanted * deviation / math.sqrt(count):
            return str(count)
    return f"more than {_MOST_SEEDS:,}"


def _quantile(share: float, count: int) -> float:
    """Of Student's distribution for the mean of `count` values."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, share))
