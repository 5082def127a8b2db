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
    """The runs of one reproduction: recipes by their shrink, each over all seeds."""

    data: str
    recipes: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    overhead: float  # seconds beside training: engines, notebooks, figures; only the forecast uses it
    scaling: dict  # parameters of 11-scaling


WARMUP = "resnet50_448nodes", "resnet50_448nodes_no_warmup"
COLLAPSE = "resnet50_448nodes", "resnet50_448nodes_uncollapsed"
ENSEMBLE = "collapsed_ensemble", "one_model"
PROFILES = {
    # Each question is asked in the regime where a small data set can answer it; docs/digits.md explains the choice.
    "laptop": Profile(
        "digits",
        {"laptop-edge": WARMUP, "laptop": COLLAPSE, "laptop-few": ENSEMBLE},
        seeds=tuple(range(7)),
        overhead=150,
        scaling={},
    ),
    "smoke": Profile(
        "digits",
        {"smoke": ("resnet50_448nodes", *ENSEMBLE)},
        seeds=(0,),
        overhead=90,
        scaling={"model": "resnet18", "size": 32, "seconds": 4.0},
    ),
}
DRAWING = 600  # seconds allowed for a cell of a notebook that only reads and draws


def reproduce(profile: str, ranks: int = 0, results: Path = RESULTS) -> Path:
    """Trains the missing runs of a profile and makes its tables, figures and report; returns the report's path.

    Raises ReproError at the first failure and records.Stopped on a request; a later call continues from there.
    """
    chosen = PROFILES[choose("profile", profile, PROFILES)]
    began, runs, kept = time.monotonic(), str(results / "runs"), results / "notebooks"
    pack_embedded(chosen.data)
    pairs = [(name, small) for small, names in chosen.recipes.items() for name in names]
    ranks = ranks or notebooks.ranks_for([shrink(find(name), small) for name, small in pairs])
    with engines.start(ranks) as cluster:
        tasks = {
            (name, small, seed): dict(recipe=name, data=chosen.data, shrink=small, seed=seed, out=runs)
            for name, small in pairs
            for seed in chosen.seeds
        }
        plans = dict(zip(tasks, cluster.run("repro.scaling.forecast:expected", list(tasks.values()))[0]))
        _announce(profile, chosen, cluster, plans)
        shared = dict(data=chosen.data, seeds=list(chosen.seeds), cluster=cluster.connection_file, live=False, out=runs)
        for name, small in pairs:
            _run("10-train", {"recipe": name, "shrink": small, **shared}, kept / f"10-train-{name}-{small}.ipynb", cluster)
        ensemble = next(small for name, small in pairs if name in ENSEMBLE)
        _run(
            "12-collapsed-ensemble",
            {"shrink": ensemble, "results": str(results), **shared},
            kept / "12-collapsed-ensemble.ipynb",
            cluster,
        )
        _run(
            "11-scaling",
            {"cluster": cluster.connection_file, "results": str(results), **chosen.scaling},
            kept / "11-scaling.ipynb",
            cluster,
        )
    for name, table in zip(("runs", "evaluations"), tidy.runs(runs)):
        tables.save(table, results, name)
    tables.save(tables.predictions(runs), results, "predictions")
    made = {"runs": runs, "results": str(results)}
    _run("01-recipes", {"results": str(results)}, kept / "01-recipes.ipynb")
    _run("20-tables", made, kept / "20-tables.ipynb")
    _run("21-figures", {"data": chosen.data, "ensembles": ensemble, **made}, kept / "21-figures.ipynb")
    page = report.write(results)
    _summarise(time.monotonic() - began, plans, page)
    return page


def _announce(profile, chosen, cluster, plans) -> None:
    todo = [plan for plan in plans.values() if not plan["complete"]]
    seeds = f"{len(chosen.seeds)} seed" + "s" * (len(chosen.seeds) > 1)
    print(
        f"profile {profile}: {len(plans)} runs on {chosen.data}, {seeds}, {len(plans) - len(todo)} of them complete; "
        f"{cluster.ranks} ranks"
    )
    for (_, _, seed), plan in plans.items():
        if seed == chosen.seeds[0]:
            print(
                f"  {plan['recipe']:42} {plan['workers']:3} workers, batch {plan['global_batch']:4}, "
                f"{plan['epochs']:6.2f} epochs, {plan['iterations']:5} steps"
            )
    if todo:
        images, seconds = (sum(plan[key] for plan in todo) for key in ("images", "seconds"))
        print(
            f"expected: {(seconds + chosen.overhead) / 60:.0f} minutes ({images:,} images at {images / seconds:,.0f} images/s, "
            f"evaluations included, by a probe just now)",
            flush=True,
        )


def _run(name: str, parameters: dict, output: Path, cluster: engines.Cluster | None = None) -> None:
    print(f"\n== {name} -> {output.relative_to(ROOT) if output.is_relative_to(ROOT) else output}", flush=True)
    timeout = None if cluster else DRAWING
    # In a thread, because papermill handles signals itself where it can, but the first one is only a request to stop.
    with ThreadPoolExecutor(1) as pool:
        notebook = pool.submit(notebooks.execute, name, parameters, output, log=name.startswith("1"), timeout=timeout)
        asked = False
        try:
            while wait([notebook], timeout=engines.POLL).not_done:
                if watch.asked.is_set() and cluster and not asked:
                    cluster.ask_to_stop()
                    asked = True
        except BaseException:  # on a second request; the notebook ends when its kernel does
            notebooks.end_kernels()
            raise
    if watch.asked.is_set():
        raise records.Stopped("stopped on request; what was trained so far is kept. The same command continues.")
    notebook.result()


def _summarise(wall: float, plans: dict, page: Path) -> None:
    trained = sum(records.read(plan["folder"])["seconds"] for plan in plans.values() if not plan["complete"])
    predicted = sum(plan["seconds"] for plan in plans.values() if not plan["complete"])
    comparison = f" (predicted: {predicted / 60:.1f}, error {100 * (predicted / trained - 1):+.0f}%)" if trained else ""
    print(f"\ndone in {wall / 60:.1f} minutes, {trained / 60:.1f} of them training{comparison}\nreport: {page}")


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
        "figures/*.csv",
        "report/index.html",
        "bench/*.json",
        "runs/*/run.json",
        "runs/*/metrics.jsonl",
        "runs/*/ensembles.json",
    ):
        for path in results.glob(pattern):
            if path.name == "evaluations.csv":
                continue
            if "runs" not in path.parts[-3:] or records.read(path.parent).get("status") == "complete":
                target = reference / path.relative_to(results)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return reference
