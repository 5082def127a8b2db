"""The claims of docs/faults.md: which tests count for each, and the file of counts. docs/write_numbers.py shows them.

A test marked counts_for(claim, cases=n) counts n cases, and passes only if all of them do. A test may hand over
`record_property("seconds", s)`; the table shows the largest.
"""

import json
import os
import platform
import time
from pathlib import Path

CLAIMS = {
    "world-size": "bit-identical weights on 1, 2, 3 and 4 ranks",
    "other-mpi": "bit-identical weights under other MPIs",
    "resume": "bit-identical weights after SIGKILL at 15 named points, on 1 and 2 ranks",
    "five-kills": "bit-identical weights after five kills in one run, and resumed on 2, 1 and 4 ranks",
    "control": "a restore that leaves out momentum, statistics or the step is found out",
    "killed-in-save": "a save killed at any point leaves a verified checkpoint",
    "damage": "flipped bits and truncations found, in checkpoints and packed data; never a fresh start",
    "malformed-checkpoint": "malformed checkpoints refused by name",
    "malformed-run": "run records and metric rows of another shape named",
    "work-lost": "work lost to SIGKILL: at most one checkpoint interval",
    "rank-fails": "a rank raises or is killed: the end within 5 s, its own words first",
    "rank-freezes": "a rank freezes or hangs: named within the time-out + 10 s",
    "not-finite": "NaN or infinite: all ranks stop at one step, no checkpoint of it",
    "disagree": "ranks that disagree refused before step 0, the first difference named",
    "replicas": "a rank whose weights have changed is found before the next checkpoint",
    "orphans": "no process 5 s after SIGINT, SIGTERM or SIGKILL",
    "stop": "a stop request: 0 steps lost; twice: at once",
    "evaluation": "the same counts for every number of ranks",
    "green": "falsely green notebooks refused",
    "parameters": "misspelt, mistyped and impossible parameters refused",
    "storage": "disk full, read-only, vanished, two runs on one folder: named",
    "images": "malformed images: named, or loaded right",
    "archives": "malformed archives named",
    "packed": "malformed packed data and label maps named",
    "security": "security rules",
    "doctor": "`python -m repro doctor` names what is broken",
}

_counts, _began = {}, time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--faults-json", metavar="FILE", help="write the counts of all claims there")


def check(items) -> None:
    """Each test that counts does so for a claim that there is."""
    for item in items:
        for mark in item.iter_markers("counts_for"):
            assert mark.args[0] in CLAIMS, f"{item.nodeid}: no claim {mark.args[0]}"


def count(item, report) -> None:
    """Takes a test's report into account: called for each of its phases."""
    if report.when != "call" and report.passed:
        return
    for mark in item.iter_markers("counts_for"):
        entry = _counts.setdefault(mark.args[0], {"passed": 0, "of": 0, "not_run": []})
        cases = mark.kwargs.get("cases", 1)
        if report.skipped:
            entry["not_run"].append(f"{item.name}: {report.longrepr[2].removeprefix('Skipped: ')}")
        elif report.when == "call" or report.failed:
            entry["of"] += cases
            entry["passed"] += cases if report.passed else 0
        seconds = [value for name, value in report.user_properties if name == "seconds"]
        if seconds:
            entry["longest_seconds"] = round(max(entry.get("longest_seconds", 0), *seconds), 1)


def pytest_sessionfinish(session):
    file = session.config.getoption("--faults-json")
    if not file:
        return
    from repro.run import identity

    found = {
        "claims": [{"claim": name, "what": CLAIMS[name], **_counts[name]} for name in CLAIMS if name in _counts],
        "seconds": round(time.monotonic() - _began),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "packages": identity.package_versions(),
        "code": identity.code_digest(),
    }
    Path(file).write_text(json.dumps(found, indent=1) + "\n")
