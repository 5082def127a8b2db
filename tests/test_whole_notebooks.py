"""Notebooks from their first cell to their last, on two engines; tests/test_reproduce.py runs the others."""

import nbformat
import pytest

from repro.jupyter import notebooks
from repro.run import records

from conftest import SMOKE


@pytest.mark.slow
def test_a_notebook_trains_the_same_weights_as_one_process(whole, digits, tmp_path):
    parameters = {"recipe": SMOKE["recipe"], "shrink": SMOKE["shrink"], "seeds": [SMOKE["seed"]], "ranks": 2, "live": False}
    parameters |= {"settings": {"device": SMOKE["device"]}, "data": digits, "out": str(tmp_path / "runs")}
    book = nbformat.read(notebooks.execute("10-train", parameters, tmp_path / "10.ipynb"), as_version=4)
    (folder,) = records.complete_runs(tmp_path / "runs")
    digest = records.read(folder)["weights_sha256"]
    assert digest == records.read(whole)["weights_sha256"] and records.read(folder)["ranks"] == 2
    assert digest[:16] in str(book.cells), "the last table shows it"


@pytest.mark.slow
def test_a_recipe_a_network_and_images_of_ones_own_are_trained_from_a_notebook(tmp_path):
    parameters = {"folder": str(tmp_path / "own"), "packed": str(tmp_path / "shapes"), "out": str(tmp_path / "runs")}
    notebooks.execute("03-your-own", parameters | {"live": False}, tmp_path / "03.ipynb")
    found = [records.read(folder) for folder in records.complete_runs(tmp_path / "runs")]
    assert {run["data"]["name"] for run in found} == {"digits", "shapes"}
    assert {(run["base"], run["model"], run["shrink"]) for run in found} == {("two_cosines", "mine.py:my_net", "none")}
    assert all(run["model_source"] for run in found)


@pytest.mark.slow
def test_the_algorithm_by_hand_gives_the_trainers_bits(tmp_path):
    """The notebook itself asserts it, for every tensor at the end of every stage; here for another seed."""
    parameters = {"out": str(tmp_path / "runs"), "seed": 3, "live": False}
    book = nbformat.read(notebooks.execute("04-by-hand", parameters, tmp_path / "04.ipynb"), as_version=4)
    assert any("bit-identical" in str(cell.get("outputs")) for cell in book.cells), "the last table shows it"


@pytest.mark.slow
def test_a_question_of_ones_own_is_answered_by_a_notebook_and_by_the_questions_notebook(tmp_path):
    """The second finds the runs of the first."""
    shared = {"shrink": "smoke", "seeds": [0, 1], "out": str(tmp_path / "runs"), "live": False}
    book = nbformat.read(notebooks.execute("05-your-question", shared, tmp_path / "05.ipynb"), as_version=4)
    folders = records.complete_runs(tmp_path / "runs")
    assert sorted(records.read(folder)["base"] for folder in folders) == ["my_cosine"] * 2 + ["one_model"] * 2
    assert "A cosine beats the linear decay: not resolved." in str(book.cells) and "image/png" in str(book.cells[-2].outputs)
    assert {file.name for file in (tmp_path / "own").glob("*/*")} == {
        f"my_cosine.{end}" for end in ("csv", "svg", "pdf", "png")
    }
    (tmp_path / "mine.py").write_text(
        "from repro import Question, Side\nmine = Question('a collapse helps', Side('one_model'), Side('one_model', 'plain'))\n"
    )
    again = notebooks.execute("12-questions", shared | {"ask": f"{tmp_path / 'mine.py'}:mine"}, tmp_path / "12.ipynb")
    assert "a collapse helps: not resolved." in again.read_text() and records.complete_runs(tmp_path / "runs") == folders
