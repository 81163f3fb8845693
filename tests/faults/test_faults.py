"""A few tries of each kind of fault, with one seed; `make faults` makes all of them."""

import random

import pytest

from tests.faults import clusters, damage, disks, interruptions, neighbours, readers
from tests.faults.processes import Bench, Skipped

FAST = {readers.hostile: 1_500, interruptions.in_a_save: 1}
SLOW = {
    damage.of_files: 24,
    disks.full: 1,
    interruptions.at_random_moments: 4,
    interruptions.outside_of_training: 6,
    neighbours.evaluation: 60,
    disks.power_cuts: 4,
    disks.without_output: 3,
    damage.for_the_moment: 2,
    damage.of_runs: 2,
    damage.bad_sectors: 2,
    damage.of_all: 1,
    damage.gone_back: 1,
    disks.limited: 2,
    neighbours.divergence: 2,
    neighbours.clocks: 1,
    neighbours.two_trainers: 1,
    clusters.disturbed: 2,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    for path in (folder, folder.parent):
        path.chmod(0o755)
    return Bench(folder)


@pytest.mark.parametrize(
    ("scenario", "count"),
    [
        *(pytest.param(*each, id=each[0].__name__) for each in FAST.items()),
        *(
            pytest.param(*each, id=each[0].__name__, marks=pytest.mark.slow)
            for each in SLOW.items()
        ),
    ],
)
def test_nothing_is_lost_and_nothing_silently_wrong(bench, scenario, count):
    try:
        outcome = scenario(bench, random.Random(f"0 {scenario.__name__}"), count)
    except Skipped as error:
        pytest.skip(str(error))
    assert outcome.good, "\n".join(outcome.notes)
