"""Reports of the benchmarks: rows of two numbers measured alternately in one run, their ratio, and its goal."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from repro.paths import RESULTS, replacing, writable_folder
from repro.run.identity import code_version, now, package_versions, processor

SECOND = "one second"  # stands for the peer if a goal is in seconds; there is no ratio to draw


@dataclass(frozen=True)
class Goal:
    """The goal of a ratio: at least (`sign` >=) or at most (<=) `bound`."""

    sign: str
    bound: float

    def met_by(self, ratio: float) -> bool:
        return ratio >= self.bound if self.sign == ">=" else ratio <= self.bound


def row(name: str, ours: list[float], peer: list[float], peer_is: str, unit: str, goal: Goal | None = None) -> dict:
    """A row for ours and a peer, measured alternately: medians, their ratio, whether it meets the goal, and every round."""
    ratio = median(ours) / median(peer)
    return {
        "name": name,
        "ours": median(ours),
        "peer": median(peer),
        "peer_is": peer_is,
        "ratio": ratio,
        "goal": asdict(goal) if goal else None,
        "met": goal.met_by(ratio) if goal else None,
        "unit": unit,
        "rounds": {"ours": ours, "peer": peer},
    }


def save(name: str, rows: list[dict], facts: dict, results: Path = RESULTS) -> None:
    """Writes bench/NAME.json into the results folder: the rows, the machine, the versions and these `facts`."""
    result = {
        "when": now(),
        "version": code_version(),
        "packages": package_versions(),
        "cores": os.cpu_count(),
        "machine": processor(),
        **facts,
        "rows": rows,
    }
    with replacing(writable_folder(results / "bench") / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1))


def publish(name: str, rows: list[dict], facts: dict, results: Path = RESULTS) -> None:
    """Saves the rows, draws their ratios into figures/bench-NAME and prints them. Another folder of `results` is a test's."""
    from bench import figures  # a GPU's machine may have no matplotlib, and needs none to measure
    from repro.paper.figures import save as save_figure

    save(name, rows, facts, results)
    table = ratios(rows)
    save_figure(figures.ratios(table), table, results, f"bench-{name}")
    print(f"{'':40} {'ours':>9} {'peer':>9} {'ratio':>6}  goal")
    for entry in rows:
        goal = f"{entry['goal']['sign']} {entry['goal']['bound']:g}" if entry["goal"] else "-"
        met = {True: "met", False: "missed", None: ""}[entry["met"]]
        print(
            f"{entry['name']:40} {entry['ours']:9.4g} {entry['peer']:9.4g} {entry['ratio']:6.3g}  {goal:8} {met:7}"
            f"{entry['unit']}; against {entry['peer_is']}"
        )


def ratios(rows: list[dict]) -> pd.DataFrame:
    """The table that `figures.ratios` draws: the rows that have a goal and a peer, once per round."""
    drawn = []
    for entry in rows:
        if not entry["goal"] or entry["peer_is"] == SECOND:
            continue
        shared = {"label": f"{entry['name']} / {entry['peer_is']}", "of_medians": entry["ratio"], "met": entry["met"]}
        for number, (ours, peer) in enumerate(zip(entry["rounds"]["ours"], entry["rounds"]["peer"])):
            drawn.append(shared | entry["goal"] | {"round": number, "ratio": ours / peer})
    return pd.DataFrame(drawn)
