"""The simulated clusters: SimGrid agrees with the cost model where no link is shared."""

import shutil
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.simulation import page
from benchmarks.simulation.__main__ import measure
from benchmarks.simulation.smpi import BANDWIDTH, LATENCY, Network, compiled, simulate


@pytest.fixture
def program(tmp_path: Path) -> Path:
    if shutil.which("smpicc") is None:
        pytest.skip("no SimGrid: apt-get install libsimgrid-dev")
    return compiled(tmp_path)


def test_the_flat_network_follows_the_cost_model(program: Path) -> None:
    values = [130, 8194]
    for ranks in (8, 64):
        seconds = simulate(program, Network("flat", ranks), "rdb", values)
        for count in values:
            predicted = scaling.tree(ranks, 8 * count, LATENCY, 1 / BANDWIDTH)
            assert seconds[count] == pytest.approx(predicted, rel=0.1)
    # Of a whole number of values for each rank: SMPI sums a remainder in a second all-reduce.
    ring = simulate(program, Network("flat", 8), "lr", [8192])[8192]
    assert ring == pytest.approx(scaling.ring(8, 8 * 8192, LATENCY, 1 / BANDWIDTH), rel=0.1)


def test_long_messages_share_the_links_of_a_fat_tree(program: Path) -> None:
    flat, tree = (
        simulate(program, Network(name, 64), "rdb", [130, 65538]) for name in ("flat", "fat tree")
    )
    assert tree[130] < 1.3 * flat[130]
    assert tree[65538] > 1.3 * flat[65538]


@pytest.mark.timeout(300)
def test_the_page_has_every_network_and_algorithm(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del program  # the check that SimGrid is there
    monkeypatch.setattr(page, "DOCUMENTS", tmp_path)
    (tmp_path / "figures").mkdir()
    found = measure((8, 64))
    page.write(found)
    text = (tmp_path / "simulation.md").read_text()
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if " | " in line}
    assert rows["| ranks"][3:] == [
        "flat, recursive doubling",
        "flat, Rabenseifner",
        "flat, ring",
        "fat tree, recursive doubling",
        "fat tree, Rabenseifner",
        "fat tree, ring |",
    ]
    assert all(cell.strip(" |") for cell in rows["| 64"])
    assert "</svg>" in (tmp_path / "figures" / "simulation.svg").read_text()


def test_a_fat_tree_has_whole_levels() -> None:
    with pytest.raises(ValueError, match="power of 8"):
        Network("fat tree", 100).platform()
