"""`python -m repro`: what it answers to a slip of the pen, what it says first, and that its examples can be pasted."""

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest

from repro import __main__ as program
from repro import cores, recipes
from repro.cli import commands as __main__
from repro.cli import doctor, results
from repro.cli.commands import parser
from repro.images import packed
from repro.jupyter import notebooks
from repro.paper.profiles import PROFILES
from repro.ranks import comm

from conftest import SMOKE, launch, mpiexec, python

COMMANDS = parser()._subparsers._group_actions[0].choices
OPTIONS = [
    *("--data", "digits", "--out", "/tmp/x"),
    *(f"--{name}={value}" for name, value in SMOKE.items() if name != "recipe"),
]


@pytest.mark.parametrize(
    "words, answer",
    [
        ("trian one_model", "unknown command 'trian'. Did you mean train?"),
        ("--verion", "unknown option --verion. Did you mean --version?"),
        ("train one_model --shrnk smoke", "unknown option --shrnk. Did you mean --shrink?"),
        ("train --shrnk=smoke one_model", "unknown option --shrnk. Did you mean --shrink?"),
        ("train one_model --seeds 0", "unknown option --seeds. Did you mean --seed?"),
        ("train one_model --qqq 0", "unknown option --qqq.\n"),
        ("lr one_model --stps 0", "unknown option --stps. Did you mean --steps?"),  # and not that --steps is missing
        (
            "train one_model --shrink smoek",
            "unknown shrink 'smoek'. Did you mean smoke? Choose one of: laptop, photographs, smoke,",
        ),
        ("train one_model --precision fp23", "unknown precision 'fp23'. Did you mean fp32?"),
        ("train one_model --bn-momentum 0.2", "unknown bn-momentum 0.2. "),
        ("train one_model two_models", "unexpected argument 'two_models'"),
        ("train one_model --seed x", "argument --seed: invalid int value: 'x'"),
        ("train", "the following arguments are required: recipe"),
        ("train one_modle", "unknown recipe 'one_modle'. Did you mean one_model?"),
        (
            "train batch_3276",
            f"unknown recipe 'batch_3276'. Did you mean batch_32768? Of all {len(recipes.RECIPES)}, these are close: ",
        ),
        ("train one_model --model resnet51", "unknown model 'resnet51'. Did you mean resnet50?"),
        ("train one_model --model resnet49", "unknown model 'resnet49'. Did you mean resnet50?"),
        ("train mine.py", "mine.py is a file: name also what is in it, as in mine.py:my_recipe or mine.py:my_net"),
        ("train one_model --model mine.py", "mine.py is a file: name also what is in it"),
        ("lr mine.py --steps 0", "mine.py is a file: name also what is in it"),
        ("train one_model --data digts", "unknown data set 'digts'. Did you mean digits?"),
        ("train one_model --threads 1000000", "threads is 1000000: it must be a whole number, at least 1 and at most 1024"),
        ("train one_model --seed -1", "seed is -1: "),
        ("plan one_model --decoders 1000000", "decoders is 1000000: "),
        ("plan one_model --nodes -1", "nodes is -1: "),
        ("reproduce --profile labtop", "unknown profile 'labtop'. Did you mean laptop?"),
        ("ask mine", "'mine' names no questions: name a file and a list of questions"),
        ("ask mine.py", "mine.py is a file: name also what is in it, as in mine.py:"),
        ("ask mine.py:questions --seeds x", "argument --seeds: invalid int value: 'x'"),
        ("probe --model resnet11 --images 2,x", "argument --images: '2,x' is not a list of whole numbers such as 2,4,8"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(cli, words, answer):
    status, printed, said = cli(*words.split())
    assert (status, printed) == (2, "") and said.startswith(f"error: {answer}"), said
    assert len(said.splitlines()) <= 2, "and with no page of usage"
    if said.count("usage: "):
        command = words.split()[0] if words.split()[0] in COMMANDS else "COMMAND"
        assert f"usage: .venv/bin/python -m repro {command}" in said


def test_an_interrupt_while_python_loads_is_one_line(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "repro.cli.commands":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "repro.cli.commands")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("repro", run_name="__main__")
    assert end.value.code == 130 and capsys.readouterr().err == "stopped before anything was started\n"


def test_without_a_command_it_lists_them_all(cli):
    status, printed, said = cli()
    assert (status, printed) == (2, "") and all(re.search(rf"^    {name}( |$)", said, re.M) for name in COMMANDS)


def test_rates_are_those_of_the_shrunk_recipe_if_asked(cli):
    last = recipes.shrink(recipes.find("one_model"), "smoke").iterations - 1
    _, printed, _ = cli("lr", "one_model", "--shrink", "smoke", "--steps", f"0,{last}")
    whole = cli("lr", "one_model", "--steps", f"0,{last}")[1]
    assert printed != whole and len(printed.splitlines()) == 2
    assert cli("lr", "one_model", "--shrink", "smoke", "--steps", f"{last + 1}")[0] == 2


def test_rates_are_by_the_recipes_own_formula_if_none_is_named(cli):
    own, released = (
        cli("lr", "ablation_as_designed", "--steps", "0,446,900", *more)[1] for more in ((), ("--formula", "as_released"))
    )
    assert own != released == cli("lr", "resnet50_448nodes", "--steps", "0,446,900")[1]
    assert own == cli("lr", "ablation_as_designed", "--steps", "0,446,900", "--formula", "as_designed")[1]


COUNTS = {"images": 2000, "top1": 1501, "top5": 1990, "loss": 0.51234}


def test_what_was_counted_is_shown_in_per_cent():
    views = {"zoom": COUNTS | {"images": 500, "top1": 100, "top5": 250}, "scale_aspect": COUNTS}
    entry = {"members": ["c1", "c2"], "average": "softmax", **COUNTS, "views": views}
    assert results.of_ensemble(entry).splitlines() == [
        "c1 + c2, mean of their softmax",
        "view             top-1   top-5    loss  images",
        "test            75.05%  99.50%  0.5123   2,000",
        "test, enlarged  20.00%  50.00%  0.5123     500",
        "training        75.05%  99.50%  0.5123   2,000",
    ]
    alone = entry | {"members": ["c1"]}
    assert results.of_ensemble(alone).splitlines()[0] == "c1"
    counts = {key: COUNTS[key] for key in ("top1", "top5", "loss")}
    models = {"files": ["a.safetensors", "b.safetensors"], "average": "logit", "images": 2000, "members": [counts] * 2}
    assert results.of_models(models | {"ensemble": counts}).splitlines() == [
        "model                           top-1   top-5    loss  images",
        "a                              75.05%  99.50%  0.5123   2,000",
        "b                              75.05%  99.50%  0.5123   2,000",
        "ensemble, mean of their logit  75.05%  99.50%  0.5123   2,000",
    ]
    one = models | {"files": ["a.safetensors"], "members": [counts], "ensemble": counts}
    assert len(results.of_models(one).splitlines()) == 2


def test_the_beginning_of_an_option_is_enough_and_what_follows_a_command_is_its_own():
    assert parser().parse_args(["train", "one_model", "--shr", "smoke"]).shrink == "smoke"
    assert parser().parse_args(["train", "one_model", "--shrink=none", "--decay-bn", "FALSE"]).decay_bn is False


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_can_be_pasted(name):
    text = COMMANDS[name].format_help()
    lines = [line.strip() for line in text.rpartition("\nexample:\n")[2].splitlines()]
    assert any(f"-m repro {name}" in line for line in lines), text
    for line in lines:
        assert re.match(r"(RUN=\$\()?((\.venv/bin/)?mpiexec -n 2 )?\.venv/bin/python -m repro ", line), line
        for part in re.findall(r"-m repro ([^()]*)", line):
            words = shlex.split(part)
            models = {"evaluate": ["models.safetensors", "--data", "digits"], "classify": ["models.safetensors", "digit.png"]}
            required = not {"--data", "digit.png"} & {*words}  # the words inside $( ) stand between
            parser().parse_args([*words, *(models.get(words[0], []) if required else [])])


def test_help_says_what_every_argument_is():
    for name, command in COMMANDS.items():
        for action in command._actions:
            assert action.help or isinstance(action, argparse._HelpAction), (name, action.dest)
    assert all(
        f"{profile}: {PROFILES[profile].about}" in " ".join(COMMANDS["reproduce"].format_help().split()) for profile in PROFILES
    )


def test_a_value_is_checked_before_torch_and_mpi_are_loaded():
    code = "import sys; sys.modules['torch'] = sys.modules['mpi4py'] = None; from repro.__main__ import main; sys.exit(main())"
    said = python("-c", code, "train", "one_model", "--model", "resnet51")
    assert said.returncode == 2 and "Did you mean resnet50?" in said.stderr


def test_embedded_data_are_packed_if_they_are_missing_and_not_again(cli, digits, tmp_path, monkeypatch):
    for module in (__main__, packed):
        monkeypatch.setattr(module, "DATA", tmp_path)
    packing = []

    def script(command, **options):
        if not str(command[-1]).endswith("digits.py"):
            return run(command, **options)
        packing.append(shutil.copytree(digits, tmp_path / "digits"))
        return SimpleNamespace(returncode=0)

    run = packed.subprocess.run
    monkeypatch.setattr(packed.subprocess, "run", script)
    said = [cli("train", SMOKE["recipe"], "--shrink=smoke", "--steps=1", f"--out={tmp_path / 'runs'}") for _ in range(2)]
    assert [status for status, _, _ in said] == [75, 75], said
    assert [error.count("packing digits, once") for _, _, error in said] == [1, 0] and len(packing) == 1


def test_on_several_ranks_one_says_it():
    said = mpiexec(2, "-m", "repro", "train", "one_modle")
    assert said.returncode != 0 and said.stderr.count("Did you mean one_model?") == 1


@pytest.mark.parametrize(
    "variables, rank, ranks",
    [
        ({}, 0, 1),
        ({"PMI_RANK": "3", "PMI_SIZE": "8"}, 3, 8),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}, 3, 8),
        ({"PMIX_RANK": "3", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, 3, 8),
        ({"PMI_RANK": "3", "PMI_SIZE": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, 3, 8),  # mpiexec started by srun
        ({"SLURM_PTY_PORT": "9", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_TASK_PID": "1"}, 0, 1),  # in a shell
        ({"SLURM_PTY_WIN_COL": "80", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_TASK_PID": "1"}, 0, 1),
        ({"SLURM_PTY_PORT": "9", "PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8"}, 1, 2),
        ({"SLURM_PTY_PORT": "9", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_TASK_PID": str(os.getpid())}, 3, 4),
    ],
)
def test_the_launcher_says_which_rank_this_is(monkeypatch, variables, rank, ranks):
    for name in sum(comm.LAUNCHERS, ()):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert comm.launched() == (rank, ranks)


def test_the_first_word_comes_before_torch():
    process = launch(sys.executable, "-X", "importtime", "-m", "repro", "train", SMOKE["recipe"], *OPTIONS)
    try:
        before = []
        for line in process.stderr:
            if line.startswith("starting one rank: loading torch"):
                break
            before.append(line)
        assert before and not [line for line in before if re.search(r"\| +(torch|mpi4py|scipy|pandas|matplotlib)$", line)]
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_is_continued_says_where(cli, digits, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / killed.name)
    task = ["train", SMOKE["recipe"], *OPTIONS, "--data", digits, "--out", str(tmp_path)]
    (status, _, first), (_, _, second) = cli(*task), cli(*task)
    assert status == 0, first
    steps = max(int(path.stem) for path in killed.glob("checkpoints/*.json"))
    recipe = json.loads((folder / "run.json").read_text())["recipe"]
    epoch = steps * recipe["workers"] * recipe["images_per_worker"] / recipe["epoch_images"]
    whole = sum(stage["iterations"] for stage in recipe["stages"]) * epoch / steps
    assert f"continuing at epoch {epoch:.4g} of {whole:.4g}: {killed.name}\n" in first
    assert "continuing at" not in second and "training " not in second


@pytest.mark.skipif(cores() < 2, reason="one core: more ranks are no gain")
def test_one_rank_on_several_cores_is_told_of_the_others(cli, digits, tmp_path):
    few = ["--steps", "1", "--out", str(tmp_path), "--data", digits]
    status, _, said = cli("train", SMOKE["recipe"], "--shrink", "smoke", *few)
    assert status == 75 and f"this is one rank, on one core; `{__main__.MPIEXEC} -n " in said
    pasted = re.search(r"-m repro (train .*)` trains", said)[1]
    assert parser().parse_args(shlex.split(pasted)).data == digits
    status, _, said = cli("train", SMOKE["recipe"], "--shrink", "smoke", "--threads", "2", *few)
    assert status == 75 and "one rank, on" not in said


@pytest.mark.parametrize("mpi, named", [("mpich", ".venv/bin/mpiexec"), ("none", "mpiexec")])
def test_examples_name_the_mpiexec_that_there_is(tmp_path, mpi, named):
    """`make setup MPI=none` puts none into .venv: it is the cluster's."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    if mpi == "mpich":
        (tmp_path / ".venv" / "bin" / "mpiexec").touch()
    code = (
        f"import pathlib; from repro import paths; paths.ROOT = pathlib.Path({str(tmp_path)!r}); from repro.cli import commands"
    )
    told = python("-c", f"{code}; print(commands.ON_TWO)")
    assert told.stdout.strip() == f"{named} -n 2 .venv/bin/python -m repro", told.stderr


def test_a_system_that_binds_no_process_to_cores_has_all_of_them(cli, digits, tmp_path, monkeypatch):
    """As macOS does."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    few = ["--shrink", "smoke", "--steps", "1", "--out", str(tmp_path), "--data", digits, "--device", "cpu"]
    status, _, said = cli("train", SMOKE["recipe"], *few)
    assert status == 75 and "mpiexec -n 3 " in said
    assert notebooks.cores() == 3 and doctor.cores().startswith("3 of 3 usable")
    assert ": 3 cores, " in comm.roll_call()[0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_the_cores_are_those_that_the_process_is_bound_to():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import repro; print(repro.cores())"
    assert python("-c", code).stdout == "1\n"


@pytest.mark.parametrize(
    "given, read", [([], "results/reference/runs"), (["--runs", "{out}"], "{out}"), (["--runs", "runs"], "{out}")]
)
def test_one_figure_says_which_runs_it_is_made_from(cli, monkeypatch, tmp_path, given, read):
    """A tour's run answers nothing: then it is the reference's, and --runs names others, from here and not from notebooks/."""
    from repro.paper import reproduce, tables

    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(reproduce.notebooks, "execute", lambda name, values, *_: asked.append((name, values["runs"])))
    monkeypatch.setattr(tables.records, "complete_runs", lambda folder: [folder])
    monkeypatch.setattr(tables, "of_size", lambda runs: False)
    out = str(tmp_path / "runs")
    status, _, said = cli("figure", "headline", "--results", str(tmp_path), *(part.format(out=out) for part in given))
    assert status == 0 and said.rstrip().endswith(read.format(out=out))
    assert asked[0][0] == "21-figures" and asked[0][1].endswith(read.format(out=out))


def test_a_folder_that_is_not_there_has_no_ledger(cli, tmp_path):
    status, _, said = cli("verify", "--results", str(tmp_path / "misspelt"))
    assert (
        status == 2
        and said.strip() == f"error: there is no folder {tmp_path / 'misspelt'}: --results names one with runs and tables"
    )


def test_open_mpis_mpiexec_with_another_mpis_library_is_refused_in_one_line():
    """MPICH's library would end the process itself, with words of its own."""
    if (
        "MPICH"
        not in python(
            "-c", "import mpi4py; mpi4py.rc.initialize = False\nfrom mpi4py import MPI; print(MPI.Get_library_version())"
        ).stdout
    ):
        pytest.skip("mpi4py loads another MPI than MPICH here")
    done = python("-m", "repro", "ranks", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert done.returncode == 2 and "error: Open MPI's mpiexec started this on" in done.stderr, done.stderr
    assert "mpi4py loads another MPI (MPICH" in done.stderr


def test_requests_to_stop_a_command_that_has_ended_change_nothing(monkeypatch):
    """While Python ends: SIGUSR1 would kill the process, and a complete run would seem to have failed."""
    monkeypatch.setattr(program, "main", lambda: sys.exit(2))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        with pytest.raises(SystemExit):
            program.run()
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
