"""Writes the measured numbers into README.md and docs/*.md, from the files under results/ that they were measured into.

    .venv/bin/python docs/write_numbers.py            fills every place that a page marks
    .venv/bin/python docs/write_numbers.py --check    writes nothing; exit status 1 if a page is not what the files say

A page marks a place by <!-- numbers: NAME -->, where NAME is a key of PLACES below, and <!-- end -->.
"""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE, PUBLISHED = "results/reference", "results/published"
PLACE = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)

# Each claim of effects.csv: notebook, recipes, file, what was published on ImageNet-1K ({R1}, {A1}: results/published).
ENSEMBLE = "collapsed_ensemble", "one_model"
CLAIMS = {
    "Large batch needs warm-up": (
        "10-train",
        ("resnet50_448nodes", "resnet50_448nodes_no_warmup"),
        "tables/effects.csv",
        "no ablation known",
    ),
    "The collapse helps: against the plain end of the decay, same images seen": (
        "10-train",
        ("resnet50_448nodes", "resnet50_448nodes_uncollapsed"),
        "tables/effects.csv",
        "{R1}% to {R2}%",
    ),
    "The collapse helps: after the last cycle, against before": (
        "12-collapsed-ensemble",
        ENSEMBLE[:1],
        "tables/accuracy.csv",
        "{R3}% after it",
    ),
    "The Collapsed Ensemble beats one model of the same number of images seen": (
        "12-collapsed-ensemble",
        ENSEMBLE,
        "figures/ensemble.svg",
        "{A4} against {A3}",
    ),
    "The Collapsed Ensemble beats its own last member": (
        "12-collapsed-ensemble",
        ENSEMBLE[:1],
        "tables/ensemble.csv",
        "not stated",
    ),
    "Collapsed members make a better ensemble than un-collapsed snapshots": (
        "12-collapsed-ensemble",
        ENSEMBLE[:1],
        "tables/ensemble.csv",
        "not stated",
    ),
    "Averaging softmax beats averaging logits": ("12-collapsed-ensemble", ENSEMBLE[:1], "tables/ensemble.csv", "not stated"),
}


# --- Reading ----------------------------------------------------------------------------------------------------------


def rows_of(path: str) -> list[dict]:
    with (ROOT / path).open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def runs() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((ROOT / REFERENCE / "runs").glob("*/run.json"))]


def effects() -> list[dict]:
    """The rows of effects.csv of runs with default settings."""
    return [row for row in rows_of(f"{REFERENCE}/tables/effects.csv") if not row.get("variant")]


def goal(row: dict) -> tuple[str, bool | None]:
    """A benchmark row's goal as text, and whether its ratio meets it; ("", None) where it has none."""
    if not row["goal"]:
        return "", None
    # bench/*.json of before {"sign": ">=", "bound": 1.3} have the string ">= 1.3"
    sign, bound = row["goal"].split() if isinstance(row["goal"], str) else (row["goal"]["sign"], row["goal"]["bound"])
    return f"{sign} {bound}", row["ratio"] >= float(bound) if sign == ">=" else row["ratio"] <= float(bound)


def commit(version: str) -> str:
    """What a file's version, such as 0.1.0+95a8368-dirty, says of the code that made it."""
    found = re.search(r"\+g?([0-9a-f]{7,40})(-dirty)?$", version)
    if not found:
        return f"version {version}"
    if not in_history(found[1]):
        return "by a version before the repository's history"
    return f"at commit {found[1]}" + (" with uncommitted changes" if found[2] else "")


def in_history(name: str) -> bool:
    return git("merge-base", "--is-ancestor", name, "HEAD").returncode == 0


def git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)


# --- Writing ----------------------------------------------------------------------------------------------------------


def table(head: str, lines: list[list]) -> str:
    """Markdown; links are relative to the project's folder."""
    columns = head.split(" | ")
    return "\n".join("|" + "|".join(map(str, line)) + "|" for line in [columns, ["---"] * len(columns), *lines])


def made(path: str, command: str, when: str, versions: set, machine: str, more: str) -> str:
    how = ", ".join(sorted({commit(version) for version in versions}))
    return f"From [{Path(path).name}]({path}): `{command}` on {when[:10]}, {how}; {machine}; {more}."


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def difference(row: dict) -> str:
    if not row["low"]:  # fewer than three seeds
        return ""
    low, middle, high = (f"{float(row[key]):+.2f}" for key in ("low", "difference", "high"))
    return f"{middle} ({low} to {high})"


def results() -> str:
    """The README's table: what is claimed, and where to look at each step from a recipe to a number."""
    published = {row["id"]: row["value"] for row in rows_of(f"{PUBLISHED}/claims.csv")}
    published |= {row["id"]: row["top1"] for row in rows_of(f"{PUBLISHED}/released_runs.csv")}
    measured = max(rows_of(f"{REFERENCE}/tables/scaling_measured.csv"), key=lambda row: (int(row["ranks"]), int(row["images"])))

    def line(claim, notebook, recipes, file, value, ours):
        named = f"[{', '.join(f'`{name}`' for name in recipes) or 'all'}](repro/recipes.py)"
        return [
            claim,
            f"[{notebook[:2]}](notebooks/{notebook}.ipynb)",
            named,
            f"[{Path(file).name}]({REFERENCE}/{file})",
            value.format(**published),
            ours,
        ]

    lines = [
        line(
            "Learning rates of the released recipes",
            "01-recipes",
            (),
            "figures/learning_rates.svg",
            "solver files",
            "[equal at every step](tests/test_schedule.py)",
        )
    ]
    for row in effects():
        notebook, recipes, file, value = CLAIMS[row["claim"]]
        claim = row["claim"] if row["data"] in ("digits", "") else f"{row['claim']} ({row['data']})"
        verdict = row["verdict"].split(":")[0]  # the README gives the reason above the table
        lines.append(line(claim, notebook, recipes, file, value, f"{difference(row)} *{verdict}*"))
    lines.append(
        line(
            "Scaling efficiency; time to train",
            "11-scaling",
            ("resnet50_448nodes",),
            "tables/scaling_measured.csv",
            "{A1}; {A2}",
            f"{measured['ranks']} ranks, one machine: {float(measured['efficiency']):.0f}%; *clusters: not run*",
        )
    )
    return table("claim | notebook | recipes | file | published (ImageNet-1K) | ours (digits)", lines) + "\n\n" + origin()


def origin() -> str:
    found, counts = runs(), {row["n"] for row in effects() if row["n"] != "0"}
    versions = ", ".join(sorted({commit(run["version"]) for run in found}))
    cores = ", ".join(sorted({f"{run['ranks']} ranks on {run['cores']} cores" for run in found}))
    return (
        f"Ours: differences in top-1, percentage points, paired over n = {', '.join(sorted(counts))} seeds (95% interval); "
        f"{len(found)} runs, {sum(run['seconds'] for run in found) / 60:.0f} minutes of training, {cores}, {versions}."
    )


def digits_effects() -> str:
    lines = [
        [
            row["claim"],
            f"`{row['shrink']}`" if row["shrink"] else "",
            row["n"],
            *(f"{float(row[key]):.2f}" if row[key] else "" for key in ("top1", "against")),
            difference(row),
            f"{float(row['p']):.2g}" if row["p"] else "",
            row["verdict"],
        ]
        for row in effects()
    ]
    return (
        table("claim | shrink | n | top-1, % | against, % | difference (95% interval) | p | verdict", lines) + "\n\n" + origin()
    )


def digits_accuracy() -> str:
    lines = [
        [
            f"`{row['recipe']}`",
            f"`{row['shrink']}`",
            row["members"] + (f" ({row['average']} mean)" if row["average"] else ""),
            row["n"],
            *(f"{float(row[key]):.2f}" for key in ("top1", "sd")),
            f"{float(row['smallest']):.2f} to {float(row['largest']):.2f}",
        ]
        for row in rows_of(f"{REFERENCE}/tables/accuracy.csv")
        if row["data"] == "digits" and not row.get("variant")
    ]
    return table("recipe | shrink | members | n | mean top-1, % | standard deviation | range", lines)


def digits_loss() -> str:
    """The training loss around the first collapse, where the view changes: means over the runs of collapsed_ensemble."""
    found = []
    for path in sorted((ROOT / REFERENCE / "runs").glob("collapsed_ensemble-*/metrics.jsonl")):
        stages = {}
        for row in map(json.loads, path.read_text().splitlines()):
            stages.setdefault(row["stage"], []).append(row["train_loss"])
        found.append((stages["cyc1"][-1], stages["collapse1"][0], stages["collapse1"][-1]))
    names = "last row before the collapse", "first row in it", "last row in it"
    lines = [
        [name, f"{mean(values):.2g}", f"{min(values):.2g} to {max(values):.2g}"] for name, values in zip(names, zip(*found))
    ]
    return table(f"training loss | mean, n = {len(found)} runs | range", lines)


def measured_rows(path: str) -> str:
    """Rows of a benchmark: ours, the peer, the ratio of medians with that of the single rounds, the goal."""
    found, lines = read(path), []
    for row in found["rows"]:
        ratios = [ours / peer for ours, peer in zip(row["rounds"]["ours"], row["rounds"]["peer"])]
        text, met = goal(row)
        peer, ratio = f"{number(row['peer'])}: {row['peer_is']}", f"{row['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        if row["peer_is"] == "one second":  # no peer: the goal is in seconds
            peer, ratio, text = "", "", f"{text} s"
        verdict = f"{text}, {'met' if met else '**missed**'}" if met is not None else ""
        lines.append([f"{row['name']}, {row['unit']}", number(row["ours"]), peer, ratio, verdict])
    head = "what, unit | ours | peer | ratio of medians (rounds) | goal"
    machine = f"{found['cores']} cores ({found['machine']})"
    return (
        table(head, lines)
        + "\n\n"
        + made(path, found["command"], found["when"], {found["version"]}, machine, f"n = {found['rounds']} rounds")
    )


def speed() -> str:
    return measured_rows(f"{REFERENCE}/bench/bench.json")


def loader() -> str:
    return measured_rows(f"{REFERENCE}/bench/data.json")


def profile() -> str:
    path = f"{REFERENCE}/bench/profile.json"
    found = read(path)
    rows = sorted(found["rows"], key=lambda row: -row["ms"])[:6]
    lines = [[f"`{row['operation']}`", number(row["ms"]), f"{row['calls']:.0f}", f"{100 * row['share']:.1f}%"] for row in rows]
    machine = f"{found['cores']} cores ({found['machine']})"
    variant = found["variant"]
    more = f"one step of {variant['model']}, {variant['images']} images at {variant['size']} px on {variant['ranks']} rank"
    return (
        table("operation | ms | calls | share", lines)
        + "\n\n"
        + made(path, "make bench", found["when"], {found["version"]}, machine, more)
    )


def scaling_measured() -> str:
    rows = rows_of(f"{REFERENCE}/tables/scaling_measured.csv")
    lines = [
        [
            row["ranks"],
            row["images"],
            row["n"],
            f"{float(row['seconds']):.3f} ({float(row['low']):.3f} to {float(row['high']):.3f})",
            f"{float(row['images_per_s']):.1f}",
            f"{float(row['efficiency']):.0f}%",
            f"{float(row['error']):+.1f}%",
        ]
        for row in rows
    ]
    path = f"{REFERENCE}/bench/probe.json"
    found = read(path)
    more = f"{rows[0]['model']} at {rows[0]['size']} px, `{found['reduction']}`, {found['precision']}"
    head = "ranks | images per rank | n (steps) | seconds per step (5 to 95%) | images/s | efficiency | error of the MODEL"
    machine = f"{found['cores']} cores ({found['processor']}), load {found['load_before']:.1f} before"
    return table(head, lines) + "\n\n" + made(path, "11-scaling", found["when"], {found["version"]}, machine, more)


def scaling_checks() -> str:
    path = f"{REFERENCE}/bench/scaling.json"
    found, groups = read(path), {}
    for check in found["checks"]:
        name = re.sub(r" at \d+ Mbit/s", "", re.sub(r"link from \d+", "the link measured at the other rate", check["check"]))
        groups.setdefault(name, []).append(check)
    lines = []
    for name, checks in {**groups, "all": found["checks"]}.items():
        errors, steps = [check["error_percent"] for check in checks], [check["n"] for check in checks]
        lines.append(
            [
                name,
                len(checks),
                f"{min(steps)} to {max(steps)}",
                sum(abs(error) <= 10 for error in errors),
                f"{median(map(abs, errors)):.1f}%",
                f"{min(errors):+.0f} to {max(errors):+.0f}%",
            ]
        )
    probes = found["probes"]
    loads = [probe["load_before"] for probe in probes]
    machine = f"{probes[0]['cores']} cores ({probes[0]['processor']})"
    more = f"other programs running: load {min(loads):.1f} to {max(loads):.1f} before each probe"
    versions = {probe["version"] for probe in probes}
    return (
        table("predicted | n | timed steps in each | within 10% | median error | range", lines)
        + "\n\n"
        + made(path, found["command"], found["when"], versions, machine, more)
    )


def faults() -> str:
    path = f"{REFERENCE}/faults.json"
    found, lines = read(path), []
    for entry in found["claims"]:
        skipped = f", {len(entry['not_run'])} not run" if entry["not_run"] else ""
        lines.append([entry["what"], f"{entry['passed']}/{entry['of']}{skipped}", entry.get("longest_seconds", "")])
    return table("what was tried | passed | longest, s", lines) + (
        f"\n\nFrom [faults.json]({path}): `make test-faults`, {found['seconds'] / 60:.0f} minutes on {found['cores']} cores, "
        f"{found['system']}."
    )


PLACES = {
    "results": results,
    "digits-effects": digits_effects,
    "digits-accuracy": digits_accuracy,
    "digits-loss": digits_loss,
    "speed": speed,
    "profile": profile,
    "loader": loader,
    "scaling-measured": scaling_measured,
    "scaling-checks": scaling_checks,
    "faults": faults,
}


def filled(page: Path) -> str:
    """The page's text with every marked place filled."""
    up = "../" * len(page.parent.relative_to(ROOT).parts)
    return PLACE.sub(lambda found: found[1] + PLACES[found[2]]().replace("](", f"]({up}") + "\n" + found[3], page.read_text())


def main(check: bool) -> int:
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        sys.exit("docs/write_numbers.py names commits, so it needs the repository's whole history: git fetch --unshallow")
    stale = [page for page in PAGES if filled(page) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is not what the files say: run docs/write_numbers.py' if check else 'written'}")
        if not check:
            page.write_text(filled(page))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
