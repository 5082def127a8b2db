"""10-train from its first cell to its last, on two engines: what `make test` runs of what tests/test_reproduce.py runs all."""

import nbformat

from repro import notebooks, records

from conftest import SMOKE


def test_a_notebook_trains_the_same_weights_as_one_process(whole, digits, tmp_path):
    parameters = {key: value for key, value in SMOKE.items() if key != "seed"}
    parameters |= {"seeds": [SMOKE["seed"]], "ranks": 2, "data": digits, "out": str(tmp_path / "runs"), "live": False}
    book = nbformat.read(notebooks.execute("10-train", parameters, tmp_path / "10.ipynb"), as_version=4)
    (folder,) = records.complete_runs(tmp_path / "runs")
    digest = records.read(folder)["weights_sha256"]
    assert digest == records.read(whole)["weights_sha256"] and records.read(folder)["ranks"] == 2
    assert digest[:16] in str(book.cells), "the last table shows it"
