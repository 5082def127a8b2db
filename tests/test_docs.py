"""README and docs: short enough, links that lead somewhere, numbers from files, and code blocks that run."""

import csv
import re
import shlex
import subprocess
from typing import NamedTuple

import nbformat
import papermill
import pytest
import yaml

from repro import ReproError, __version__, recipes
from repro.cli.commands import parser
from repro.jupyter import notebooks
from repro.paper import reproduce
from repro.paper.names import COLUMNS
from repro.run import identity, own

import generated
import write_numbers
from conftest import ROOT, python

FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "data_prep/README.md")]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [*FRONT, *sorted((ROOT / "docs").glob("*.md"))]}
SCRIPT = ROOT / "docs" / "write_numbers.py"
each_page = pytest.mark.parametrize("page", PAGES)


class Block(NamedTuple):
    reason: str  # why it is not run; "": it is
    language: str  # "": commands for a terminal
    text: str

    @property
    def lines(self) -> list[str]:
        """Those that a backslash continues as one."""
        return [line.strip() for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^(?:<!-- not run: (.+) -->\n)?```([\w{}-]*)\n(.*?)^```$", PAGES[page], re.M | re.S)
    return [Block(*parts) for parts in found if not parts[1].startswith("{")]  # {toctree} and the like are Sphinx's


def commands(page: str) -> list[str]:
    """The lines for a terminal in the page's code blocks."""
    return [line for block in blocks(page) if not block.language for line in block.lines]


def ours(page: str) -> list:
    """The parsed commands `python -m repro ...` of a page, in blocks and within the text."""
    inline = re.findall(r"`([^`\n]*-m repro [^`]*)`", PAGES[page])
    found = []
    for line in [*commands(page), *inline]:
        if "-m repro " in line and " COMMAND" not in line:
            try:
                found.append(parser().parse_args(shlex.split(line.split("-m repro ", 1)[1], comments=True)))
            except ReproError:
                pytest.fail(f"does not parse: {line}")
    return found


def history(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)


@pytest.fixture
def whole_history():
    if history("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("not a git checkout with its whole history: commits cannot be looked up")


def test_the_readme_is_a_front_door():
    assert len(PAGES["README.md"].split()) <= 800  # as `wc -w` counts


@each_page
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", PAGES[page])
    for link in (first or second for first, second in links):
        if re.match(r"https?:", link):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        on_site = target.is_file() and target.resolve() != ROOT / "README.md"  # which has neither folders nor that page
        assert on_site or not page.startswith("docs/"), link
        if heading:
            text = [target.read_text()]
            generated.fill(None, "", text)
            titles = re.findall(r"^#+ (.*)$", text[0], re.M)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_numbers_are_those_of_the_files():
    done = python("-B", SCRIPT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_number_that_was_changed_by_hand_is_found(tmp_path):
    """On a copy of what the script reads."""
    for name in ("README.md", "docs", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    script = tmp_path / "docs" / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    page = tmp_path / "docs" / "scaling.md"
    page.write_text(re.sub(r"\|all\|\d+ of", "|all|1 of", PAGES["docs/scaling.md"]))
    done = python("-B", script, "--check")
    assert done.returncode == 1 and "docs/scaling.md is not what the files say" in done.stdout, done.stderr
    assert python("-B", script).returncode == 0
    assert page.read_text() == PAGES["docs/scaling.md"]


def test_each_commit_of_several_versions_is_named_once():
    dirty, clean, other = "0.2.0+4de64f5-dirty", "0.2.0+4de64f5", "0.2.0+95a8368-dirty"
    said = "at commit 4de64f5 (in part with uncommitted changes), at commit 95a8368 with uncommitted changes"
    assert write_numbers.commits({dirty, clean, other}) == said
    assert write_numbers.commits({dirty}) == "at commit 4de64f5 with uncommitted changes"
    assert write_numbers.commits({"0.2.0+95a8368", "0.2.0+4de64f5"}) == "at commits 4de64f5 and 95a8368"


def test_a_version_names_its_commit_after_a_tag_as_before_it(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
        return subprocess.run(["git", "-C", tmp_path, *who, *words], capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setattr(identity, "ROOT", tmp_path)
    monkeypatch.setattr(identity, "code_version", identity.code_version.__wrapped__)
    (tmp_path / "repro").mkdir()
    (tmp_path / "repro" / "train.py").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "-a", "v0.2.0", "-m", "")
    for message in ("second", "third"):
        name = git("rev-parse", "--short", "HEAD")
        assert identity.code_version() == f"{__version__}+{name}"
        assert write_numbers.commit(identity.code_version()) == f"at commit {name}"
        git("commit", "--allow-empty", "-m", message)


@each_page
def test_every_commit_that_is_named_is_in_the_history(page, whole_history):
    text = re.sub(r"\S*@\w+", "", PAGES[page])  # another repository's: sara-nl/caffe@610a2fa9
    for name in re.findall(r"\b(?=[0-9a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}\b", text):
        assert history("merge-base", "--is-ancestor", name, "HEAD").returncode == 0, name


@each_page
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = [line.split()[1] for line in commands(page) if line.startswith("make ")]
    named += re.findall(r"`make ([a-z-]+)", PAGES[page])
    targets |= {f"{kind}-{name}" for kind in ("table", "figure") for name in reproduce.names(f"{kind}s")}
    assert set(named) <= targets


@each_page
def test_every_command_of_ours_parses(page):
    for arguments in ours(page):
        recipe = getattr(arguments, "recipe", "RECIPE")
        if recipe != "RECIPE" and not own.is_own(recipe):
            recipes.find(recipe)
        if getattr(arguments, "shrink", None) not in (None, "", "none"):
            assert arguments.shrink in recipes.SHRINKS


# What the tests of this file look at in a line for a terminal; a block with any other line says why it is not run.
KNOWN = (r"make [a-z-]+( |$)", r"-m repro ", r"(data_prep|docs)/\w+\.py", r"papermill notebooks/", r"slurm/\w+\.sbatch")


@each_page
def test_every_block_is_checked_or_says_why_not(page):
    for block in blocks(page):
        assert block.language in ("", "python", "text", "diff"), block
        if not block.language and not block.reason:
            for line in block.lines:
                assert any(re.search(kind, line) for kind in KNOWN), line


@each_page
def test_python_blocks_run_in_order_and_define_what_the_commands_name(page, tmp_path, monkeypatch):
    """In an empty folder that has only the reference run, without papermill. A block `# mine.py` is that file, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papermill, "execute_notebook", lambda path, _, given: check_parameters(path, given))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    names: dict = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not block.reason:
            exec(compile(block.text, page, "exec"), names)
            if block.text.startswith("# mine.py\n"):
                with open("mine.py", "a") as file:
                    file.write(block.text)
    if (tmp_path / "mine.py").exists():
        for arguments in ours(page):
            for name in filter(own.is_own, (arguments.recipe, getattr(arguments, "model", ""))):
                own.load(name)
            if arguments.command == "lr":
                arguments.handler(vars(arguments))


@each_page
def test_parameters_given_to_papermill_exist_and_have_the_right_type(page):
    for line in commands(page):
        if "papermill notebooks/" in line:
            words = shlex.split(line.split("papermill ", 1)[1])
            given = {words[i + 1]: yaml.safe_load(words[i + 2]) for i, word in enumerate(words) if word == "-p"}
            for i, word in enumerate(words):
                given |= yaml.safe_load(words[i + 1]) if word == "-y" else {}
            check_parameters(words[0], given)


def check_parameters(path, given):
    cells = nbformat.read(ROOT / path, as_version=4).cells
    notebooks.check(
        given, next(notebooks.declared(cell.source) for cell in cells if "parameters" in cell.metadata.get("tags", []))
    )


def test_the_results_page_has_every_table_and_every_column_of_them():
    named, columns = set(re.findall(r"`([^`\n]+)`", PAGES["docs/results.md"])), set()
    for path in sorted((ROOT / "results" / "reference" / "tables").glob("*.csv")):
        assert path.stem in named
        if path.stem not in ("runs", "evaluations"):  # `tidy.runs` describes these
            with path.open(newline="") as file:
                columns |= {re.sub("_(low|high)$", "", name) for name in next(csv.reader(file))}
    assert columns == {name for name, column in COLUMNS.items() if column.meaning}
    assert columns == set(re.findall(r"^\|`([^`]+)`\|.", generated.columns(), re.M))


@each_page
def test_commands_run_as_pasted_without_an_activated_environment(page):
    for line in commands(page):
        ours = re.sub(r'(PYTHON|LAUNCH)="[^"]*"', "", line)  # what a cluster's own programs are called is its matter
        bare = re.findall(r"(?<![\w/.])(?:python3?|papermill|jupyter)(?= )", ours)
        bare += re.findall(r"(?<![\w/.])mpiexec(?= )", ours) if page != "docs/cluster.md" else []
        assert not bare, line


@each_page
def test_every_option_of_a_script_exists(page):
    """By the scripts' text: starting each would take half a minute."""
    for line in commands(page):
        if found := re.search(r"(?:data_prep|docs)/\w+\.py", line):
            text = (ROOT / found[0]).read_text()
            text += (ROOT / "data_prep" / "packing.py").read_text() if "packing.options(" in text else ""
            used = re.findall(r" (--[\w-]+)", line.partition(found[0])[2])
            assert set(used) <= set(re.findall(r'"(--[\w-]+)"', text)), line
