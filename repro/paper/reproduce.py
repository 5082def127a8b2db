"""`make reproduce`: the runs, tables, figures and report of one profile, made by the notebooks on one set of engines."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from repro import ReproError, choose, engines, notebooks, records, tidy, watch
from repro.packed import pack_embedded
from repro.paper import report, tables
from repro.paths import REFERENCE, RESULTS, ROOT
from repro.recipes import find, shrink


@dataclass(frozen=True)
class Profile:
    """What one reproduction trains: the runs that the questions of some topics need, on a small data set."""

    data: str
    shrink: str
    seeds: dict[str, int]  # topic of `questions`: number of seeds
    scaling: dict  # parameters of 11-scaling
    about: str  # what it costs, for people


SMALL = {"collapse": 3, "ensemble": 3}
# By a pilot (docs/digits.md): so many seeds put most differences of the first topics into an interval of +-0.3 points. The
# others differ by more between seeds, and would take hundreds; what they ask about is larger.
FULL = {"collapse": 16, "ensemble": 16, "cost": 16, "batch": 6, "length": 6}
PROFILES = {
    "laptop": Profile("digits", "laptop", SMALL, {}, "12 minutes on two cores"),
    "full": Profile("digits", "laptop", FULL, {}, "two hours on two cores: all questions"),
    "letters": Profile("letters", "laptop", FULL, {}, "as long, on the second data set"),
    "cifar10": Profile("cifar10", "laptop", SMALL, {}, "not run by us; see `make plan`"),
    "smoke": Profile(
        "digits", "smoke", dict.fromkeys(SMALL, 1), {"model": "resnet18", "size": 32, "seconds": 4.0}, "a minute; no accuracy"
    ),
}
DISTRIBUTED = "resnet50_448nodes"  # the recipe that all ranks train together, as on a cluster
DRAWING = 600  # seconds allowed for a cell of a notebook that only reads and draws


def reproduce(profile: str, ranks: int = 0, results: Path = RESULTS) -> Path:
    """Trains the missing runs of a profile and makes its tables, figures and report; returns the report's path.

    Raises ReproError at the first failure and records.Stopped on a request; a later call continues from there.
    """
    chosen = PROFILES[choose("profile", profile, PROFILES)]
    began, runs, kept = time.monotonic(), str(results / "runs"), results / "notebooks"
    pack_embedded(chosen.data)
    shared = dict(data=chosen.data, shrink=chosen.shrink, out=runs, live=False)
    together = min(ranks or notebooks.cores(), shrink(find(DISTRIBUTED), chosen.shrink).passes)
    apart = ranks or notebooks.cores()
    asked = ", ".join(f"{topic} (n = {number})" for topic, number in chosen.seeds.items())
    print(f"profile {profile} asks on {chosen.data}: {asked}; {chosen.about}", flush=True)
    with engines.start(together) as cluster:
        joined = {"cluster": cluster.connection_file}
        parameters = {"recipe": DISTRIBUTED, "seeds": [0], **shared, **joined}
        _run({"10-train": parameters}, kept, cluster)
        scaling = {"results": str(results), **chosen.scaling, **joined}
        _run({"11-scaling": scaling}, kept, cluster)
    with engines.start(apart) as cluster:
        numbers = sorted(set(chosen.seeds.values()), reverse=True)
        for number in numbers:
            topics = [topic for topic, seeds in chosen.seeds.items() if seeds == number]
            parameters = {"topics": topics, "seeds": list(range(number)), **shared, "cluster": cluster.connection_file}
            _run({"12-questions": parameters}, kept / "-".join(topics) if len(numbers) > 1 else kept, cluster)
    for name, table in zip(("runs", "evaluations"), tidy.runs(runs)):
        tables.save(table, results, name)
    tables.save(tables.predictions(runs), results, "predictions")
    made = {"runs": runs, "results": str(results)}
    figures = {"data": chosen.data, "shrink": chosen.shrink, **made}
    _run({"01-recipes": {"results": str(results)}, "20-tables": made, "21-figures": figures}, kept)
    page = report.write(results, chosen.data, chosen.shrink)
    print(f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes\nreport: {page}")
    return page


def _run(parameters: dict[str, dict], kept: Path, cluster: engines.Cluster | None = None) -> None:
    """Executes notebooks, by name with their parameters, at the same time; without a cluster they only read and draw."""
    # In threads, because papermill handles signals itself where it can, but the first one is only a request to stop.
    with ThreadPoolExecutor(len(parameters)) as pool:
        running = []
        for name, values in parameters.items():
            output = kept / f"{name}.ipynb"
            print(f"\n== {name} -> {output.relative_to(ROOT) if output.is_relative_to(ROOT) else output}", flush=True)
            timeout = None if cluster else DRAWING
            running.append(pool.submit(notebooks.execute, name, values, output, log=bool(cluster), timeout=timeout))
        asked = False
        try:
            while wait(running, timeout=engines.POLL).not_done:
                if watch.asked.is_set() and cluster and not asked:
                    cluster.ask_to_stop()
                    asked = True
        except BaseException:  # on a second request; the notebook ends when its kernel does
            notebooks.end_kernels()
            raise
    if watch.asked.is_set():
        raise records.Stopped("stopped on request; what was trained so far is kept. The same command continues.")
    for notebook in running:
        notebook.result()


def keep(results: Path = RESULTS, reference: Path = REFERENCE) -> Path:
    """Copies the small files of a finished reproduction to results/reference, to be committed.

    Leaves out models, notebooks, incomplete runs, and evaluations.csv, which `repro.runs` computes from the runs' metrics.
    What other commands measure stays unless it was measured again: faults.json, bench/ and the figures of bench.
    """
    if not (results / "report" / "index.html").exists():
        raise ReproError(f"there is no report in {results}: `make reproduce` makes it")
    for folder in ("tables", "figures", "report", "runs"):
        for path in (reference / folder).glob("*"):
            if not path.name.startswith("bench-"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for pattern in (
        "tables/*.csv",
        "figures/*.svg",
        "figures/*.pdf",
        "figures/*.csv",
        "report/index.html",
        "bench/*.json",
        "runs/*/run.json",
        "runs/*/metrics.jsonl",
        "runs/*/ensembles.json",
        "runs/*/correct/*.npz",
    ):
        for path in results.glob(pattern):
            if path.name == "evaluations.csv":
                continue
            run = results / "runs" / path.relative_to(results).parts[1]
            if path.relative_to(results).parts[0] != "runs" or records.read(run).get("status") == "complete":
                target = reference / path.relative_to(results)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return reference
