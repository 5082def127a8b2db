"""`make reproduce`: one profile's runs, tables, figures and report, through the notebooks, on one set of engines."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from repro import ReproError, choose, engines, notebooks, records, report
from repro.paths import REFERENCE, RESULTS, ROOT
from repro.recipes import find, shrink


@dataclass(frozen=True)
class Profile:
    """Which runs make one reproduction: recipes by their shrink, each over all seeds."""

    data: str
    recipes: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]


WARMUP = "resnet50_448nodes", "resnet50_448nodes_no_warmup"
COLLAPSE = "resnet50_448nodes", "resnet50_448nodes_uncollapsed"
ENSEMBLE = "collapsed_ensemble", "one_model"
PROFILES = {
    # Each question in the regime where a small data set can answer it; the README says how these were chosen.
    "laptop": Profile("digits", {"laptop-edge": WARMUP, "laptop": COLLAPSE, "laptop-few": ENSEMBLE},
                      seeds=tuple(range(7))),
    "smoke": Profile("digits", {"smoke": ("resnet50_448nodes", *ENSEMBLE)}, seeds=(0,)),
}
OVERHEAD = 90  # seconds beside training: engines, notebooks, evaluation, figures; only the forecast uses it


def reproduce(profile: str, ranks: int = 0, results: Path = RESULTS) -> Path:
    """Runs what is missing of a profile and makes its tables, figures and report; returns the report's path.

    Raises ReproError at the first thing that fails; a later call goes on from there.
    """
    chosen = PROFILES[choose("profile", profile, PROFILES)]
    began, runs, kept = time.monotonic(), str(results / "runs"), results / "notebooks"
    notebooks.ensure_data(chosen.data)
    pairs = [(name, small) for small, names in chosen.recipes.items() for name in names]
    ranks = ranks or notebooks.ranks_for([shrink(find(name), small) for name, small in pairs])
    with engines.start(ranks) as cluster:
        plans = {(name, small, seed): cluster.run("repro.train:plan", recipe=name, data=chosen.data, shrink=small,
                                                  seed=seed, out=runs)[0]
                 for name, small in pairs for seed in chosen.seeds}
        _announce(profile, chosen, cluster, plans)
        shared = dict(data=chosen.data, seeds=list(chosen.seeds), cluster=cluster.connection_file, live=False, out=runs)
        for name, small in pairs:
            _run("10-train", {"recipe": name, "shrink": small, **shared}, kept / f"10-train-{name}-{small}.ipynb")
        ensemble = next(small for name, small in pairs if name in ENSEMBLE)
        _run("12-collapsed-ensemble", {"shrink": ensemble, "results": str(results), **shared},
             kept / "12-collapsed-ensemble.ipynb")
    made = {"runs": runs, "results": str(results)}
    _run("01-recipes", {"results": str(results)}, kept / "01-recipes.ipynb")
    _run("20-tables", made, kept / "20-tables.ipynb")
    _run("21-figures", {"data": chosen.data, "ensembles": ensemble, **made}, kept / "21-figures.ipynb")
    page = report.write(results, [plan["folder"] for plan in plans.values()])
    _summarise(time.monotonic() - began, plans, page)
    return page


def _announce(profile, chosen, cluster, plans) -> None:
    todo = [plan for plan in plans.values() if not plan["complete"]]
    seeds = f"{len(chosen.seeds)} seed" + "s" * (len(chosen.seeds) > 1)
    print(f"profile {profile}: {len(plans)} runs on {chosen.data}, {seeds}, {len(plans) - len(todo)} of them complete; "
          f"{cluster.ranks} ranks")
    for (name, small, seed), plan in plans.items():
        if seed == chosen.seeds[0]:
            print(f"  {plan['recipe']:42} {plan['workers']:3} workers, batch {plan['global_batch']:4}, "
                  f"{plan['epochs']:6.2f} epochs, {plan['iterations']:5} steps")
    if todo:
        images = sum(plan["images"] for plan in todo)
        name, small, seed = next(iter(plans))
        pace = cluster.run("repro.train:pace", recipe=name, data=chosen.data, shrink=small)[0]
        print(f"expected: {(images / pace + OVERHEAD) / 60:.0f} minutes ({images:,} images at {pace:,.0f} images/s, "
              f"measured just now)", flush=True)


def _run(name: str, parameters: dict, output: Path) -> None:
    print(f"\n== {name} -> {output.relative_to(ROOT) if output.is_relative_to(ROOT) else output}", flush=True)
    notebooks.execute(name, parameters, output, log=name.startswith("1"))


def _summarise(wall: float, plans: dict, page: Path) -> None:
    trained = sum(records.read(plan["folder"])["seconds"] for plan in plans.values() if not plan["complete"])
    print(f"\ndone in {wall / 60:.1f} minutes, {100 * trained / wall:.0f}% of it training\nreport: {page}")


def keep(results: Path = RESULTS, reference: Path = REFERENCE) -> Path:
    """Copies what is small of a finished reproduction (no models, no notebooks) to results/reference, for committing."""
    if not (results / "report" / "index.html").exists():
        raise ReproError(f"there is no report in {results}: `make reproduce` makes it")
    shutil.rmtree(reference, ignore_errors=True)
    for pattern in ("tables/*.csv", "figures/*.svg", "figures/*.csv", "report/index.html", "bench/*.json",
                    "runs/*/run.json", "runs/*/metrics.jsonl", "runs/*/ensembles.json"):
        for path in results.glob(pattern):
            if "runs" not in path.parts[-3:] or records.read(path.parent).get("status") == "complete":
                target = reference / path.relative_to(results)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return reference
