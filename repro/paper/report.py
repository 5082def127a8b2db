"""The report: one HTML file that opens without a server, tables and figures inside it."""

import base64
import html
from datetime import date
from pathlib import Path

import pandas as pd

from repro import records
from repro.paths import replacing

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
section.published { background: #f4f1ea; padding: 0.5rem 1.25rem 1.25rem; margin-top: 2rem; }
section.own { background: #eef3f6; padding: 0.5rem 1.25rem 1.25rem; margin-top: 2rem; }
section.model { background: #efeaf5; padding: 0.5rem 1.25rem 1.25rem; margin-top: 2rem; }
section h2 { margin-top: 1rem; } img { max-width: 100%; background: white; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; background: white; }
th, td { padding: 0.25rem 0.6rem; border: 1px solid #ddd; text-align: left; vertical-align: top; white-space: nowrap; }
td { max-width: 28rem; white-space: normal; } td:last-child { min-width: 16rem; }
.small { font-size: 0.85rem; color: #555; }
"""


def write(results: Path | str, runs: list[str]) -> Path:
    """Assembles results/tables and results/figures, made from the run folders `runs`, into results/report/index.html."""
    results = Path(results)
    effects = _table(results, "effects")
    read = [records.read(folder) for folder in runs]
    parts = [
        "<h1>Scale out for large minibatch SGD: what this reproduction shows</h1>",
        f"<p>Codreanu, Podareanu and Saletore (2017) train ResNet-50 on ImageNet-1K by synchronous SGD on up to 104K "
        f"cores and average the collapsed end points of one training run's cycles. This report was made on "
        f"{date.today()} from {len(read)} complete runs. Published numbers stand on sand, our own on blue; the two "
        f"are of different data sets and are never put in one table. What a model extrapolates stands on violet.</p>",
        _findings(effects),
        '<section class="published"><h2>Published</h2>',
        "<p>From the paper's abstract and the scripts, READMEs and logs that its authors released; its full text could "
        "not be read for this project.</p>",
        "<h3>The abstract's claims</h3>",
        _html(_table(results, "published_claims")),
        "<h3>The released runs, on ImageNet-1K</h3>",
        _html(_table(results, "published_released_runs")),
        "<h3>Among its peers</h3>",
        _image(results, "published", "Published time to train and accuracy."),
        "</section>",
        "<h2>Learning rates</h2>",
        "<p>Every recipe under the formula of the released code, and under the one that the authors' hand-set rates fit.</p>",
        _image(results, "learning_rates", "Learning rate over epochs for every recipe, both formulas."),
        '<section class="own"><h2>Own runs</h2>',
        _provenance(read),
        "<h3>Training curves</h3>",
        *(
            _image(results, path.stem, "Test accuracy and training loss over epochs.")
            for path in sorted((results / "figures").glob("training_curves-*.svg"))
        ),
        "<h3>The Collapsed Ensemble against one model of the same number of images seen</h3>",
        _html(_table(results, "ensemble")),
        _image(results, "ensemble", "Top-1 of one model, members and ensembles."),
        "<h3>What the method does</h3>",
        _image(results, "effects", "Paired differences with 95% intervals."),
        _html(effects),
        "<h3>Every model</h3>",
        _html(_table(results, "accuracy")),
        "<h3>Predicted and measured time</h3><p>Minutes of training by a probe before it, and as they were; error in per cent."
        "</p>",
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
        "<h3>MODEL: the allreduce by algorithm, ms</h3>",
        _html(_table(results, "scaling_allreduce")),
        "<h3>MODEL fitted to one published run, predicting another</h3>",
        _html(_table(results, "scaling_published")),
        f"<h3>MODEL against held-back measurements</h3><p>{close}</p>",
        *([_html(checks)] if len(checks) else []),
        "</section>",
    ]


def _table(results: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(results / "tables" / f"{name}.csv")


def _html(table: pd.DataFrame) -> str:
    numbers = {
        column: lambda value: f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" for column in table.select_dtypes("float")
    }
    return f'<div class="wide">{table.to_html(index=False, na_rep="", border=0, escape=True, formatters=numbers)}</div>'


def _image(results: Path, name: str, text: str) -> str:
    content = base64.b64encode((results / "figures" / f"{name}.svg").read_bytes()).decode()
    return f'<p><img alt="{html.escape(text)}" src="data:image/svg+xml;base64,{content}"></p>'


def _findings(effects: pd.DataFrame) -> str:
    items = [
        f"<li><b>{html.escape(row.verdict)}</b>: {html.escape(row.claim)}"
        + (
            f" ({html.escape(f'{row.data}, {row.shrink}')}: {row.difference:+.2f} percentage points of top-1, 95% "
            f"interval {row.low:+.2f} to {row.high:+.2f}, n = {row.n})"
            if row.n
            else ""
        )
        + "</li>"
        for row in effects.itertuples()
    ]
    return (
        f"<p>What small runs show, paired over seeds:</p><ul>{''.join(items)}</ul><p>These are findings "
        "on a small data set; they are no measurement of the paper's claims on ImageNet. With shrink smoke they are "
        "none at all: it only shows that everything runs.</p>"
    )


def _provenance(read: list[dict]) -> str:
    machines = sorted({f"{run['cores']} cores" for run in read})
    versions = sorted({f"torch {run['packages'].get('torch')}" for run in read})
    code = sorted({run["code"][:12] for run in read})
    ranks = sorted({str(run["ranks"]) for run in read})
    return (
        f"<p class='small'>{len(read)} runs, {sum(run['seconds'] for run in read) / 60:.1f} minutes of training on "
        f"{', '.join(ranks)} ranks, {', '.join(machines)}; {', '.join(versions)}; training code "
        f"{', '.join(code)}. Each run's folder holds its parameters, metrics and the digest of its weights.</p>"
    )
