"""Benchmarks against other people's code. Not part of the installed package: run them from the project's folder."""

import sys

from repro.paths import ROOT

sys.path.append(str(ROOT / "data_prep"))  # its scripts import one another by bare names
