"""The commands and their options: what `python -m repro` does with its arguments."""

import argparse
import dataclasses
import importlib
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from repro import ReproError, __version__, choose, cores, print_any_text, recipes, whole_number
from repro.cli.arguments import Parser, at_home
from repro.images.packed import EMBEDDED, PackedError, data_folder, pack_embedded
from repro.paper.profiles import PROFILES
from repro.paths import DATA, RESULTS, ROOT, RUNS
from repro.ranks import comm, stop
from repro.run import own
from repro.run.records import Stopped
from repro.run.settings import AVERAGES, DEVICES, MEANS, MOST_THREADS, Settings
from repro.scaling import BETWEEN_NODES
from repro.schedule import LR_FORMULAS, MODELS, SWITCHES, learning_rate

STATUS_BROKEN = 3  # `doctor` found something broken
STATUS_MISSED = 4  # `verify` found a claim that does not hold
STATUS_STOPPED = 75  # the run was stopped on request: the same command continues it (EX_TEMPFAIL)
STATUS_UNREAD = 141  # nobody reads what is printed any more (as for a program that SIGPIPE ends)
STATUS_INTERRUPTED = 130  # the run was stopped at once, by a second request: it continues from its last checkpoint


# --- Running a command ------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Prints a line about what is going on, of one rank only, where it mixes with no result: on standard error."""
    if comm.launched()[0] == 0:
        print(text, file=sys.stderr, flush=True)


def say_last(text: str, stream: TextIO) -> None:
    """Prints why this process ends. Its reader, such as tee, may have been ended by the same Ctrl-C: the status stays."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes once more, and would end with status 120


def on_all_ranks(function: Callable | str, text: str = "", loads: str = "torch") -> Callable[[dict], None]:
    """Return a handler that calls `module:function` on all ranks; rank 0 prints the result, formatted by `text` if given.

    With --json, it is printed as it is.

    The ranks end together, and the one that failed prints the reason. `loads` is what takes seconds before anything happens.
    """

    def handler(arguments: dict) -> None:
        ranks = comm.launched()[1]
        if loads:
            say(f"starting {'one rank' if ranks == 1 else f'{ranks} ranks'}: loading {loads} takes some seconds")
        with stop.listening(signal.SIGINT, signal.SIGUSR1):  # from before MPI starts, which may take long
            _run(function, text, arguments)

    return handler


def _run(function: Callable | str, text: str, arguments: dict) -> None:
    world, as_json = comm.world(), arguments.pop("json", False)
    logging.basicConfig(level=logging.INFO if world.rank == 0 else logging.WARNING, format="%(message)s")
    try:
        pack(world, arguments.get("data"))
        result = _named(function)(**arguments)
    except Stopped as stopped:
        if world.rank == 0:
            say_last(str(stopped), sys.stdout)
        world.gather(None)  # as in `_leave`
        sys.exit(STATUS_STOPPED)
    except comm.PeerError:
        _leave(world)
        sys.exit(2)
    except KeyboardInterrupt:
        at = f"rank {world.rank} was stopped at once, at {world.at}"
        say_last(f"{at}; the same command continues from the last checkpoint", sys.stderr)
        _leave(world)
        sys.exit(STATUS_INTERRUPTED)
    except BaseException as error:
        explain(error)
        _leave(world)
        sys.exit(2 if isinstance(error, ReproError) else 1)
    if world.rank == 0:
        show(_named(text)(result) if text and not as_json else result)


def _leave(world) -> None:
    """Ends all ranks. If all know of an error, each ends by itself, but not before the others: one may freeze on its way.

    MPI would wait, too, but without the watchdog's thread, which Python ends first.
    """
    if world.leaving:
        world.gather(None)
    world.abort()


def pack(world, data: str | None) -> None:
    """Packs an embedded data set, also for commands that train nothing. Collective."""
    if data in EMBEDDED:
        with world.together():
            if world.rank == 0:
                if not (DATA / data / "test.lmdb").exists():
                    say(f"packing {data}, once: some seconds")
                try:
                    pack_embedded(data)
                except PackedError:
                    if stop.asked.is_set():  # Ctrl-C on a terminal ends the script that packs, too
                        raise Stopped(f"stopped while {data} was packed: the same command continues") from None
                    raise


def here(function: str, text: str = "", loads: str = "") -> Callable[[dict], None]:
    """Return a handler that calls `module:function` in this process and prints the result; the others as for `on_all_ranks`."""

    def handler(arguments: dict) -> None:
        as_json = arguments.pop("json", False)
        if loads:
            say(f"loading {loads} takes some seconds")
        result = _named(function)(**arguments)
        show(_named(text)(result) if text and not as_json else result)

    return handler


def _named(function: Callable | str) -> Callable:
    """Import a function only when it is needed, so that `recipes` and `lr` do not wait for torch."""
    if callable(function):
        return function
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


def train(**arguments) -> str:
    """`repro.train.train`, after a line that says what is trained and whether something of it is there already. Collective."""
    from repro.task import prepare
    from repro.train import train

    world = comm.world()
    task = prepare(**arguments)
    with world.together():
        recipes.check_ranks(task.recipe, world.size)
        recipe, run, done = task.recipe, task.run, task.run.newest_step
        if done and not run.complete:
            say(f"continuing at epoch {recipe.epochs(done):.4g} of {recipe.epochs():.4g}: {run.folder.name}")
        elif not run.complete:
            steps = f"{recipe.iterations} steps of {recipe.global_batch} images"
            name = run.folder.name if run.folder.parent == RUNS else run.folder
            say(f"training {recipe.name}: {recipe.epochs():.4g} epochs, {steps}; follow it with `{US} watch {name}`")
        ranks = min(cores(), recipe.passes)
        if not run.complete and world.size == task.settings.threads == 1 and task.settings.device == "cpu" and ranks > 1:
            again = shlex.join(sys.argv[1:])
            say(f"this is one rank, on one core; `{MPIEXEC} -n {ranks} {US} {again}` trains the same weights on {ranks}")
    return train(**arguments)


def watch_run(arguments: dict) -> None:
    if arguments["tensorboard"]:
        say("loading torch, which writes the event files, takes some seconds")
    from repro.cli.watch import watch

    try:
        show(watch(**arguments))
    except KeyboardInterrupt:
        say("\nno longer watched; the run goes on")


def reproduce(arguments: dict) -> None:
    profile = PROFILES[arguments["profile"]]
    asked = ", ".join(f"{topic} (n = {number})" for topic, number in profile.seeds.items())
    print(f"profile {arguments['profile']} asks on {profile.data}: {asked}; {profile.about}", flush=True)
    from repro.jupyter.engines import end_with_make
    from repro.paper.reproduce import reproduce

    end_with_make()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with stop.listening(signal.SIGINT, signal.SIGUSR1):
        reproduce(**arguments)


def ask(arguments: dict) -> None:
    name, seeds, results = (arguments.pop(key) for key in ("questions", "seeds", "results"))
    from repro.paper import figures, tables
    from repro.paper.ask import ask, load

    asked = load(name)
    say("starting the ranks, which load torch, takes some seconds")
    if arguments.pop("no_reference"):
        arguments["reference"] = None
    answers = ask(asked, range(seeds), **arguments)
    saved = own.short(name).replace(".py:", "-").replace(":", "-")  # mine.py:questions as mine-questions
    tables.save(answers, results, saved)
    figures.save(figures.answers(answers), answers, results, saved)
    show([results / "tables" / f"{saved}.csv", results / "figures" / f"{saved}.svg"])


def make_one(kind: str) -> Callable[[dict], None]:
    def handler(arguments: dict) -> None:
        say(f"making the {kind} {arguments['name']}")
        from repro.paper.reproduce import make
        from repro.paper.tables import runs_or_reference

        # A notebook runs in its own folder, where a relative path would be another one.
        arguments["results"] = arguments["results"].absolute()
        arguments["runs"] = runs_or_reference(arguments.get("runs", ""), arguments["results"]).absolute()
        say(f"from the runs in {arguments['runs']}")
        show(make(f"{kind}s", **arguments))

    return handler


def doctor(arguments: dict) -> None:
    say("checking this machine: some seconds")
    from repro.cli.doctor import doctor

    if not doctor():
        sys.exit(STATUS_BROKEN)


def verify(arguments: dict) -> None:
    if not arguments["results"].is_dir():
        raise ReproError(f"there is no folder {arguments['results']}: --results names one with runs and tables")
    say(f"reading the runs in {arguments['results']}, and loading torch to count parameters: some seconds")
    from repro.paper.ledger import verify

    text, missed = verify(arguments["results"], arguments["json"])
    print(text)
    if missed:
        sys.exit(STATUS_MISSED)


def list_recipes(arguments: dict) -> None:
    if arguments["json"]:
        return show([dataclasses.asdict(recipe) for recipe in recipes.RECIPES.values()])
    for recipe in recipes.RECIPES.values():
        print(
            f"{recipe.name:30} batch {recipe.global_batch:5} = {recipe.workers} workers x {recipe.images_per_worker}, "
            f"{recipe.epochs():.2f} epochs\n    {recipe.summary}"
        )


def lr(arguments: dict) -> None:
    recipe = recipes.shrink(recipes.find(arguments["recipe"]), arguments["shrink"])
    try:
        steps = [int(step) for step in arguments["steps"].split(",")]
    except ValueError:
        raise ReproError(f"--steps {arguments['steps']}: give whole numbers separated by commas") from None
    for step in steps:
        print(f"{step},{learning_rate(recipe, step, arguments['formula'])!r}")


# --- Commands and their options --------------------------------------------------------------------------------------------


US = ".venv/bin/python -m repro"
MPIEXEC = ".venv/bin/mpiexec" if (ROOT / ".venv" / "bin" / "mpiexec").exists() else "mpiexec"  # MPI=none: the cluster's
ON_TWO = f"{MPIEXEC} -n 2 {US}"
A_RUN = f"RUN=$({US} train collapsed_ensemble --shrink smoke)\n"


def parser() -> Parser:
    top = Parser(
        prog=US,
        description="Large-minibatch SGD and the Collapsed Ensemble.",
        example=f"{ON_TWO} train collapsed_ensemble\n{US} train --help",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, handler: Callable[[dict], None], help: str, description: str = "", example: str = "", check=None
    ) -> Parser:
        text = description or help[0].upper() + help[1:] + "."
        subparser = commands.add_parser(name, help=help, description=text, example=example or f"{US} {name}")
        subparser.set_defaults(handler=handler, check=check)
        return subparser

    for add in (_add_training, _add_models, _add_machine, _add_reproduction, _add_lookups):
        add(command)
    return top


def _add_training(command: Callable[..., Parser]) -> None:
    train_ = command(
        "train",
        on_all_ranks(train),
        "train one recipe on all ranks that mpiexec started",
        "Trains one recipe; the last line on standard output is the run's folder. The same command again continues an "
        "incomplete run. SIGINT (Ctrl-C) or SIGUSR1 asks for a stop after the current step, with a checkpoint (exit "
        "status 75); a second one stops at once (130).",
        example=f"{ON_TWO} train collapsed_ensemble --seed 1",
        check=check_run,
    )
    _add_run(train_)
    train_.add_argument(
        "--steps",
        type=int,
        default=0,
        help="stop after this many steps, with a checkpoint, and say how long the rest would take",
    )
    train_.add_argument(
        "--check-ranks",
        type=int,
        default=0,
        metavar="RANKS",
        help="only check the options, and whether so many ranks can share a step: before a job is submitted",
    )
    train_.add_argument(
        "--patience",
        type=int,
        default=600,
        help="seconds without a sign of life from a rank before all ranks are ended (default: 600)",
    )

    watching = command(
        "watch",
        watch_run,
        "follow a run that a notebook, mpiexec or a batch system has started",
        "Prints a run's rows as they come, with a bar and the time left on a terminal; says if it stands still, and ends with "
        "it: status 0 if it is complete, 75 if it was stopped or killed, 2 if it failed. Only reads the run's folder.",
        example=A_RUN + f"{US} watch $RUN",
    )
    watching.add_argument("run", nargs="?", default="", help="the run's folder, or its name (default: what was begun last)")
    watching.add_argument("--out", default=str(RUNS), help="folder of the runs (default: results/runs)")
    watching.add_argument("--tensorboard", default="", metavar="FOLDER", help="write event files for TensorBoard there")

    plan = command(
        "plan",
        on_all_ranks("repro.scaling.forecast:plan", text="repro.scaling.forecast:describe"),
        "forecast how long a run will take, after a one-minute probe on all ranks",
        example=f"{ON_TWO} plan resnet50_448nodes --hours 1",
        check=check_run,
    )
    _add_run(plan)
    plan.add_argument(
        "--nodes",
        type=int,
        default=0,
        help="nodes that it will run on (default: the current ones; others use the scaling model)",
    )
    plan.add_argument("--ranks-per-node", type=int, default=0, help="ranks on each node (default: as now)")
    plan.add_argument(
        "--network", choices=BETWEEN_NODES, default=BETWEEN_NODES[0], help="assumed between nodes (default: %(default)s)"
    )
    plan.add_argument("--hours", type=float, default=0.0, help="time limit: report the largest shrink that fits")
    plan.add_argument("--seconds", type=float, default=60.0, help="duration of the probe (default: 60)")
    plan.add_argument(
        "--json",
        dest="record",
        default="",
        metavar="FILE",
        help="write the forecast there as JSON, with the machine and the command",
    )


def _add_models(command: Callable[..., Parser]) -> None:
    ensemble = command(
        "ensemble",
        on_all_ranks("repro.evaluate:ensemble", text="repro.cli.results:of_ensemble"),
        "evaluate the ensemble of a complete run's members",
        example=A_RUN + f"{ON_TWO} ensemble $RUN",
    )
    ensemble.add_argument("folder", help="the run's folder")
    ensemble.add_argument(
        "--members",
        type=_names,
        metavar="STAGE,STAGE",
        help="stages whose models are averaged (default: the recipe's members, or its last stage)",
    )
    _add_evaluation(ensemble, MEANS, "of the members' predictions, or of their weights, which makes one model of them")

    export = command(
        "export",
        here("repro.export:export", loads="torch"),
        "write a run's models and their model cards, for use elsewhere",
        example=A_RUN + f"{US} export $RUN",
    )
    export.add_argument("folder", help="the folder of a complete run")
    export.add_argument(
        "--stages",
        type=_names,
        metavar="STAGE,STAGE",
        help="stages whose models are written (default: the recipe's members, or its last stage)",
    )
    export.add_argument("--out", help="folder (default: models/ in the run's folder)")
    export.add_argument("--data", default="", help="the data set's folder, if it is not under data/")

    evaluate = command(
        "evaluate",
        on_all_ranks("repro.export:evaluate", text="repro.cli.results:of_models"),
        "evaluate exported models and their ensemble",
        example=A_RUN + f"{US} evaluate $({US} export $RUN) --data digits",
    )
    evaluate.add_argument("files", nargs="+", metavar="FILE", help="a file that `python -m repro export` wrote")
    evaluate.add_argument(
        "--model", default="", help="source of your own model, mine.py:my_net (a model card never specifies code to run)"
    )
    _add_evaluation(evaluate, required=True)

    classify = command(
        "classify",
        here("repro.export:classify", text="repro.cli.results:of_images", loads="torch"),
        "classify image files by an exported model",
        "Prints the most probable class of each image and its probability.",
        example=A_RUN + f"{US} classify $({US} export $RUN) digit.png",
    )
    classify.add_argument("file", metavar="MODEL", help="a file that `python -m repro export` wrote")
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="image files of any size, or folders of them")
    classify.add_argument("--top", type=int, default=1, help="classes to print of each image (default: 1)")
    classify.add_argument("--model", default="", help="the source of a user's own model: mine.py:my_net")
    _add_json(classify)


def _add_machine(command: Callable[..., Parser]) -> None:
    copy = command(
        "copy-data",
        on_all_ranks("repro.images.copies:copy_to_nodes", loads=""),
        "copy packed data to each node's own disk, and check the copies",
        example=f"{ON_TWO} copy-data digits --to /tmp/data",
    )
    copy.add_argument("data", help="data set, or the folder it is packed in")
    copy.add_argument("--to", required=True, metavar="FOLDER", help="a folder on a local disk of each node")

    command(
        "ranks",
        on_all_ranks("repro.ranks.comm:roll_call", loads=""),
        "list the ranks and their hosts, and check that all see each other",
        example=f"{ON_TWO} ranks",
    )

    measure = command(
        "probe",
        on_all_ranks("repro.scaling.probe:probe_into"),
        "measure steps and allreduces for the scaling model, on all ranks",
        example=f"{ON_TWO} probe --model resnet18 --size 64 --seconds 10",
    )
    measure.add_argument("--model", choices=MODELS, default="resnet50", help="network to measure (default: %(default)s)")
    measure.add_argument("--images", type=_numbers, default=[2, 4, 8], help="images per worker (default: 2,4,8)")
    measure.add_argument("--data", default="", help="data set for steps with the loader (default: random images in memory)")
    measure.add_argument("--seconds", type=float, default=60.0, help="approximate duration (default: 60)")
    measure.add_argument("--least", type=int, default=1, help="fewest times of each row, however long it takes (default: 1)")
    measure.add_argument("--out", help="file to write (default: standard output)")
    _add_settings(measure, without="seed")


def _add_reproduction(command: Callable[..., Parser]) -> None:
    costs = "; ".join(f"{name}: {profile.about}" for name, profile in PROFILES.items())
    whole = command(
        "reproduce", reproduce, "make a profile's runs, tables, figures and report", example=f"{US} reproduce --profile smoke"
    )
    whole.add_argument("--profile", choices=tuple(PROFILES), default="laptop", help=f"(default: laptop) {costs}")
    whole.add_argument("--ranks", type=int, default=0, help="MPI ranks (default: as many as cores and workers allow)")
    whole.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results)")
    whole.add_argument("--verbose", action="store_true", help="also print what the notebooks print")

    asking = command(
        "ask",
        ask,
        "answer questions of your own: train what they need, one run a core, and compare",
        example=f"{US} ask mine.py:questions --seeds 6",
    )
    asking.add_argument("questions", help="a list of repro.Question in your file: mine.py:questions")
    asking.add_argument("--seeds", type=int, default=3, help="each side is trained with seeds 0, 1, ... (default: %(default)s)")
    asking.add_argument("--data", default="digits", help="data set, or the folder it is packed in (default: digits)")
    asking.add_argument(
        "--shrink",
        choices=(*recipes.SHRINKS, "none"),
        help="of all sides; none: unchanged (default: laptop, or none if no side is a recipe of ours)",
    )
    asking.add_argument("--out", default=str(RUNS), help="folder of the runs (default: results/runs)")
    asking.add_argument(
        "--no-reference",
        action="store_true",
        help="train all seeds of both sides here: no run of the reference stands on a side",
    )
    asking.add_argument(
        "--results", type=Path, default=RESULTS / "own", help="folder of table and figure (default: results/own)"
    )

    for kind in ("table", "figure"):
        one = command(
            kind,
            make_one(kind),
            f"make one {kind} of the report, from the runs in results or, if there are none but tiny ones, the reference's",
            example=f"{US} {kind} answers",
        )
        one.add_argument("name", help=f"such as answers; a wrong name lists the {kind}s")
        one.add_argument("--results", type=Path, default=RESULTS, help="folder (default: results)")
        one.add_argument(
            "--runs", type=Path, help="folder of the runs (default: those in results; the reference's if all are tiny)"
        )
        if kind == "figure":
            one.add_argument("--data", help="data set of the runs to draw (default: digits)")
            one.add_argument("--shrink", help="of the runs to draw (default: laptop)")

    command("keep", here("repro.paper.reproduce:keep"), "copy the results, without the models, to results/reference")
    archive = command(
        "archive", here("repro.paper.archive:archive"), "put a reproduction into one zip file, for a journal or Zenodo"
    )
    archive.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: results; if it has no runs, the reference)"
    )
    archive.add_argument("--out", type=Path, help="file (default: scaleout-repro-VERSION.zip in the folder of the results)")
    ledger = command(
        "verify", verify, "print the ledger: each claim, what was found, and whether it stands; exit status 4 if one is missed"
    )
    ledger.add_argument(
        "--results", type=Path, default=RESULTS, help="folder (default: results; if its runs are tiny or none, the reference)"
    )
    ledger.add_argument("--json", action="store_true", help="all columns, as JSON")


def _add_lookups(command: Callable[..., Parser]) -> None:
    command("doctor", doctor, "check this machine: packages, MPI, limits, folders, clock; exit status 3 if something is broken")

    listing = command("recipes", list_recipes, "list the recipes")
    listing.add_argument("--json", action="store_true", help="every number of every recipe")

    rates = command("lr", lr, "print learning rates as step,lr lines", example=f"{US} lr resnet50_448nodes --steps 0,1,445,446")
    rates.add_argument("recipe", help="a name that `python -m repro recipes` lists, or mine.py:my_recipe")
    rates.add_argument(
        "--shrink",
        choices=(*recipes.SHRINKS, "none"),
        default="none",
        help="as for train, on a data set that is large enough (default: none, the recipe as it is)",
    )
    rates.add_argument("--formula", choices=LR_FORMULAS, default="", help="(default: the recipe's)")
    rates.add_argument("--steps", required=True, help="steps from the start of the recipe: 0,1,445,446")


def _add_run(command: argparse.ArgumentParser) -> None:
    """Options that identify a run: everything that `task.prepare` accepts."""
    command.add_argument("recipe", help="a name that `python -m repro recipes` lists, or your own Recipe: mine.py:my_recipe")
    command.add_argument("--data", default="digits", help="data set, or the folder it is packed in (default: digits)")
    command.add_argument(
        "--shrink",
        choices=(*recipes.SHRINKS, "none"),
        help="how the recipe is made small; none: unchanged (default: laptop, or none for your own recipe)",
    )
    command.add_argument(
        "--model", default="", help=f"instead of the recipe's or shrink's: {', '.join(MODELS)}, or your own: mine.py:my_net"
    )
    command.add_argument("--update", default="", help="rule by which weights change, instead of the recipe's: mine.py:MyRule")
    command.add_argument("--out", default=str(RUNS), help="folder of the runs (default: results/runs)")
    command.add_argument(
        "--decoders", type=int, default=2, help="threads per rank that decode images ahead of the step (default: 2)"
    )
    _add_settings(command)
    for switch, values in SWITCHES.items():
        kind, names = type(values[0]), [str(value).lower() for value in values]
        command.add_argument(
            "--" + switch.replace("_", "-"),
            type=_boolean if kind is bool else kind,
            choices=values,
            metavar=f"{{{','.join(names)}}}",
            help="(default: the recipe's)",
        )


def check_run(arguments: dict) -> str:
    """Checks what can be checked of a run in a moment: before torch and MPI are loaded, and data are packed or opened.

    Returns what to print if nothing but a check was asked for.
    """
    switches = {name: value for name, value in arguments.items() if name in SWITCHES}
    original = recipes.find(arguments["recipe"], **switches)
    data_folder(arguments["data"])
    if arguments["model"] and not own.is_own(arguments["model"]):
        choose("model", arguments["model"], MODELS)
    Settings(**{field.name: arguments[field.name] for field in dataclasses.fields(Settings)})
    whole_number("decoders", arguments["decoders"], most=MOST_THREADS)
    for name, least in (("steps", 0), ("patience", 1), ("nodes", 0), ("ranks_per_node", 0)):
        whole_number(name, arguments.get(name, least), least)
    recipe = recipes.shrink(original, recipes.shrink_for(original, arguments.get("shrink", "")))
    asked = whole_number("check_ranks", arguments.pop("check_ranks", 0))
    if not arguments.get("nodes") and not arguments.get("ranks_per_node"):  # of plan, which need not be those of this call
        recipes.check_ranks(recipe, asked or comm.launched()[1])
    if not asked:
        return ""
    return f"{asked} {'rank' if asked == 1 else 'ranks'} can train {recipe.name}"


def _add_settings(command: argparse.ArgumentParser, without: str = "") -> None:
    for field in dataclasses.fields(Settings):
        if field.name != without:
            command.add_argument(
                f"--{field.name}",
                type=type(field.default),
                default=field.default,
                choices=field.metadata["choices"] or None,
                help=f"{field.metadata['help']} (default: {field.default})",
            )


def _add_evaluation(
    command: argparse.ArgumentParser,
    averages: tuple[str, ...] = AVERAGES,
    of: str = "of the members' predictions",
    required: bool = False,
) -> None:
    command.add_argument("--average", choices=averages, default=averages[0], help=f"{of} (default: %(default)s)")
    command.add_argument(
        "--data", default=None if required else "", required=required, help="data set, or the folder it is packed in"
    )
    command.add_argument("--device", choices=DEVICES, default="auto", help="(default: auto)")
    _add_json(command)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print all that was found, as JSON")


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 2,4,8") from None


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def main() -> int:
    print_any_text()
    if not sys.argv[1:]:
        parser().print_help(sys.stderr)
        return 2
    try:
        arguments = {name: at_home(value) for name, value in vars(parser().parse_args()).items() if value is not None}
        del arguments["command"]
        if (check := arguments.pop("check", None)) and (all_there_is := check(arguments)):
            show(all_there_is)
            return 0
        arguments.pop("handler")(arguments)
    except Stopped as stopped:
        say_last(str(stopped), sys.stdout)
        return STATUS_STOPPED
    except KeyboardInterrupt:
        say_last("stopped at once; the same command continues from the last checkpoint", sys.stderr)
        return STATUS_INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        return STATUS_UNREAD
    except ReproError as error:
        if comm.launched()[0] == 0:  # all ranks have the same command line
            explain(error)
        return 2
    return 0
