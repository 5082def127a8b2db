"""The command line: `python -m repro COMMAND`; for all ranks of a batch system, `mpiexec -n R python -m repro train ...`."""

import argparse
import dataclasses
import json
import logging
import sys
import traceback
from pathlib import Path

from repro import ReproError, __version__
from repro.paths import RESULTS, RUNS
from repro.recipes import RECIPES, SHRINKS, find
from repro.records import Stopped
from repro.schedule import LR_FORMULAS, SWITCHES, learning_rate

STATUS_STOPPED = 75  # exit status of a run that was stopped on request: the same command continues it (EX_TEMPFAIL)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m repro", description="Large-minibatch SGD and the Collapsed Ensemble.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train one recipe on all ranks that mpiexec started",
                                description="Trains one recipe; the last line on standard output is the run's folder. "
                                            "The same command again continues an incomplete run. SIGUSR1 asks for a "
                                            "stop after the current step, with a checkpoint (exit status 75).")
    train.add_argument("recipe", help="a name that `python -m repro recipes` lists")
    train.add_argument("--data", default="digits", help="data set, or the folder it is packed in (default: digits)")
    train.add_argument("--shrink", default="laptop", help=f"{', '.join(SHRINKS)} (default: laptop), or none: as released")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", default=str(RUNS), help="folder of the runs (default: results/runs)")
    train.add_argument("--model", default="", help="another model than the recipe's or shrink's: resnet18, -34, -50, "
                                                   "-101, -152, resnet11")
    train.add_argument("--size", type=int, default=0, help="pixels a side that the network sees (default: the data set's)")
    train.add_argument("--normalization", default="release", help="release (default: BGR less the mean, / 128) or "
                                                                  "torchvision")
    train.add_argument("--reduction", default="exact", help="exact (default) or fast")
    train.add_argument("--precision", default="auto", help="auto (default: bf16 for large images where the processor has it), "
                                                          "fp32 or bf16")
    train.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    train.add_argument("--threads", type=int, default=1, help="threads a rank computes with (default: 1)")
    train.add_argument("--decoders", type=int, default=2, help="threads a rank decodes images with, ahead of the step "
                                                                "(default: 2)")
    train.add_argument("--steps", type=int, default=0, help="stop after so many steps, with a checkpoint, and say how "
                                                            "long the rest would take (exit status 75)")
    for switch, values in SWITCHES.items():
        kind = type(values[0])
        train.add_argument("--" + switch.replace("_", "-"), type=_boolean if kind is bool else kind,
                           help=f"{' or '.join(map(str, values))} (default: the recipe's)")

    ensemble = commands.add_parser("ensemble", help="evaluate the ensemble of a complete run's members")
    ensemble.add_argument("folder", help="the run's folder")
    ensemble.add_argument("--members", type=lambda text: text.split(","), metavar="STAGE,STAGE",
                          help="stages whose ends are averaged (default: the recipe's members)")
    ensemble.add_argument("--average", default="softmax", help="softmax (default) or logit")
    ensemble.add_argument("--data", default="", help="the data set's folder, if it is not under data/")
    ensemble.add_argument("--device", default="auto", help="auto (default), cpu or cuda")

    export = commands.add_parser("export", help="write a run's models with their cards, for use elsewhere")
    export.add_argument("folder", help="the folder of a complete run")
    export.add_argument("--stages", type=lambda text: text.split(","), metavar="STAGE,STAGE",
                        help="stages whose ends are written (default: the recipe's members)")
    export.add_argument("--out", help="folder (default: models/ in the run's folder)")
    export.add_argument("--data", default="", help="the data set's folder, if it is not under data/")

    evaluate = commands.add_parser("evaluate", help="exact counts of exported models, and of their ensemble")
    evaluate.add_argument("files", nargs="+", metavar="FILE", help="what `python -m repro export` wrote")
    evaluate.add_argument("--data", required=True, help="data set, or the folder it is packed in")
    evaluate.add_argument("--average", default="softmax", help="softmax (default) or logit")
    evaluate.add_argument("--device", default="auto", help="auto (default), cpu or cuda")

    stage = commands.add_parser("stage", help="copy packed data to each node's own disk, and check the copies")
    stage.add_argument("data", help="data set, or the folder it is packed in")
    stage.add_argument("--to", required=True, metavar="FOLDER", help="a folder on a disk of each node")

    commands.add_parser("ranks", help="say which ranks there are, where, and whether all see each other")

    fake = commands.add_parser("fake-imagenet", help="write a small stand-in for ImageNet-1K's original archives")
    fake.add_argument("--classes", type=int, default=10)
    fake.add_argument("--images", type=int, default=200, help="training images in all (default: 200)")
    fake.add_argument("--validation", type=int, default=50, help="validation images in all (default: 50)")
    fake.add_argument("--seed", type=int, default=0)
    fake.add_argument("--out", required=True, help="folder")

    whole = commands.add_parser("reproduce", help="a profile's runs, tables, figures and report")
    whole.add_argument("--profile", default="laptop", help="laptop (default) or smoke")
    whole.add_argument("--ranks", type=int, default=0, help="MPI ranks (default: as many as cores and workers allow)")
    whole.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results)")

    commands.add_parser("keep", help="copy the results, less the models, to results/reference")

    listing = commands.add_parser("recipes", help="list the recipes")
    listing.add_argument("--json", action="store_true", help="every number of every recipe")

    rates = commands.add_parser("lr", help="print learning rates as step,lr lines")
    rates.add_argument("recipe")
    rates.add_argument("--formula", default=LR_FORMULAS[0], help=" or ".join(LR_FORMULAS))
    rates.add_argument("--steps", required=True, help="steps from the start of the recipe: 0,1,445,446")
    return top


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def collective(function, arguments: dict):
    """Runs a function on all ranks; they end together, and the one that failed says why. Returns None off rank 0."""
    from repro import comm

    world = comm.world()
    logging.basicConfig(level=logging.INFO if world.rank == 0 else logging.WARNING, format="%(message)s")
    try:
        result = function(**arguments)
    except Stopped as stopped:
        if world.rank == 0:
            print(stopped)
        sys.exit(STATUS_STOPPED)
    except comm.PeerError:
        world.abort()
        sys.exit(2)
    except BaseException as error:
        explain(error)
        world.abort()
        sys.exit(2 if isinstance(error, ReproError) else 1)
    return result if world.rank == 0 else None


def train(arguments: dict) -> None:
    from repro.train import train

    if folder := collective(train, arguments):
        print(folder)


def ensemble(arguments: dict) -> None:
    from repro.evaluate import ensemble

    if entry := collective(ensemble, arguments):
        print(json.dumps(entry))


def export(arguments: dict) -> None:
    from repro.release import export

    for path in export(**arguments):
        print(path)


def evaluate(arguments: dict) -> None:
    from repro.release import evaluate

    if counts := collective(evaluate, arguments):
        print(json.dumps(counts))


def stage(arguments: dict) -> None:
    from repro.staging import stage

    if folder := collective(stage, arguments):
        print(folder)


def ranks(arguments: dict) -> None:
    from repro.comm import roll_call

    for line in collective(roll_call, arguments) or []:
        print(line)


def fake_imagenet(arguments: dict) -> None:
    from repro.stand_in import write

    for path in write(**arguments):
        print(path)


def reproduce(arguments: dict) -> None:
    from repro.reproduce import reproduce

    reproduce(**arguments)


def keep(arguments: dict) -> None:
    from repro.reproduce import keep

    print(keep())


def explain(error: BaseException) -> None:
    """One line for what the user can mend, the whole traceback for what is a defect of ours."""
    if isinstance(error, ReproError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)


def recipes(arguments: dict) -> None:
    if arguments["json"]:
        print(json.dumps([dataclasses.asdict(recipe) for recipe in RECIPES.values()], indent=1))
        return
    for recipe in RECIPES.values():
        print(f"{recipe.name:30} batch {recipe.global_batch:5} = {recipe.workers} workers x {recipe.images_per_worker}, "
              f"{recipe.epochs():.2f} epochs\n    {recipe.summary}")


def lr(arguments: dict) -> None:
    recipe = find(arguments["recipe"])
    try:
        steps = [int(step) for step in arguments["steps"].split(",")]
    except ValueError:
        raise ReproError(f"--steps {arguments['steps']}: give whole numbers with commas between them") from None
    for step in steps:
        print(f"{step},{learning_rate(recipe, step, arguments['formula'])!r}")


COMMANDS = {"train": train, "ensemble": ensemble, "export": export, "evaluate": evaluate, "stage": stage, "ranks": ranks,
            "fake-imagenet": fake_imagenet, "reproduce": reproduce, "keep": keep, "recipes": recipes, "lr": lr}


def main() -> int:
    arguments = {name: value for name, value in vars(parser().parse_args()).items() if value is not None}
    try:
        COMMANDS[arguments.pop("command")](arguments)
    except ReproError as error:
        explain(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
