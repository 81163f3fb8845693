"""What the seeds of recipes say, against scipy's own tests."""

import numpy as np
import pytest
from scipy import stats

from cifar_jax.report import seeds
from cifar_jax.report.seeds import Recipe


def recipe(name, values, first=0):
    accuracies = {str(first + n): value for n, value in enumerate(values)}
    return Recipe(tuple(f"{name}{n}" for n in range(len(values))), (100,), accuracies)


A, B = (0.80, 0.82, 0.81, 0.805), (0.79, 0.80, 0.805, 0.80)


def test_the_interval_of_a_mean_is_students():
    (line,) = seeds.means([recipe("a", A)])
    low, high = stats.t.interval(0.95, 3, np.mean(A), stats.sem(A))
    assert line["accuracy, EMA"] == f"{np.mean(A):.4f} ± {np.std(A, ddof=1):.4f}"
    assert line["95% interval of the mean"] == f"{low:.4f} to {high:.4f}"


def test_two_recipes_are_compared_seed_by_seed():
    (line,) = seeds.comparisons([recipe("a", A), recipe("b", B)])
    expected = stats.ttest_rel(A, B)
    low, high = expected.confidence_interval()
    assert seeds.p_value(np.subtract(A, B).tolist()) == pytest.approx(expected.pvalue)
    assert line["p"] == f"{expected.pvalue:.2g}"
    assert line["95% interval"] == f"{low:+.4f} to {high:+.4f}"
    assert (line["difference"], line["differ"], line["seeds"]) == ("+0.0100", "not shown", "4")


def test_only_seeds_that_both_have_count():
    (line,) = seeds.comparisons([recipe("a", A), recipe("b", B, first=2)])
    assert line["seeds"] == "2"
    assert seeds.comparisons([recipe("a", A), recipe("b", B, first=9)]) == []


def test_so_many_seeds_find_the_difference_in_four_of_five_cases():
    count = int(seeds.seeds_to_show(0.01, 0.01))
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.01, 0.01, (4000, count))
    found = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    assert 0.77 < found.mean() < 0.85
    assert seeds.seeds_to_show(0.0, 0.01) == "–"
    assert seeds.seeds_to_show(1e-6, 0.01) == "more than 10,000"


def test_without_any_spread_there_is_no_doubt():
    assert seeds.p_value([0.0, 0.0]) == 1
    assert seeds.p_value([0.1, 0.1]) == 0
