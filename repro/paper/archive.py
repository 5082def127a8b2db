"""`make release-archive`: one zip file of a reproduction, as a journal or Zenodo takes it, with the same bytes each time.

Nothing in it depends on when, where or by whom it is made: names are sorted, times and permissions are fixed, and nothing is
compressed, since versions of zlib compress differently.
"""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pandas as pd

from repro import ReproError, __version__
from repro.paper import tables
from repro.paths import RESULTS, ROOT, replacing, writable_folder
from repro.run import identity, records, trained

# What is taken of a results folder: (patterns, what it is). Models and checkpoints stay: a run's command makes them again.
RESULT_FILES = (
    (("report/index.html",), "the report: all tables and figures on one page, which needs no server"),
    (("notebooks/**/*.ipynb",), "the notebooks as they were executed, with their outputs"),
    (("tables/*.csv",), "the tables of the report; results.md in code/docs describes their columns"),
    (("figures/*.svg", "figures/*.pdf", "figures/*.csv"), "the figures, and beside each the table that it draws"),
    (("bench/*.json", "bench/*.csv"), "measurements of this machine"),
    (("runs/*/run.json", "runs/*/metrics.jsonl", "runs/*/ensembles.json", "runs/*/correct/*"), "a folder per run: its record"),
    (("runs/*.gz", "runs/*.npz", "runs/*.json"), "runs in few files; results.md in code/docs says how"),
    (("forecasts.json", "reproduced.json", "faults.json"), "forecasts, and digests of what the report was made from"),
)
ENVIRONMENT = "environment/machines.json"
CHECKSUMS = "checksums.sha256"
ABOUT = {
    "CITATION.cff": "how to cite this",
    "LICENSE": "the licence of code and results",
    CHECKSUMS: "SHA-256 of every other file",
    "environment/requirements.lock": "all packages of the environment, with versions and hashes",
    ENVIRONMENT: "what computed the runs: versions of code and packages, processor; and how many runs",
    "code/": "the files that git tracks, without results/reference: the code, the published numbers, the documentation",
}
AGAIN = """Repeat it, with make and Python 3.11 or newer:

    cd code && make reproduce

`code/docs/setup.md` says what each profile costs. The runs' models are not in this archive: the same commands train them
again, with the same bits on the same kind of processor."""
NO_CODE = "The code is not in this archive, which was made outside of a git checkout."
MOMENT = 1980, 1, 1, 0, 0, 0  # the earliest that a zip file can say


def archive(results: Path = RESULTS, out: Path | None = None) -> Path:
    """Writes the archive of a reproduction in `results` (its reference, if it has no runs of size); returns its path.

    `out` is by default scaleout-repro-VERSION.zip in `results`. The same files give the same bytes. Raises ReproError if there
    is no report.
    """
    top = f"scaleout-repro-{__version__}"
    out = out or results / f"{top}.zip"
    folder = tables.runs_or_reference(results=results).parent
    if not (folder / "report" / "index.html").exists():
        raise ReproError(f"there is no report in {folder}: `make reproduce` makes it")
    writable_folder(out.parent)
    files = _of_results(folder) | _of_code()
    files |= {name: (ROOT / name).read_bytes() for name in ("CITATION.cff", "LICENSE")}
    files["environment/requirements.lock"] = (ROOT / "requirements.lock").read_bytes()
    files[ENVIRONMENT] = _machines(folder / "runs")
    files["README.md"] = _readme(folder, files).encode()
    files[CHECKSUMS] = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as written:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{top}/{name}", MOMENT)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # of Unix, wherever this runs
            written.writestr(entry, files[name])
    return out


def _of_results(folder: Path) -> dict[str, bytes]:
    """The files of a results folder by their names in the archive; paths of this machine in notebooks are made relative."""
    found = {path for patterns, _ in RESULT_FILES for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files = {}
    for path in found:
        if path.name.endswith(".failed.ipynb") or path.name.startswith("."):
            continue
        content = path.read_bytes()
        files[path.relative_to(folder).as_posix()] = (
            content.replace(f"{ROOT}/".encode(), b"") if path.suffix == ".ipynb" else content
        )
    return files


def _of_code() -> dict[str, bytes]:
    """The tracked files of this checkout; none if it is not one."""
    try:
        names = [name for name in identity.git("ls-files", "-z").split("\0") if not name.startswith("results/reference/")]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return {f"code/{name}": (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}


def _machines(runs: Path) -> bytes:
    """On what the runs were computed: one entry per machine and environment, with its number of runs."""
    facts = ("version", "packages", "processor", "cores", "kernels")
    found = [
        json.dumps({fact: run.get(fact) for fact in facts}, sort_keys=True)
        for run in map(records.read, records.complete_runs(runs))
    ]
    counted = [{"runs": found.count(one), **json.loads(one)} for one in sorted(set(found))]
    return (json.dumps(counted, indent=1) + "\n").encode()


def _readme(folder: Path, files: dict[str, bytes]) -> str:
    """What is in the archive, and how to check and repeat it."""
    runs = [records.read(run) for run in records.complete_runs(folder / "runs")]
    code = trained.by(folder / "runs", [(run["code"], run["version"]) for run in runs])
    states = pd.read_csv(folder / "tables" / "ledger.csv").state.value_counts()
    claims = ", ".join(f"{number} {state}" for state, number in states.items())
    rows = [(f"`{name}`", what) for name, what in ABOUT.items() if any(file.startswith(name) for file in [*files, CHECKSUMS])]
    for patterns, what in RESULT_FILES:
        there = [f"`{pattern}`" for pattern in patterns if any(path.is_file() for path in folder.glob(pattern))]
        rows += [(", ".join(there), what)] if there else []
    listed = "\n".join(f"| {name} | {what} |" for name, what in rows)
    return f"""# A reproduction of "Scale out for large minibatch SGD"

By scaleout-repro {identity.code_version()}, of Codreanu, Podareanu and Saletore, 2017, arXiv 1711.04291.
{len(runs)} complete runs, {code}. The state of each claim is in `tables/ledger.csv`: {claims}.

| file | what it is |
|---|---|
{listed}

Check that all files are whole:

    sha256sum --check --quiet {CHECKSUMS}

{AGAIN if any(name.startswith("code/") for name in files) else NO_CODE}
"""
