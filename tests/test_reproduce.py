"""The whole path, small: `reproduce --profile smoke` through engines, notebooks, tables, figures and report."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from repro.jupyter import engines
from repro.paper import ask, questions, reproduce
from repro.paths import ROOT
from repro.run import records

pytestmark = pytest.mark.slow  # all notebooks, some twice
TASKS = ask.tasks(questions.of(["collapse", "ensemble"]), [0])
SCALING = "measured", "model", "papers_nodes", "published", "checks"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


def run(*command, timeout=280, **kwargs):
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, **kwargs)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder that one smoke reproduction wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("results")
    done = run(sys.executable, "-m", "repro", "reproduce", "--profile", "smoke", "--results", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def test_it_says_first_what_it_will_do(results):
    assert (results / "printed").read_text().startswith("profile smoke asks on digits: collapse (n = 1), ensemble (n = 1); ")


def test_every_run_is_complete_and_every_product_is_there(results):
    assert len(records.complete_runs(results / "runs")) == len(TASKS) + 1  # and the one that all ranks share
    for name in (
        "accuracy",
        "answers",
        "ratios",
        "recipes",
        "ledger",
        "time_to_train",
        "predictions",
        "runs",
        "evaluations",
        "scaling_measured",
        "scaling_model",
        "scaling_papers_nodes",
        "scaling_published",
    ):
        assert (results / "tables" / f"{name}.csv").stat().st_size > 100
    for name in ("learning_rates", "training_curves", "budget", "headline", "answers", "time_to_train", "scaling"):
        for suffix in ("svg", "pdf", "png", "csv"):
            assert (results / "figures" / f"{name}.{suffix}").stat().st_size > 100
    assert not list(results.glob("**/*.failed.ipynb"))


def test_what_can_be_made_alone_is_all_that_was_made_by_notebooks_that_only_read(results):
    others = {
        "tables": {"runs", "evaluations", "predictions", *(f"scaling_{name}" for name in SCALING)},
        "figures": {"scaling", "scaling_step", *(f"answers-{topic}" for topic in questions.TOPICS)},
    }
    for kind, more in others.items():
        made = {path.stem for path in (results / kind).glob("*.csv")}
        assert made - more == set(reproduce.names(kind)) - {"beds"}, "which compares several data sets"


def test_one_line_a_run_was_printed_and_no_notebook_seems_to_have_failed(results):
    printed = (results / "printed").read_text()
    lines = re.findall(r"^run (\d+) of (\d+): (\w+), seed 0: top-1 [\d.]+% after \d+ \w+; (\d+)%", printed, flags=re.M)
    count = len(TASKS) + 1
    assert [(int(number), int(total)) for number, total, _, _ in lines] == [(n, count) for n in range(1, count + 1)]
    assert {name for _, _, name, _ in lines} == {reproduce.DISTRIBUTED, *(task["recipe"] for task in TASKS)}
    assert int(lines[-1][3]) == 100 and "failed" not in printed and "epoch" not in printed
    assert len(printed.splitlines()) < count + 12


def test_a_second_call_finds_nothing_to_do(results):
    """Before any test that changes something in these results."""
    before = {path: path.stat().st_mtime_ns for path in results.glob("**/*")}
    done = run(sys.executable, "-X", "importtime", "-m", "repro", "reproduce", "--profile", "smoke", "--results", str(results))
    assert done.returncode == 0 and "nothing to do: all is as it was made" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {results / 'report' / 'index.html'}"
    assert not re.search(r"\| +torch$", done.stderr, re.M), "without starting anything"
    assert {path: path.stat().st_mtime_ns for path in results.glob("**/*")} == before


def test_one_table_and_one_figure_alone_are_those_of_the_whole(results, tmp_path):
    alone = tmp_path / "results"
    alone.mkdir()
    (alone / "runs").symlink_to(results / "runs")
    (alone / "tables").mkdir()
    reproduce.make("tables", "answers", alone, alone / "runs")
    reproduce.make("figures", "budget", alone, alone / "runs", shrink="smoke")
    for name in ("tables/answers.csv", "figures/budget.csv", "figures/budget.svg"):
        assert (alone / name).read_bytes() == (results / name).read_bytes(), name


def test_the_same_run_by_mpiexec_has_the_same_weights(results, tmp_path):
    done = run(
        engines.find_mpiexec(),
        "-n",
        "2",
        sys.executable,
        "-m",
        "repro",
        "train",
        reproduce.DISTRIBUTED,
        "--shrink",
        "smoke",
        "--seed",
        "0",
        "--out",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    by_mpiexec = records.read(done.stdout.strip().splitlines()[-1])
    by_notebook = records.read(results / "runs" / Path(done.stdout.strip().splitlines()[-1]).name)
    assert by_mpiexec["weights_sha256"] == by_notebook["weights_sha256"] != ""
    assert by_mpiexec["ends"]["collapse"]["top1"] == by_notebook["ends"]["collapse"]["top1"]


def test_the_ensemble_counts_of_the_command_line_are_those_of_the_notebook(results):
    folder = next(path for path in records.complete_runs(results / "runs") if path.name.startswith("five_members"))
    before = records.ensembles(folder)
    members = ["--members", "collapse1,collapse2,collapse3"]
    done = run(sys.executable, "-m", "repro", "ensemble", str(folder), "--average", "logit", *members)
    entry = json.loads(done.stdout)
    assert entry["average"] == "logit" and entry["top1"] == next(
        old["top1"] for old in before if old["average"] == "logit" and old["members"] == entry["members"]
    )


def test_the_report_stands_alone(results):
    page = (results / "report" / "index.html").read_text()
    assert not re.search(r"""src=|href=["'](?!#|https://arxiv.org/abs/1711.04291"|https://github.com/sara-nl/caffe")""", page)
    assert page.count("<figure ") == 10 and "not resolved" in page and "NOT-RUN" in page
    assert "Their accuracies mean nothing" in page and "Other runs found" not in page


def test_the_run_of_all_ranks_was_predicted_and_the_report_shows_the_error(results):
    table = pd.read_csv(results / "tables" / "predictions.csv")
    assert list(table.recipe) == [reproduce.DISTRIBUTED, "all"] and table.error.notna().all()
    assert "as forecast by a probe beforehand" in (results / "report" / "index.html").read_text()


def test_what_the_scaling_model_says_is_labelled_and_apart_from_what_was_measured(results):
    page = (results / "report" / "index.html").read_text()
    section = page[page.index('<section id="scaling">') :]
    assert section.count('class="badge model"') >= 3 and "What is labelled MODEL was not measured" in section
    assert set(pd.read_csv(results / "tables" / "scaling_model.csv").label) == {"MODEL"}
    assert set(pd.read_csv(results / "tables" / "scaling_measured.csv").label) == {"measured"}
    assert set(pd.read_csv(results / "figures" / "scaling.csv").label) == {"MODEL", "measured", "published"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: the report was not looked at in a browser")
def test_the_report_opens_in_a_browser(results, tmp_path):
    page, picture = results / "report" / "index.html", tmp_path / "page.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    run(CHROMIUM, *flags, "--window-size=1100,6000", f"--screenshot={picture}", page.as_uri(), timeout=90)
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for colour in ((244, 244, 242), (0, 114, 178), (213, 94, 0)):  # the contents' ground; the palette's blue and vermilion
        assert (np.abs(pixels - np.array(colour)).max(1) <= 3).sum() > 500, colour


def test_a_second_call_finds_all_runs_complete_and_stops_with_one_line_where_it_cannot_write(results, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    shutil.rmtree(folder / "notebooks")
    (folder / "notebooks").write_text("a file where a folder belongs")
    before = {path: (path / "run.json").stat().st_mtime_ns for path in records.complete_runs(folder / "runs")}
    done = run(sys.executable, "-m", "repro", "reproduce", "--profile", "smoke", "--results", str(folder))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"cannot write to the folder {folder / 'notebooks'}" in done.stderr
    assert {path: (path / "run.json").stat().st_mtime_ns for path in before} == before
