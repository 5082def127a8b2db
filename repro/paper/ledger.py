"""The ledger: for each claim what was published, what we found, at which scale, and whether it stands. `make verify` prints it.

`results/published/claims.csv` has the claims, with what is compared and why within that tolerance. A claim on ImageNet is
tested by runs on ImageNet alone. A small run answers a question of its own (D1, D2, ...), which never says PASS. A topic of
which nothing was run is one line. Claims of the paper's references (B1, B2, ...) stand beside the verdicts of a topic.

PASS            ours is the published number within the tolerance
MISSED          it is not
SUPPORTED       small runs support a question's claim
EQUIVALENT      the two sides of a question are shown to differ by less than the margin
CONTRADICTED    small runs show that a question's claim is wrong there
NOT-RESOLVED    the data cannot tell
NOT-RUN         its cost in node-hours stands beside it, where it is known
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from pathlib import Path

import pandas as pd

from repro.paper import beds, names, plan, questions, tables
from repro.paper.answering import Question
from repro.paths import REFERENCE
from repro.recipes import RECIPES
from repro.run import tidy, trained
from repro.schedule import IMAGENET_IMAGES, Recipe, learning_rate

VERDICTS = "supported", "equivalent", "contradicted", "not resolved", "not run"
STATES = {verdict: verdict.upper().replace(" ", "-") for verdict in VERDICTS}
CLAIM = ["id", "claim", "published", "source", "scale", "test", "tolerance", "why"]
HOURS = ["node_hours", "node_hours_cpu", "node_hours_gpu", "one_gpu_hours"]
FOUND = ["state", "agreement", "ours", "n", "low", "high", *HOURS, "runs", "commit"]
QUESTION = "question, topic "
TEST_IMAGES = 50_000  # of ImageNet-1K
DIGITS = "digits"  # the data set of the questions that no data set has answered
ABOUT = 2.5  # minutes: "about 60 minutes" is read as rounded to five


def ledger(runs: Path | str, results: Path | str) -> pd.DataFrame:
    """One row per claim, columns `CLAIM` and `FOUND`, from the runs and from the table of answers in `results`."""
    return _ledger(tables.that_count(tidy.runs(runs)[0]), Path(results))


def _ledger(counted: pd.DataFrame, results: Path) -> pd.DataFrame:
    claims, small = tables.published("claims"), _questions(counted, results)
    rows = [claim | _found(claim, counted, small) for claim in claims.to_dict("records")]
    return pd.DataFrame(rows + small).reindex(columns=[*CLAIM, *FOUND])


def verify(results: Path | str, as_json: bool = False) -> tuple[str, bool]:
    """The ledger of `results`, as text; and whether a claim is MISSED.

    It is that of the reference if `results` has no runs, or only tiny ones, such as the tour's, which answer nothing. The
    first line says whether this code has trained the runs, the next ones whether the plan was kept.
    """
    results = Path(results) if tables.of_size(Path(results) / "runs") else REFERENCE
    counted = tables.that_count(tidy.runs(results / "runs")[0])
    table = _ledger(counted, results)
    if as_json:
        return table.to_json(orient="records", indent=1), bool((table.state == "MISSED").any())
    lines = [f"claims by the runs in {results}, {trained.by(results / 'runs', zip(counted.code, counted.version))}"]
    lines += plan.told()
    for row in table.fillna({"ours": "", "published": "", "agreement": ""}).itertuples():
        lines.append(f"{row.id:7} {row.state:12} {row.claim}" + (f": {row.published}" if row.published else ""))
        said = {"ours": with_interval(row), "cost": price(row), "on all data sets": row.agreement}
        lines += [f"{'':20} {word}: {text}" for word, text in said.items() if text]
    counts = table.state.value_counts()
    lines.append(", ".join(f"{number} {state}" for state, number in counts.items()))
    asked = table[table.agreement.notna() & ~table.id.str.contains(".", regex=False)]
    if len(asked):
        lines.append(f"of {beds.counts(asked.agreement)}")
    return "\n".join(lines), bool((table.state == "MISSED").any())


def with_interval(row) -> str:
    """What was found, in words; "" if nothing was."""
    if pd.isna(row.ours) or pd.isna(row.low) or row.test == "test images":
        return "" if pd.isna(row.ours) else row.ours
    form = "+.2f" if row.ours.endswith("points") else ".2f"  # of a difference
    return f"{row.ours} ({row.low:{form}} to {row.high:{form}}, n = {row.n:.0f})"


def price(row) -> str:
    """A row's cost in words; "" where it is not known."""
    parts = [] if pd.isna(row.node_hours) else [f"{row.node_hours:.0f} node-hours as published"]
    parts += [] if pd.isna(row.one_gpu_hours) else [f"{row.one_gpu_hours:.0f} hours of this code on one {one_gpu()['gpu']}"]
    return "; ".join(parts)


def _found(claim: dict, counted: pd.DataFrame, small: list[dict]) -> dict:
    if str(claim["test"]).startswith(QUESTION):
        return {"state": "NOT-RUN", "ours": _asked_small(claim["test"], small)}
    if claim["scale"] == "ImageNet":
        return _on_imagenet(claim, counted)
    if claim["test"] == "test images":
        return _beyond_test_images(claim)
    if claim["scale"] == "arithmetic":
        ours, told = _of_published(claim["id"])
    elif claim["test"] == "parameters":
        ours = _parameters(with_bias=claim["id"] == "S1")
        told = f"{ours:,.0f}"
    else:
        ours, told = _of_schedule(claim)
    return {"ours": told, "state": "PASS" if abs(ours - claim["number"]) <= claim["tolerance"] else "MISSED"}


# --- What the code itself shows -----------------------------------------------------------------------------------------


def _parameters(with_bias: bool) -> int:
    """Those of ResNet-50, with or without the bias of the first convolution."""
    import torch  # for which those who read a ledger need not wait

    from repro.resnet import ResNet

    with torch.device("meta"):  # shapes alone: `resnet.build` draws the values, on "meta" by code that takes seconds to load
        parameters = ResNet("resnet50", 1000).named_parameters()
    return sum(value.numel() for name, value in parameters if with_bias or name != "conv1.bias")


def _of_schedule(claim: dict) -> tuple[float, str]:
    """The largest difference of our schedule's numbers from the published ones; and ours, with as many digits as those."""
    r2, r3 = RECIPES["resnet50_448nodes"], RECIPES["resnet50_custom_lr"]
    ours = {
        "S3": [r3.epochs(end) for end in r3.starts[1:]],
        "S4": [r2.epochs(end) for end in r2.starts[1:]],
        "S5": [_decayed(r2, "main"), *(_decayed(r3, stage) for stage in ("init", "cyc2", "cyc3"))],
        "S6": [_after_warmup(r2, "main"), *(_after_warmup(r3, stage) for stage in ("init", "cyc2"))],
    }[claim["id"]]
    published = claim["published"].split("; ")
    relative = claim["test"] == "largest relative difference"
    pairs = list(zip(ours, map(float, published), strict=True))
    worst = max(abs(mine - theirs) / (theirs if relative else 1) for mine, theirs in pairs)
    told = "; ".join(f"{mine:.{_decimals(text)}f}" for mine, text in zip(ours, published))
    return worst, f"{told} (off by {f'{worst:.2%}' if relative else f'{worst:.4f}'} at most)"


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _decayed(recipe: Recipe, stage: str) -> float:
    """The rate at the end of a stage whose decay counts from the end of warm-up."""
    return learning_rate(recipe, recipe.starts[_place(recipe, stage) + 1] - 1, "as_designed")


def _after_warmup(recipe: Recipe, stage: str) -> float:
    place = _place(recipe, stage)
    return learning_rate(recipe, recipe.starts[place] + recipe.stages[place].warmup_iterations, "as_released")


def _place(recipe: Recipe, stage: str) -> int:
    return [each.name for each in recipe.stages].index(stage)


# --- Whether the published numbers fit together -------------------------------------------------------------------------


def _of_published(id: str) -> tuple[float, str]:
    """What a claim's number is by others of the published ones, and the same in words."""
    released = tables.published("released_runs").set_index("id")
    r3, _, paper, you = tables.published_runs()
    if id == "C1":
        mine, theirs = (run.images_per_s / run.nodes for run in (paper, you))
        return mine / theirs, f"{mine:.1f} / {theirs:.1f} = {mine / theirs:.2f}"
    if id == "C2":
        epochs = r3.images_per_s * released.minutes["R3"] * 60 / IMAGENET_IMAGES
        return epochs, f"{epochs:.1f} epochs"
    r2 = RECIPES["resnet50_448nodes"]
    minutes = released.minutes["R1"] * r2.epochs(r2.starts[1]) / released.epochs["R1"] + 5  # the collapse's "about 5 minutes"
    return minutes, f"{minutes:.0f} minutes"


def _beyond_test_images(claim: dict) -> dict:
    """Whether two single models differ by more than their test images and the numbers' rounding explain, in 95% of cases.

    Takes the two as independent; models that are right for the same images differ by less.
    """
    texts = claim["published"].split("; ")
    lower, higher = map(float, texts)
    noise = 1.96 * math.sqrt((lower * (100 - lower) + higher * (100 - higher)) / TEST_IMAGES)
    rounding = sum(0.5 * 10 ** -_decimals(text) for text in texts)
    difference = higher - lower
    return {
        "ours": f"{difference:.2f} points; test images explain up to {noise:.2f}, rounding up to {rounding:.2f}",
        "n": 1,
        "low": difference - noise - rounding,
        "high": difference + noise + rounding,
        "state": "PASS" if difference > noise + rounding else "NOT-RESOLVED",
    }


# --- ImageNet -----------------------------------------------------------------------------------------------------------


def _on_imagenet(claim: dict, counted: pd.DataFrame) -> dict:
    cost = {"state": "NOT-RUN", **costs(claim["id"])}
    if claim["test"] == "MODEL":
        return cost | {"ours": _modelled(claim["id"])}
    recipe, found = RECIPES.get(claim["test"]), _plain(counted, "imagenet", "none")
    if recipe:
        found = found[(found.recipe == recipe.name) & (found.model == recipe.model)]
    if not recipe or found.empty:
        return cost
    top1 = found.top1
    agrees = abs(top1.mean() - claim["number"]) <= claim["tolerance"]
    return {
        "ours": f"{top1.mean():.2f}%",
        "n": len(top1),
        "low": top1.min(),
        "high": top1.max(),
        "state": "PASS" if agrees else "MISSED",
        "runs": " ".join(found.folder),
        "commit": _commits(found),
    }


def _plain(counted: pd.DataFrame, data: str, shrink: str, variants: Iterable[str] = ("",)) -> pd.DataFrame:
    """The runs of a data set and shrink with default settings, or of these variants."""
    return counted[(counted.data == data) & (counted["shrink"] == shrink) & counted.variant.isin([*variants])]


def _commits(runs: pd.DataFrame) -> str:
    return " ".join(sorted({version.partition("+")[2] for version in runs.version}))


def costs(id: str) -> dict[str, float]:
    """Node-hours of an ImageNet claim's run: on the nodes that it was published for, and on two kinds that can be rented.

    Of A3 and A4 no configuration was released: their epochs at R3's images/s. The other nodes are at the images/s that their
    MLPerf logs show, by other software and in other precision. `one_gpu_hours` are those of this code on one GPU, without
    evaluations, at the images/s that `plan` measured for resnet50_448nodes; A2, a time to train, would not be tested there. A1
    takes no whole run.
    """
    released, peers = tables.published("released_runs").set_index("id"), tables.published("peers").set_index("work")
    r3 = released.loc["R3"]
    if id == "A1":
        return {}
    if id == "A2":
        epochs, hours = 90.0, 1536 * 28 / 60
    elif id in released.index:
        epochs, hours = released.epochs[id], released.nodes[id] * released.minutes[id] / 60
    else:
        epochs = RECIPES["collapsed_ensemble"].epochs() if id == "A4" else 90.0
        hours = epochs * IMAGENET_IMAGES / (r3.images_per_s / r3.nodes) / 3600
    cpu, gpu = peers.loc["MLPerf v3.0 Intel (PyTorch on CPUs)"], peers.loc["MLPerf v4.0 NVIDIA"]
    rates = {"node_hours_cpu": cpu.images_per_s / 16, "node_hours_gpu": gpu.images_per_s}
    if id != "A2":
        rates["one_gpu_hours"] = one_gpu()["images_per_s"]
    return {"node_hours": hours} | {name: epochs * IMAGENET_IMAGES / rate / 3600 for name, rate in rates.items()}


@cache
def one_gpu() -> dict:
    """What `python -m repro plan resnet50_448nodes --json FILE` wrote on a machine with a GPU."""
    return json.loads((REFERENCE / "bench" / "gpu-plan.json").read_text())


@cache
def _on_the_papers_nodes() -> pd.DataFrame:
    rows = tables.on_the_papers_nodes()
    return rows[rows.images == 16].set_index(["nodes", "buckets"])


def _modelled(id: str) -> str:
    """What MODEL says of A1 and A2, on nodes like R3's; never a measurement."""
    rows = _on_the_papers_nodes()
    parts = []
    for buckets, how in ((1, "without"), (rows.index.get_level_values("buckets").max(), "with")):
        if id == "A1":
            row = rows.loc[448, buckets]
            parts.append(f"{row.efficiency:.0f}% ({row.efficiency_low:.0f} to {row.efficiency_high:.0f}) {how} overlap")
        else:
            parts.append(f"{rows.loc[448, buckets].minutes_90:.0f} minutes for 90 epochs on 448 nodes {how} overlap")
    return "MODEL: " + ", ".join(parts)


# --- Small runs ---------------------------------------------------------------------------------------------------------


def _questions(counted: pd.DataFrame, results: Path) -> list[dict]:
    """The questions of the small test bed, by the table of answers in `results`: D1, D2, ...; a topic without runs is a row."""
    path = results / "tables" / "answers.csv"
    answers = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["claim", "topic", "data", "shrink", "verdict"])
    answers = answers[answers["shrink"] != "smoke"]
    begun = {*answers.topic[answers.verdict != "not run"]}
    rows = []
    for topic, numbered in groupby(enumerate(questions.QUESTIONS, start=1), key=lambda each: each[1].topic):
        asked = [(f"D{number}", question) for number, question in numbered]
        if topic in begun:
            rows += [row for id, question in asked for row in _answers(id, question, answers, counted)]
        else:
            ids = "-".join(dict.fromkeys((asked[0][0], asked[-1][0])))
            claim = f"{names.TOPICS[topic]}: {len(asked)} question{'s' * (len(asked) > 1)}"
            rows.append({"id": ids, "claim": claim, "test": QUESTION + topic, "scale": DIGITS, "state": "NOT-RUN"})
    return rows


def _answers(id: str, question: Question, answers: pd.DataFrame, counted: pd.DataFrame) -> list[dict]:
    """A row for each data set that has answered a question, the digits first: D1, then D1.2 and so on; if none has, one row.

    `agreement` says of several whether their verdicts agree (`beds.agreement`).
    """
    asked = {"id": id, "claim": question.claim + (" (control)" if question.control else "")}
    asked |= {"test": QUESTION + question.topic, "why": "Holm over the questions of its topic"}
    found = answers[(answers.claim == question.claim) & (answers.verdict != "not run")]
    if found.empty:
        return [asked | {"scale": DIGITS, "state": "NOT-RUN"}]
    rows: list[dict] = []
    for answer in found.iloc[(found.data != DIGITS).argsort(kind="stable")].itertuples():
        margin = question.not_worse_by or answer.margin
        row = asked | {"scale": answer.data, "tolerance": margin, "state": STATES[answer.verdict]}
        if rows:
            row |= {"id": f"{id}.{len(rows) + 1}", "claim": f"{row['claim']}, on {answer.data}"}
        if answer.n and answer.n_other:
            recipes = list(dict.fromkeys((question.better.recipe, question.other.recipe)))
            variants = {side.variant for side in question.sides}
            used = _plain(counted, answer.data, answer.shrink, variants).query("recipe in @recipes")
            row |= {"ours": f"{answer.difference:+.2f} points", "n": min(answer.n, answer.n_other)}
            row |= {"low": answer.low, "high": answer.high, "commit": _commits(used)}
            row["runs"] = " ".join(f"{recipe}-{answer.shrink}-{answer.data}-*" for recipe in recipes)
        rows.append(row)
    if found.data.nunique() > 1:
        agreement = beds.agreement({*found.verdict})
        rows = [row | {"agreement": agreement} for row in rows]
    return rows


def _asked_small(test: str, small: list[dict]) -> str:
    """Where the small test bed asks what a reference claims of its own images, and the verdicts there."""
    states = Counter(row["state"] for row in small if row["test"] == test)
    counts = ", ".join(f"{number} {state}" for state, number in states.items()) if states.keys() - {"NOT-RUN"} else "NOT-RUN"
    return f"asked on small images as topic {test.removeprefix(QUESTION)}: {counts}"
