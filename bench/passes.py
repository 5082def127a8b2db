"""How many small images a second: several workers in a pass, views as array operations, against one at a time each.

Also what of a step is convolutions, batch norm or anything else, which bounds how much faster it could be.

Every rank trains by itself, all at the same time, as in `make reproduce`. The four settings take turns for several rounds.
Writes results/bench/passes.json:

    mpiexec -n 2 python -m bench.passes
"""

import time
from dataclasses import replace

import torch

from bench import report, step
from repro import train
from repro.images.data import Images, Stream, load_ahead, requests
from repro.ranks import comm
from repro.ranks.memory import keep_freed
from repro.replica import assemble
from repro.scaling.probe import steady
from repro.schedule import at
from repro.task import prepare

RECIPES = "collapsed_ensemble", "resnet50_448nodes"  # 2 workers of 32 images a step, and 14 of 16
ROUNDS, SECONDS = 7, 2.0
PROFILED = 30  # steps


class SingleImages(Images):
    """Images whose views are made one at a time, as those of different sizes are."""

    arrays = None


class Setting:
    """Steps of a recipe on digits, with one worker in a pass, or with views of one image at a time, or neither."""

    def __init__(self, recipe: str, single_workers: bool, single_images: bool):
        task = prepare(recipe, "digits", shrink="laptop", device="cpu")
        if single_workers:
            task = replace(task, recipe=replace(task.recipe, workers_per_pass=1))
        if single_images:
            task = replace(task, train_images=SingleImages("digits", "train").first(task.recipe.epoch_images))
        self.recipe = task.recipe
        self.replica = assemble(comm.World(), task)
        endless = steady(self.recipe.workers, self.recipe.images_per_worker)
        self.now, steps = at(endless, 0), (at(endless, number) for number in range(endless.iterations))
        stream = Stream(task.train_images, 0, self.recipe.images_per_worker)
        self.batches = load_ahead(stream, requests(steps, self.recipe.workers_per_pass, 0, 1), threads=0)

    def step(self) -> float:
        return float(train.step(self.replica, self.batches, self.now).loss)

    def images_per_second(self, seconds: float) -> float:
        start, steps = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            self.step()
            steps += 1
        return steps * self.recipe.global_batch / (time.perf_counter() - start)


def main() -> None:
    world = comm.world()
    torch.set_num_threads(1)
    keep_freed()
    rows, shares = [], {}
    for recipe in RECIPES:
        before = "one worker in a pass, views image by image"
        settings = {
            "passes of several workers, views as arrays": Setting(recipe, False, False),
            before: Setting(recipe, True, True),
            "passes alone": Setting(recipe, False, True),
            "views alone": Setting(recipe, True, False),
        }
        rates: dict[str, list[float]] = {name: [] for name in settings}
        for number in range(ROUNDS + 1):
            for name, setting in settings.items():
                world.gather(None)
                rate = sum(world.gather(setting.images_per_second(SECONDS if number else 0.5)))
                rates[name] += [rate] if number else []  # the first round warms up
        together = settings["passes of several workers, views as arrays"]
        shares[recipe] = step.shares(step.profiled(together.step, PROFILED))
        goal = report.Goal(">=", 3.0)
        for name, rate in rates.items():
            if name != before:
                what = f"{recipe}, {name}"
                rows.append(report.row(what, rate, rates[before], before, "images/s", goal if "alone" not in name else None))
    if world.rank == 0:
        report.publish("passes", rows, {"command": f"mpiexec -n {world.size} python -m bench.passes", "shares": shares})
        for recipe, parts in shares.items():
            print(f"a step of {recipe}: " + ", ".join(f"{name} {part:.0%}" for name, part in parts.items()))


if __name__ == "__main__":
    main()
