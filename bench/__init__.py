"""Measurements against other people's code. Not part of the installed package: run from the project's folder."""

import sys

from repro.paths import ROOT

sys.path.append(str(ROOT / "data_prep"))  # whose scripts import one another as neighbours
