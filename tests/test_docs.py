"""README and docs: short enough, links that lead somewhere, numbers from files, and commands that exist."""

import re
import shlex
import subprocess

import pytest

from repro.__main__ import parser
from repro.paper import single

from conftest import ROOT, python

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data_prep" / "README.md"]
}
SCRIPT = ROOT / "docs" / "write_numbers.py"
each_page = pytest.mark.parametrize("page", PAGES)


def commands(page: str) -> list[str]:
    """The lines of the page's code blocks, those that a backslash continues as one; not those of Python."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.M | re.S)
    text = "".join(block for language, block in blocks if language != "python")
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


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
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_numbers_are_those_of_the_files(whole_history):
    done = python("-B", SCRIPT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_number_that_was_changed_by_hand_is_found(whole_history, tmp_path):
    """On a copy of what the script reads, with the repository's history."""
    for name in ("README.md", "docs", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    (tmp_path / ".git").write_text(f"gitdir: {history('rev-parse', '--absolute-git-dir').stdout}")
    script = tmp_path / "docs" / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    page = tmp_path / "docs" / "scaling.md"
    page.write_text(re.sub(r"\|all\|(\d+)\|", "|all|1|", PAGES["docs/scaling.md"]))
    done = python("-B", script, "--check")
    assert done.returncode == 1 and "docs/scaling.md is not what the files say" in done.stdout, done.stderr
    assert python("-B", script).returncode == 0
    assert page.read_text() == PAGES["docs/scaling.md"]


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
    targets |= {f"{kind}-{name}" for kind in ("table", "figure") for name in single.names(f"{kind}s")}
    assert set(named) <= targets


@each_page
def test_every_command_of_ours_parses(page):
    inline = re.findall(r"`([^`\n]*-m repro [^`]*)`", PAGES[page])
    for line in [*commands(page), *inline]:
        if "-m repro " not in line:
            continue
        words = shlex.split(line.split("-m repro ", 1)[1], comments=True)
        try:
            parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"does not parse: {line}")


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
