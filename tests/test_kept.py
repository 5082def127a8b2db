"""Runs in few files: read like the folders that they were, written alike twice, and every damage named."""

import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest

import repro
from repro import ReproError, train
from repro.paper import answering, ledger, questions, reproduce, tables
from repro.paths import REFERENCE
from repro.run import kept, records, trained
from repro.run.identity import code_digest

from conftest import SMOKE
from test_tables import DATA, RUNS, write_run

LIMIT = 1 << 20  # bytes of a file in the repository


def to_keep(folder):
    correct = {name: records.load_correct(folder, name)["test"] for name in records.tested(folder)}
    return kept.Kept(records.read(folder), records.metric_rows(folder), records.ensembles(folder), correct)


def keep(out, target):
    """Keeps all runs in `out` in files in `target`, as `keep` does."""
    target.mkdir()
    runs = {folder.name: to_keep(folder) for folder in records.complete_runs(out)}
    for data in {each.run["data"]["name"] for each in runs.values()}:
        kept.keep_runs(target, data, {name: each for name, each in runs.items() if each.run["data"]["name"] == data})
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs of each recipe on three seeds; a run of another data set; one without predictions; one tested on fewer images."""
    out = tmp_path_factory.mktemp("folders")
    for base in RUNS:
        for seed in range(3):
            write_run(out, base, seed)
    write_run(out, "one_model", 0, data=DATA | {"name": "my letters"})
    shutil.rmtree(write_run(out, "one_model", 0, variant="split=val") / "correct")
    fewer = write_run(out, "one_model", 1, variant="split=val")
    records.save_correct(fewer, "late", {"test": np.arange(7) % 2 == 0})
    return out


@pytest.fixture
def files(folders, tmp_path):
    return keep(folders, tmp_path / "files")


def test_kept_runs_are_read_as_their_folders_were(folders, files):
    assert not list(files.glob("*/")) and len(list(files.iterdir())) == 6
    names = [folder.name for folder in records.all_runs(folders)]
    assert [folder.name for folder in records.all_runs(files)] == names and len(names) == 3 * len(RUNS) + 3
    for name in names:
        for read in (records.read, records.metric_rows, records.ensembles, records.tested):
            as_text = [json.dumps(read(out / name), sort_keys=True) for out in (folders, files)]  # 1 is not 1.0 in it
            assert as_text[0] == as_text[1], (name, read)
        assert list(records.read(files / name)["ends"]) == list(records.read(folders / name)["ends"])
        for model in records.tested(folders / name):
            before, after = (records.load_correct(out / name, model)["test"] for out in (folders, files))
            assert after.dtype == before.dtype and np.array_equal(after, before)


def test_tables_answers_and_the_ledger_of_kept_runs_are_those_of_their_folders(folders, files):
    def found(out):
        models = tables.models(out)
        answers = answering.answers(questions.QUESTIONS, models, out)
        return *repro.runs(out), models, tables.curves(out), tables.accuracy(models), answers, ledger.ledger(out, REFERENCE)

    for before, after in zip(found(folders), found(files)):
        pd.testing.assert_frame_equal(after, before, check_exact=True)


def test_what_was_read_may_be_changed_without_changing_what_is_read_next(files):
    folder = next(run for run in records.all_runs(files) if "five_members" in run.name)
    before = [read(folder) for read in (records.read, records.metric_rows, records.ensembles)]
    records.read(folder)["recipe"]["stages"].clear()
    records.metric_rows(folder)[0]["step"] = -1
    records.ensembles(folder)[0]["members"].clear()
    assert [read(folder) for read in (records.read, records.metric_rows, records.ensembles)] == before


def test_the_same_runs_make_the_same_bytes(folders, files, tmp_path):
    again = keep(files, tmp_path / "again")  # from files
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in files.iterdir()
    }


def test_a_folder_counts_before_a_kept_run_of_its_name(folders, files):
    name = records.all_runs(folders)[0].name
    shutil.copytree(folders / name, files / name)
    (files / name / "run.json").write_text(json.dumps(records.read(folders / name) | {"version": "newer"}))
    runs, _ = repro.runs(files)
    assert runs.folder.is_unique and set(runs[runs.folder == name].version) == {"newer"}
    (files / name / "run.json").unlink()  # as before training begins
    assert records.read(files / name) == {}


def change(path, how):
    """Changes the text of a file, which is compressed if its name says so."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(how(gzip.decompress(path.read_bytes()).decode()).encode()))
    else:
        path.write_text(how(path.read_text(errors="replace")))


def test_files_that_have_changed_are_read_again(folders, files):
    path = files / "digits-runs.jsonl.gz"
    change(path, lambda text: text.replace('"version": "0.1.0"', '"version": "0.9.0"'))
    assert set(repro.runs(files)[0].version) == {"0.9.0", "0.1.0"}  # "0.1.0": the other data set


# --- Damage -----------------------------------------------------------------------------------------------------------


def line(**changes):
    """A change of the first run's line."""

    def changed(text):
        first, rest = text.split("\n", 1)
        return json.dumps(json.loads(first) | changes) + "\n" + rest

    return changed


RUN = {"format": records.FORMAT, "recipe": {}}


@pytest.mark.parametrize(
    "name, how, words",
    [
        ("runs.jsonl.gz", lambda text: text[:1000], "Unterminated string|Expecting|delimiter"),
        ("runs.jsonl.gz", lambda text: "[3]\n" + text, "it is a list, not an object"),
        ("runs.jsonl.gz", lambda text: "[" * 100_000 + text, "recursion"),
        ("runs.jsonl.gz", line(run=[]), "run is a list, not an object"),
        ("runs.jsonl.gz", line(run=RUN | {"recipe": "nowhere"}), "nowhere"),
        ("runs.jsonl.gz", line(run=RUN), "is missing in it"),
        ("runs.jsonl.gz", line(ensembles=[3]), "is 3, not an object"),
        ("runs.jsonl.gz", line(folder="../../escaped"), "is no name of a folder"),
        ("runs.jsonl.gz", line(folder=".."), "is no name of a folder"),
        ("runs.jsonl.gz", line(folder=""), "is no name of a folder"),
        ("metrics.csv.gz", lambda text: text.replace(",main,", ",main,x", 1), "Expecting value"),
        ("metrics.csv.gz", lambda text: text.replace(",epoch,", ",else,", 1), "epoch is missing in row"),
        ("metrics.csv.gz", lambda text: text.partition("\n")[2], "is missing|KeyError|Expecting value"),
        ("correct.npz", lambda text: "no arrays", "pickle|zip"),
        ("runs.jsonl.gz", None, "No such file"),
        ("metrics.csv.gz", None, "No such file"),
        ("correct.npz", None, "No such file"),
    ],
)
def test_damaged_files_are_named(files, name, how, words):
    path = files / f"digits-{name}"
    if how:
        change(path, how)
    else:
        path.unlink()
    if name == "runs.jsonl.gz" and not how:  # then nothing is kept of this data set
        assert {records.read(run)["data"]["name"] for run in records.all_runs(files)} == {"my letters"}
        return
    with pytest.raises(ReproError, match=rf"digits-\S+ .*({words}).*: restore it, or make it again by `python -m repro keep`"):
        for folder in records.all_runs(files):
            records.metric_rows(folder), records.ensembles(folder)


@pytest.mark.parametrize("name", kept.FILES)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_files_that_were_cut_short_are_named(files, name, place):
    path = files / f"digits-{name}"
    content = path.read_bytes()
    path.write_bytes(content[: int(place * len(content))])
    with pytest.raises(ReproError, match=f"digits-{name} is damaged .*: restore it"):
        records.all_runs(files)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"models": np.array(["a/b"]), "images": np.array([9]), "correct": np.zeros((7, 1), np.uint8)},  # fewer than said
        {"models": np.array(["a/b"]), "images": np.array([7, 7]), "correct": np.zeros((7, 1), np.uint8)},
        {"models": np.array(["a/b"]), "images": np.array([7]), "correct": np.zeros((7, 1))},
        {"models": np.array(["a/b"] * 9), "images": np.array([7] * 9), "correct": np.zeros((7, 1), np.uint8)},
        {"models": np.array([3]), "images": np.array([7]), "correct": np.zeros((7, 1), np.uint8)},
        {"models": np.array(["a/b"], object), "images": np.array([7]), "correct": np.zeros((7, 1), np.uint8)},
    ],
)
def test_predictions_of_another_shape_are_named(files, arrays):
    np.savez(files / "digits-correct.npz", **arrays)
    with pytest.raises(ReproError, match="digits-correct.npz is damaged .*: restore it"):
        records.all_runs(files)


def test_predictions_that_are_not_kept_are_named(files):
    folder = records.all_runs(files)[0]
    with pytest.raises(ReproError, match=f"{folder.name} has no predictions of nothing"):
        records.load_correct(folder, "nothing")


def test_kept_runs_of_an_earlier_version_are_passed_over(files, caplog):
    path = files / "digits-runs.jsonl.gz"
    change(path, lambda text: text.replace('"format": 3', '"format": 2', 1))
    assert len(records.all_runs(files)) == 3 * len(RUNS) + 2 and "skipped 1 run folder(s)" in caplog.text


# --- What is committed ------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """The results of a reproduction by this code, with a run by other code and one that is not complete."""
    results = tmp_path / "results"
    names = (
        "report/index.html",
        "tables/runs.csv",
        "tables/evaluations.csv",
        *(f"figures/a.{end}" for end in ("svg", "pdf", "png")),
    )
    for name in names:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).touch()
    for seed in range(2):
        write_run(results / "runs", "five_members", seed, code=code_digest())
    write_run(results / "runs", "five_members", 2, code="older")
    write_run(results / "runs", "five_members", 3, code=code_digest(), status="stopped")
    (results / "runs" / "code.json").write_text("{}")
    return results


def test_what_is_kept_is_small_and_complete(results, tmp_path, capsys):
    reference = tmp_path / "reference"
    measured = ["faults.json", "bench/step.json", "figures/bench-step.svg"]  # by other commands
    for name in (*measured, "runs/old/run.json", "runs/digits-old.npz", "tables/old.csv"):
        (reference / name).parent.mkdir(parents=True, exist_ok=True)
        (reference / name).touch()
    reproduce.keep(results, reference)
    gone = "runs/digits-old.npz, runs/old, tables/old.csv"
    assert capsys.readouterr().out == f"no longer in {reference}, since {results} has none: {gone}\n"
    found = {str(path.relative_to(reference)) for path in reference.glob("**/*") if path.is_file()}
    files = {f"runs/{name}" for name in ("digits-runs.jsonl.gz", "digits-metrics.csv.gz", "digits-correct.npz", "code.json")}
    assert found == {*measured, *files, "report/index.html", "tables/runs.csv", "figures/a.svg", "figures/a.pdf"}
    runs, _ = repro.runs(reference / "runs")
    assert list(runs.seed) == [0, 1] and set(runs.code) == {code_digest()}
    assert trained.by(reference / "runs", zip(runs.code, runs.version)) == "trained by this code"
    read = {name for base, name in questions.read() if base == "five_members"}
    for folder in records.complete_runs(reference / "runs"):
        assert set(records.tested(folder)) == read & set(records.tested(results / "runs" / folder.name))


def test_runs_by_other_code_are_not_kept(results, tmp_path, monkeypatch):
    (tmp_path / "reference" / "runs").mkdir(parents=True)
    (tmp_path / "reference" / "runs" / "digits-runs.jsonl.gz").write_text("before")
    for module in (reproduce, tables):
        monkeypatch.setattr(module, "code_digest", lambda: "changed")
    with pytest.raises(ReproError, match="are by other code than this: `make reproduce` trains them again"):
        reproduce.keep(results, tmp_path / "reference")
    assert (tmp_path / "reference" / "runs" / "digits-runs.jsonl.gz").read_text() == "before"


def test_no_data_set_of_the_reference_is_lost(results, tmp_path):
    file = tmp_path / "reference" / "runs" / "letters-runs.jsonl.gz"
    file.parent.mkdir(parents=True)
    file.write_text("before")
    with pytest.raises(ReproError, match=f"has runs on letters, and {results / 'runs'} has none of this code"):
        reproduce.keep(results, tmp_path / "reference")
    assert file.read_text() == "before"


def test_a_reproduction_goes_on_from_kept_runs_and_all_are_kept_together(digits, whole, results, tmp_path, caplog):
    shutil.rmtree(results / "runs")
    out = keep(whole.parent, results / "runs")
    write_run(out, "one_model", 0, data=DATA | {"name": "letters"}, code=code_digest())
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    train.train_all([SMOKE | {"data": digits, "out": str(out), "seed": seed} for seed in (SMOKE["seed"], 6)])
    assert {path: path.read_bytes() for path in before} == before and not (out / whole.name).exists()
    assert len(list(out.glob("*-digits-seed6-*"))) == 1 and "models are gone" not in caplog.text
    reproduce.keep(results, tmp_path / "reference")
    runs, _ = repro.runs(tmp_path / "reference" / "runs")
    assert sorted(zip(runs.data, runs.seed)) == [("digits", 5), ("digits", 6), ("letters", 0)]
    assert runs.set_index("folder").weights_sha256[whole.name] == records.read(whole)["weights_sha256"]


def test_the_reference_is_in_few_small_files():
    found = list((REFERENCE / "runs").iterdir())
    names = {"code.json", *(f"digits-{name}" for name in kept.FILES)}
    assert {path.name for path in found} >= names and len(found) % 3 == 1
    assert all(path.stat().st_size < LIMIT for path in found)
