"""The report: one HTML page with all figures and tables in it, which reads like the paper's companion and needs no server.

`report.html.j2` has its text, `report.css` its look, `svg` puts figures into it; here is what they show. Everything that
comes from a file is escaped.
"""

import re
from collections.abc import Iterable
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from repro.paper import beds, names, questions, svg, tables
from repro.paper.answering import Question
from repro.paper.ledger import price, with_interval
from repro.paper.names import COLUMNS
from repro.paper.profiles import NOTEBOOKS
from repro.paper.statistics import LEVEL
from repro.paths import replacing

# The two questions of each topic that the first page answers, as their `sides`; of another topic the first two. Those
# of the paper's references were chosen before any of them was run.
LEADING = {
    ("five_members", "one_model collapse"),
    ("five_members", "one_model collapse_long"),
    ("collapse_parts zero-crop-x2", "collapse_parts plain"),
    ("collapse_parts zero-crop-x1", "collapse_parts zero-main-x1"),
    ("batch_16384 main", "batch_2048 main"),
    ("batch_32768 main", "batch_2048 main"),
    ("batch_4096 main", "batch_4096_no_warmup main"),
    ("batch_16384 main", "batch_16384_no_warmup main"),
    ("epochs_120_batch_4096 collapse", "epochs_90_batch_4096 collapse"),
    ("epochs_120_batch_14336 collapse", "epochs_90_batch_14336 collapse"),
    ("sgd_32768 main", "sgd_2048 main"),
    ("sgd_32768 main", "batch_32768 main"),
    ("lars_32768 main", "sgd_32768 main"),
    ("lars_32768 main", "sgd_2048 main"),
    ("tuned_ensemble", "tuned_ensemble"),  # the mean of the members' weights
    ("swa average", "tuned_one_model collapse_long"),
    ("tuned_ensemble", "constant_ensemble"),  # with collapses from each cycle's end, and from the constant rate
    ("one_cycle end", "tuned_one_model collapse_long"),
    ("tuned_ensemble", "snapshot_ensemble_restarts"),
    ("batch_2048 main", "images_1_2_equal_epochs main"),
    ("batch_2048 main", "images_1_2_equal_steps main"),
    ("resnet50_448nodes collapse", "ablation_as_designed collapse"),
    ("resnet50_448nodes collapse", "ablation_lars collapse"),
    ("synchronous_8_groups main", "asynchronous_8_groups main"),
    ("adaptive_delay_compensation_8_groups main", "asynchronous_8_groups main"),
}
FIRST_TOPIC = "ensemble"  # the paper's main question
ON_ALL = FIRST_TOPIC, "collapse"  # topics whose leading answers the first page shows on each data set
STATES = ["PASS", "SUPPORTED", "EQUIVALENT", "NOT-RESOLVED", "CONTRADICTED", "MISSED", "NOT-RUN"]


FEWEST_STEPS = 3  # of which an efficiency is said in words: a slow machine times one or two in the probe's seconds
CHECKED = ("n", "n_steps"), ("predicted", "predicted_s"), ("measured", "measured_s")


class Heading(NamedTuple):
    heading: str
    kind: str  # of the column: number, short, words or wide


class Table(NamedTuple):
    columns: list[Heading]
    rows: list[list[str]]


def write(results: Path | str, data: str = "digits", shrink: str = "laptop") -> Path:
    """Assembles results/tables and results/figures into results/report/index.html; returns its path.

    The page is about the runs of one data set and one shrink; others are listed at its end. Raises FileNotFoundError if one
    of the tables is missing that the notebooks write; a figure that is not there is left out.
    """
    results = Path(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quoted"] = _quoted
    page = results / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    text = environment.get_template("report.html.j2").render(**_contents(results, data, shrink), zip=zip)
    with replacing(page) as temporary:
        temporary.write_text(text)
    return page


def _contents(results: Path, data: str, shrink: str) -> dict[str, Any]:
    runs = _read(results, "runs")
    counted = tables.that_count(runs)
    variants = {side.variant for question in questions.QUESTIONS for side in question.sides}
    mine = counted[(counted.data == data) & (counted["shrink"] == shrink) & counted.variant.isin(variants)]
    others = runs.drop(mine.index)
    ledger, models = _read(results, "ledger"), _read(results, "accuracy")
    answers = _with_recomputed(_of(_read(results, "answers"), data, shrink), results, data)
    ledger = ledger[~ledger.id.str.startswith("D") | ledger.scale.isin([data]) | (ledger.state == "NOT-RUN")]
    own, of_references = ledger.id.str.startswith("D"), ledger.id.str.startswith("B")
    numbers = count(1)  # of the figures
    checks, measured = _read(results, "scaling_checks"), _read(results, "scaling_measured")
    return {
        "drawing": lambda name, alt: _drawing(results, name, f"f{next(numbers)}", alt),
        "made": _made(mine),
        "smoke": shrink == "smoke",
        "bed": f"{data}, size {shrink}",
        "first": NOTEBOOKS["12-questions"],  # topics whose figures stand before the appendix: those of the paper's own claims
        "findings": [
            found
            for topic in sorted(names.TOPICS, key=lambda topic: topic != FIRST_TOPIC)
            if (found := _finding(topic, answers, mine, data, shrink))
        ],
        "networks": _networks(mine),
        "counts": _counts(ledger),
        "beds": _beds(beds.table(_read(results, "answers")), data),
        "ledger_sentence": _ledger_sentence(ledger),
        "scaling_sentence": _scaling_sentence(measured),
        "released": _table(
            _read(results, "published_released_runs"),
            ["id", "recipe", "nodes", "global_batch", "epochs", "top1", "top5", "minutes", "images_per_s", "source"],
        ),
        "peers": _table(
            _marked(_read(results, "time_to_train")),
            ["run", "year", "hardware", "global_batch", "epochs", "minutes", "images_per_s", "top1", "source"],
        ),
        "measured": _measured(measured),
        "papers_nodes": _papers_nodes(_read(results, "scaling_papers_nodes")),
        "between": _between(_read(results, "scaling_published")),
        "checks": _table(checks, ["model", "check", "ranks", "images", *CHECKED, "error_percent"]),
        "checks_sentence": _checks_sentence(checks),
        "claims": _claims(ledger[~own & ~of_references]),
        "costs": _table(_priced(ledger[~own]), ["id", "claim", "cost"]),
        "of_references": _claims(ledger[of_references]),
        "questions": _table(
            ledger[own].assign(interval=_intervals(ledger[own], "+.2f")), ["id", "claim", "ours", "interval", "n", "state"]
        ),
        "kept": _table(
            _read(results, "ratios").query("data == @data"),
            ["ratio", "recipe", "imagenet", "small", "factor", "kept", "reason"],
        ),
        "accuracy": _table(
            _of(models, data, shrink)[lambda table: table.variant == ""].assign(
                range=lambda table: [_interval(row.smallest, row.largest, ".2f") for row in table.itertuples()]
            ),
            ["recipe", "model", "members", "average", "epochs", "n", "top1", "sd", "range", "top5"],
        ),
        "predictions": _table(_read(results, "predictions"), ["recipe", ("n", "n_runs"), "predicted", "measured", "error"]),
        "provenance": _provenance(mine),
        "folders": sorted(mine.folder),
        "others": _table(
            others.groupby(["data", "shrink", "variant", "status"], as_index=False).agg(runs=("folder", "size")),
            ["data", "shrink", "variant", "status", ("runs", "n_runs")],
        ),
    }


def _quoted(text: str) -> Markup:
    """As a string of CSS, for a style sheet in the page."""
    return Markup('"{}"').format(Markup(re.sub(r'[<>&"\\]', lambda found: f"\\{ord(found[0]):x} ", text)))


# --- Reading ------------------------------------------------------------------------------------------------------------


def _read(results: Path, name: str) -> pd.DataFrame:
    table = pd.read_csv(results / "tables" / f"{name}.csv")
    texts = table.columns.intersection(
        ["data", "shrink", "model", "variant", "recipe", "members", "average", "folder", "claim"]
    )
    return table.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))  # an empty cell is also text


def _of(table: pd.DataFrame, data: str, shrink: str) -> pd.DataFrame:
    return table[(table.data == data) & (table["shrink"] == shrink)]


def _with_recomputed(answers: pd.DataFrame, results: Path, data: str) -> pd.DataFrame:
    """The answers of a data set with `recomputed`: what becomes of a verdict if batch norm's statistics are computed anew.

    Empty where it stays, or where `bench.precise_statistics` has not asked again.
    """
    file = results / "bench" / "precise_statistics.csv"
    again = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["data", "claim", "verdict"])
    found: dict[str, Any] = {row.claim: row for row in again[again.data == data].dropna(subset="verdict").itertuples()}
    said = []
    for row in answers.itertuples():
        new = found.get(row.claim)
        if new is None or new.verdict == row.verdict:
            said.append("")
        else:
            said.append(f"{new.verdict} ({new.difference:+.2f}, {_interval(new.low, new.high, '+.2f')})")
    return answers.assign(recomputed=said)


class Drawing(NamedTuple):
    svg: Markup
    wide: bool  # more than one column of a paper, so more than the window of a phone


def _drawing(results: Path, name: str, prefix: str, alt: str) -> Drawing | None:
    path = results / "figures" / f"{name}.svg"
    if not path.exists():
        return None
    inline = svg.inline(path.read_text(), prefix, alt)
    width = re.search(r"width: ([\d.]+)pt", inline)
    return Drawing(Markup(inline), not width or float(width[1]) > 300)


# --- Tables: text in cells, nothing for what is missing -----------------------------------------------------------------


def _table(frame: pd.DataFrame, columns: Iterable[str | tuple[str, str]]) -> Table:
    """The columns as text; a pair is a column and its name in `names.COLUMNS`. A column without any text is left out."""
    shown, headings = [], []
    for each in columns:
        source, name = each if isinstance(each, tuple) else (each, each)
        column = COLUMNS[name]
        cells = [_cell(value, name) for value in frame[source]]
        if any(cells):
            shown.append(cells)
            longest = max(len(Markup(cell).striptags()) for cell in cells)
            kind = "short" if longest <= 14 else "words" if longest <= 28 else "wide"
            headings.append(Heading(column.heading, "number" if column.form else kind))
    return Table(headings, [list(row) for row in zip(*shown)])


def _cell(value: Any, name: str) -> str:
    text = names.written(value, name)
    if name == "recipe" and names.recipe(text) != text:
        return escape(names.recipe(text)) + Markup("<br><code>{}</code>").format(text)
    if name == "state" and text:
        return Markup('<span class="state">{}</span>').format(text)
    if text.startswith("MODEL: "):
        return Markup('<span class="badge model">MODEL</span> {}').format(text.removeprefix("MODEL: "))
    return text


def _claims(ledger: pd.DataFrame) -> Table:
    found = ledger.assign(ours=[with_interval(row) for row in ledger.itertuples()])
    return _table(found, ["id", "claim", "published", "source", "ours", "state"])


def _priced(ledger: pd.DataFrame) -> pd.DataFrame:
    """The claims whose runs have a price, with `cost`."""
    costs = ledger.assign(cost=[price(row) for row in ledger.itertuples()])
    return costs[costs.cost != ""]


def _intervals(frame: pd.DataFrame, form: str) -> list[str]:
    return [_interval(row.low, row.high, form) for row in frame.itertuples()]


def _interval(low: float, high: float, form: str) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"{low:{form}} to {high:{form}}"


def _marked(peers: pd.DataFrame) -> pd.DataFrame:
    """With an asterisk after images/s that are computed."""
    texts = [
        "" if pd.isna(row.images_per_s) else f"{row.images_per_s:,.0f}" + "*" * bool(row.computed) for row in peers.itertuples()
    ]
    return peers.assign(images_per_s=texts)


def _measured(table: pd.DataFrame) -> Table:
    columns: list[str | tuple[str, str]] = ["model", "ranks", "images", ("n", "n_steps"), "seconds", "band", "seconds_MODEL"]
    columns += [("images_per_s", "step_rate"), "efficiency"]
    return _table(table.assign(band=_intervals(table, ".3f")), columns)


def _papers_nodes(table: pd.DataFrame) -> Table:
    band = [f"{row.efficiency:.0f} ({_interval(row.efficiency_low, row.efficiency_high, '.0f')})" for row in table.itertuples()]
    columns = ["nodes", "images", "buckets", "images_per_s", "efficiency_text", "efficiency_48_cores", "minutes_90"]
    return _table(table.assign(efficiency_text=band), columns)


def _between(table: pd.DataFrame) -> Table:
    band = [
        f"{row.images_per_s:,.0f} ({_interval(row.images_per_s_low, row.images_per_s_high, ',.0f')})"
        for row in table.itertuples()
    ]
    predicted, published = ("predicted", "predicted_run"), ("published", "published_rate")
    return _table(table.assign(rate_text=band), ["known", predicted, "rate_text", published, "error_percent"])


def _counts(ledger: pd.DataFrame) -> Table:
    tested = {"ImageNet": "runs on ImageNet", "code": "the code itself", "arithmetic": "the published numbers"}
    label = ledger.scale.map(lambda scale: tested.get(scale, f"small runs, {scale}"))
    counts = pd.crosstab(label, ledger.state).reindex(dict.fromkeys(label))
    states = [state for state in STATES if state in counts]
    headings = [Heading("tested by", "words"), *(Heading(state, "number") for state in states)]
    return Table(headings, [[name, *(str(row[state] or "") for state in states)] for name, row in counts.iterrows()])


# --- Sentences ----------------------------------------------------------------------------------------------------------


def _finding(topic: str, answers: pd.DataFrame, runs: pd.DataFrame, data: str, shrink: str) -> dict[str, Any] | None:
    """A topic's answers, with what makes them again; None if nothing of it was run."""
    rows = answers[(answers.topic == topic) & (answers.n > 0) & (answers.n_other > 0)]
    if rows.empty:
        return None
    asked = [question for question in questions.QUESTIONS if question.topic == topic]
    trained = {(side.recipe, side.variant) for question in asked for side in question.sides}
    used = runs[[each in trained for each in zip(runs.recipe, runs.variant)]]
    seeds = sorted(int(seed) for seed in used.seed.unique())
    parameters = f"{{topics: [{topic}], data: {data}, shrink: {shrink}, seeds: {seeds}}}"
    notebook = next(name for name, asks in NOTEBOOKS.items() if topic in asks)
    claim = [row.claim + (" (control)" if row.control else "") for row in rows.itertuples()]
    columns = [
        "claim",
        "top1",
        "against",
        "difference",
        "interval",
        "n",
        "detectable",
        "p_holm",
        "verdict",
        "views",
        "recomputed",
    ]
    interval = [_interval(row.low, row.high, "+.2f") for row in rows.itertuples()]
    by_ranks = rows.compared == "exact ranks"
    interval = [f"{text} (ranks)" if text and ranks else text for text, ranks in zip(interval, by_ranks)]
    if "failed" in rows and (rows.failed + rows.failed_other).any():
        columns[6:6] = ["failed", "failed_other"]
    return {
        "id": f"finding-{topic}",
        "topic": topic,
        "title": names.TOPICS[topic],
        # What answers a lesser question does not stand for a main one that was not run.
        "sentences": [_sentence(row) for row in _leading(rows).to_dict("records")]
        if asked[0].claim in set(rows.claim)
        else [f"Not run: {asked[0].claim}."],
        "counts": _verdicts(rows),
        "table": _table(rows.assign(claim=claim, interval=interval), columns),
        "by_ranks": by_ranks.any(),
        "command": f'.venv/bin/papermill notebooks/{notebook}.ipynb out.ipynb -y "{parameters}"',
        "runs": sorted(used.folder),
    }


def sides(question: Question) -> tuple[str, ...]:
    """What each side tests, as in LEADING."""
    return tuple(side.recipe if side.average else f"{side.recipe} {side.members}" for side in (question.better, question.other))


def _leading(rows: pd.DataFrame) -> pd.DataFrame:
    """The two rows of a topic's answers that the first page shows."""
    return rows.iloc[(~rows.claim.isin(leading_claims())).argsort(kind="stable")[:2]]


def leading_claims() -> set[str]:
    """The claims of `LEADING`."""
    return {each.claim for each in questions.QUESTIONS if sides(each) in LEADING}


def _sentence(row: dict[str, Any]) -> str:
    """An answer: "Supported: the claim (difference +3.49 points, 95% interval +3.11 to +3.87)."."""
    verdict = row["verdict"].capitalize()
    if row["verdict"] == "equivalent":
        verdict += f" within {row['margin']:g} points"
    found = f"difference {row['difference']:+.2f} points"
    if interval := _interval(row["low"], row["high"], "+.2f"):
        found += f", 95% interval{' by ranks' if row.get('compared') == 'exact ranks' else ''} {interval}"
    elif min(row["n"], row["n_other"]) < 3:
        found += f", n = {min(row['n'], row['n_other'])}: too few for an interval"
    else:
        found += ", no interval"
    if row["verdict"] == "not resolved" and row.get("p", 1) < LEVEL <= row.get("p_holm", 0):
        found += f"; p = {row['p']:.3f}, but {row['p_holm']:.3f} after Holm's correction for the topic's questions"
    if row.get("failed", 0) + row.get("failed_other", 0):
        found += f"; {row['failed']} of {row['n']} runs failed, against {row['failed_other']} of {row['n_other']}"
    if row.get("views") == "the sign depends on the view" and row["verdict"] != "not resolved":
        found += "; in another view the sign is the opposite"
    if (seeds := row.get("hangs_on", 0)) > 0 and row["verdict"] != "not resolved":
        found += f"; the verdict hangs on {'each of ' * (seeds > 1)}{seeds:.0f} seed{'s' * (seeds > 1)}"
    if row.get("recomputed"):
        found += f"; with batch norm's statistics computed anew: {row['recomputed']}"
    return f"{verdict}: {row['claim']} ({found})."


def _verdicts(rows: pd.DataFrame) -> str:
    """How many answers there are of each verdict, of how many seeds."""
    said = []
    for control, word in ((False, "question"), (True, "control")):
        part = rows[rows.control == control]
        if len(part):
            verdicts = ", ".join(f"{number} {verdict}" for verdict, number in part.verdict.value_counts().items())
            said.append(f"{len(part)} {word}{'s' * (len(part) > 1)}: {verdicts}")
    seeds = " to ".join(map(str, dict.fromkeys((rows[["n", "n_other"]].min().min(), rows[["n", "n_other"]].max().max()))))
    return f"{'; '.join(said)} (n = {seeds} seeds)"


def _beds(compared: pd.DataFrame, data: str) -> list[str]:
    """Sentences on what several data sets answer alike: how many claims, and the main ones; none if there is one data set."""
    if data not in {*compared.data}:
        return []
    said = [f"Of {beds.counts(compared.drop_duplicates('claim').agreement)}."]
    main = compared[compared.topic.isin(ON_ALL) & compared.claim.isin(leading_claims())]
    for claim, rows in main.groupby("claim", sort=False):
        found = [
            f"{row.verdict} on {row.data} ({row.difference:+.2f}, {_interval(row.low, row.high, '+.2f')})"
            for row in rows.itertuples()
        ]
        said.append(f"{claim}: {', '.join(found)}.")
    return said


def _networks(runs: pd.DataFrame) -> str:
    """Which network the recipes train: that of most runs, and the others with their recipes."""
    if runs.empty:
        return ""
    usual, *others = runs.model.value_counts().index
    said = [f"{model} in {' and in '.join(map(names.recipe, runs[runs.model == model].recipe.unique()))}" for model in others]
    return f"The network is {usual}" + "".join(f", but {each}" for each in said) + "."


def _ledger_sentence(ledger: pd.DataFrame) -> str:
    published = ledger[~ledger.id.str.startswith("D")]
    imagenet, other = published[published.scale == "ImageNet"], published[published.scale.isin(["code", "arithmetic"])]
    passed, rest = (other.state == "PASS").sum(), other.state[other.state != "PASS"].value_counts()
    others = [f"{number} {'is' if number == 1 else 'are'} {state.lower().replace('-', ' ')}" for state, number in rest.items()]
    return (
        f"Of {len(imagenet)} claims that need ImageNet, {(imagenet.state == 'NOT-RUN').sum()} were not run; of {len(other)} "
        f"that the code and the published numbers can test, {' and '.join([f'{passed} pass', *others])}."
    )


def _scaling_sentence(measured: pd.DataFrame) -> str:
    several = measured[(measured.ranks > 1) & measured.efficiency.notna() & (measured.n >= FEWEST_STEPS)]
    cluster = "No cluster was available, so the efficiency above 90% on many nodes and the 28 minutes were not measured."
    if several.empty:
        return f"Too few steps were timed to compare several ranks with one. {cluster}"
    row = several.sort_values(["ranks", "images"]).iloc[-1]
    band = _interval(row.efficiency * row.seconds / row.high, row.efficiency * row.seconds / row.low, ".0f")
    return (
        f"On one machine, {row.ranks} ranks train {row.model} at {row.efficiency:.0f}% of the images/s per rank of one rank "
        f"alone (n = {row.n} steps; {band}% at their 5 and 95% points). {cluster}"
    )


def _checks_sentence(checks: pd.DataFrame) -> str:
    error = checks.error_percent.abs()
    return f"{(error <= 10).sum()} of {len(checks)} are within 10% (median error {error.median():.1f}%)." if len(checks) else ""


def _made(runs: pd.DataFrame) -> str:
    versions = sorted(runs.version.astype(str).unique())
    by = f" by version {', '.join(versions)}" if versions else ""
    return f"Made on {date.today()} from {len(runs)} complete runs{by}."


def _provenance(runs: pd.DataFrame) -> str:
    if runs.empty:
        return "There are no complete runs of this data set and size."

    def named(column: str, length: int = 80) -> str:
        return ", ".join(sorted(runs[column].astype(str).str[:length].unique()))

    return (
        f"{len(runs)} runs, {runs.seconds.sum() / 60:.1f} minutes of training on {named('ranks')} ranks, {named('cores')} "
        f"cores ({named('processor')}); torch {named('torch')}; training code {named('code', 12)}."
    )
