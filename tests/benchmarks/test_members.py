"""The benchmark of several networks, on tiny batches."""

import json
from functools import partial

import pytest

from benchmarks import members


@pytest.mark.slow
def test_it_measures_both_in_turns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(members, "measure", partial(members.measure, seconds=0.05))
    path = tmp_path / "figures.json"
    flags = ("--networks", "2", "--batch", "8", "--rounds", "3", "--json", str(path))
    assert members.main(flags) == 0
    (found,) = json.loads(path.read_text()).values()
    assert 0 < found["lowest"] <= found["ratio"] <= found["highest"]
    assert "2 networks: " in capsys.readouterr().out
