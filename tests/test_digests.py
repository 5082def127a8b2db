"""The weights of four small recipes are, to the bit, those that were recorded (`digests.py`)."""

import json
import os

import pytest

from conftest import ROOT, python


def test_weights_are_the_recorded_ones(tmp_path):
    recorded = json.loads((ROOT / "tests" / "digests.json").read_text())
    done = python(
        ROOT / "tests" / "digests.py", tmp_path, timeout=200, PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "data_prep")))
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for what in ("torch", "kernels"):
        if found[what] != recorded[what]:
            pytest.skip(f"digests were recorded with {what} {recorded[what]}, and this machine has {found[what]}")
    assert found["weights"] == recorded["weights"]
