"""The benchmark of the input: a tiny measurement, its table and its JSON."""

import json

import pytest

from benchmarks import input as benchmark


@pytest.fixture
def tiny(monkeypatch):
    for name, value in {"NUM_IMAGES": 300, "COUNTS": (1, 3), "BLOCKS": 2}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "BLOCK_SECONDS", 0.01)


def test_it_measures_both_placements(tiny, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert benchmark.main(["--json", str(path)]) == 0
    figures = json.loads(path.read_text())["input"]
    assert set(figures) == {"host/1", "stream/1", "host/3", "stream/3"}
    for block in figures.values():
        assert block["images_per_second"] > 0
        assert 0 <= block["occupancy"] <= 1
    out = capsys.readouterr().out
    for word in ("host/1", "stream/3", "50,000", "20,000"):
        assert word in out


def test_a_missing_folder_is_said_before_anything_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--json", str(tmp_path / "nowhere" / "figures.json")])
    assert end.value.code == 2
    assert "there is no folder" in capsys.readouterr().err
