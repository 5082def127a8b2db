"""`make reproduce`: the runs, tables, figures and report of one profile, made by the notebooks on one set of engines.

`make table-NAME` and `make figure-NAME` run the notebook that saves it, and no other.
"""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from repro import ReproError, choose
from repro.images.packed import pack_embedded
from repro.jupyter import engines, notebooks
from repro.paper import current, questions, report, tables
from repro.paper.overall import Overall
from repro.paper.profiles import DISTRIBUTED, NOTEBOOKS, PROFILES
from repro.paths import REFERENCE, RESULTS
from repro.ranks import stop
from repro.recipes import find, shrink
from repro.run import records, tidy, trained
from repro.run.identity import code_digest
from repro.run.kept import Kept, data_sets, keep_runs

STOPPED = "stopped on request; what was trained so far is kept. The same command continues."
LOOK = 1.0  # seconds between two looks at the runs
DRAWING = 600  # seconds allowed for a cell of a notebook that only reads and draws
ALONE = {  # what can be made alone, by notebooks that only read and draw
    "tables": {"20-tables": "accuracy answers ledger published_released_runs ratios time_to_train", "01-recipes": "recipes"},
    "figures": {
        "21-figures": "answers anytime batches beds budget headline learning_rates time_to_accuracy time_to_train "
        "training_curves training_losses views"
    },
}


def reproduce(profile: str, ranks: int = 0, results: Path = RESULTS, verbose: bool = False) -> Path:
    """Trains the missing runs of a profile and makes its tables, figures and report; returns the report's path.

    If nothing has changed since the last time, nothing is done. With `verbose`, what the notebooks print is also printed.
    Raises ReproError at the first failure and records.Stopped on a request; a later call continues from there.
    """
    chosen = PROFILES[choose("profile", profile, PROFILES)]
    results = results.resolve()
    began, runs, kept = time.monotonic(), str(results / "runs"), results / "notebooks"
    page = results / "report" / "index.html"
    pack_embedded(chosen.data)
    changed = current.difference(profile, results)
    if not changed:
        print(f"nothing to do: all is as it was made (delete {results / current.NAME} to make it again)\nreport: {page}")
        return page
    overall = Overall(chosen, runs)
    print(f"{changed}; {len(overall.complete)} of {len(overall.planned)} runs are complete", flush=True)
    if cost := overall.cost:
        print(cost, flush=True)
    shared = dict(data=chosen.data, shrink=chosen.shrink, out=runs, live=False)
    together = min(ranks or notebooks.cores(), shrink(find(DISTRIBUTED), chosen.shrink).passes)
    apart = ranks or notebooks.cores()
    with engines.start(together) as cluster:
        joined = {"cluster": cluster.connection_file}
        parameters = {"recipe": DISTRIBUTED, "seeds": [0], **shared, **joined}
        _run({"10-train": parameters}, kept, overall, cluster, verbose)
        scaling = {"results": str(results), **chosen.scaling, **joined}
        _run({"11-scaling": scaling}, kept, overall, cluster, verbose)
    with engines.start(apart) as cluster:
        for notebook, asks in NOTEBOOKS.items():
            numbers = sorted({chosen.seeds[topic] for topic in asks if topic in chosen.seeds}, reverse=True)
            for number in numbers:
                topics = [topic for topic in asks if chosen.seeds.get(topic) == number]
                parameters = {"topics": topics, "seeds": list(range(number)), **shared, "cluster": cluster.connection_file}
                folder = kept / "-".join(topics) if len(numbers) > 1 else kept
                _run({notebook: parameters}, folder, overall, cluster, verbose)
    for name, table in zip(("runs", "evaluations"), tidy.runs(runs)):
        tables.save(table, results, name)
    tables.save(tables.predictions(runs), results, "predictions")
    made = {"runs": runs, "results": str(results)}
    figures = {"data": chosen.data, "shrink": chosen.shrink, **made}
    _run({"01-recipes": {"results": str(results)}, "20-tables": made, "21-figures": figures}, kept, overall)
    report.write(results, chosen.data, chosen.shrink)
    trained.note(results / "runs")
    current.note(profile, results)
    seconds = time.monotonic() - began
    print("\n".join(filter(None, [overall.account(seconds, apart), f"done in {seconds / 60:.1f} minutes", f"report: {page}"])))
    return page


def _run(
    parameters: dict[str, dict], kept: Path, overall: Overall, cluster: engines.Cluster | None = None, verbose: bool = False
) -> None:
    """Executes notebooks, by name with their parameters, at the same time; without a cluster they only read and draw."""
    if stop.asked.is_set():
        raise records.Stopped(STOPPED)
    overall.begin(", ".join(parameters))
    # In threads, so that this one can look at the runs and at requests to stop.
    with ThreadPoolExecutor(len(parameters)) as pool:
        running = []
        for name, values in parameters.items():
            output = kept / f"{name}.ipynb"
            timeout = None if cluster else DRAWING
            running.append(pool.submit(notebooks.execute, name, values, output, log=verbose and bool(cluster), timeout=timeout))
        asked = False
        try:
            while wait(running, timeout=LOOK).not_done:
                overall.show()
                if stop.asked.is_set():
                    if cluster and not asked:
                        cluster.ask_to_stop()
                    asked = True
                    if not overall.training:  # nothing is lost; again and again, since a kernel may only be starting
                        notebooks.end_kernels()
        except BaseException:  # on a second request; the notebook ends when its kernel does
            notebooks.end_kernels()
            raise
    if stop.asked.is_set() or any(isinstance(notebook.exception(), records.Stopped) for notebook in running):
        for name in parameters:  # it has not failed
            (kept / f"{name}.failed.ipynb").unlink(missing_ok=True)
        raise records.Stopped(STOPPED)
    for notebook in running:
        notebook.result()
    for name in parameters:
        overall.end(name)


def names(kind: str) -> dict[str, str]:
    """The names of all "tables" or "figures" that can be made alone, each with its notebook."""
    return {name: notebook for notebook, saved in ALONE[kind].items() for name in saved.split()}


def make(kind: str, name: str, results: Path = RESULTS, runs: Path | str = "", **parameters) -> list[Path]:
    """Writes one of the "tables" or "figures", and what its notebook makes beside it, into `results`. Returns its files.

    `runs` is the folder of the runs, by default the notebook's. `parameters` are the notebook's, such as data="letters".
    """
    known = names(kind)
    notebook = known[choose(kind.removesuffix("s"), name, known)]
    values = {"results": str(results)} | ({} if notebook == "01-recipes" else {"runs": str(runs)})  # which reads none
    notebooks.execute(notebook, values | parameters, results / "notebooks" / f"{notebook}.ipynb")
    return sorted((results / kind).glob(f"{name}[.-]*"))


COPIED = "tables/*.csv", "figures/*.svg", "figures/*.pdf", "figures/*.csv", "report/index.html", "bench/*.json", "bench/*.csv"


def keep(results: Path = RESULTS, reference: Path = REFERENCE) -> Path:
    """Copies the small files of a finished reproduction to results/reference, and its runs into few files, to be committed.

    Leaves out models, notebooks, runs that do not count or that other code has trained, predictions that no question reads,
    and evaluations.csv, which `repro.runs` computes from the runs' metrics.
    What other commands measure stays unless it was measured again: faults.json, bench/ and the figures of bench. Prints which
    tables and figures were not made again, and so are gone. Raises ReproError, and leaves the reference as it is, if a data set
    would be lost.
    """
    if not (results / "report" / "index.html").exists():
        raise ReproError(f"there is no report in {results}: `make reproduce` makes it")
    counted = tables.that_count(tidy.runs(results / "runs")[0])
    mine = counted[counted.code == code_digest()]
    if mine.empty:
        raise ReproError(f"the runs in {results / 'runs'} are by other code than this: `make reproduce` trains them again")
    if lost := data_sets(reference / "runs") - {*mine.data}:
        there, here = reference / "runs", results / "runs"
        raise ReproError(
            f"{there} has runs on {', '.join(sorted(lost))}, and {here} has none of this code: train or copy them there"
        )
    replaced = [
        path
        for folder in ("tables", "figures", "report", "runs")
        for path in (reference / folder).glob("*")
        if not path.name.startswith("bench-")
    ]
    for path in replaced:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [path for pattern in COPIED for path in results.glob(pattern) if path.name != "evaluations.csv"]:
        target = reference / path.relative_to(results)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (reference / "runs").mkdir(exist_ok=True)
    for data, runs in mine.groupby("data"):
        keep_runs(reference / "runs", str(data), {name: _to_keep(results / "runs" / name) for name in runs.folder})
    trained.note(reference / "runs")
    if gone := [str(path.relative_to(reference)) for path in replaced if not path.exists()]:
        print(f"no longer in {reference}, since {results} has none: {', '.join(sorted(gone))}")
    return reference


def _to_keep(folder: Path) -> Kept:
    run, asked = records.read(folder), questions.read()
    correct = {
        name: records.load_correct(folder, name)["test"] for name in records.tested(folder) if (run["base"], name) in asked
    }
    return Kept(run, records.metric_rows(folder), records.ensembles(folder), correct)
