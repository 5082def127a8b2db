"""`python -m repro COMMAND`; on several ranks, `mpiexec -n R python -m repro train ...`."""

import argparse
import dataclasses
import importlib
import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from repro import ReproError, __version__, watch
from repro.paths import RESULTS, RUNS
from repro.recipes import RECIPES, SHRINKS, find
from repro.records import Stopped
from repro.schedule import LR_FORMULAS, SWITCHES, learning_rate
from repro.settings import Settings

STATUS_BROKEN = 3  # `doctor` found something broken
STATUS_MISSED = 4  # `verify` found a claim that does not hold
STATUS_STOPPED = 75  # the run was stopped on request: the same command continues it (EX_TEMPFAIL)
STATUS_INTERRUPTED = 130  # the run was stopped at once, by a second request: it continues from its last checkpoint


# --- Running a command ------------------------------------------------------------------------------------------------


def on_all_ranks(function: str, text: str = "") -> Callable[[dict], None]:
    """Return a handler that calls `module:function` on all ranks; rank 0 prints the result, formatted by `text` if given.

    The ranks end together, and the one that failed prints the reason.
    """

    def handler(arguments: dict) -> None:
        from repro import comm

        world = comm.world()
        logging.basicConfig(level=logging.INFO if world.rank == 0 else logging.WARNING, format="%(message)s")
        try:
            with watch.listening(signal.SIGINT, signal.SIGUSR1):
                result = _named(function)(**arguments)
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
        if world.rank == 0:
            show(_named(text)(result) if text else result)

    return handler


def here(function: str) -> Callable[[dict], None]:
    """Return a handler that calls `module:function` in this process and prints the result."""
    return lambda arguments: show(_named(function)(**arguments))


def _named(function: str) -> Callable:
    """Import a function only when it is needed, so that `recipes` and `lr` do not wait for torch."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def show(result) -> None:
    """Print text and paths as they are, a list with one item per line, anything else as JSON."""
    if isinstance(result, list) and all(isinstance(item, (str, Path)) for item in result):
        print("\n".join(map(str, result)))
    elif result is not None:
        print(result if isinstance(result, (str, Path)) else json.dumps(result))


def explain(error: BaseException) -> None:
    """Print one line for an error that the user can fix, the whole traceback for a bug in this package."""
    if isinstance(error, ReproError):
        print("error:", error, *getattr(error, "__notes__", []), file=sys.stderr)
    else:
        traceback.print_exception(error)


def reproduce(arguments: dict) -> None:
    from repro.engines import end_with_make
    from repro.paper.reproduce import reproduce

    end_with_make()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with watch.listening(signal.SIGINT, signal.SIGUSR1):
        reproduce(**arguments)


def doctor(arguments: dict) -> None:
    from repro.doctor import doctor

    if not doctor():
        sys.exit(STATUS_BROKEN)


def verify(arguments: dict) -> None:
    from repro.paper.ledger import verify

    text, missed = verify(arguments["results"], arguments["json"])
    print(text)
    if missed:
        sys.exit(STATUS_MISSED)


def recipes(arguments: dict) -> None:
    if arguments["json"]:
        return show([dataclasses.asdict(recipe) for recipe in RECIPES.values()])
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
        raise ReproError(f"--steps {arguments['steps']}: give whole numbers separated by commas") from None
    for step in steps:
        print(f"{step},{learning_rate(recipe, step, arguments['formula'])!r}")


# --- Commands and their options --------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m repro", description="Large-minibatch SGD and the Collapsed Ensemble.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, handler: Callable[[dict], None], help: str, description: str = "") -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=help, description=description or help[0].upper() + help[1:] + ".")
        subparser.set_defaults(handler=handler)
        return subparser

    train = command(
        "train",
        on_all_ranks("repro.train:train"),
        "train one recipe on all ranks that mpiexec started",
        "Trains one recipe; the last line on standard output is the run's folder. The same command again continues an "
        "incomplete run. SIGINT (Ctrl-C) or SIGUSR1 asks for a stop after the current step, with a checkpoint (exit "
        "status 75); a second one stops at once (130).",
    )
    _add_run(train)
    train.add_argument(
        "--steps",
        type=int,
        default=0,
        help="stop after this many steps, with a checkpoint, and say how long the rest would take",
    )
    train.add_argument(
        "--patience",
        type=int,
        default=600,
        help="seconds without a sign of life from a rank before all ranks are ended (default: 600)",
    )

    plan = command(
        "plan",
        on_all_ranks("repro.scaling.forecast:plan", text="repro.scaling.forecast:describe"),
        "forecast how long a run will take, after a one-minute probe on all ranks",
    )
    _add_run(plan)
    plan.add_argument(
        "--nodes",
        type=int,
        default=0,
        help="nodes that it will run on (default: the current ones; others use the scaling model)",
    )
    plan.add_argument("--ranks-per-node", type=int, default=0, help="ranks on each node (default: as now)")
    plan.add_argument("--network", default="omni-path", help="assumed network between nodes: omni-path (default) or ethernet")
    plan.add_argument("--hours", type=float, default=0.0, help="time limit: report the largest shrink that fits")
    plan.add_argument("--seconds", type=float, default=60.0, help="duration of the probe (default: 60)")

    ensemble = command("ensemble", on_all_ranks("repro.evaluate:ensemble"), "evaluate the ensemble of a complete run's members")
    ensemble.add_argument("folder", help="the run's folder")
    ensemble.add_argument(
        "--members", type=_names, metavar="STAGE,STAGE", help="stages whose models are averaged (default: the recipe's members)"
    )
    _add_evaluation(ensemble)

    export = command("export", here("repro.export:export"), "write a run's models and their model cards, for use elsewhere")
    export.add_argument("folder", help="the folder of a complete run")
    export.add_argument(
        "--stages", type=_names, metavar="STAGE,STAGE", help="stages whose models are written (default: the recipe's members)"
    )
    export.add_argument("--out", help="folder (default: models/ in the run's folder)")
    export.add_argument("--data", default="", help="the data set's folder, if it is not under data/")

    evaluate = command("evaluate", on_all_ranks("repro.export:evaluate"), "evaluate exported models and their ensemble")
    evaluate.add_argument("files", nargs="+", metavar="FILE", help="a file that `python -m repro export` wrote")
    evaluate.add_argument(
        "--model", default="", help="source of your own model, mine.py:my_net (a model card never specifies code to run)"
    )
    _add_evaluation(evaluate, required=True)

    copy = command(
        "copy-data",
        on_all_ranks("repro.copies:copy_to_nodes"),
        "copy packed data to each node's own disk, and check the copies",
    )
    copy.add_argument("data", help="data set, or the folder it is packed in")
    copy.add_argument("--to", required=True, metavar="FOLDER", help="a folder on a local disk of each node")

    command("ranks", on_all_ranks("repro.comm:roll_call"), "list the ranks and their hosts, and check that all see each other")

    measure = command(
        "probe",
        on_all_ranks("repro.scaling.probe:probe_into"),
        "measure steps and allreduces for the scaling model, on all ranks",
    )
    measure.add_argument("--model", default="resnet50", help="resnet18, -34, -50 (default), -101, -152, resnet11")
    measure.add_argument("--images", type=_numbers, default=[2, 4, 8], help="images per worker (default: 2,4,8)")
    measure.add_argument("--data", default="", help="data set for steps with the loader (default: random images in memory)")
    measure.add_argument("--seconds", type=float, default=60.0, help="approximate duration (default: 60)")
    measure.add_argument("--least", type=int, default=1, help="fewest times of each row, however long it takes (default: 1)")
    measure.add_argument("--out", help="file to write (default: standard output)")
    _add_settings(measure, without="seed")

    whole = command("reproduce", reproduce, "make a profile's runs, tables, figures and report")
    whole.add_argument("--profile", default="laptop", help="laptop (default), full, letters or smoke")
    whole.add_argument("--ranks", type=int, default=0, help="MPI ranks (default: as many as cores and workers allow)")
    whole.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results)")

    command("keep", here("repro.paper.reproduce:keep"), "copy the results, without the models, to results/reference")
    ledger = command(
        "verify", verify, "print the ledger: each claim, what was found, and whether it stands; exit status 4 if one is missed"
    )
    ledger.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results; without runs, the reference)")
    ledger.add_argument("--json", action="store_true", help="all columns, as JSON")
    command("doctor", doctor, "check MPI, engines, disk, packages and data; exit status 3 if something is broken")

    listing = command("recipes", recipes, "list the recipes")
    listing.add_argument("--json", action="store_true", help="every number of every recipe")

    rates = command("lr", lr, "print learning rates as step,lr lines")
    rates.add_argument("recipe", help="a name that `python -m repro recipes` lists, or mine.py:my_recipe")
    rates.add_argument("--formula", default=LR_FORMULAS[0], help=" or ".join(LR_FORMULAS))
    rates.add_argument("--steps", required=True, help="steps from the start of the recipe: 0,1,445,446")
    return top


def _add_run(command: argparse.ArgumentParser) -> None:
    """Options that identify a run: everything that `train.prepare` accepts."""
    command.add_argument("recipe", help="a name that `python -m repro recipes` lists, or your own Recipe: mine.py:my_recipe")
    command.add_argument("--data", default="digits", help="data set, or the folder it is packed in (default: digits)")
    command.add_argument(
        "--shrink", help=f"{', '.join(SHRINKS)}; or none: unchanged (default: laptop, or none for your own recipe)"
    )
    command.add_argument(
        "--model",
        default="",
        help="instead of the recipe's or shrink's: resnet18, -34, -50, -101, -152, resnet11, or your own: mine.py:my_net",
    )
    command.add_argument("--out", default=str(RUNS), help="folder of the runs (default: results/runs)")
    command.add_argument(
        "--decoders", type=int, default=2, help="threads per rank that decode images ahead of the step (default: 2)"
    )
    _add_settings(command)
    for switch, values in SWITCHES.items():
        kind = type(values[0])
        command.add_argument(
            "--" + switch.replace("_", "-"),
            type=_boolean if kind is bool else kind,
            help=f"{' or '.join(map(str, values))} (default: the recipe's)",
        )


def _add_settings(command: argparse.ArgumentParser, without: str = "") -> None:
    for field in dataclasses.fields(Settings):
        if field.name != without:
            help = f"{field.metadata['help']} (default: {field.default})"
            command.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help=help)


def _add_evaluation(command: argparse.ArgumentParser, required: bool = False) -> None:
    command.add_argument("--average", default="softmax", help="softmax (default) or logit")
    command.add_argument(
        "--data", default=None if required else "", required=required, help="data set, or the folder it is packed in"
    )
    command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def main() -> int:
    arguments = {name: value for name, value in vars(parser().parse_args()).items() if value is not None}
    del arguments["command"]
    try:
        arguments.pop("handler")(arguments)
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
