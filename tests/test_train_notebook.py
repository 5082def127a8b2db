"""10-train from its first cell to its last, on two engines: the part of tests/test_reproduce.py that `make test` runs."""

import nbformat

from repro import notebooks, records

from conftest import SMOKE


def test_a_notebook_trains_the_same_weights_as_one_process(whole, digits, tmp_path):
    parameters = {"recipe": SMOKE["recipe"], "shrink": SMOKE["shrink"], "seeds": [SMOKE["seed"]], "ranks": 2, "live": False}
    parameters |= {"settings": {"device": SMOKE["device"]}, "data": digits, "out": str(tmp_path / "runs")}
    book = nbformat.read(notebooks.execute("10-train", parameters, tmp_path / "10.ipynb"), as_version=4)
    (folder,) = records.complete_runs(tmp_path / "runs")
    digest = records.read(folder)["weights_sha256"]
    assert digest == records.read(whole)["weights_sha256"] and records.read(folder)["ranks"] == 2
    assert digest[:16] in str(book.cells), "the last table shows it"
