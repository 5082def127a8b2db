"""What a run writes while it trains, and how it continues: metric rows, evaluations, snapshots, checkpoints.

All ranks have a `Journal` and call it after the same steps, since evaluation is collective; rank 0 writes.
"""

import logging
import time
import zlib

from repro import ReproError, evaluate
from repro.allreduce import Mean
from repro.ranks import watch
from repro.replica import Replica
from repro.run import checkpoint, records
from repro.run.records import Stopped, describe
from repro.schedule import Recipe

log = logging.getLogger("repro")

CHECKPOINT_SECONDS = 30  # at the ends of epochs, no more often than this
LONGEST_SECONDS = 600  # after any step this long after the last checkpoint: the most that a kill can cost


class Journal:
    """The journal of one run: `step` is the number of steps done, including those of earlier attempts."""

    def __init__(self, task, replica: Replica):
        """Restores network and optimizer from the newest checkpoint, if there is one. Collective."""
        self.task, self.run, self.world = task, task.run, (world := replica.world)
        self.network, self.optimizer, self.average = replica.network, replica.optimizer, replica.average
        self.step, self.seconds, self.losses, self.corrects = 0, 0.0, [], []  # losses and corrects since the last metric row
        with world.together():
            if self.run.checkpoints:
                self._resume()
            elif self.run.continued:
                log.info("an earlier attempt left no checkpoint yet in %s: starting again from step 0", self.run.folder)
            if world.rank == 0:
                self.run.rewind(self.step)
        self.first, self.earlier = self.step, self.seconds
        self.began = self.saved = time.monotonic()

    def ask(self) -> None:
        """Tells all ranks, through this step's average, if this one wants to stop or to save a checkpoint after it."""
        if watch.asked.is_set() or self.step + 1 == self.first + self.task.steps:
            self.average.stop()
        if self.world.rank == 0 and time.monotonic() - self.saved > LONGEST_SECONDS:
            self.average.save()

    def enter(self, rate: float, mean: Mean) -> None:
        """Records the step that was just done; evaluates and saves if it is time to. Collective.

        Raises records.Stopped on every rank, after a checkpoint, if a rank was asked to stop.
        """
        recipe = self.task.recipe
        stage, iteration = recipe.stage_at(self.step)
        self.losses.append(float(mean.loss))
        self.corrects.append(float(mean.correct))
        self.step += 1
        ends_stage = iteration + 1 == stage.iterations
        evaluates = ends_stage or completes(recipe, self.step, recipe.evaluate_every)
        has_row = evaluates or completes(recipe, self.step, recipe.record_every)
        if not (has_row or mean.save or mean.stop):
            return
        self.world.at = f"the end of {self.world.at}"
        self._check_replicas()
        row = {"step": self.step, "epoch": recipe.epochs(self.step), "stage": stage.name, "rate": rate}
        row |= {"train_loss": sum(self.losses) / len(self.losses)}
        row |= {"train_top1": sum(self.corrects) / len(self.corrects) / recipe.images_per_worker}
        if evaluates:
            result, correct = self._evaluated(finished=ends_stage)
            row |= result
        row["seconds"] = self.seconds = self.earlier + time.monotonic() - self.began
        with self.world.together():
            if has_row:
                self._write_row(row)
            if ends_stage and self.world.rank == 0:
                records.save_correct(self.run.folder, stage.name, correct)
                checkpoint.save(self.run.snapshot(stage.name), self.network.state(), row)
            if ends_stage or mean.save or mean.stop or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
                self._save()
        if mean.stop and self.step < recipe.iterations:
            watch.asked.clear()
            raise Stopped(self._outlook())

    def facts(self) -> dict:
        """The final entries of a complete run's record; empty on ranks other than 0."""
        if self.world.rank != 0:
            return {}
        ends = {stage.name: checkpoint.load(self.run.snapshot(stage.name))[1] for stage in self.task.recipe.stages}
        last = ends[self.task.recipe.stages[-1].name]
        weights = checkpoint.digest(self.network.state())
        return {
            "ends": ends,
            **{key: last[key] for key in ("images", "top1", "top5")},
            "seconds": self.seconds,
            "weights_sha256": weights,
        }

    def _write_row(self, row: dict) -> None:
        self.losses, self.corrects = [], []
        if self.world.rank == 0:
            self.run.metric(row)
            log.info(describe(row, self.task.recipe.epochs()))

    def _evaluated(self, finished: bool) -> tuple[dict, dict]:
        """Top-1, top-5 and loss; of a finished model in all views, and which images it recognised. Collective."""
        settings = self.task.settings
        options: dict = dict(device=settings.device, precision=settings.precision, threads=self.task.decoders)
        member = [(self.network.model, self.network.state())]
        if finished:
            return evaluate.in_all_views(self.world, member, self.task.test, **options)
        counted = evaluate.counts(self.world, member, self.task.test, **options)
        result = counted["members"][0]
        correct = {"test": result.pop("correct")}
        return {"images": counted["images"], **result}, correct

    def _check_replicas(self) -> None:
        """Raises on every rank unless weights, statistics and momentum are bit-identical. Collective, one number per rank."""
        digest = 0
        for vector in (self.network.weights, self.network.statistics, self.optimizer.history):
            digest = zlib.crc32(vector.cpu().numpy(), digest)  # type: ignore[arg-type]
        with self.world.together():
            if digest != self.world.broadcast(digest):
                raise ReproError(
                    f"the weights, statistics or momentum of rank {self.world.rank} are no longer those of rank 0: faulty "
                    f"memory, or an MPI that does not return the same sum on all ranks. The last checkpoint is from "
                    f"before; the same command continues from it."
                )

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.world.rank != 0:
            return
        folder = self.run.folder / "checkpoints"
        state = self.network.state() | {"momentum": self.optimizer.history.cpu()}
        progress = {"run": self.run.folder.name, "step": self.step, "seconds": self.seconds}
        checkpoint.save(folder / str(self.step), state, progress | {"losses": self.losses, "corrects": self.corrects})
        checkpoint.prune(folder)

    def _resume(self) -> None:
        folder = self.run.folder / "checkpoints"
        state, progress = checkpoint.newest(folder)
        if progress.get("run") != self.run.folder.name:
            raise checkpoint.CheckpointError(
                f"the checkpoint in {folder} is of the run {progress.get('run')}: it does not belong in this folder"
            )
        try:
            self.optimizer.history.copy_(state.pop("momentum"))
            self.network.load(state)
        except (KeyError, RuntimeError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint in {folder} is not of this network: {error}") from error
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.losses, self.corrects = progress["losses"], progress["corrects"]
        log.info("continuing after step %d, from %s", self.step, self.run.folder)

    def _outlook(self) -> str:
        recipe, seconds, ranks = self.task.recipe, time.monotonic() - self.began, self.world.size
        rate, left = (self.step - self.first) * recipe.global_batch / seconds, recipe.iterations - self.step
        hours = left * recipe.global_batch / rate / 3600
        return (
            f"stopped on request after step {self.step} of {recipe.iterations}. At this call's {rate:.3g} images/s on {ranks} "
            f"{'rank' if ranks == 1 else 'ranks'} (evaluations included), the other {left} steps of {recipe.global_batch} "
            f"images take {hours:.3g} hours ({hours / 24:.3g} days). The same command continues the run."
        )


def completes(recipe: Recipe, step: int, epochs: float) -> bool:
    """Whether the step before `step` completed another `epochs` epochs."""
    return recipe.epochs(step) // epochs > recipe.epochs(step - 1) // epochs
