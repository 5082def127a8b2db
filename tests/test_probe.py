"""The probe: what it measures on 1 and 2 ranks, and what it refuses. Times are looked at for being there, never for speed."""

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from repro import ReproError
from repro.ranks.comm import World
from repro.scaling import steptime
from repro.scaling.probe import _core_seconds, machine, probe

from conftest import mpiexec, python

SMALL = {"model": "resnet11", "size": 16, "images": [2, 4], "seconds": 1.0}


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """What `python -m repro probe` writes on two ranks, in less time than all settings take."""
    out = tmp_path_factory.mktemp("probe") / "probe.json"
    done = mpiexec(
        2,
        "-m",
        "repro",
        "probe",
        "--model",
        "resnet11",
        "--size",
        "16",
        "--images",
        "2,4",
        "--seconds",
        "1",
        "--out",
        out,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_two_ranks_compute_apart_and_together_and_average(on_two):
    kinds = Counter((row["kind"], row["ranks"]) for row in on_two["rows"])
    assert kinds["step", 2] == 2 and kinds["compute", 2] >= 2 and kinds["allreduce", 2] >= 1
    assert all(len(row["seconds"]) == row["ranks"] and min(map(min, row["seconds"])) > 0 for row in on_two["rows"])
    assert {len(times) for row in on_two["rows"] for times in row["seconds"]} != {0}


def test_it_goes_on_until_each_row_has_enough_times_and_says_how_busy_the_machine_was():
    found = probe("resnet11", [2], size=16, seconds=0.01, least=4)
    assert {row["kind"] for row in found["rows"]} == {"compute"} and min(len(row["seconds"][0]) for row in found["rows"]) >= 4
    assert 0 <= found["busy"] <= 1 and found["noise"] == pytest.approx(steptime.noise(found["rows"]), abs=0.01)


def test_other_programs_count_as_busy_and_the_ranks_do_not():
    before = _core_seconds(World())
    started = time.process_time()
    while time.process_time() < started + 1:  # a rank at work
        pass
    own = _core_seconds(World()) - before
    with subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"]) as other:
        other.wait()
    assert _core_seconds(World()) - before - own >= 0.8
    assert own < 60, "seconds of a few cores"


def test_the_vector_is_that_of_the_trainer(on_two):
    # 33,074 + 3 x 3 x 8 x 2 parameters of three-channel input, and classes 1000: counted by the network itself
    from repro.model import Network
    from repro.resnet import build

    network = Network(build("resnet11", 1000, 3))
    assert on_two["parameters"] == len(network.weights)
    assert {row["vector"] for row in on_two["rows"]} == {8 * (len(network.contribution) + 3)}  # int64, and three flags
    assert any(row.get("bytes") == row["vector"] for row in on_two["rows"])


def test_it_can_be_fitted_and_says_where_it_belongs(on_two):
    fitted = steptime.fit(on_two["rows"])
    assert fitted.ranks == 2 and fitted.link.byte > 0 and fitted.compute(4) > 0
    assert {key: on_two[key] for key in machine()} == machine()
    assert on_two["peak_bytes"] > 50e6


def test_one_rank_with_a_data_set_measures_the_loader_and_evaluation(digits):
    found = probe("resnet11", [8], digits, seconds=2.0)
    assert Counter(row["kind"] for row in found["rows"]) == {"compute": 2, "loading": 1}
    assert found["decoded_per_second"] > 0 and found["evaluated_per_second"] > 0
    assert found["data"] == "digits" and found["size"] == 16


def test_fast_sends_four_bytes_a_value():
    (found,) = {row["vector"] for row in probe(**SMALL | {"reduction": "fast", "seconds": 0.1})["rows"]}
    (exact,) = {row["vector"] for row in probe(**SMALL | {"seconds": 0.1})["rows"]}
    assert exact == 2 * found


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": "resnet49"}, "Did you mean resnet"),
        ({"images": []}, "images is"),
        ({"images": [2.5]}, "is 2.5"),
        ({"images": [0]}, "is 0"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": True}, "seconds is True"),
        ({"precision": "fp64"}, "unknown precision"),
        ({"reduction": "sum"}, "unknown reduction"),
        ({"threads": 0}, "threads is 0"),
        ({"size": -1}, "size is -1"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(change, said):
    with pytest.raises(ReproError, match=said):
        probe(**SMALL | change)


def test_the_command_line_names_it_too():
    done = python("-m", "repro", "probe", "--model", "resnet49")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown model 'resnet49'")
    assert python("-m", "repro", "probe", "--images", "2,x").returncode == 2
