"""The soak draws the same trial from a seed, comes to every fault, and fails where the product does."""

import pytest

import soak
from conftest import python

ROW = {"step": 1, "stage": "s0"}


def test_a_seed_draws_the_same_trial_and_many_draw_every_fault():
    drawn = [soak.draw(f"7-{number}", ["MPICH", "Open MPI"]) for number in range(300)]
    assert drawn == [soak.draw(f"7-{number}", ["MPICH", "Open MPI"]) for number in range(300)]
    attempts = [attempt for _, _, attempts in drawn for attempt in attempts]
    faults = {fault.kind for attempt in attempts for fault in (*attempt.faults, *attempt.damage)}
    assert faults == {*soak.RANKS, *soak.DAMAGE}
    assert {attempt.ranks for attempt in attempts} == {1, 2, 3} and {attempt.plain for attempt in attempts} == {True, False}
    assert all(hasattr(soak.Attempt, soak.method(kind)) for kind in soak.RANKS)


def test_two_runs_are_equal_but_for_rows_that_a_line_has_named():
    whole = {"weights": "a", "rows": [ROW, ROW | {"step": 2}]}
    soak.compare(whole, whole, set())
    soak.compare(whole | {"rows": [ROW]}, whole, {2})
    for other, gaps in (({"weights": "b"}, set()), ({"rows": [ROW]}, set()), ({"rows": [ROW, *whole["rows"]]}, set())):
        with pytest.raises(soak.Failed):
            soak.compare(whole | other, whole, gaps)


BREAK = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import soak
from repro.run import records
place = Path(sys.argv[1])
data = soak.few_digits(place)
recipe = soak.Recipe("soak", (soak.Stage("s0", 7, 0.1),), workers=3, images_per_worker=4, record_every=1e-4)
attempt = soak.Drawn(1, "", False, "1e9,600", [soak.Fault("kill", 3)], [])
soak.draw = lambda *_: (recipe, 0, [attempt])
print(soak.trial("1-0", {}, data, place, False)["problem"] or "passed")
records.Run.rewind = lambda *_: None
print(soak.trial("1-1", {}, data, place, False)["problem"] or "passed")
"""


@pytest.mark.slow
def test_a_product_that_writes_rows_twice_fails(tmp_path):
    done = python("-c", BREAK, tmp_path, timeout=120)
    said = done.stdout.splitlines()
    assert said[0] == "passed" and said[1].startswith("double rows"), done.stdout + done.stderr
