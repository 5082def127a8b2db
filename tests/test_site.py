"""The documentation site: what is made from the code is complete, and the built pages have no link that leads nowhere."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlparse

import nbformat
import pytest

from repro import recipes
from repro.allreduce import Mean
from repro.cli.commands import parser

import executed
import generated
from conftest import ROOT, python
from docstrings import as_rst


def test_every_command_and_option_is_on_the_page():
    page = generated.commands()
    (listed,) = (action for action in parser()._actions if hasattr(action, "choices") and isinstance(action.choices, dict))
    for name, subparser in listed.choices.items():
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        for action in subparser._actions:
            assert all(option in section for option in action.option_strings[-1:] if action.dest != "help"), name
            assert (action.help or "").split("(default")[0].strip() in section or action.dest == "help"


def test_every_module_is_on_the_page():
    page = (ROOT / "docs" / "api.md").read_text()
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "repro").rglob("[a-z]*.py")}
    rooms = {f"repro.{path.parent.name}" for path in (ROOT / "repro").glob("*/__init__.py")}
    assert modules | rooms | {"repro"} == set(re.findall(r"^   (repro\S*)$", page, re.M))


def test_every_recipe_is_on_the_page_once():
    page = generated.released() + generated.controls() + generated.baselines()
    for name, recipe in recipes.RECIPES.items():
        assert page.count(f"|`{name}`<br>") == 1
        assert f"|{recipe.global_batch} = {recipe.workers} x {recipe.images_per_worker}|{recipe.epochs():.2f}|" in page


def test_docstrings_keep_indented_lines_and_have_a_dataclass_fields():
    lines = ["A list:", "", "    first   1", "    second  2", "Then text."]
    as_rst(None, "class", "Mean", Mean, {}, lines)
    assert lines[:8] == ["A list:", "", "", "::", "", "    first   1", "    second  2", ""]
    assert "- ``statistics: torch.Tensor``: (S,) batch means and variances" in lines


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(executed, "BUILD", tmp_path)
    return tmp_path


def finished(name):
    """A copy of a notebook as papermill leaves it, with one output."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    injected = nbformat.v4.new_code_cell(
        f'# Parameters\nruns = "{ROOT}/results/runs"', metadata={"tags": ["injected-parameters"]}
    )
    notebook.cells.insert(3, injected)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    code.outputs = [nbformat.v4.new_output("stream", text=f"in {ROOT}/results")]
    return notebook


def test_a_notebook_that_trains_is_shown_as_it_is_and_says_so(build):
    nbformat.write(finished("10-train"), build / "10-train.ipynb")  # of any profile
    shown = nbformat.reads(executed.shown("10-train"), as_version=4)
    assert shown.cells[1].source == executed.NOT_RUN
    assert not any(cell.get("outputs") for cell in shown.cells)


def test_an_executed_copy_shows_the_parameters_that_it_was_given_and_no_folders(build):
    nbformat.write(finished("20-tables"), build / "20-tables.ipynb")
    shown = nbformat.reads(executed.shown("20-tables"), as_version=4)
    assert shown.cells[-1].outputs[0].text == "in results"
    assert [cell.source for cell in shown.cells if "# Parameters" in cell.source] == ['# Parameters\nruns = "results/runs"']


class Links(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.targets, self.ids, self.images = [], set(), 0
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        self.targets += [found[name] for name in ("href", "src") if found.get(name)]
        self.images += tag == "img"


def broken(site):
    """The links of the pages in a folder that lead to no file, or to no place in their page, as (page, link)."""
    pages = {path: Links(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in map(urlparse, page.targets):
            if not link.scheme and not link.netloc:
                target = (path.parent / unquote(link.path)).resolve() if link.path else path
                there = target in pages and link.fragment in pages[target].ids if link.fragment else target.exists()
                found += [] if there else [(path.name, link.geturl())]
    return found


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">.</a> <a href="https://elsewhere.org/c.html">.</a> <img src="d.svg">'
    )
    (tmp_path / "b.html").write_text(
        '<h1 id="there">.</h1> <a href="a.html#gone">.</a> <a href="#there">.</a> <a href="c.html">.</a>'
    )
    assert sorted(broken(tmp_path)) == [("a.html", "d.svg"), ("b.html", "a.html#gone"), ("b.html", "c.html")]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    for name in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(name, reason="not installed: make docs installs it")
    done = python("-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs", ROOT, tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert not broken(tmp_path)
    for name in ("01-recipes", "21-figures"):
        assert Links(tmp_path / "notebooks" / f"{name}.html").images
