"""The command line: `python -m repro COMMAND`; for all ranks of a batch system, `mpiexec -n R python -m repro train ...`."""

import argparse
import dataclasses
import json
import logging
import signal
import sys
import traceback
from pathlib import Path

from repro import ReproError, __version__, watch
from repro.paths import RESULTS, RUNS
from repro.recipes import RECIPES, SHRINKS, find
from repro.records import Stopped
from repro.schedule import LR_FORMULAS, SWITCHES, learning_rate

STATUS_BROKEN = 3  # what `doctor` found is broken
STATUS_STOPPED = 75  # exit status of a run that was stopped on request: the same command continues it (EX_TEMPFAIL)
STATUS_INTERRUPTED = 130  # of one that was stopped at once, by a second request: it continues from its last checkpoint


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m repro", description="Large-minibatch SGD and the Collapsed Ensemble.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train one recipe on all ranks that mpiexec started",
        description="Trains one recipe; the last line on standard output is the run's folder. "
        "The same command again continues an incomplete run. SIGINT (Ctrl-C) or "
        "SIGUSR1 asks for a stop after the current step, with a checkpoint (exit "
        "status 75); a second one stops at once (130).",
    )
    _add_run(train)
    train.add_argument(
        "--steps",
        type=int,
        default=0,
        help="stop after so many steps, with a checkpoint, and say how long the rest would take (exit status 75)",
    )
    train.add_argument(
        "--patience",
        type=int,
        default=600,
        help="seconds that a rank may give no sign of life before all are ended (default: 600)",
    )

    plan = commands.add_parser("plan", help="say what a run will take, after a probe of a minute on all ranks")
    _add_run(plan)
    plan.add_argument(
        "--nodes", type=int, default=0, help="nodes it shall run on (default: those at hand; others by the model)"
    )
    plan.add_argument("--ranks-per-node", type=int, default=0, help="ranks on each (default: as at hand)")
    plan.add_argument("--network", default="omni-path", help="assumed between nodes: omni-path (default), ethernet")
    plan.add_argument("--hours", type=float, default=0.0, help="time limit: which shrink is the largest within it?")
    plan.add_argument("--seconds", type=float, default=60.0, help="of the probe (default: 60)")

    ensemble = commands.add_parser("ensemble", help="evaluate the ensemble of a complete run's members")
    ensemble.add_argument("folder", help="the run's folder")
    ensemble.add_argument(
        "--members",
        type=lambda text: text.split(","),
        metavar="STAGE,STAGE",
        help="stages whose ends are averaged (default: the recipe's members)",
    )
    ensemble.add_argument("--average", default="softmax", help="softmax (default) or logit")
    ensemble.add_argument("--data", default="", help="the data set's folder, if it is not under data/")
    ensemble.add_argument("--device", default="auto", help="auto (default), cpu or cuda")

    export = commands.add_parser("export", help="write a run's models with their cards, for use elsewhere")
    export.add_argument("folder", help="the folder of a complete run")
    export.add_argument(
        "--stages",
        type=lambda text: text.split(","),
        metavar="STAGE,STAGE",
        help="stages whose ends are written (default: the recipe's members)",
    )
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

    probe = commands.add_parser("probe", help="measure steps and allreduces for the scaling model, on all ranks")
    probe.add_argument("--model", default="resnet50", help="resnet18, -34, -50 (default), -101, -152, resnet11")
    probe.add_argument("--images", type=_numbers, default=[2, 4, 8], help="images a worker (default: 2,4,8)")
    probe.add_argument("--data", default="", help="data set for steps with the loader (default: random images at hand)")
    probe.add_argument("--size", type=int, default=0, help="pixels a side (default: the data set's, or 224)")
    probe.add_argument("--reduction", default="exact", help="exact (default), fast or fast_bf16")
    probe.add_argument("--precision", default="auto", help="auto (default), fp32 or bf16")
    probe.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    probe.add_argument("--threads", type=int, default=1, help="threads a rank computes with (default: 1)")
    probe.add_argument("--seconds", type=float, default=60.0, help="about how long (default: 60)")
    probe.add_argument("--out", help="file to write (default: standard output)")

    whole = commands.add_parser("reproduce", help="a profile's runs, tables, figures and report")
    whole.add_argument("--profile", default="laptop", help="laptop (default) or smoke")
    whole.add_argument("--ranks", type=int, default=0, help="MPI ranks (default: as many as cores and workers allow)")
    whole.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results)")

    commands.add_parser("keep", help="copy the results, less the models, to results/reference")

    commands.add_parser("doctor", help="check MPI, engines, disk, packages and data; exit status 3 if something is broken")

    listing = commands.add_parser("recipes", help="list the recipes")
    listing.add_argument("--json", action="store_true", help="every number of every recipe")

    rates = commands.add_parser("lr", help="print learning rates as step,lr lines")
    rates.add_argument("recipe")
    rates.add_argument("--formula", default=LR_FORMULAS[0], help=" or ".join(LR_FORMULAS))
    rates.add_argument("--steps", required=True, help="steps from the start of the recipe: 0,1,445,446")
    return top


def _add_run(command: argparse.ArgumentParser) -> None:
    """What says which run: all that `train.prepare` takes."""
    command.add_argument("recipe", help="a name that `python -m repro recipes` lists")
    command.add_argument("--data", default="digits", help="data set, or the folder it is packed in (default: digits)")
    command.add_argument("--shrink", default="laptop", help=f"{', '.join(SHRINKS)} (default: laptop), or none: as released")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", default=str(RUNS), help="folder of the runs (default: results/runs)")
    command.add_argument(
        "--model", default="", help="another model than the recipe's or shrink's: resnet18, -34, -50, -101, -152, resnet11"
    )
    command.add_argument("--size", type=int, default=0, help="pixels a side that the network sees (default: the data set's)")
    command.add_argument(
        "--normalization", default="release", help="release (default: BGR less the mean, / 128) or torchvision"
    )
    command.add_argument("--reduction", default="exact", help="exact (default), fast or fast_bf16")
    command.add_argument(
        "--precision", default="auto", help="auto (default: bf16 for large images where the processor has it), fp32 or bf16"
    )
    command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    command.add_argument("--threads", type=int, default=1, help="threads a rank computes with (default: 1)")
    command.add_argument(
        "--decoders", type=int, default=2, help="threads a rank decodes images with, ahead of the step (default: 2)"
    )
    for switch, values in SWITCHES.items():
        kind = type(values[0])
        command.add_argument(
            "--" + switch.replace("_", "-"),
            type=_boolean if kind is bool else kind,
            help=f"{' or '.join(map(str, values))} (default: the recipe's)",
        )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def collective(function, arguments: dict):
    """Runs a function on all ranks; they end together, and the one that failed says why. Returns None off rank 0."""
    from repro import comm

    world = comm.world()
    logging.basicConfig(level=logging.INFO if world.rank == 0 else logging.WARNING, format="%(message)s")
    try:
        with watch.listening(signal.SIGINT, signal.SIGUSR1):
            result = function(**arguments)
    except Stopped as stopped:
        if world.rank == 0:
            print(stopped)
        sys.exit(STATUS_STOPPED)
    except comm.PeerError:
        world.abort()
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"rank {world.rank} was stopped at once, at {world.at}; the same command continues from the last checkpoint",
            file=sys.stderr,
        )
        world.abort()
        sys.exit(STATUS_INTERRUPTED)
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
    from repro.export import export

    for path in export(**arguments):
        print(path)


def evaluate(arguments: dict) -> None:
    from repro.export import evaluate

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


def plan(arguments: dict) -> None:
    from repro.scaling.forecast import describe, plan

    if planned := collective(plan, arguments):
        print(describe(planned))


def probe(arguments: dict) -> None:
    from repro.scaling.probe import probe
    from repro.scaling.steptime import save

    out = arguments.pop("out", "")
    if measured := collective(probe, arguments):
        save(measured, Path(out)) if out else print(json.dumps(measured))


def reproduce(arguments: dict) -> None:
    from repro.engines import end_with_make
    from repro.paper.reproduce import reproduce

    end_with_make()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with watch.listening(signal.SIGINT, signal.SIGUSR1):
        reproduce(**arguments)


def keep(arguments: dict) -> None:
    from repro.paper.reproduce import keep

    print(keep())


def doctor(arguments: dict) -> None:
    from repro.doctor import doctor

    if not doctor():
        sys.exit(STATUS_BROKEN)


def explain(error: BaseException) -> None:
    """One line for what the user can mend, the whole traceback for what is a defect of ours."""
    if isinstance(error, ReproError):
        print("error:", error, *getattr(error, "__notes__", []), file=sys.stderr)
    else:
        traceback.print_exception(error)


def recipes(arguments: dict) -> None:
    if arguments["json"]:
        print(json.dumps([dataclasses.asdict(recipe) for recipe in RECIPES.values()], indent=1))
        return
    for recipe in RECIPES.values():
        print(
            f"{recipe.name:30} batch {recipe.global_batch:5} = {recipe.workers} workers x {recipe.images_per_worker}, "
            f"{recipe.epochs():.2f} epochs\n    {recipe.summary}"
        )


def lr(arguments: dict) -> None:
    recipe = find(arguments["recipe"])
    try:
        steps = [int(step) for step in arguments["steps"].split(",")]
    except ValueError:
        raise ReproError(f"--steps {arguments['steps']}: give whole numbers with commas between them") from None
    for step in steps:
        print(f"{step},{learning_rate(recipe, step, arguments['formula'])!r}")


COMMANDS = {
    "train": train,
    "ensemble": ensemble,
    "export": export,
    "evaluate": evaluate,
    "stage": stage,
    "ranks": ranks,
    "plan": plan,
    "probe": probe,
    "reproduce": reproduce,
    "keep": keep,
    "doctor": doctor,
    "recipes": recipes,
    "lr": lr,
}


def main() -> int:
    arguments = {name: value for name, value in vars(parser().parse_args()).items() if value is not None}
    try:
        COMMANDS[arguments.pop("command")](arguments)
    except Stopped as stopped:
        print(stopped)
        return STATUS_STOPPED
    except KeyboardInterrupt:
        print("stopped at once; the same command continues from the last checkpoint", file=sys.stderr)
        return STATUS_INTERRUPTED
    except ReproError as error:
        explain(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
