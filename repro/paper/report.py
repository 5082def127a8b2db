"""The report: one HTML file with all tables and figures inside, which opens without a server."""

import base64
import html
from datetime import date
from pathlib import Path

import pandas as pd

from repro.paths import replacing

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
section { padding: 0.5rem 1.25rem 1.25rem; margin-top: 2rem; }
.published { background: #f4f1ea; } .own { background: #eef3f6; } .model { background: #efeaf5; }
section h2 { margin-top: 1rem; } img { max-width: 100%; background: white; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; background: white; }
th, td { padding: 0.25rem 0.6rem; border: 1px solid #ddd; text-align: left; vertical-align: top; white-space: nowrap; }
td { max-width: 28rem; white-space: normal; } td:last-child { min-width: 16rem; }
.small { font-size: 0.85rem; color: #555; }
"""


def write(results: Path | str) -> Path:
    """Assembles results/tables and results/figures into results/report/index.html; returns its path."""
    results = Path(results)
    answers, runs = _table(results, "answers"), _table(results, "runs")
    runs = runs[runs.status == "complete"]
    parts = [
        "<h1>Scale out for large minibatch SGD: what this reproduction shows</h1>",
        f"<p>Codreanu, Podareanu and Saletore (2017) train ResNet-50 on ImageNet-1K by synchronous SGD on up to 104K "
        f"cores and average the collapsed end points of one training run's cycles. This report was made on "
        f"{date.today()} from {len(runs)} complete runs. Published numbers are on sand, our own on blue; the two "
        f"come from different data sets and are never put in one table. Numbers extrapolated by a model are on violet.</p>",
        _findings(answers),
        "<h2>The ledger</h2>",
        "<p>Each claim, what was published, what was found here, and whether it stands. MODEL is no measurement. Claims on "
        "ImageNet are tested by runs on ImageNet alone.</p>",
        _html(
            _table(results, "ledger")[["id", "claim", "published", "scale", "state", "ours", "n", "low", "high", "node_hours"]]
        ),
        '<section class="published"><h2>Published</h2>',
        "<p>From the paper's abstract and the scripts, READMEs and logs that its authors released; its full text was not "
        "available to this project.</p>",
        "<h3>The released runs, on ImageNet-1K</h3>",
        _html(_table(results, "published_released_runs")),
        "<h3>Time to train</h3>",
        _image(results, "time_to_train", "Published minutes to train, one line per run."),
        _html(_table(results, "time_to_train")),
        "</section>",
        "<h2>Learning rates</h2>",
        "<p>Every recipe under the formula of the released code, and under the one that the authors' hand-set rates fit.</p>",
        _image(results, "learning_rates", "Learning rate over epochs for every recipe, both formulas."),
        '<section class="own"><h2>Own runs</h2>',
        _provenance(runs),
        "<h3>Training curves</h3>",
        _image(results, "training_curves", "Test accuracy and training loss over epochs."),
        *(
            ["<h3>Accuracy over the budget</h3>", _image(results, "budget", "Top-1 over the epochs that led to it.")]
            if (results / "figures" / "budget.svg").exists()
            else []
        ),
        "<h3>The questions' answers</h3>",
        _image(results, "answers", "Differences with 95% intervals."),
        _html(answers),
        *(
            ["<h3>Is it the size?</h3>", _image(results, "bench-apparent_size", "Top-1 over the size of the digits.")]
            if (results / "figures" / "bench-apparent_size.svg").exists()
            else []
        ),
        "<h3>What the small test bed keeps of ImageNet's ratios</h3>",
        _html(_table(results, "ratios")),
        "<h3>Every model</h3>",
        _html(_table(results, "accuracy")),
        "<h3>Predicted and measured time</h3>",
        "<p>Minutes of training as predicted by a probe beforehand, and as measured; error in per cent.</p>",
        _html(_table(results, "predictions")),
        "</section>",
        *_scaling(results),
    ]
    page = results / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as temporary:
        temporary.write_text(
            f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Scale-out "
            f"reproduction</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
        )
    return page


def _scaling(results: Path) -> list[str]:
    checks = _table(results, "scaling_checks")
    close = (
        f"{(checks.error_percent.abs() <= 10).sum()} of {len(checks)} predictions of held-back measurements are within 10% "
        f"(median error {checks.error_percent.abs().median():.1f}%)."
        if len(checks)
        else "Not run here: <code>make bench-scaling</code>."
    )
    return [
        '<section class="own"><h2>Scaling</h2>',
        "<h3>Measured on this machine, MODEL beside it</h3>",
        _html(_table(results, "scaling_measured")),
        '</section><section class="model"><h2>Scaling: MODEL</h2>',
        "<p>Nothing in this section was measured: a model of a step's time, fitted to the steps above and extrapolated to many "
        "such machines with an assumed network. Bands: 5 to 95%, none where fewer than three steps were timed.</p>",
        _image(results, "scaling", "MODEL: step time, efficiency, minutes over nodes."),
        "<h3>MODEL on the nodes of the paper's run on 64 nodes</h3>",
        _html(_table(results, "scaling_papers_nodes")),
        "<h3>MODEL fitted to one published run, predicting another</h3>",
        _html(_table(results, "scaling_published")),
        f"<h3>MODEL against held-back measurements</h3><p>{close}</p>",
        *([_html(checks)] if len(checks) else []),
        "</section>",
    ]


def _table(results: Path, name: str) -> pd.DataFrame:
    table = pd.read_csv(results / "tables" / f"{name}.csv")
    texts = table.columns.intersection(["data", "shrink", "model", "variant"])
    return table.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))  # an empty cell is text, too


def _html(table: pd.DataFrame) -> str:
    numbers = {
        column: lambda value: f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" for column in table.select_dtypes("float")
    }
    return f'<div class="wide">{table.to_html(index=False, na_rep="", border=0, escape=True, formatters=numbers)}</div>'


def _image(results: Path, name: str, text: str) -> str:
    content = base64.b64encode((results / "figures" / f"{name}.svg").read_bytes()).decode()
    return f'<p><img alt="{html.escape(text)}" src="data:image/svg+xml;base64,{content}"></p>'


def _findings(answers: pd.DataFrame) -> str:
    items = []
    for row in answers[(answers.n > 0) & (answers.n_other > 0)].itertuples():
        interval = f"95% interval {row.low:+.2f} to {row.high:+.2f}, " if row.n >= 3 else ""
        result = f" ({row.data}, {row.shrink}: {row.difference:+.2f} points of top-1, {interval}n = {row.n}; {row.views})"
        verdict = row.verdict + (", a control" if row.control else "")
        items.append(f"<li><b>{html.escape(verdict)}</b>: {html.escape(row.claim + result)}</li>")
    return (
        f"<p>What small runs show:</p><ul>{''.join(items)}</ul><p>These are findings on a small data set; they do not measure "
        "the paper's claims on ImageNet. With shrink smoke they are no findings at all: it only shows that everything runs.</p>"
    )


def _provenance(runs: pd.DataFrame) -> str:
    runs = runs.assign(code=runs.code.str[:12])

    def named(column: str) -> str:
        return html.escape(", ".join(sorted(runs[column].astype(str).unique())))

    return (
        f"<p class='small'>{len(runs)} runs, {runs.seconds.sum() / 60:.1f} minutes of training on {named('ranks')} ranks, "
        f"{named('cores')} cores ({named('processor')}); torch {named('torch')}; training code {named('code')}. "
        f"Each run folder holds its settings, its metrics and the digest of its weights; tables/runs.csv and "
        f"tables/evaluations.csv combine those of all runs.</p>"
    )
