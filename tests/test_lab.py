"""00-start-here in JupyterLab, in a real browser: run, interrupted, continued, to its last table; and a tab that is closed."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from repro.jupyter import mine, notebooks

from conftest import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: `make setup` installs it")
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
FLAGS += ["disable-background-networking", "disable-component-update", "disable-sync"]
PATIENCE = 240  # seconds for anything to appear, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH: `make browser` installs it")]


@pytest.fixture
def lab(tmp_path):
    """The address of a user's copy of the notebook in JupyterLab, whose runs go into `tmp_path`; beside it are two others.

    longer.ipynb is the same with a run of some seconds more; follow.ipynb has one cell, which follows what is being trained.
    """
    (tmp_path / "notebooks").mkdir()
    book = (notebooks.FOLDER / "00-start-here.ipynb").read_text()
    default = json.dumps('out: str = ""')[1:-1]
    assert default in book
    book = book.replace(default, json.dumps(f'out: str = "{tmp_path / "runs"}"')[1:-1])
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "tour.ipynb").write_text(book)
    mine.copy_all(tmp_path / "originals", tmp_path / "notebooks")
    longer = book.replace('\\"smoke\\"', '\\"laptop\\"').replace("ranks: int = 2", "ranks: int = 1")  # it has one pass
    (tmp_path / "notebooks" / "longer.ipynb").write_text(longer)
    cell = nbformat.v4.new_code_cell(f"import repro\n\nrepro.live({str(tmp_path / 'runs')!r})")
    kernel = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "notebooks" / "follow.ipynb"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    # The announcements are as `make lab` has them; no setting of this user's is read or written.
    (tmp_path / "config" / "labconfig").mkdir(parents=True)
    written = re.search(r"labconfig/page_config.json: .*\n.*\n\t@echo '(.*)' >\$@", (ROOT / "Makefile").read_text())
    (tmp_path / "config" / "labconfig" / "page_config.json").write_text(written[1])
    private = {"JUPYTER_CONFIG_DIR": "config", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    options = ["--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, "--allow-root", str(tmp_path / "notebooks")],
            env={**os.environ, "PYTHONPATH": str(ROOT), **{name: str(tmp_path / folder) for name, folder in private.items()}},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/lab/tree/tour.ipynb?token={token}"
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels, and they their engines
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture
def page(lab, tmp_path):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS])
        # So tall that the whole notebook is visible: JupyterLab does not draw cells that are not.
        context = browser.new_context(viewport={"width": 1300, "height": 3500})
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.goto(lab)
        yield page
        if not page.is_closed():
            page.screenshot(path=tmp_path / "last.png")
        browser.close()


def run_all(page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def cell_of(page, source: str):
    """The code cell that contains this text."""
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=source))


def output_of(cell) -> str:
    return "\n".join(cell.locator(".jp-OutputArea-output").all_inner_texts())


def wait_for(what, seconds=PATIENCE):
    """Waits until `what()` is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "not seen"
        time.sleep(0.05)
    return found


def test_a_user_runs_the_tour_interrupts_it_and_continues(page, tmp_path):
    cell_of(page, "notebooks.complete()").wait_for()  # cells are drawn one after the other
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")
    training, picture = cell_of(page, "notebooks.train("), cell_of(page, "curves.schedule(")
    began = time.monotonic()
    run_all(page)
    picture.locator("img").wait_for()
    print(f"first picture after {time.monotonic() - began:.1f} s")

    # The bar and the figure move; one line ends the interrupted cell. Nothing slow comes before the interrupt.
    figure = training.locator("img")
    figure.wait_for()
    first = figure.get_attribute("src")
    wait_for(lambda: re.search(r"[1-9]\d*%.*images/s.*loss \d", output_of(training)))
    page.locator('[data-jp-item-name="interrupt"]').locator("jp-button").click()
    print(f"first losses after {time.monotonic() - began:.1f} s")
    error = training.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
    error.wait_for()
    told = error.inner_text().strip()
    stopped = re.fullmatch(r"stopped at epoch (\d\.\d) of 8\.2, saved; run this cell again to continue", told)
    assert stopped, told
    assert figure.get_attribute("src") != first
    page.screenshot(path=tmp_path / "interrupted.png")

    # The next Run All continues, with one bar that updates in place.
    run_all(page)
    wait_for(lambda: f"continuing at epoch {stopped[1]} of 8.2" in output_of(training))
    end = cell_of(page, "notebooks.complete()")
    wait_for(lambda: notebooks.MARK in output_of(end))
    page.screenshot(path=tmp_path / "end.png")
    shown = output_of(training)
    assert shown.count("images/s") == 1 and "100%" in shown, shown
    assert not page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count()

    rows = cell_of(page, "pd.DataFrame").locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == [
        "init", "cyc1", "collapse1", "cyc2", "collapse2", "cyc3", "collapse3", "ensemble"
    ]  # fmt: skip
    verdict = output_of(cell_of(page, "resolves nothing"))
    assert re.match(r"The ensemble has \d+\.\d\d%, \d+\.\d\d points (above|below) collapse\d, its best member", verdict)
    assert not page.locator(".jp-toast, .Toastify__toast").count(), "nothing pops up"

    # What JupyterLab saves is still known as a copy with untouched cells, which an update replaces.
    original, copy = (tmp_path / folder / "tour.ipynb" for folder in ("originals", "notebooks"))
    page.keyboard.press("Control+s")
    wait_for(lambda: notebooks.MARK in copy.read_text())
    assert mine.copy_all(original.parent, copy.parent) == [] and notebooks.MARK in copy.read_text()
    original.write_text(original.read_text().replace("# Start here", "# Begin here"))
    assert mine.copy_all(original.parent, copy.parent) == ["tour.ipynb was updated"] and "# Begin here" in copy.read_text()


def test_training_goes_on_when_its_tab_is_closed_and_another_follows_it(page, lab):
    follower = page.context.new_page()
    follower.goto(lab.replace("tour.ipynb", "follow.ipynb"))
    page.goto(lab.replace("tour.ipynb", "longer.ipynb"))
    training, following = cell_of(page, "notebooks.train("), cell_of(follower, "repro.live(")
    cell_of(page, "notebooks.complete()").wait_for()
    for tab in (page, follower):
        tab.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")
    run_all(page)
    wait_for(lambda: re.search(r"loss \d", output_of(training)))
    page.close()

    run_all(follower)
    figure = following.locator("img")
    figure.wait_for()
    first = figure.get_attribute("src")
    assert re.search(r"collapsed_ensemble\S*: trained by process \d+ on ", output_of(following))
    wait_for(lambda: re.search(r"complete: top-1 \d\d\.\d\d%", output_of(following)))
    assert figure.get_attribute("src") != first, "the curves have moved"
