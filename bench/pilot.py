"""How many seeds do the questions need? From a pilot on validation images, with seeds that no reported run has.

Looks at spreads only: for each question the standard deviation, and the number of seeds that puts its difference into an
interval of +-0.3 points, by the pilot's own deviation and by the upper limit of it, for a pilot is small.

    mpiexec -n 2 python -m bench.pilot [--out results/bench/pilot]
"""

import argparse

import pandas as pd

from repro.paper import answering, ask, questions, tables
from repro.paper.profiles import shrink_of
from repro.paths import RESULTS, given, replacing
from repro.ranks import comm
from repro.train import train_all

SEEDS = 100, 101, 102, 103


def spreads(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per question that `ask.needed` knows of: topic, claim, paired, n, sd, sd_limit, seeds, seeds_limit."""
    rows = []
    for row in answers.itertuples():
        limit, seeds, most = ask.needed(row)
        if seeds > 0:
            rows.append((row.topic, row.claim, row.compared == "paired t", min(row.n, row.n_other), row.sd, limit, seeds, most))
    return pd.DataFrame(rows, columns=["topic", "claim", "paired", "n", "sd", "sd_limit", "seeds", "seeds_limit"])


def as_asked(variant: str) -> str:
    """The variant of a run without what all runs of a pilot have: validation images, on a processor."""
    return ", ".join(part for part in variant.split(", ") if not part.startswith(("split=", "device=")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=given, default=RESULTS / "bench" / "pilot", help="folder (default: %(default)s)")
    parser.add_argument("--data", default="digits", help="data set (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    parameters = dict(data=arguments.data, shrink=shrink_of(arguments.data), out=str(arguments.out), split="val", device="cpu")
    sides = [side for question in questions.QUESTIONS for side in question.sides]
    train_all(ask.tasks(questions.QUESTIONS, SEEDS, **parameters), ask.ensembles(sides))
    if comm.world().rank == 0:
        models = tables.models(arguments.out)
        models["variant"] = models.variant.map(as_asked)
        found = spreads(answering.answers(questions.QUESTIONS, models, arguments.out))
        print(found.to_string(index=False, float_format="{:.2f}".format))
        with replacing(arguments.out.with_suffix(".csv")) as temporary:
            found.to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
