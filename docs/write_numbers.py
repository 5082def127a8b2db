"""Writes the measured numbers into README.md and docs/*.md, from the files under results/ that they were measured into.

    .venv/bin/python docs/write_numbers.py            fills every place that a page marks
    .venv/bin/python docs/write_numbers.py --check    writes nothing; exit status 1 if a page is not what the files say

A page marks a place by <!-- numbers: NAME -->, where NAME is a key of PLACES below, and <!-- end -->; within a sentence NAME is
a key of `in_sentences`.
"""

import csv
import json
import re
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path
from statistics import mean, median

import pandas as pd

from repro import paths
from repro.paper import answering, baselines, beds, questions, ratios, report, statistics, tables
from repro.paper.choice import chosen, means
from repro.paper.names import COLUMNS
from repro.recipes import RECIPES, shrink
from repro.recipes.baselines import TUNED
from repro.recipes.controls import BATCHES
from repro.run import records
from repro.schedule import at

sys.path.insert(0, str(paths.ROOT / "data_prep"))

import fashion_mnist  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE, PUBLISHED = "results/reference", "results/published"
DIGITS, PHOTOGRAPHS = "digits", "fashion_mnist"
NOT_RUN = "*Not run yet.*"
FIRST = f"{REFERENCE}/bench/answers-2026-11-26.csv"  # of the first reference, of whose runs the statistics were recomputed
PLACE = re.compile(r"(<!-- numbers: ([\w-]+) -->\n?).*?(<!-- end -->)", re.S)

# The questions that the README shows, the paper's own comparison first, with what was published on ImageNet-1K about the same
# comparison ({R1}, {A1}: results/published); nothing where the paper makes none. docs/digits.md has all questions.
FRONT_DOOR = {
    "The Collapsed Ensemble beats one model of equal images with the released collapse": "{A4} against {A3}",
    "The Collapsed Ensemble beats one model of equal images and equal exposure to the collapse's view": "",
    "The Collapsed Ensemble loses at most half a point against a deeper model of equal training arithmetic": (
        "{A4}, similar to a ResNet-152"
    ),
    "The released collapse is better than the plain end of the linear decay": "{R1}% without, {R2}% with it (one run each)",
    "At a falling rate, the collapse's view helps": "",
    "Batch 16384 loses at most half a point against 2048": "",
}

# Each method of the paper's references: where docs/baselines.md has it, its topics, and a pattern of the claims about it.
REFERENCES = {
    "linear rule and warm-up (Goyal et al.)": ("docs/baselines.md#sgd-at-its-own-rate", ("batch", "warm-up", "tuned"), ""),
    "LARS (You et al.)": ("docs/baselines.md#lars", ("lars",), ""),
    "a batch that grows (Smith, Kindermans et al.)": ("docs/baselines.md#a-batch-that-grows", ("growing",), ""),
    "ghost batch norm (Hoffer et al.)": ("docs/baselines.md#ghost-batch-norm", ("ghost",), ""),
    "longer training (Hoffer et al.)": ("docs/digits.md#the-answers", ("length",), ""),
    "mixed precision (Micikevicius et al.)": ("docs/baselines.md#bf16-against-float32", ("precision",), ""),
    "warm restarts (Loshchilov and Hutter)": (
        "docs/baselines.md#restarts-triangles-and-one-cycle",
        ("restarts",),
        "warm restarts",
    ),
    "snapshot ensembles (Huang et al.)": (
        "docs/baselines.md#restarts-triangles-and-one-cycle",
        ("restarts", "ensemble"),
        "snapshot ensemble",
    ),
    "cyclical rates, one cycle (Smith; Smith and Topin)": (
        "docs/baselines.md#restarts-triangles-and-one-cycle",
        ("restarts",),
        "triangles|one cycle",
    ),
    "synchronous SGD (Chen et al.)": ("docs/baselines.md#asynchronous-sgd", ("asynchronous",), "^(?!.*compensation)"),
    "delay compensation (Zheng et al.)": ("docs/baselines.md#asynchronous-sgd", ("asynchronous",), "compensation"),
}
OF_OTHERS = tuple(dict.fromkeys(question.topic for question in baselines.QUESTIONS))  # topics
OWN = [question for question in questions.QUESTIONS if question.topic not in OF_OTHERS]  # of the paper's own claims
# Numbers in the sentences of docs/baselines.md: how the claim begins that they answer, or which stages of two recipes
# they compare.
ANSWERED = {
    "tuned-32768": "At its own best rate, batch 32768",
    "own-16384": "At batch 16384, its own best rate",
    "own-32768": "At batch 32768, its own best rate",
    "lars-16384": "At batch 16384, LARS",
    "grows": "A batch that grows loses",
    "soup": "The Collapsed Ensemble beats the mean of its",
    "swa": "The Collapsed Ensemble beats one model by SWA",
    "ema": "The Collapsed Ensemble beats one model by an exp",
    "constant": "Three collapses from the released cycles beat three from a constant rate",
    "falling": "Three collapses from the released cycles beat three from one",
    "trunks": "Three collapses from the released cycles beat three from a constant rate, all",
    "high": "From the released cycles",
    "long-constant": "One long collapse",
    "snapshots": "The Collapsed Ensemble beats a snapshot",
    "norms": "Weight decay on batch norm",
    "stride": "A stride in the 3x3",
    "release-lars": "The release is better without LARS",
    "asynchronous": "Of 8 groups, synchronous SGD is better than asynchronous",
    "2-groups": "Asynchronous SGD of 2 groups",
    "4-groups": "Asynchronous SGD of 4 groups",
    "8-groups": "Asynchronous SGD of 8 groups",
    "no-momentum": "Of 8 groups, asynchronous SGD is better without",
    "synchronous-no-momentum": "Of 8 groups, synchronous SGD is better than asynchronous without",
    "compensated": "Of 8 groups, delay compensation",
    "adaptive": "Of 8 groups, adaptive delay compensation is better than asynchronous",
    "adaptive-synchronous": "Of 8 groups, adaptive delay compensation is better than synchronous",
    "adaptive-sequential": "Adaptive delay compensation of 8 groups loses",
}
OTHER = tuple(f"_{view}" for view in records.OTHER_VIEWS)
OWN_RATE = "At its own best rate, batch"
BEATS = "The Collapsed Ensemble beats"
DEEPER = "The Collapsed Ensemble loses at most half a point against a deeper model of equal"
# Numbers in sentences about photographs: how a claim begins, and the view
ASKED_OF_PHOTOGRAPHS = {
    "released": ("The released collapse",),
    "released-enlarged": ("The released collapse", "_zoom"),
    "released-training": ("The released collapse", "_scale_aspect"),
    "view": ("At a falling rate, the collapse's view",),
    "rate": ("In the main view, the rate's fall",),
    "last": (f"{BEATS} its last member",),
    "short": (f"{BEATS} one model of equal images with",),
    "exposure": (f"{BEATS} one model of equal images and equal",),
    "exposure-training": (f"{BEATS} one model of equal images and equal", "_scale_aspect"),
    "snapshots-enlarged": (f"{BEATS} an untuned snapshot ensemble (Huang", "_zoom"),
    "snapshots-training": (f"{BEATS} an untuned snapshot ensemble (Huang", "_scale_aspect"),
    "deep-third": (f"{DEEPER} training",),
    "deep": (f"{DEEPER} images",),
    "8192": ("Batch 8192 loses",),
    "16384": ("Batch 16384 loses",),
    "tuned-4096": (f"{OWN_RATE} 4096 loses",),
    "tuned-8192": (f"{OWN_RATE} 8192 loses",),
    "tuned-16384": (f"{OWN_RATE} 16384 loses",),
    "tuned-32768": (f"{OWN_RATE} 32768 loses",),
    "tuned-16384-training": (f"{OWN_RATE} 16384 loses", "_scale_aspect"),
    "own-16384": ("At batch 16384, its own best rate",),
    "own-32768": ("At batch 32768, its own best rate",),
    "lars-2048": ("At batch 2048, LARS loses",),
    "lars-2048-training": ("At batch 2048, LARS loses", "_scale_aspect"),
    "lars-16384": ("At batch 16384, LARS is better than SGD",),
    "lars-against-smallest": ("LARS at batch 32768 loses at most half a point against SGD at 2048",),
    "lars-outside": ("At batch 32768, LARS as released loses at most half a point against LARS with rate and",),
    "gap-30": ("Over 30 epochs",),
    "gap-60": ("Over 60 epochs",),
    "gap-120": ("Over 120 epochs",),
    "soup": (f"{BEATS} the mean of its",),
    "swa": (f"{BEATS} one model by SWA",),
    "ema": (f"{BEATS} one model by an exp",),
    "swa-main": ("In the main view, SWA",),
    "high": ("From the released cycles",),
    "high-training": ("From the released cycles", "_scale_aspect"),
    "long-constant": ("One long collapse",),
    "tuned-snapshots": (f"{BEATS} a snapshot",),
    "restarts": ("In the collapse's view, warm restarts",),
}
NOT_DECLARED = {
    "half-of-the-rate": ("sgd_2048 main", "batch_2048 main"),
    "without-norms": ("lars_32768_without_norms main", "sgd_32768 main"),
    "rate-outside": ("lars_32768_rate_outside main", "sgd_32768 main"),
    "all-to-an-eighth": ("batch_2048 main", "images_1_8_equal_steps main"),
    "all-to-an-eighth-epochs": ("batch_2048 main", "images_1_8_equal_epochs main"),
    # The released 448-node recipe's end, of which there are more seeds as a branch of collapse_parts
    "more-designed": ("collapse_parts zero-crop-x2", "ablation_as_designed collapse"),
    "more-corrected": ("collapse_parts zero-crop-x2", "ablation_corrected collapse"),
    "more-norms": ("collapse_parts zero-crop-x2", "ablation_norms_not_decayed collapse"),
    "more-identity": ("collapse_parts zero-crop-x2", "ablation_no_zero_gamma collapse"),
    "more-stride": ("collapse_parts zero-crop-x2", "ablation_stride_v1 collapse"),
    "more-lars": ("collapse_parts zero-crop-x2", "ablation_lars collapse"),
    "sequential-no-momentum": ("sequential main", "asynchronous_8_groups_without_momentum main"),
}
FASTER_AVERAGES = "ablation_bn_momentum main", "resnet50_448nodes main"  # with the same weights, so seed by seed

STORED = 18  # pixels a side of a stored digit: a digit is scaled to a whole number of pixels
REMOVED = "fast_bf16"  # a reduction that the trainer no longer has, in files that were measured with it


# --- Reading ----------------------------------------------------------------------------------------------------------


def rows_of(path: str) -> list[dict]:
    with (ROOT / path).open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


@cache
def runs(data: str = DIGITS) -> list[Path]:
    found = records.read_all(ROOT / REFERENCE / "runs").items()
    return [folder for folder, run in found if run["status"] == "complete" and run["data"]["name"] == data]


def answers(data: str = DIGITS) -> list[dict]:
    """The rows of answers.csv about a data set that have runs."""
    rows = of_data(f"{REFERENCE}/tables/answers.csv", data)
    return [row for row in rows if row["n"] != "0" and row["n_other"] != "0"]


def of_data(path: str, data: str = DIGITS) -> list[dict]:
    """The rows about a data set, of a table that may be of several."""
    return [row for row in rows_of(path) if row.get("data", DIGITS) == data]


def goal(row: dict) -> tuple[str, bool | None]:
    """A benchmark row's goal as text, and whether its ratio meets it; ("", None) where it has none."""
    if not row["goal"]:
        return "", None
    sign, bound = row["goal"]["sign"], row["goal"]["bound"]
    return f"{sign} {bound}", row["ratio"] >= bound if sign == ">=" else row["ratio"] <= bound


def commit(version: str) -> str:
    """What a file's version, such as 0.1.0+95a8368-dirty, says of the code that made it."""
    found = re.search(r"\+([0-9a-f]{7,40})(-dirty)?$", version)
    if not found:
        return f"version {version}"
    return f"at commit {found[1]}" + (" with uncommitted changes" if found[2] else "")


# --- Writing ----------------------------------------------------------------------------------------------------------


def table(head: str, lines: list[list]) -> str:
    """Markdown; links are relative to the project's folder."""
    columns = head.split(" | ")
    cells = [columns, ["---"] * len(columns), *([str(cell).replace("|", r"\|") for cell in line] for line in lines)]
    return "\n".join("|" + "|".join(line) + "|" for line in cells)


def heads(*columns: str) -> str:
    """What people call these columns of a table of results."""
    return " | ".join(COLUMNS[name].heading for name in columns)


def commits(versions: set[str]) -> str:
    """The commits of several versions, each once, also if it had uncommitted changes only some of the time."""
    found = sorted({commit(version) for version in versions})
    both = [each for each in found if f"{each} with uncommitted changes" in found]
    said = [each + " (in part with uncommitted changes)" if each in both else each for each in found]
    said = [each for each in said if each.removesuffix(" with uncommitted changes") not in both]
    if len(said) > 1 and all(re.fullmatch("at commit [0-9a-f]+", each) for each in said):
        *first, last = (each.removeprefix("at commit ") for each in said)
        return f"at commits {', '.join(first)} and {last}"
    return ", ".join(said)


def made(path: str, command: str, when: str, versions: set, machine: str, more: str) -> str:
    how = commits(versions)
    return f"From [{Path(path).name}]({path}): `{command}` on {when[:10]}, {how}; {machine}; {more}."


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def difference(row: dict, view: str = "") -> str:
    """A row's difference with its interval, and how many runs failed; "" with fewer than three seeds; in a view, as _zoom."""
    if not row[f"low{view}"] or pd.isna(row[f"low{view}"]):
        return ""
    low, middle, high = (f"{float(row[key + view]):+.2f}" for key in ("low", "difference", "high"))
    several = int(row.get("failed_other") or 0) and not view
    failed = f"; {row['failed_other']} of the other {row['n_other']} failed" if several else ""
    return f"{middle} ({low} to {high}){failed}"


def results() -> str:
    """The README's table: what is claimed, and where to look at each step from a recipe to a number."""
    published = {row["id"]: row["published"] for row in rows_of(f"{PUBLISHED}/claims.csv")}
    published |= {row["id"]: row["top1"] for row in rows_of(f"{PUBLISHED}/released_runs.csv")}
    measured = max(rows_of(f"{REFERENCE}/tables/scaling_measured.csv"), key=lambda row: (int(row["ranks"]), int(row["images"])))

    def line(claim, notebook, recipes, file, value, ours):
        return [
            claim,
            f"[{notebook[:2]}](notebooks/{notebook}.ipynb)",
            f"[{Path(recipes).name}]({recipes})",
            f"[{Path(file).name}]({REFERENCE}/{file})",
            value.format(**published),
            ours,
        ]

    lines = []
    found = {row["claim"]: row for row in of_data(f"{REFERENCE}/tables/answers.csv")}
    for claim, value in FRONT_DOOR.items():
        ours = f"{difference(found[claim])} *{found[claim]['verdict']}*".strip()
        lines.append(line(claim, "12-questions", "repro/recipes/controls.py", "tables/answers.csv", value, ours))
    lines.append(
        line(
            "Learning rates of the released recipes",
            "01-recipes",
            "repro/recipes/released.py",
            "figures/learning_rates.svg",
            "solver files",
            "[equal at every step](tests/test_schedule.py)",
        )
    )
    lines.append(
        line(
            "Efficiency on many nodes; time to train",
            "11-scaling",
            "repro/scaling/steptime.py",
            "tables/scaling_measured.csv",
            "{A1}; {A2}",
            f"*not run*; {measured['ranks']} ranks, one machine: {float(measured['efficiency']):.0f}%",
        )
    )
    return table("claim | notebook | code | file | published (ImageNet-1K) | ours (digits)", lines) + "\n\n" + origin()


def origin(data: str = DIGITS) -> str:
    found = list(map(records.read, runs(data)))
    counts = sorted({int(row[side]) for row in answers(data) for side in ("n", "n_other")})
    versions = commits({run["version"] for run in found})
    cores = ", ".join(sorted({f"{run['cores']} cores" for run in found}))
    alone = sum(run["ranks"] == 1 for run in found)
    return (
        f"Ours: differences in top-1, points, n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds (95% "
        f"interval; verdicts corrected for all questions of a topic); {len(found)} runs, {alone} of them on one core, "
        f"{sum(run['seconds'] for run in found) / 60:.0f} minutes in total, on {cores}, {versions}."
    )


def digits_answers() -> str:
    return every_answer(DIGITS, [row for row in answers() if row["topic"] not in OF_OTHERS])


def every_answer(data: str, rows: list[dict]) -> str:
    lines = [
        [
            row["claim"] + (" (control)" if row["control"] == "True" else ""),
            row["n"],
            *(f"{float(row[key]):.2f}" for key in ("top1", "against")),
            difference(row),
            *(f"{float(row[key]):.2f}" if row[key] else "" for key in ("sd", "detectable")),
            f"{float(row['p_holm']):.2g}" if row["p_holm"] else "",
            hanging(row),
            *(difference(row, view) for view in ("_zoom", "_scale_aspect")),
        ]
        for row in rows
    ]
    head = f"{heads('claim', 'n', 'top1', 'against', 'difference')} (95% interval)"
    others = heads("sd", "detectable", "p_holm", "verdict", "difference_zoom", "difference_scale_aspect")
    return table(f"{head} | {others}", lines) + "\n\n" + origin(data)


def digits_twice() -> str:
    """Each claim that both references of digits have answered, by each; a verdict that moved is bold."""
    before = {row["claim"]: row for row in rows_of(FIRST)}
    lines, moved = [], Counter()
    for row in answers(DIGITS):
        if (first := before.get(row["claim"])) and first["verdict"] != "not run":
            same = row["verdict"] == first["verdict"]
            moved[row["n"], same] += 1
            verdicts = [each["verdict"] if same else f"**{each['verdict']}**" for each in (first, row)]
            lines.append([row["claim"], row["n"], difference(first), verdicts[0], difference(row), verdicts[1]])
    told = [
        f"{moved[n, True]} of {moved[n, True] + moved[n, False]} with {n} seeds" for n in dict.fromkeys(n for n, _ in moved)
    ]
    found = table(f"{heads('claim', 'n')} | 26 November | {heads('verdict')} | 29 November | {heads('verdict')}", lines)
    return f"{found}\n\nThe same verdict twice: {', '.join(told)}."


def digits_pilot() -> str:
    lines = [
        [
            row["topic"],
            row["claim"],
            row["n"],
            *(f"{float(row[key]):.2f}" for key in ("sd", "sd_limit")),
            row["seeds"],
            row["seeds_limit"],
        ]
        for row in rows_of(f"{REFERENCE}/bench/pilot.csv")
    ]
    return table(f"{heads('topic', 'claim', 'n', 'sd')} | its upper limit | seeds for +-0.3 | by the upper limit", lines)


def digits_size() -> str:
    return sizes(DIGITS, STORED, ("drawn", "scaled"))


def photographs_size() -> str:
    return sizes(PHOTOGRAPHS, fashion_mnist.PREPROCESSING.short_side, ("scaled",))


def sizes(data: str, stored: int, ways: tuple[str, ...]) -> str:
    """Top-1 at each size that was tested, of two ends that differ in the view alone; blank where a way has no such size."""
    rows = of_data(f"{REFERENCE}/bench/apparent_size.csv", data)
    if not rows:
        return NOT_RUN
    lines = []
    for size in dict.fromkeys(row["size"] for row in rows):
        cells = []
        for how in ways:
            found: dict[str, list[float]] = {}
            for row in rows:
                if (row["how"], row["size"]) == (how, size):
                    found.setdefault(row["stage"], []).append(float(row["top1"]))
            if not found:
                cells += [""] * 4
                continue
            true = float(size) if how == "drawn" else round(float(size) * stored) / stored
            ends = [mean(found[f"zero-{view}-x1"]) for view in ("main", "crop")]
            cells += [f"{true:.3g}", *(f"{end:.1f}" for end in ends), f"{ends[1] - ends[0]:+.1f}"]
        if any(cells):
            lines.append(cells)
    said = {"drawn": "drawn at size", "scaled": "scaled to size"}
    head = " | ".join(f"{said[how]} | training view, % | collapse's view, % | difference" for how in ways)
    seeds = len({row["seed"] for row in rows})
    return table(head, lines) + f"\n\nOurs: top-1 on the first 5,000 test images, means over {seeds} seeds."


def digits_precise() -> str:
    running = {row["claim"]: row for row in rows_of(FIRST)}
    lines = [
        [row["claim"], min(int(row["n"]), int(row["n_other"])), difference(running[row["claim"]]), difference(row)]
        for row in of_data(f"{REFERENCE}/bench/precise_statistics.csv")
        if row["topic"] not in OF_OTHERS
    ]
    return table(f"{heads('claim', 'n')} | difference, running statistics (95% interval) | recomputed (95% interval)", lines)


def digits_ratios() -> str:
    lines = [
        [
            row["ratio"],
            f"`{row['recipe']}`" if row["recipe"] else "all",
            *(f"{float(row[key]):.3g}" for key in ("imagenet", "small", "factor")),
            row["reason"] or "kept",
        ]
        for row in of_data(f"{REFERENCE}/tables/ratios.csv")
    ]
    return table(f"{heads('ratio', 'recipe', 'imagenet', 'small', 'factor')} | kept, or why not", lines)


def photographs_ratios() -> str:
    """The photographs' ratios, as the code has them, beside those of ImageNet and the digits."""
    lines = [
        [
            row.ratio,
            f"`{row.recipe}`" if row.recipe else "all",
            *(f"{float(value):.3g}" for value in (row.imagenet, drawn["small"], row.small, row.factor)),
            row.reason or "kept",
        ]
        for drawn, row in zip(
            of_data(f"{REFERENCE}/tables/ratios.csv"),
            ratios.table(fashion_mnist.PREPROCESSING, "photographs").itertuples(),
            strict=True,
        )
    ]
    head = f"{heads('ratio', 'recipe', 'imagenet')} | digits | photographs | {heads('factor')}, photographs"
    return table(f"{head} | kept there, or why not", lines)


def photographs_regime() -> str:
    path = f"{REFERENCE}/bench/regime_{PHOTOGRAPHS}.csv"
    return regime_table(path) if (ROOT / path).exists() else NOT_RUN


def photographs_yardsticks() -> str:
    path = f"{REFERENCE}/bench/yardsticks.csv"
    if not (ROOT / path).exists():
        return NOT_RUN
    lines = [
        [
            row["data"],
            f"`{row['model']}`" if row["epochs"] else "a linear model of the pixels",
            f"{int(row['images']):,}",
            f"{float(row['epochs']):.1f}" if row["epochs"] else "",
            f"{float(row['validation_top1']):.1f}",
            f"{float(row['train_top1']):.1f}",
            f"{float(row['test_top1']):.1f}" if row["test_top1"] else "",
            f"{float(row['seconds']) / 60:.1f}" if row["seconds"] else "",
        ]
        for row in rows_of(path)
    ]
    head = (
        "images of | model | training images | epochs | validation top-1, % | training top-1, % | test top-1, % | core-minutes"
    )
    return table(head, lines)


def digits_regime() -> str:
    return regime_table(f"{REFERENCE}/bench/regime.csv")


def regime_table(path: str) -> str:
    found: dict[tuple, list] = {}
    for row in rows_of(path):
        found.setdefault((row["number"], row["recipe"], float(row["value"])), []).append(row)
    timed = all(row.get("seconds") for rows in found.values() for row in rows)
    lines = [
        [
            number_,
            f"`{recipe}`",
            f"{value:.3g}",
            len(rows),
            *(f"{mean(float(row[key]) for row in rows):.1f}" for key in ("validation_top1", "train_top1")),
            *([f"{mean(float(row['seconds']) for row in rows) / 60:.1f}"] if timed else []),
        ]
        for (number_, recipe, value), rows in found.items()
    ]
    head = "chosen | recipe | value | n | validation top-1, % | training top-1, %" + " | core-minutes a run" * timed
    return table(head, lines)


def hanging(row: dict) -> str:
    """A verdict, and on how many single seeds it hangs."""
    seeds = float(row["hangs_on"] or 0)
    hangs = seeds > 0 and row["verdict"] not in ("not resolved", "not run")
    return row["verdict"] + (f", hangs on {seeds:.0f} seed{'s' * (seeds > 1)}" if hangs else "")


def told(row: dict) -> str:
    """The same, and whether another view has another sign."""
    depends = row["views"] == "the sign depends on the view" and row["verdict"] != "not resolved"
    return hanging(row) + "; in another view the sign is the opposite" * depends


def topic_answers(topic: str) -> str:
    """The answers of a topic about the paper's references, on digits."""
    rows = [row for row in answers() if row["topic"] == topic]
    if not rows:
        return NOT_RUN
    again = {row["claim"]: row for row in of_data(f"{REFERENCE}/bench/precise_statistics.csv")}
    recomputed = [again.get(row["claim"]) for row in rows]
    lines = [
        [row["claim"], *(f"{float(row[key]):.2f}" for key in ("top1", "against")), difference(row), hanging(row)]
        + [difference(row, "_scale_aspect")]
        + ([f"{difference(precise)}, {precise['verdict']}" if precise else ""] if any(recomputed) else [])
        for row, precise in zip(rows, recomputed)
    ]
    seeds = sorted({int(row[side]) for row in rows for side in ("n", "n_other")})
    head = f"{heads('claim', 'top1', 'against', 'difference')} (95% interval) | {heads('verdict')}"
    head += f" | {heads('difference_scale_aspect')}" + " | with recomputed statistics" * any(recomputed)
    return table(head, lines) + f"\n\nOurs: top-1 on digits; n = {' to '.join(map(str, seeds))} seeds a side."


def references() -> str:
    """Each method of the paper's references with the answers to its leading questions, and the verdicts on all of its own."""
    lines = []
    for who, (section, topics, about) in REFERENCES.items():
        asked = [row for row in answers() if row["topic"] in topics and re.search(about, row["claim"], re.I)]
        leading = [row for row in asked if row["claim"] in report.leading_claims()] or asked[:1]
        said = [f"{row['claim']}: {difference(row)}, *{told(row)}*" for row in leading]
        verdicts = Counter(row["verdict"] for row in asked).items()
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts)
        lines.append([f"[{who}]({section})", "<br>".join(said) or NOT_RUN, counts])
    head = f"reference | leading questions: {heads('difference')} (95% interval), {heads('verdict')} | all its verdicts"
    return table(head, lines)


@cache
def models_of(data: str, shrink: str) -> pd.DataFrame:
    return tables.only(tables.models(ROOT / REFERENCE / "runs"), data=data, shrink=shrink)


AVERAGED = [
    questions.ENSEMBLE,
    *questions.GROWING,
    *(question.other for question in questions.ENSEMBLES if question.other.average == "softmax"),
]


def averaging() -> str:
    """What ensembles gain over their members' mean and over the last of them, on both beds, and how far that is apart."""
    by_bed = [models_of(DIGITS, "laptop"), models_of(PHOTOGRAPHS, "photographs")]
    lines = []
    for side in AVERAGED:
        names = side.members.split(" + ")
        cells, over_means, over_lasts = [], [], []
        for models in by_bed:
            mean_ = answering.rows_of(models, side).top1
            members = [answering.rows_of(models, answering.Side(side.recipe, name)).top1 for name in names]
            if mean_.empty:
                return NOT_RUN
            over_means.append(mean_ - sum(members) / len(members))
            over_lasts.append(mean_ - members[-1])
        for gains in (over_means, over_lasts):
            cells += [difference(statistics.paired(gain, 0 * gain) | {"failed_other": 0}) for gain in gains]
            cells.append(difference(statistics.unpaired(*gains) | {"failed_other": 0}))
        lines.append([f"`{side.recipe}`, {len(names)} models", *cells])
    seeds = " and ".join(f"{answering.rows_of(models, questions.ENSEMBLE).top1.size}" for models in by_bed)
    head = "ensemble | over its members' mean: digits | photographs | the former minus the latter"
    head += " | over its last member: digits | photographs | the former minus the latter"
    return (
        table(head, lines)
        + f"\n\nOurs: points of top-1 in the test view (95% interval); {seeds} seeds; nothing here was declared."
    )


def photographs_answers() -> str:
    return every_answer(PHOTOGRAPHS, answers(PHOTOGRAPHS)) if answers(PHOTOGRAPHS) else NOT_RUN


def compared() -> str:
    """Each claim that both beds have answered, on both, and whether they agree."""
    both = beds.table(pd.read_csv(ROOT / REFERENCE / "tables/answers.csv"))
    if both.empty:
        return NOT_RUN
    lines = []
    for claim, rows in both.groupby("claim", sort=False):
        cells = [
            f"{difference(row.to_dict() | {'failed_other': 0})} *{hanging(row)}*, error {100 - row.top1:.1f}%"
            for _, row in rows.iterrows()
        ]
        first = rows.iloc[0]
        between = (
            f"{first.apart:+.2f} ({first.apart_low:+.2f} to {first.apart_high:+.2f})" if first.apart == first.apart else ""
        )
        said = claim + (" (control)" if first.control else "") + (f" ({first.numbers})" if first.numbers else "")
        lines.append([said, *cells, between, first.agreement])
    return table(" | ".join([heads("claim"), *dict.fromkeys(both.data), "the former minus the latter", "do they agree"]), lines)


def tuning() -> str:
    """What was tried for each tuned method, in order, with the mean accuracy of each value; the chosen one is bold."""
    file = ROOT / REFERENCE / "bench/tuning.csv"
    rows = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["recipe", "value", "validation_top1"])
    lines = []
    for method in TUNED:
        tried = means(rows, method.recipe.name)
        best = chosen(tried) if tried else None
        values = [f"**{value:g}**: {top1:.1f}" if value == best else f"{value:g}: {top1:.1f}" for value, top1 in tried.items()]
        lines.append([f"`{method.recipe.name}`", method.number, f"{method.first:g}", ", ".join(values) or "*not tuned yet*"])
    return table("recipe | number | first | value: validation top-1, %", lines)


def digits_accuracy() -> str:
    own, others = ({side.recipe for each in asked for side in each.sides} for asked in (OWN, baselines.QUESTIONS))
    others -= own
    lines = [
        [
            f"`{row['recipe']}`",
            f"`{row['shrink']}`",
            row["members"] + (f" ({row['average']} mean)" if row["average"] else ""),
            row["n"],
            *(f"{float(row[key]):.2f}" if row[key] else "" for key in ("top1", "sd")),
            f"{float(row['smallest']):.2f} to {float(row['largest']):.2f}",
        ]
        for row in rows_of(f"{REFERENCE}/tables/accuracy.csv")
        if row["data"] == "digits" and not row.get("variant") and row["recipe"] not in others
    ]
    return table(f"{heads('recipe', 'shrink', 'members', 'n', 'top1', 'sd')} | range", lines)


def digits_loss() -> str:
    """The training loss around the collapse: it must not jump up where the view changes."""
    found = []
    for folder in [folder for folder in runs() if records.read(folder)["base"] == "collapse_parts"]:
        stages: dict[str, list] = {}
        for row in records.metric_rows(folder):
            stages.setdefault(row["stage"], []).append(row["train_loss"])
        found.append((stages["main"][-1], stages["zero-crop-x2"][-1], stages["zero-main-x1"][-1], stages["plain"][-1]))
    names = (
        "before the collapse",
        "in the released collapse",
        "the same in the main view, decay not doubled",
        "in the plain end",
    )
    lines = [
        [name, f"{mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"] for name, values in zip(names, zip(*found))
    ]
    return table(f"training loss | mean, n = {len(found)} runs | range", lines)


@cache
def accuracies() -> dict[answering.Side, pd.Series]:
    """Top-1 of each side of a question and of each branch of collapse_parts, by seed."""
    models = models_of(DIGITS, "laptop")
    sides = [side for question in OWN for side in question.sides]
    sides += [answering.Side("collapse_parts", stage.name) for stage in RECIPES["collapse_parts"].stages]
    sides += [answering.Side(*side.split()) for pair in (*NOT_DECLARED.values(), FASTER_AVERAGES) for side in pair]
    return {side: answering.rows_of(models, side).top1 for side in sides}


def judged(without: list[int]) -> pd.DataFrame:
    """The answers without some seeds, without the columns that read predictions, by claim."""
    rows = []
    for question in OWN:
        sides = (accuracies()[side].drop(without, errors="ignore") for side in question.sides)
        rows.append(answering.compare(question, *sides))
    return answering.verdicts(pd.DataFrame(rows)).set_index("claim")


def not_declared(name: str) -> str:
    """A difference that nobody had declared, between stages of two recipes."""
    question = answering.Question(name, *(answering.Side(*side.split()) for side in NOT_DECLARED[name]), "none")
    return difference(answering.compare(question, *(accuracies()[side] for side in question.sides)))


def parts(stage: str) -> pd.Series:
    """Top-1 of a branch of collapse_parts by seed."""
    return accuracies()[answering.Side("collapse_parts", stage)]


def effects() -> dict[str, dict]:
    """What rate and view do in each other's presence, and their interaction."""
    kept, zero, kept_crop, zero_crop = (parts(f"{which}-x1") for which in ("keep-main", "zero-main", "keep-crop", "zero-crop"))
    return {
        "the rate's fall, in the main view": statistics.paired(zero, kept),
        "the rate's fall, in the collapse's view": statistics.paired(zero_crop, kept_crop),
        "the collapse's view, at a kept rate": statistics.paired(kept_crop, kept),
        "the collapse's view, with the rate falling to zero": statistics.paired(zero_crop, zero),
        "interaction: the last less the one before": statistics.paired(zero_crop - zero, kept_crop - kept),
        "the released collapse against the plain end": statistics.paired(parts("zero-crop-x2"), parts("plain")),
        "the last less the view's gain at a falling rate": statistics.paired(
            parts("zero-crop-x2") - parts("plain"), zero_crop - zero
        ),
    }


def digits_effects() -> str:
    branches = [
        [rate, *(f"{parts(f'{how}-{view}-x1').mean():.2f}" for view in ("main", "crop"))] for how, rate in RATES.items()
    ]
    lines = [[name, difference(row | {"failed_other": 0})] for name, row in effects().items()]  # differences do not fail
    cells = table("rate | main view, top-1, % | collapse's view, top-1, %", branches)
    return cells + "\n\n" + table(f"effect | {heads('difference')} (95% interval), n = {len(parts('plain'))} seeds", lines)


RATES = {"keep": "kept", "zero": "to zero"}


def digits_later_seeds() -> str:
    """The answers of 16 seeds without the first three, whose runs of an earlier code had been seen."""
    every, later = judged([]), judged([0, 1, 2])
    lines = [
        [claim, difference(row._asdict()), difference(later.loc[claim].to_dict()), later.verdict[claim]]
        for claim, row in zip(every.index, every.itertuples())
        if row.topic in ("collapse", "ensemble", "cost") and row.n_other
    ]
    moved = sum(later.verdict[claim] != every.verdict[claim] for claim, *_ in lines)
    said = "No verdict differs" if not moved else f"{moved} verdicts differ"
    return (
        table(f"{heads('claim')} | all seeds | seeds 3 to 15 | {heads('verdict')}, seeds 3 to 15", lines)
        + f"\n\n{said} from that of all seeds."
    )


def hangs_on(data: str, start: str) -> str:
    """On how many seeds the verdict on the claim hangs that begins so."""
    (row,) = [row for row in answers(data) if row["claim"].startswith(start)]
    return f"{float(row['hangs_on']):.0f}"


def hang(rows: list[dict], n: int) -> str:
    """How many of the verdicts with n seeds hang on single ones, of how many."""
    resolved = [row for row in rows if row["verdict"] not in ("not resolved", "not run") and row["n"] == str(n)]
    return f"{sum(float(row['hangs_on'] or 0) > 0 for row in resolved)} of {len(resolved)}"


@cache
def at_best_sizes() -> dict:
    """What the view gains if each model is tested on digits drawn at its own best size."""
    rows = pd.read_csv(ROOT / REFERENCE / "bench/apparent_size.csv").query("data == @DIGITS and how == 'drawn'")
    top1 = rows.pivot_table(index=["stage", "seed"], columns="size", values="top1")
    best = {stage: top1.loc[stage][top1.loc[stage].mean().idxmax()] for stage in ("zero-crop-x1", "zero-main-x1")}
    return statistics.paired(best["zero-crop-x1"], best["zero-main-x1"]) | {
        "sizes": [f"{best[stage].name:g}" for stage in best]
    }


@cache
def in_sentences() -> dict[str, str]:
    """Numbers that stand in a sentence, by the name of their place."""
    found = {row["claim"]: row for row in answers()}
    ratio = {(row["recipe"], row["ratio"]): row for row in of_data(f"{REFERENCE}/tables/ratios.csv")}

    def of(start: str, column: str = "difference", form: str = "+.2f") -> str:
        (row,) = [row for claim, row in found.items() if claim == start] or [
            row for claim, row in found.items() if claim.startswith(start)
        ]
        in_view = column.removeprefix("interval")
        return format(float(row[column]), form) if in_view == column else difference(row, in_view)

    view, collapse = "At a falling rate, the collapse's view", "The released collapse"
    exposure = "The Collapsed Ensemble beats one model of equal images and equal exposure"
    short = "The Collapsed Ensemble beats one model of equal images with the released collapse"
    ends = [records.metric_rows(folder) for folder in runs() if records.read(folder)["base"] == "collapse_parts"]
    mains = [[row for row in rows if row["stage"] == "main"][-1] for rows in ends]
    best, effect = at_best_sizes(), list(effects().values())
    smallest = of("Over 30 epochs", form=".1f").lstrip("-"), of("Over 120 epochs", form=".1f").lstrip("-")
    first = {row["claim"]: row for row in rows_of(FIRST)}
    (gap,) = [-float(row["difference"]) for claim, row in first.items() if claim.startswith("Over 30 epochs")]
    tuned = {method.recipe.name: method.value for method in TUNED}
    batches = [tuned[f"sgd_{batch}"] for batch in BATCHES]
    decay = {batch: ratios.of(shrink(RECIPES[f"batch_{batch}"], "laptop"))[DECAY] for batch in BATCHES}
    momentum = RECIPES["batch_32768"].momentum
    corrected = {size: corrected_momenta(size) for size in ("laptop", "none")}
    return {
        "view-gain": of(view, form=".1f"),
        "collapse-gain": of(collapse, form=".1f"),
        "collapse": of(collapse, "interval"),
        "collapse-zoom": of(collapse, "interval_zoom"),
        "collapse-training": of(collapse, "interval_scale_aspect"),
        "rest": difference(effect[6]),
        "rate-main": difference(effect[0]),
        "rate-crop": difference(effect[1]),
        "rate-first": difference(first["In the main view, the rate's fall helps"]),
        "gap-30-first": f"{gap:.1f}",
        "rate-precise": difference(precise("In the main view, the rate's fall")),
        "best-size": difference(best),
        "best-sizes": " and ".join(best["sizes"]),
        "exposure": of(exposure, "interval"),
        "exposure-training": of(exposure, "interval_scale_aspect"),
        "short": of(short, "interval"),
        "deep": of("The Collapsed Ensemble loses at most half a point against a deeper model of equal images", "interval"),
        "deep-third": of(
            "The Collapsed Ensemble loses at most half a point against a deeper model of equal training", "interval"
        ),
        "gap-30": smallest[0],
        "gap-120": smallest[1],
        "gap-30-precise": f"{-float(precise('Over 30 epochs')['difference']):.1f}",
        "enlarged": f"{float(ratio['', 'median enlargement by the training view']['small']):.2f}",
        "rate-factor": f"{float(ratio['resnet50_448nodes', RATE]['factor']):.0f}",
        "train-top1": f"{100 * mean(row['train_top1'] for row in mains):.1f}%",
        "main-top1": f"{parts('main').mean():.1f}%",
        "photographs-smallest": f"{fashion_mnist.PREPROCESSING.size / fashion_mnist.PREPROCESSING.short_side:.3f}",
        "tuned-batches": f"{min(batches):.3g} to {max(batches):.3g}",
        "tuned-ensemble": f"{tuned['tuned_ensemble']:.2g}",
        "tuned-one-model": f"{tuned['tuned_one_model']:.2g}",
        # A weight without a gradient follows z**2 - (1 + m - a) z + m = 0, a the rate times the decay: complex from a on.
        "decay-swings": f"{(1 - momentum**0.5) ** 2 / (1 - momentum):.3f}",
        "decay-32768": f"{decay[32768]:.3f}",
        "decay-16384": f"{decay[16384]:.3f}",
        **{name: of(begins, "interval") for name, begins in ANSWERED.items()},
        **{name: not_declared(name) for name in NOT_DECLARED},
        "high-training": of("From the released cycles", "interval_scale_aspect"),
        "synchronous-no-momentum-training": of(ANSWERED["synchronous-no-momentum"], "interval_scale_aspect"),
        "stride-enlarged": of("A stride in the 3x3", "interval_zoom"),
        "faster-averages": difference(
            statistics.paired(*(accuracies()[answering.Side(*side.split())] for side in FASTER_AVERAGES))
        ),
        "corrected-momentum": ", ".join(f"{each:.2f}" for each in corrected["laptop"][:3]),
        "corrected-steps": f"{sum(each >= 1 for each in corrected['laptop'])} of {len(corrected['laptop'])}",
        "corrected-momentum-imagenet": f"{max(corrected['none']):.3f}",
        "six-released": f"{parts('zero-crop-x2').loc[[*range(6)]].mean():.2f}%",
        "all-released": f"{parts('zero-crop-x2').mean():.2f}%",
        "grows-precise": difference(precise("A batch that grows loses")),
        **of_photographs(),
        "left-out": hang([row for row in answers() if row["topic"] not in OF_OTHERS], 16),
        "left-out-few": hang([row for row in answers() if row["topic"] not in OF_OTHERS], 6),
        "control-hangs": hangs_on(DIGITS, "Batch 2048 needs"),
        "baselines-left-out": hang([row for row in answers() if row["topic"] in OF_OTHERS], 6),
        "photographs-left-out": hang(answers(PHOTOGRAPHS), 12),
        "photographs-left-out-few": hang(answers(PHOTOGRAPHS), 6),
    }


def corrected_momenta(size: str) -> list[float]:
    """The momentum of each step of the warm-up that momentum correction changes."""
    recipe = shrink(RECIPES["ablation_corrected"], size)
    steps = [at(recipe, step) for step in range(recipe.stages[0].warmup_iterations + 1)]
    return [recipe.momentum * now.rate / now.previous_rate for now in steps if now.previous_rate]


RATE = "largest rate for every 256 images of the batch"
DECAY = "largest weight decay of a step"


def precise(start: str, data: str = DIGITS) -> dict:
    (row,) = [row for row in of_data(f"{REFERENCE}/bench/precise_statistics.csv", data) if row["claim"].startswith(start)]
    return row


def improves(models: pd.DataFrame) -> str:
    """By how much the ensemble's last member is better than its first."""
    first, *_, last = (
        answering.rows_of(models, answering.Side(questions.ENSEMBLE.recipe, name)).top1
        for name in questions.ENSEMBLE.members.split(" + ")
    )
    return difference(statistics.paired(last, first) | {"failed_other": 0})


def of_lars(both: pd.DataFrame) -> str:
    """By how much LARS's differences from SGD at the same batch are larger on photographs than on digits, over the batches."""
    asked = both[both.claim.str.match(r"At batch \d+, LARS .* SGD, each") & (both.data == DIGITS)]
    return f"{-asked.apart.max():.1f} to {-asked.apart.min():.1f}"


def of_photographs() -> dict[str, str]:
    """Numbers in sentences about the photographs."""
    rate = "In the main view, the rate's fall"

    def of(start: str, view: str = "") -> str:
        (row,) = [row for row in answers(PHOTOGRAPHS) if row["claim"].startswith(start)]
        return difference(row, view)

    models = models_of(PHOTOGRAPHS, "photographs")
    yardsticks = {(row["data"], row["model"], row["epochs"][:2]): row for row in rows_of(f"{REFERENCE}/bench/yardsticks.csv")}
    stages = ("zero-crop-x2", "plain", "zero-crop-x1", "zero-main-x1")
    released, plain, crop, main_view = (
        answering.rows_of(models, answering.Side("collapse_parts", stage)).top1 for stage in stages
    )
    both = beds.table(pd.read_csv(ROOT / REFERENCE / "tables/answers.csv"))

    def apart(start: str) -> str:
        (claim,) = {claim for claim in both.claim if claim.startswith(start)}
        row = both[both.claim == claim].iloc[0]  # the same in the row of either bed
        return f"{row.apart:+.2f} ({row.apart_low:+.2f} to {row.apart_high:+.2f})"

    def own_rate(top1: str) -> str:
        recipes = "tuned_one_model", "one_model"
        tuned, other = (answering.rows_of(models, answering.Side(recipe, "collapse_long"))[top1] for recipe in recipes)
        return difference(statistics.unpaired(tuned, other) | {"failed_other": 0})

    sizes = pd.read_csv(ROOT / REFERENCE / "bench/apparent_size.csv").query("data == @PHOTOGRAPHS and size == 1")
    at_one = sizes.pivot_table(index="seed", columns="stage", values="top1")
    return {
        **{f"photographs-{name}": of(*asked) for name, asked in ASKED_OF_PHOTOGRAPHS.items()},
        **{f"photographs-own-rate{view}": own_rate(f"top1{view}") for view in ("", *OTHER)},
        **{f"{data}-improve": improves(of) for data, of in (("digits", models_of(DIGITS, "laptop")), ("photographs", models))},
        "photographs-swa-main-hangs": hangs_on(PHOTOGRAPHS, "In the main view, SWA"),
        "photographs-restarts-hangs": hangs_on(PHOTOGRAPHS, "In the collapse's view, warm restarts"),
        "photographs-warm-8192-hangs": hangs_on(PHOTOGRAPHS, "Batch 8192 needs"),
        "beds-last": apart(f"{BEATS} its last member"),
        "beds-short": apart(f"{BEATS} one model of equal images with"),
        "beds-counts": beds.counts(both.drop_duplicates("claim").agreement),
        "beds-swa-main": apart("In the main view, SWA"),
        "beds-high": apart("From the released cycles"),
        "beds-lars": of_lars(both),
        "beds-lars-2048": apart("At batch 2048, LARS loses"),
        "beds-lars-16384": apart("At batch 16384, LARS is better than SGD"),
        "photographs-rate-precise": difference(precise(rate, PHOTOGRAPHS)),
        "photographs-statistics-precise": difference(precise("New batch-norm statistics alone", PHOTOGRAPHS)),
        # Both are differences, of which none has failed
        "photographs-rest": difference(
            statistics.paired(released - plain, crop - main_view) | {"failed": 0, "failed_other": 0}
        ),
        "photographs-linear": f"{float(yardsticks[PHOTOGRAPHS, 'linear', '']['test_top1']):.1f}",
        "digits-linear": f"{float(yardsticks[DIGITS, 'linear', '']['test_top1']):.1f}",
        "photographs-long": f"{float(yardsticks[PHOTOGRAPHS, 'resnet11', '32']['validation_top1']):.1f}",
        "photographs-at-one": difference(statistics.paired(at_one["zero-crop-x1"], at_one["zero-main-x1"])),
    }


def measured_rows(path: str) -> str:
    """Rows of a benchmark: ours, the peer, the ratio of medians with that of the single rounds, the goal."""
    found, lines = read(path), []
    for row in found["rows"]:
        if REMOVED in row["name"]:
            continue
        ratios = [ours / peer for ours, peer in zip(row["rounds"]["ours"], row["rounds"]["peer"])]
        text, met = goal(row)
        peer, ratio = f"{number(row['peer'])}: {row['peer_is']}", f"{row['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        if row["peer_is"] == "one second":  # no peer: the goal is in seconds
            peer, ratio, text = "", "", f"{text} s"
        verdict = f"{text}, {'met' if met else '**missed**'}" if met is not None else ""
        lines.append([f"{row['name']}, {row['unit']}", number(row["ours"]), peer, ratio, verdict])
    head = "what, unit | ours | peer | ratio of medians (rounds) | goal"
    machine = found.get("gpu", "") and f"one {found['gpu']}, "
    machine += f"{found['cores']} cores ({found['machine']})"
    return (
        table(head, lines)
        + "\n\n"
        + made(
            path,
            found["command"],
            found["when"],
            {found["version"]},
            machine,
            f"n = {len(found['rows'][0]['rounds']['ours'])} rounds",
        )
    )


def speed() -> str:
    return measured_rows(f"{REFERENCE}/bench/bench.json")


def passes() -> str:
    path = f"{REFERENCE}/bench/passes.json"
    said = [
        f"A step of {recipe} is " + ", ".join(f"{100 * share:.0f}% {name}" for name, share in shares.items()) + "."
        for recipe, shares in read(path).get("shares", {}).items()  # files of earlier versions have none
    ]
    return "\n\n".join([measured_rows(path), *said])


def gpu() -> str:
    return measured_rows(f"{REFERENCE}/bench/gpu.json")


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


def scale() -> str:
    path = f"{REFERENCE}/bench/scale.json"
    found, lines = read(path), []
    for row in found["rows"]:
        seconds = f"{number(median(row['seconds']))} ({number(min(row['seconds']))} to {number(max(row['seconds']))})"
        lines.append([row["what"], row["size"], seconds, f"{row['megabytes']:.0f}"])
    machine, times = f"{found['cores']} cores ({found['machine']})", f"n = {len(found['rows'][0]['seconds'])} times"
    source = made(path, found["command"], found["when"], {found["version"]}, machine, times)
    return table("what | of | s, median (range) | memory, MB", lines) + "\n\n" + source


def scaling_measured() -> str:
    rows = rows_of(f"{REFERENCE}/tables/scaling_measured.csv")
    lines = [
        [
            row["ranks"],
            row["images"],
            row["n"],
            f"{float(row['seconds']):.3f} ({float(row['low']):.3f} to {float(row['high']):.3f})",
            f"{float(row['images_per_s']):.1f}",
            f"{float(row['efficiency']):.0f}",
            f"{float(row['error']):+.1f}",
        ]
        for row in rows
    ]
    path = f"{REFERENCE}/bench/probe.json"
    found = read(path)
    more = f"{rows[0]['model']} at {rows[0]['size']} px, `{found['reduction']}`, {found['precision']}"
    head = f"{heads('ranks', 'images', 'n_steps', 'seconds')} (5 to 95%) | {heads('step_rate', 'efficiency')}"
    head += f" | MODEL: {heads('error')}"
    machine = f"{found['cores']} cores ({found['processor']}), load {found['load_before']:.1f} before"
    return table(head, lines) + "\n\n" + made(path, "11-scaling", found["when"], {found["version"]}, machine, more)


def scaling_papers_nodes() -> str:
    lines = [
        [
            row["nodes"],
            row["images"],
            "nothing" if row["buckets"] == "1" else f"{row['buckets']} buckets",
            f"{float(row['efficiency']):.0f} ({float(row['efficiency_low']):.0f} to {float(row['efficiency_high']):.0f})",
            f"{float(row['efficiency_48_cores']):.0f}",
        ]
        for row in rows_of(f"{REFERENCE}/tables/scaling_papers_nodes.csv")
    ]
    head = f"{heads('nodes', 'images_per_process')} | overlapped | MODEL: {heads('efficiency')} (5 to 95%)"
    return table(f"{head} | {heads('efficiency_48_cores')}", lines)


def time_to_accuracy() -> str:
    """The best batch on some of the nodes, with what the smallest and the largest would take."""
    found = tables.published_time_to_accuracy()
    lines = []
    for row in found[found["first"] & found.nodes.isin([64, 256, 448, 1024, 2048, 4096])].itertuples():
        minutes = found[found.nodes == row.nodes].set_index("batch").minutes
        others = [f"{minutes[batch]:.0f}" if batch in minutes else "" for batch in (found.batch.min(), found.batch.max())]
        time = f"{row.minutes:.1f} ({row.minutes_low:.1f} to {row.minutes_high:.1f})"
        lines.append([row.nodes, f"{row.batch:,}", f"{row.epochs:.0f}", time, f"{row.node_hours:.0f}", *others])
    ends = " | ".join(f"at batch {batch:,}" for batch in (found.batch.min(), found.batch.max()))
    return table(f"nodes | best batch | its epochs, published | MODEL: minutes (5 to 95%) | node-hours | {ends}", lines)


def epochs_to_accuracy() -> str:
    models = tables.only(tables.models(ROOT / REFERENCE / "runs"), data="digits", shrink="laptop")
    lines = [
        [
            row.method,
            f"{row.batch:,}",
            row.lengths,
            row.n,
            f"{row.top1:.2f}",
            f"{row.epochs:.1f}" * (row.state == "reached") or row.state,
        ]
        for row in tables.reached(models).itertuples()
    ]
    return table(
        f"method | batch | lengths tried | {heads('n')} | top\u20111 of the longest, % | epochs over the digits", lines
    )


def scaling_checks() -> str:
    """A row for each kind of check, with the errors of each time that `make bench-scaling` was run."""
    paths = sorted((ROOT / REFERENCE / "bench").glob("scaling*.json"), key=lambda path: json.loads(path.read_text())["when"])
    days = [json.loads(path.read_text()) for path in paths]
    groups: dict[str, list[list]] = {}
    for number, day in enumerate(days):
        for check in day["checks"]:
            name = re.sub(
                r" at \d+ Mbit/s", "", re.sub(r"link from \d+", "the link measured at the other rate", check["check"])
            )
            for key in (name, "all"):
                groups.setdefault(key, [[] for _ in days])[number].append(check)
    groups["all"] = groups.pop("all")
    lines = []
    for name, checks in groups.items():
        line = [name]
        for each in checks:
            errors = [check["error_percent"] for check in each]
            small = sum(check["state"] == "PASS" for check in each)
            line += [f"{small} of {len(each)}", f"{median(map(abs, errors)):.1f}% ({min(errors):+.0f} to {max(errors):+.0f})"]
        lines.append(line)
    head = " | ".join(f"{day['when'][:16].replace('T', ' ')} UTC: within the goal | error, median (range)" for day in days)
    sources = []
    for path, day in zip(paths, days):
        probes = day["probes"]
        machine = f"{probes[0]['cores']} cores ({probes[0]['processor']})"
        shares = {what: [scale * probe[what] for probe in probes] for what, scale in (("busy", 100), ("noise", 1))}
        steps = [check["n"] for check in day["checks"]]
        more = f"{min(steps)} or more timed steps in each row"
        for what, said in (("busy", "processor time of other programs"), ("noise", "noise")):
            more += f"; {said}: {min(shares[what]):.1f} to {max(shares[what]):.1f}%"
        versions = {probe["version"] for probe in probes}
        more += f"; checked {commit(day['checks_version'])}"
        sources.append(made(str(path.relative_to(ROOT)), day["command"], day["when"], versions, machine, more))
    return table(f"predicted | {head}", lines) + "\n\n" + "\n\n".join(sources)


def times() -> str:
    path = f"{REFERENCE}/bench/times.json"
    rows = sorted(read(path), key=lambda row: (row["target"], row["machine"], row["cores"]))
    lines = [
        [
            f"`make {row['target']}`",
            f"{row['seconds'] / 60:.1f}",
            f"{row['cores']} cores ({row['machine']})",
            commit(row["version"]),
        ]
        for row in rows
    ]
    return table("target | minutes | machine | code", lines) + f"\n\nFrom [times.json]({path}): `python -m bench.times TARGET`."


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


ENDS = {  # of tests/soak.py
    "finished": "trained to its end in spite of the faults",
    "stopped": "stopped after a step, with a checkpoint (status 75)",
    "stopped at once": "stopped at once (status 130)",
    "named": "one line named the fault (status 2)",
    "verdict": "the watchdog named the frozen rank",
    "killed": "ended by the signal, or by the launcher after it",
    "named, train again": "the plain command named damaged files, which were then deleted",
}


def soak() -> str:
    path = f"{REFERENCE}/soak.json"
    if not (ROOT / path).exists():
        return "No counts are recorded yet: `make soak` writes them."
    soaks = read(path)

    def total(part: str) -> Counter:
        return sum((Counter(each[part]) for each in soaks), Counter())

    came, passed = (
        sum((Counter({fault: counts[key] for fault, counts in each["faults"].items()}) for each in soaks), Counter())
        for key in ("trials", "passed")
    )
    faults_ = table("fault | trials in which it came | passed", [[fault, came[fault], passed[fault]] for fault in sorted(came)])
    ends = total("ends")
    how = table("how an attempt ended | attempts", [[ENDS[end], ends[end]] for end in ENDS if ends[end]])
    trials, failed = sum(each["trials"] for each in soaks), sum(len(each["failed"]) for each in soaks)
    ranks = ", ".join(f"{count} on {name}" for name, count in sorted(total("ranks").items()))
    each = ", ".join(f"{one['trials']} in {one['seconds'] / 60:.0f} minutes (seed {one['seed']})" for one in soaks)
    versions = ", ".join(sorted({commit(one["version"]) for one in soaks}))
    return (
        f"{trials} trials, {failed} failed. Several faults may come in one trial.\n\n{faults_}\n\n{how}\n\n"
        f"From [soak.json]({path}): the last {len(soaks)} calls of `make soak`, {each}; attempts: {ranks}; {versions}; "
        f"{soaks[-1]['cores']} cores, {soaks[-1]['system']}."
    )


# --- The ensemble, and the switches -----------------------------------------------------------------------------------


def saved(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / REFERENCE / "tables" / f"{name}.csv")


def seeds(table: pd.DataFrame) -> str:
    n = table.seed.nunique()
    return f"Ours: means over {n} seed{'s' * (n > 1)} on digits."


def called(recipe: str, members: str) -> str:
    """What a model or an ensemble is called."""
    stages = members.split(" + ")
    return f"`{recipe}`, " + (f"{len(stages)} models" if len(stages) > 1 else f"`{members}`")


def ensemble_predictions() -> str:
    rows, lines = saved("ensemble_predictions"), []
    for (recipe, members), part in rows.groupby(["recipe", "members"], sort=False):
        error = (
            f"{part.calibration_error.mean():.2f} ({part.calibration_error.min():.2f} to {part.calibration_error.max():.2f})"
        )
        numbers = [f"{part.top1.mean():.2f}", f"{part.loss.mean():.4f}", error]
        lines.append([called(recipe, members), len(part), *numbers])
    head = heads("members", "n", "top1", "loss", "calibration_error")
    return table(f"{head} (range)", lines) + f"\n\n{seeds(rows)}"


def ensemble_pairs() -> str:
    rows, lines = saved("ensemble_pairs"), []
    for (kind, members), part in rows.groupby(["kind", "members"], sort=False):
        among, error = part.disagreement, 100 - part.top1.mean()
        spread = f"{among.mean():.2f} ({among.min():.2f} to {among.max():.2f})"
        lines.append([kind, members, len(part), spread, f"{error:.2f}", f"{among.mean() / error:.2f}"])
    head = heads("kind", "members", "n", "disagreement")
    return table(f"{head} (range) | errors of a model, % | the former over the latter", lines) + f"\n\n{seeds(rows)}"


def ensemble_paths() -> str:
    """How much the loss rises, and the accuracy falls, on a path above the straight line between its ends; the middle."""
    rows, lines = saved("ensemble_paths"), []
    for (recipe, members), part in rows.groupby(["recipe", "members"], sort=False):
        at = {column: part.pivot(index="seed", columns="share", values=column) for column in ("loss", "top1")}
        chord = {name: each[[0.0, 1.0]].mean(axis=1) for name, each in at.items()}
        ends = pd.DataFrame({share: at["loss"][0.0] * (1 - share) + at["loss"][1.0] * share for share in at["loss"]})
        barrier = (at["loss"] - ends).max(axis=1)
        middle = at["top1"][0.5] - chord["top1"]
        spread = [
            f"{each.mean():{form}} ({each.min():{form}} to {each.max():{form}})"
            for each, form in ((barrier, ".3f"), (middle, "+.2f"))
        ]
        lines.append([f"`{recipe}`, {members}", len(barrier), f"{chord['top1'].mean():.2f}", *spread])
    head = "path between | n, seeds | top-1 of its ends, % | largest rise of the loss above the straight line (range)"
    return table(f"{head} | top-1 in the middle less that of the ends, points (range)", lines) + f"\n\n{seeds(rows)}"


def ensemble_sharpness() -> str:
    rows, lines = saved("ensemble_sharpness"), []
    view = {"none": "the collapse's", "scale_aspect": "the main stages'"}
    for (seen, radius), part in rows.groupby(["view", "radius"], sort=False):
        before, after = (part[part.members.str.startswith(begins)] for begins in ("cyc", "collapse"))
        of = [each.groupby(["members", "seed"]).rise.mean() for each in (before, after)]
        spread = [f"{each.mean():.3f} ({each.min():.3f} to {each.max():.3f})" for each in of]
        losses = f"{before.loss.mean():.3f}", f"{after.loss.mean():.3f}"
        lines.append([view[seen], f"{radius:g}", len(of[0]), *losses, *spread])
    head = "view | length of the step | models | loss before a collapse | after | rise before (range) | rise after (range)"
    count = rows.draw.nunique()
    return table(head, lines) + f"\n\n{seeds(rows)} Each model's rise is a mean over {count} directions."


def ensemble_rescaled() -> str:
    rows = saved("ensemble_rescaled")
    lines = [
        [
            f"{row.scaled_by:g}",
            f"{row.loss:.5f}",
            f"{row.top1:.2f}",
            f"{row.rise:.3g}",
            f"{row.rise * row.scaled_by**2:.3g}",
            f"{row.rise_filter_wise:.4f}",
        ]
        for row in rows.itertuples()
    ]
    head = heads("scaled_by", "loss", "top1", "rise") + ", fixed step | the same, times the square"
    return table(f"{head} | {heads('rise_filter_wise')}", lines) + "\n\nOurs: one model on digits."


def switches() -> str:
    rows = saved("switches").itertuples(index=False)
    lines = [[f"`{row[0]}`", f"`{row[1]}`", *("yes" if each else "no" for each in row[2:])] for row in rows]
    return table(heads("switch", "value", "weights_differ", "statistics_differ"), lines)


PLACES = {
    "results": results,
    "ensemble-predictions": ensemble_predictions,
    "ensemble-pairs": ensemble_pairs,
    "ensemble-paths": ensemble_paths,
    "ensemble-sharpness": ensemble_sharpness,
    "ensemble-rescaled": ensemble_rescaled,
    "switches": switches,
    "digits-answers": digits_answers,
    "references": references,
    **{f"answers-{topic}": partial(topic_answers, topic) for topic in OF_OTHERS},
    "digits-effects": digits_effects,
    "digits-later-seeds": digits_later_seeds,
    "digits-ratios": digits_ratios,
    "digits-twice": digits_twice,
    "digits-pilot": digits_pilot,
    "photographs-ratios": photographs_ratios,
    "photographs-regime": photographs_regime,
    "photographs-yardsticks": photographs_yardsticks,
    "photographs-answers": photographs_answers,
    "averaging": averaging,
    "photographs-size": photographs_size,
    "beds": compared,
    "digits-size": digits_size,
    "digits-precise": digits_precise,
    "digits-regime": digits_regime,
    "tuning": tuning,
    "digits-accuracy": digits_accuracy,
    "digits-loss": digits_loss,
    "speed": speed,
    "profile": profile,
    "passes": passes,
    "scale": scale,
    "times": times,
    "gpu": gpu,
    "loader": loader,
    "scaling-measured": scaling_measured,
    "scaling-papers-nodes": scaling_papers_nodes,
    "scaling-checks": scaling_checks,
    "time-to-accuracy": time_to_accuracy,
    "epochs-to-accuracy": epochs_to_accuracy,
    "faults": faults,
    "soak": soak,
}


def filled(page: Path) -> str:
    """The page's text with every marked place filled."""
    up = "../" * len(page.parent.relative_to(ROOT).parts)

    def fill(found: re.Match) -> str:
        if not found[1].endswith("\n"):
            return found[1] + in_sentences()[found[2]] + found[3]
        return found[1] + PLACES[found[2]]().replace("](", f"]({up}") + "\n" + found[3]

    return PLACE.sub(fill, page.read_text())


def main(check: bool) -> int:
    stale = [page for page in PAGES if filled(page) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is not what the files say: run docs/write_numbers.py' if check else 'written'}")
        if not check:
            page.write_text(filled(page))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
