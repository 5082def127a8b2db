"""Source notebooks are clean and uniform; the runner lets none pass that did not run to its end; and what a user sees who
edits parameters, interrupts a cell or runs a failed notebook again, in a real kernel."""

import ast
import contextlib
import copy
import fcntl
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import psutil
import pytest
from jupyter_client import KernelManager
from papermill.parameterize import parameterize_notebook

from repro import ReproError, recipes
from repro.images import packed
from repro.jupyter import client, engines, notebooks
from repro.ranks import stop
from repro.run import records

from conftest import ROOT

SOURCES = sorted(notebooks.FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in SOURCES]


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_all_are_there():
    assert NAMES == [
        "00-start-here",
        "01-recipes",
        "02-from-archives",
        "03-your-own",
        "04-by-hand",
        "05-your-question",
        "10-train",
        "11-scaling",
        "12-questions",
        "13-large-batches",
        "14-averages-and-cycles",
        "15-ablation",
        "16-asynchronous",
        "20-tables",
        "21-figures",
    ]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_source_carries_no_outputs(path):
    assert all(not cell.outputs and cell.execution_count is None for cell in cells(path))


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_opens_with_title_imports_parameters_check_and_ends_with_the_mark(path):
    everything = nbformat.read(path, as_version=4).cells
    assert everything[0].cell_type == "markdown" and everything[0].source.startswith("# ")
    assert "**Writes:**" in everything[0].source
    assert everything[2].metadata.get("tags") == ["parameters"]
    assert everything[3].source.startswith("notebooks.check_parameters()")
    assert everything[-1].source.endswith("notebooks.complete()")
    assert all("# " in line for line in everything[2].source.splitlines())
    assert notebooks.declared(everything[2].source)
    assert all(ast.literal_eval(line.value) is not None for line in ast.parse(everything[2].source).body)


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_cells_are_short(path):
    for cell in cells(path):
        ast.parse(cell.source.replace(";", ""))
        if "parameters" not in cell.metadata.get("tags", []):  # which are a list
            assert len(cell.source.splitlines()) <= 14, cell.source


# --- Parameters -------------------------------------------------------------------------------------------------------
KNOWN = {"seed": "int", "data": "str", "live": "bool", "rate": "float"}


@pytest.mark.counts_for("parameters")
def test_a_misspelt_parameter_says_what_was_meant():
    with pytest.raises(ReproError, match="unknown parameter 'sed'. Did you mean seed?"):
        notebooks.check({"sed": 1}, KNOWN)


@pytest.mark.counts_for("parameters")
@pytest.mark.parametrize("parameters", [{"seed": "1"}, {"seed": True}, {"seed": 1.5}, {"data": 3}, {"live": 1}])
def test_a_mistyped_parameter_is_refused(parameters):
    with pytest.raises(ReproError, match="must be of type"):
        notebooks.check(parameters, KNOWN)


def test_fitting_parameters_pass():
    notebooks.check({"seed": 1, "data": "x", "live": False, "rate": 1}, KNOWN)


SMALL = recipes.shrink(recipes.find("resnet50_448nodes"), "smoke")  # 14 workers in 7 passes


@pytest.mark.parametrize(
    "cores, asked, started", [(1, 0, 1), (1, 1, 1), (1, 2, 2), (2, 0, 2), (2, 2, 2), (16, 0, 7), (16, 7, 7)]
)
def test_ranks_that_fit_are_started(monkeypatch, cores, asked, started):
    monkeypatch.setattr(notebooks, "cores", lambda: cores)
    assert notebooks.ranks_for([SMALL], asked) == started


@pytest.mark.parametrize(
    "cores, asked, told",
    [
        (2, 99, "ranks is 99: resnet50_448nodes-smoke has 14 workers"),
        (16, 8, "ranks is 8: resnet50_448nodes-smoke has 14 workers, 2 in a pass, and each rank needs a pass"),
        (2, 3, "this process may use 2 cores, so start at most 2"),
        (1, 3, "start at most 2"),
        (2, -1, "at least 0"),
        (2, "2", "must be a whole number"),
        (2, True, "must be a whole number"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(monkeypatch, cores, asked, told):
    monkeypatch.setattr(notebooks, "cores", lambda: cores)
    with pytest.raises(ReproError, match=told):
        notebooks.ranks_for([SMALL], asked)


def test_ranks_without_a_recipe_are_limited_by_cores_alone(monkeypatch):
    monkeypatch.setattr(notebooks, "cores", lambda: 4)
    assert notebooks.ranks_for([]) == 4
    with pytest.raises(ReproError, match="4 cores"):
        notebooks.ranks_for([], 5)


# --- What takes a while -----------------------------------------------------------------------------------------------
def test_a_block_that_takes_long_says_so_and_a_short_one_is_silent(capsys, monkeypatch):
    with notebooks.saying("short ..."):
        pass
    monkeypatch.setattr(notebooks, "QUIET", 0.05)
    with notebooks.saying("long ..."):
        time.sleep(0.3)
    time.sleep(0.1)
    assert capsys.readouterr().out == "long ...\n"


def test_data_is_packed_while_the_notebook_goes_on_and_training_waits_for_it(monkeypatch):
    done = []

    def packing(data):
        time.sleep(0.3 if not done else 0)
        done.append(data)

    monkeypatch.setattr(notebooks, "pack_embedded", packing)
    monkeypatch.setattr(notebooks, "start_or_join", lambda file, ranks, wait: (file, ranks, wait))
    began = time.monotonic()
    assert notebooks.begin("", 2, "digits") == ("", 2, False)
    time.sleep(0.1)
    assert not done and time.monotonic() - began < 0.3
    notebooks.pack("digits")
    assert done == ["digits", "digits"]  # the second call finds it packed


def test_packing_that_fails_in_the_background_is_an_error_where_the_data_is_needed(monkeypatch):
    def packing(data):
        raise ReproError("no space")

    monkeypatch.setattr(notebooks, "pack_embedded", packing)
    monkeypatch.setattr(notebooks, "start_or_join", lambda *_, wait: None)
    notebooks.begin("", 2, "digits")
    with pytest.raises(ReproError, match="no space"):
        notebooks.pack("digits")


@pytest.mark.parametrize("listening", [False, True], ids=["while parameters are checked", "while training begins"])
def test_an_interrupt_while_data_are_packed_ends_the_cell_at_once_and_the_next_call_waits(monkeypatch, listening):
    go_on, done = threading.Event(), []
    monkeypatch.setattr(notebooks, "pack_embedded", lambda data: done.append(go_on.wait(20)))
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    began = time.monotonic()
    with stop.listening(signal.SIGINT) if listening else contextlib.nullcontext():
        with pytest.raises(records.Stopped, match="^stopped while digits was packed; run this cell again to continue$"):
            notebooks.pack("digits")
        assert time.monotonic() - began < 5
        stop.asked.clear()
        threading.Timer(0.3, go_on.set).start()
        notebooks.pack("digits")  # run again, it waits for the first
    assert done == [True, True]


def test_packing_shows_a_bar_in_a_notebook_and_one_line_elsewhere(monkeypatch, tmp_path, capsys):
    (tmp_path / "digits").mkdir()

    def packing(data):
        for split in ("train", "test"):
            (tmp_path / "digits" / f".{split}.lmdb.1234").write_bytes(bytes(notebooks.PACKED_BYTES["digits"] // 4))
            time.sleep(0.4)

    monkeypatch.setattr(notebooks, "DATA", tmp_path)
    monkeypatch.setattr(notebooks, "QUIET", 0.05)
    monkeypatch.setattr(notebooks, "pack_embedded", packing)
    monkeypatch.setattr(notebooks.progress, "in_notebook", lambda: True)
    notebooks.pack("digits")
    shown = capsys.readouterr().out.split("\r")
    assert [line for line in shown if " 25%" in line] and [line for line in shown if " 50%" in line], shown
    monkeypatch.setattr(notebooks.progress, "in_notebook", lambda: False)
    notebooks.pack("digits")
    assert capsys.readouterr().out == "packing digits, once ...\n"


def test_the_bar_of_packing_ends_at_the_size_of_the_packed_files(all_digits, monkeypatch):
    monkeypatch.setattr(notebooks, "DATA", Path(all_digits).parent)
    assert notebooks._packed("digits") == 1.0
    assert sum(path.stat().st_size for path in Path(all_digits).iterdir()) == notebooks.PACKED_BYTES["digits"]


def test_each_embedded_data_set_has_a_size_for_the_bar():
    assert notebooks.PACKED_BYTES.keys() == {*packed.EMBEDDED}


# --- Nothing is falsely green -----------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of notebooks with one, `trial`, whose middle cell the test writes."""
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)

    def write(middle: str) -> None:
        new = nbformat.v4
        parameters = new.new_code_cell("seed: int = 0  # help", metadata={"tags": ["parameters"]})
        book = new.new_notebook(
            cells=[
                new.new_code_cell("from repro.jupyter import notebooks"),
                parameters,
                new.new_code_cell("notebooks.check_parameters()"),
                new.new_code_cell(middle),
                new.new_code_cell("notebooks.complete()"),
            ],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(book, tmp_path / "trial.ipynb")

    return write


def test_parameters_and_outputs_are_as_papermill_leaves_them_and_prints_are_shown_as_they_come(folder, tmp_path, capsys):
    folder("print(seed, end=' '); print('more'); import sys; print('aside', file=sys.stderr); seed")
    ours = notebooks.execute("trial", {"seed": 7}, tmp_path / "out" / "trial.ipynb", log=True)
    assert capsys.readouterr().out == f"7 more\n{notebooks.MARK}\n"
    theirs = tmp_path / "theirs.ipynb"
    papermill.execute_notebook(tmp_path / "trial.ipynb", theirs, {"seed": 7}, cwd=tmp_path, progress_bar=False)
    shown = [
        [(cell.source, cell.metadata.get("tags", []), cell.execution_count, merged(cell.outputs)) for cell in cells(path)]
        for path in (ours, theirs)
    ]
    assert shown[0] == shown[1] and len(shown[0]) == 6
    assert [cell.source for cell in cells(ours)][2] == "# Parameters\nseed = 7\n"


def merged(outputs):
    """What a cell printed, per stream, and its results; papermill keeps each write of a stream apart."""
    streams = {}
    for output in outputs:
        kind = output.get("name", "result")
        streams[kind] = streams.get(kind, "") + (output.get("text") or output.data["text/plain"])
    return streams


@pytest.mark.parametrize(
    "values",
    [{}, {"a": 1.5, "b": [1, "two", None], "c": {"d": True}, "e": 'it\'s "quoted"\n\\ and é'}],
    ids=["none", "all kinds"],
)
def test_injected_parameters_have_papermills_place_and_values(values):
    new = nbformat.v4
    for tags in (["parameters"], []):
        sources = [new.new_markdown_cell("# title", metadata={"tags": []}), new.new_code_cell("a = 0", metadata={"tags": tags})]
        book = nbformat.from_dict(new.new_notebook(cells=sources, metadata={"papermill": {}}))
        theirs = parameterize_notebook(copy.deepcopy(book), values, kernel_name="python3", language="python").cells
        client.inject(book, values)
        (place,) = (number for number, cell in enumerate(book.cells) if client.INJECTED in cell.metadata.get("tags", []))
        assert theirs[place].metadata.tags == [client.INJECTED]
        mine, found = {}, {}
        exec(book.cells[place].source, mine)
        exec(theirs[place].source, found)
        assert {name: mine.get(name) for name in values} == {name: found[name] for name in values} == values


@pytest.mark.counts_for("green")
@pytest.mark.parametrize(
    "middle",
    [
        "raise ValueError('broken')",
        "import sys; sys.exit(0)",
        pytest.param("import sys; sys.exit(1)", marks=pytest.mark.slow),
        pytest.param("import os; os._exit(0)", marks=pytest.mark.slow),
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        pytest.param("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", marks=pytest.mark.slow),
    ],
    ids=["raise", "exit0", "exit1", "kernel-exit", "kernel-killed", "kernel-terminated"],
)
def test_a_notebook_that_does_not_reach_its_end_fails_and_keeps_the_last_good_copy(folder, tmp_path, middle):
    folder(middle)
    output = tmp_path / "out" / "trial.ipynb"
    output.parent.mkdir()
    output.write_text("the last good copy")
    with pytest.raises(ReproError, match="trial"):
        notebooks.execute("trial", {}, output)
    assert output.read_text() == "the last good copy"
    assert output.with_suffix(".failed.ipynb").exists()


def test_notebooks_at_the_same_time_pass_with_kernels_and_parameters_of_their_own_and_leave_no_sockets(folder, tmp_path):
    folder("import os, time; time.sleep(1); print('kernel', os.getpid(), 'seed', seed); print(os.getcwd())")
    before = os.getcwd()
    with ThreadPoolExecutor(2) as pool:
        outputs = [tmp_path / str(number) / "trial.ipynb" for number in range(2)]
        running = [pool.submit(notebooks.execute, "trial", {"seed": 7 + n}, output) for n, output in enumerate(outputs)]
        assert [done.result(timeout=60) for done in running] == outputs
    kernels = [re.search(r"kernel (\d+) seed (\d)", output.read_text()).groups() for output in outputs]
    assert kernels[0][0] != kernels[1][0] and [seed for _, seed in kernels] == ["7", "8"]
    assert not list(tmp_path.rglob("*.failed.ipynb"))
    assert all(str(notebooks.FOLDER) in output.read_text() for output in outputs) and os.getcwd() == before
    assert sorted(path.name for path in notebooks.FOLDER.iterdir()) == ["0", "1", "trial.ipynb"]


@pytest.mark.counts_for("green")
def test_a_cell_that_takes_too_long_fails(folder, tmp_path):
    folder("import time; time.sleep(60)")
    with pytest.raises(ReproError, match="trial failed: .*imeout"):
        notebooks.execute("trial", {}, tmp_path / "out" / "trial.ipynb", timeout=2)


@pytest.mark.counts_for("green")
def test_a_full_disk_fails_and_keeps_the_last_good_copy(folder, tmp_path):
    """The disk is a small one of our own: its namespace, and all in it, ends with the shell."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount (unshare -rm): no disk can be made full")
    folder("print('x' * 1_000_000)")
    (tmp_path / "out").mkdir()
    code = (
        "import sys; from pathlib import Path; from repro.jupyter import notebooks; notebooks.FOLDER = Path(sys.argv[1])\n"
        "output = Path(sys.argv[1], 'out', 'trial.ipynb'); output.write_text('good')\n"
        "try: notebooks.execute('trial', {}, output)\n"
        "except notebooks.ReproError as error: print(output.read_text(), error)"
    )
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            'mount -t tmpfs -o size=100k tmpfs "$0/out"; "$@"',
            tmp_path,
            sys.executable,
            "-c",
            code,
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("good notebook trial failed") and "No space left" in done.stdout, done.stdout + done.stderr


@pytest.mark.counts_for("green", cases=2)
def test_wrong_parameters_are_refused_before_the_first_cell(folder, tmp_path):
    folder("open('ran', 'w')")
    for parameters in ({"sed": 1}, {"seed": "1"}):
        with pytest.raises(ReproError):
            notebooks.execute("trial", parameters, tmp_path / "out" / "trial.ipynb")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_papermill_by_hand_with_a_misspelt_parameter_fails_too(folder, tmp_path):
    folder("print(seed)")
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "trial.ipynb", "out.ipynb", "-p", "sed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and "Did you mean seed?" in done.stderr


# --- As a user, in a kernel -------------------------------------------------------------------------------------------

SOON = 8  # seconds within which a wrong parameter is named, and an interrupted cell ends, on a busy machine


class Kernel:
    """A Jupyter kernel that runs cells as JupyterLab would have it do; `output` and `error` are what the last cell showed."""

    def __init__(self):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(notebooks.FOLDER), env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.process = psutil.Process(self.manager.provisioner.pid)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def close(self):
        left = self.process.children(recursive=True)
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        psutil.wait_procs(left, timeout=SOON)

    def begin(self, source: str) -> None:
        self.output, self.error = "", None
        self.cell = self.client.execute(source)

    def follow(self, until: str = "", timeout: float = 90) -> bool:
        """Waits until the cell has ended, or has shown the text `until`; returns whether it ended well."""
        deadline = time.monotonic() + timeout
        while not (until and until in self.output):
            assert time.monotonic() < deadline, f"still running, after {self.output}"
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != self.cell:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                self.output += content["text"]
            elif message["msg_type"] == "error":
                self.error = SimpleNamespace(kind=content["ename"], shown="\n".join(content["traceback"]))
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return not self.error
        return True

    def run(self, *sources: str, timeout: float = 90) -> bool:
        """Runs cells until one fails, as Run All does; returns whether all ended well."""
        return all(self.begin(source) or self.follow(timeout=timeout) for source in sources)

    def ask(self, expression: str):
        assert self.run(f"print({expression})"), self.error
        return ast.literal_eval(self.output)

    def running(self, module: str) -> list[int]:
        """The processes of a module of ours, and what it was told to be, below the kernel."""
        found = []
        for process in self.process.children(recursive=True):
            try:
                if " ".join(process.cmdline()[1:]).startswith(f"-m {module}") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                pass
        return sorted(found)


@pytest.fixture
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture(scope="module")
def kernel_without_engines():
    kernel = Kernel()
    assert kernel.run(cells(notebooks.FOLDER / "10-train.ipynb")[0].source)  # its imports
    yield kernel
    kernel.close()


def edited(name: str, **values: str) -> list[str]:
    """The code cells of a notebook after its parameters were edited by hand; less the forecast, a probe of ten seconds."""
    sources = [cell.source for cell in cells(notebooks.FOLDER / f"{name}.ipynb")]
    for parameter, value in values.items():
        pattern = rf"^({parameter}: \w+ = ).*?(  #)"
        sources[1], found = re.subn(pattern, lambda match, value=value: match[1] + value + match[2], sources[1], flags=re.M)
        assert found == 1
    return [source for source in sources if "forecast" not in source]


@pytest.mark.counts_for("parameters")
@pytest.mark.parametrize(
    "values, told",
    [
        ({"recipe": "'colapsed_ensemble'"}, "unknown recipe 'colapsed_ensemble'. Did you mean collapsed_ensemble?"),
        ({"data": "'digit'"}, "unknown data set 'digit'. Did you mean digits?"),
        ({"data": "'nope/digits'"}, "no packed data at nope/digits/train.lmdb: make it with"),
        ({"shrink": "'laptp'"}, "unknown shrink 'laptp'. Did you mean laptop?"),
        ({"seeds": "0"}, "parameter seeds is 0: it must be of type list"),
        ({"seeds": "[]"}, "seeds is []: it must be a list of whole numbers, such as"),
        ({"seeds": "[0, -1]"}, "seed is -1: it must be a whole number, at least 0"),
        ({"seeds": "['0']"}, "seed is '0': it must be a whole number"),
        ({"ranks": "99"}, "ranks is 99: resnet50_custom_lr-laptop has 2 workers, 2 in a pass, and each rank needs a pass"),
        ({"ranks": "-1"}, "ranks is -1: it must be a whole number, at least 0"),
        ({"ranks": "'2'"}, "parameter ranks is '2': it must be of type int"),
        ({"live": "1"}, "parameter live is 1: it must be of type bool"),
        ({"switches": "{'lr_formula': 'as_desined'}"}, "unknown value of lr_formula 'as_desined'. Did you mean as_designed?"),
        ({"switches": "{'lr_formla': 'as_designed'}"}, "unknown switch 'lr_formla'. Did you mean lr_formula?"),
    ],
    ids=str,
)
def test_a_parameter_edited_by_hand_that_cannot_work_is_one_line_before_any_engine_starts(
    kernel_without_engines, digits, values, told
):
    kernel, began = kernel_without_engines, time.monotonic()
    sources = edited("10-train", **{"data": repr(digits)} | values)
    assert not kernel.run(*sources[1:], timeout=SOON)
    assert time.monotonic() - began < SOON
    assert kernel.error.shown.startswith(told) and "\n" not in kernel.error.shown
    assert kernel.running("repro.jupyter.guard") == []
    assert not kernel.ask("'torch' in __import__('sys').modules")


def test_parameters_edited_by_hand_that_can_work_pass(kernel_without_engines, digits):
    kernel = kernel_without_engines
    sources = edited("10-train", data=repr(digits), seeds="list(range(3))", ranks="2", shrink='"smoke"')
    assert kernel.run(*sources[1:3])
    assert kernel.run(sources[2])  # again, as it is
    assert kernel.ask("[ranks, list(seeds)]") == [2, [0, 1, 2]]


def test_a_parameter_that_begins_with_a_tilde_is_a_path_at_home(kernel_without_engines):
    assert kernel_without_engines.run('out: str = "~/runs"\nname: str = "a~"', "notebooks.check_parameters()")
    assert kernel_without_engines.ask("[out, name]") == [os.path.expanduser("~/runs"), "a~"]


def test_a_line_that_is_no_parameter_is_refused(kernel_without_engines):
    assert not kernel_without_engines.run("seed: int = 0\nseeds = [3]", "notebooks.check_parameters()")
    assert kernel_without_engines.error.shown == "a parameters cell has only lines such as `seed: int = 0  # help`"


RUN = dict(
    recipe='"collapsed_ensemble"', shrink='"smoke"', settings='{"size": 24}', ranks="2", live="False"
)  # some seconds of 77 steps


def test_an_interrupt_saves_and_ends_the_cell_in_one_line_and_the_next_run_all_continues(kernel, digits, tmp_path):
    sources = edited("10-train", data=repr(digits), out=repr(str(tmp_path)), **RUN)
    *before, training = sources[:5]
    assert kernel.run(*before)
    pids = kernel.ask("engine.pids")
    kernel.begin(training)
    kernel.follow(until="epoch   2.")
    began = time.monotonic()
    kernel.manager.interrupt_kernel()
    assert not kernel.follow(timeout=SOON)
    assert time.monotonic() - began < SOON
    stopped = re.fullmatch(r"stopped at epoch (\d\.\d) of 8\.2, saved; run this cell again to continue", kernel.error.shown)
    assert stopped and kernel.error.kind == "Stopped"
    (folder,) = tmp_path.glob("collapsed_ensemble-*")
    assert list((folder / "checkpoints").glob("*.json"))
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if somebody trains it
        fcntl.flock(lock, fcntl.LOCK_UN)

    assert kernel.run(*before) and kernel.ask("engine.pids") == pids
    assert kernel.run(training)
    assert kernel.output.startswith(f"continuing at epoch {stopped[1]} of 8.")
    assert kernel.output.count("epoch   1.") == 0  # which the first attempt has shown
    assert kernel.running("repro.jupyter.engines engine") == sorted(pids) and len(kernel.running("repro.jupyter.guard")) == 1
    assert kernel.run(training) and kernel.output == f"already complete: {folder.name}\n"

    digest = kernel.ask("repr(records.read(folders[0])['weights_sha256'])")
    assert kernel.run(f"shared['out'] = {str(tmp_path / 'whole')!r}", training)
    assert "continuing" not in kernel.output
    assert kernel.ask("repr(records.read(folders[0])['weights_sha256'])") == digest


@pytest.mark.slow
def test_a_second_interrupt_ends_engines_that_do_not_stop(kernel, digits, tmp_path):
    *before, training = edited("10-train", data=repr(digits), out=repr(str(tmp_path)), **RUN)[:5]
    assert kernel.run(*before)
    pids = kernel.ask("engine.pids")
    kernel.begin(training)
    kernel.follow(until="epoch   1.")
    os.kill(pids[1], signal.SIGSTOP)
    kernel.manager.interrupt_kernel()
    kernel.follow(until="stopping after this step; interrupt again to end the engines at once", timeout=SOON)
    assert kernel.running("repro.jupyter.engines engine") == sorted(pids)
    began = time.monotonic()
    kernel.manager.interrupt_kernel()
    assert not kernel.follow(timeout=SOON)
    assert time.monotonic() - began < SOON
    assert kernel.error.kind == "EnginesEnded" and "\n" not in kernel.error.shown
    assert kernel.error.shown.startswith("interrupted twice: the engines were ended at once, epoch 0.0 of 8.")
    assert kernel.running("repro.jupyter.engines engine") == kernel.running("repro.jupyter.guard") == []
    assert kernel.run(*before) and len(kernel.running("repro.jupyter.engines engine")) == 2


@pytest.mark.slow
def test_run_all_after_a_failed_cell_has_one_set_of_engines(kernel, digits, tmp_path):
    sources = edited("10-train", data=repr(digits), out=repr(str(tmp_path)), **RUN)[:4]
    assert not kernel.run(*sources, "1 / 0")
    pids = kernel.running("repro.jupyter.engines engine")
    assert len(pids) == 2
    assert not kernel.run(*sources, "engine.run('repro.recipes:find', 'nope')")
    assert kernel.error.shown.startswith("unknown recipe 'nope'. Choose one of: ") and "\n" not in kernel.error.shown
    assert kernel.run(*sources) and kernel.running("repro.jupyter.engines engine") == pids
    sources[1] = sources[1].replace("ranks: int = 2", "ranks: int = 1")
    assert kernel.run(*sources)
    assert len(kernel.running("repro.jupyter.engines engine")) == len(kernel.running("repro.jupyter.guard")) == 1
    assert not set(pids) & set(kernel.running("repro.jupyter.engines engine"))


@pytest.mark.slow
def test_the_bar_of_an_interrupted_run_is_closed(kernel, digits, tmp_path):
    *before, training = edited("10-train", data=repr(digits), out=repr(str(tmp_path)), **RUN | {"live": "True"})[:5]
    assert kernel.run(*before)
    kernel.begin(training)
    kernel.follow(until="loss")
    kernel.manager.interrupt_kernel()
    assert not kernel.follow(timeout=SOON) and kernel.error.kind == "Stopped"
    assert re.search(r"loss \d\.\d+\)\s*\n$", kernel.output), "what follows begins below it"


PACKS = """
import pathlib, sys, time
begun = pathlib.Path(__file__).with_suffix(".begun")
if not begun.exists():
    begun.touch()
    time.sleep(60)
"""


@pytest.mark.parametrize("block", ["contextlib.nullcontext()", "stop.listening(signal.SIGINT)"], ids=["before", "in training"])
def test_an_interrupted_kernel_that_packs_ends_the_cell_in_one_line_and_packs_when_it_is_run_again(kernel, tmp_path, block):
    """Jupyter sends the signal to the script, too, which ends."""
    (tmp_path / "data_prep").mkdir()
    (tmp_path / "data_prep" / "digits.py").write_text(PACKS)
    kernel.run("import contextlib, pathlib, signal", "from repro.images import packed", "from repro.ranks import stop")
    assert kernel.run("from repro.jupyter import notebooks", f"packed.ROOT = packed.DATA = pathlib.Path({str(tmp_path)!r})")
    cell = f"with {block}:\n    notebooks.pack('digits')"
    kernel.begin(cell)
    kernel.follow(until="packing digits, once")
    (script,) = [child for child in kernel.process.children() if "digits.py" in " ".join(child.cmdline())]
    began = time.monotonic()
    kernel.manager.interrupt_kernel()
    assert not kernel.follow(timeout=SOON) and time.monotonic() - began < SOON
    assert kernel.error.kind == "Stopped"
    assert kernel.error.shown == "stopped while digits was packed; run this cell again to continue"
    assert not psutil.wait_procs([script], timeout=SOON)[1]
    assert kernel.run("stop.asked.clear()", cell), kernel.error


class Engines:
    """Stands for engines whose rank says this of a run; `during` is called while it is asked."""

    def __init__(self, complete: bool, during):
        self.complete, self.during, self.ended = complete, during, False

    def ready(self):
        pass

    def load(self, module):
        assert module == "repro.train"

    def run(self, function, recipe, **task):
        self.during()
        return [{"folder": "/runs/trial", "complete": self.complete, "epochs": 8.0, "iterations": 80}]

    def end(self, reason):
        self.ended = True


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("complete, done", [(False, "nothing was started"), (True, "this run is complete")])
def test_an_interrupt_before_training_starts_nothing_and_ends_the_cell_too(complete, done):
    engine = Engines(complete, interrupt)  # it cannot train
    with pytest.raises(ReproError, match=f"^stopped: {done}; run this cell again to continue$"):
        notebooks.train(engine, "trial", live=False, data="mine")
    assert not engine.ended
    engine.during = lambda: None
    engine.complete = True
    assert notebooks.train(engine, "trial", live=False, data="mine") == "/runs/trial"  # the earlier interrupt is forgotten


def test_a_second_interrupt_ends_the_engines_wherever_it_comes():
    def twice():
        interrupt()
        time.sleep(1.1)  # two within a second are one
        interrupt()

    engine = Engines(False, twice)
    with pytest.raises(ReproError, match="^interrupted twice: the engines were ended at once"):
        notebooks.train(engine, "trial", live=False, data="mine")
    assert engine.ended


class Ranks:
    """Stands for engines on which jobs of `train.train_all` end like this, one after the other: with an error, or with None."""

    def __init__(self, *ends):
        self.ends, self.forgotten = list(ends), 0

    def ready(self):
        pass

    def run(self, function, tasks):
        assert function == "repro.task:describe_all"
        plan = {"complete": False, "epochs": 8.0, "iterations": 80, "global_batch": 32, "images": 80 * 32, "recipe": "trial"}
        return [[plan | {"folder": f"/runs/trial-digits-seed{task['seed']}-12345678"} for task in tasks]]

    def submit(self, function, *_):
        assert function == "repro.train:train_all"
        end = self.ends.pop(0)

        def result():
            if end:
                raise end

        return SimpleNamespace(done=lambda: True, wait=lambda _: True, result=result)

    def forget_request(self):
        self.forgotten += 1


TASKS = [{"recipe": "trial", "seed": seed} for seed in (0, 1)]


@pytest.mark.counts_for("green")
def test_ranks_that_were_asked_to_stop_from_outside_do_not_end_a_green_cell():
    """By Slurm, before its time limit: nobody interrupted this process, and runs are incomplete."""
    stopped = engines.RankError("stopped on request after step 3", 1, "Stopped")
    with pytest.raises(records.Stopped, match="^stopped: 0% .* run this again to continue$"):
        notebooks.train_all(Ranks(stopped), TASKS, {}, live=False)


def test_a_run_that_another_process_trains_is_waited_for_and_named(capsys, monkeypatch):
    monkeypatch.setattr(notebooks, "AGAIN_SECONDS", 0.3)
    locked = engines.RankError("1 of 2 runs could not be done here: it is being trained by process 7 on node3", 0, "Locked")
    ranks = Ranks(locked, locked, None)
    assert len(notebooks.train_all(ranks, TASKS, {}, live=False)) == 2 and not ranks.ends
    assert capsys.readouterr().out.count("it is being trained by process 7 on node3") == 1


def test_an_interrupt_ends_the_waiting_for_another_process():
    locked = engines.RankError("1 of 2 runs could not be done here: it is being trained by process 7 on node3", 0, "Locked")
    began = time.monotonic()
    threading.Timer(0.5, interrupt).start()
    with pytest.raises(records.Stopped, match="run this again to continue"):
        notebooks.train_all(Ranks(locked), TASKS, {}, live=False)
    assert time.monotonic() - began < 3


@pytest.mark.counts_for("green")
def test_a_notebook_that_was_stopped_has_neither_passed_nor_failed(folder, tmp_path):
    folder("from repro.run import records; raise records.Stopped('stopped at epoch 3.0 of 8.2')")
    with pytest.raises(records.Stopped, match="^notebook trial: stopped at epoch 3.0 of 8.2"):
        notebooks.execute("trial", {}, tmp_path / "out" / "trial.ipynb")
    assert not (tmp_path / "out" / "trial.ipynb").exists()


def test_a_split_that_is_not_there_is_found_before_any_engine_starts(digits, tmp_path):
    data = tmp_path / "digits"
    shutil.copytree(digits, data)
    check = dict(names=["one_model"], data=str(data), shrink="smoke", seeds=[0], ranks=2)
    assert notebooks.check_run(**check, settings={"split": "val"}) == 2
    (data / "val.lmdb").unlink()
    with pytest.raises(ReproError, match="digits has no validation split"):
        notebooks.check_run(**check, settings={"split": "val"})
    assert notebooks.check_run(**check) == 2
