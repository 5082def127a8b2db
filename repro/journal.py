"""What a run writes while it trains, and how it continues: metric rows, evaluations, snapshots, checkpoints.

All ranks have a `Journal` and call it after the same steps, since evaluation is collective; rank 0 writes.
"""

import logging
import time
import zlib
from contextlib import contextmanager
from dataclasses import replace

from repro import ReproError, evaluate
from repro.allreduce import Mean
from repro.images.data import Stream
from repro.ranks import stop
from repro.replica import Replica
from repro.run import checkpoint, records
from repro.run.records import Stopped, describe
from repro.schedule import Now, Place, due

log = logging.getLogger("repro")

CHECKPOINT_SECONDS = 30  # at metric rows, no more often than this
VECTOR = "update:"  # before the name of an update's vector in a checkpoint; the names of parameters have no colon
CARRIED = "step", "seconds", "evaluating", "losses", "corrects"  # of a journal, with each checkpoint
LONGEST_SECONDS = 600  # after any step this long after the last checkpoint: the most that a kill can cost


class Journal:
    """The journal of one run: `step` is the number of steps done, including those of earlier attempts."""

    def __init__(self, task, replica: Replica):
        """Restores network and update from the newest checkpoint, if there is one. Collective."""
        self.task, self.run, self.world = task, task.run, (world := replica.world)
        self.network, self.update, self.average = replica.network, replica.update, replica.average
        self.evaluations = due(task.recipe, task.recipe.evaluate_every)  # numbers of steps after which there is one
        self.rows = self.evaluations | due(task.recipe, task.recipe.record_every)
        self.step, self.losses, self.corrects = 0, [], []  # losses and corrects since the last metric row
        self.seconds = self.evaluating = 0.0  # of all attempts; of these, those in evaluations and checkpoints
        with world.together():
            if self.run.checkpoints:
                self._resume()
            elif self.run.continued:
                log.info("an earlier attempt left no checkpoint yet in %s: starting again from step 0", self.run.folder)
            if world.rank == 0:
                self.run.rewind(self.step, self.rows)
        self.first, self.earlier = self.step, self.seconds
        self.began = self.saved = time.monotonic()

    def announce(self) -> None:
        """Tells all ranks, through this step's average, if this one wants to stop or to save a checkpoint after it."""
        if stop.asked.is_set() or self.step + 1 == self.first + self.task.steps:
            self.average.stop()
        if self.world.rank == 0 and time.monotonic() - self.saved > LONGEST_SECONDS:
            self.average.save()

    def record(self, now: Now, mean: Mean) -> None:
        """Records the step that was just done; evaluates and saves if it is time to. Collective.

        Raises records.Stopped on every rank, after a checkpoint, if a rank was asked to stop.
        """
        recipe, stage = self.task.recipe, now.stage
        self.losses.append(float(mean.loss))
        self.corrects.append(float(mean.correct))
        self.step = now.step + 1
        if not (self.step in self.rows or mean.save or mean.stop):
            return
        self.world.at, began = f"the end of {self.world.at}", time.monotonic()
        self._check_replicas()
        row = {
            **{"step": self.step, "epoch": recipe.epochs(self.step), "stage": stage.name, "rate": now.rate},
            "train_loss": sum(self.losses) / len(self.losses),
            "train_top1": sum(self.corrects) / len(self.corrects) / recipe.images_per_worker,
        }
        ends_stage, correct, model = now.iteration + 1 == stage.iterations, {}, {}
        if self.step in self.evaluations:
            with self._finished(now):
                result, correct = self._evaluated(finished=ends_stage)
                model = self.network.state() if ends_stage else {}
            row |= result
        row["seconds"] = self.seconds = self.earlier + time.monotonic() - self.began
        with self.world.together():
            if self.step in self.rows:
                self._write_row(row)
            if ends_stage and self.world.rank == 0:
                records.save_correct(self.run.folder, stage.name, correct)
                checkpoint.save(self.run.snapshot(stage.name), model, row)
            if ends_stage or mean.save or mean.stop or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
                self._save()
        self.evaluating += time.monotonic() - began
        if mean.stop and self.step < recipe.iterations:
            stop.asked.clear()
            raise Stopped(self._outlook())

    def facts(self) -> dict:
        """The final entries of a complete run's record; empty on ranks other than 0."""
        if self.world.rank != 0:
            return {}
        ends = {}
        for stage in self.task.recipe.stages:
            state, ends[stage.name] = checkpoint.load(self.run.snapshot(stage.name))
        times = {"seconds": self.seconds, "evaluating": self.evaluating}
        return {"ends": ends, **times, "weights_sha256": checkpoint.digest(state)}

    def _write_row(self, row: dict) -> None:
        self.losses, self.corrects = [], []
        if self.world.rank == 0:
            self.run.metric(row)
            log.info(describe(row, self.task.recipe.epochs()))

    @contextmanager
    def _finished(self, now: Now):
        """The network with its finished weights (`optim.Update.finished`), and statistics of the next images. Collective."""
        finished, network = self.update.finished(), self.network
        if finished is network.weights:
            yield
            return
        weights, statistics = network.weights.clone(), network.statistics.clone()
        network.weights.copy_(finished)
        recipe, settings = self.task.recipe, self.task.settings
        stream = Stream(self.task.train_images, settings.seed, recipe.images_per_worker)
        place = Place(now.place.steps + 1, now.place.images + recipe.batch(now.stage))
        following = replace(now, place=place)
        evaluate.recompute_statistics(self.world, network, stream, following, recipe.workers_per_pass, settings.precision)
        yield
        network.weights.copy_(weights)
        network.statistics.copy_(statistics)

    def _evaluated(self, finished: bool) -> tuple[dict, dict]:
        """Top-1, top-5 and loss; of a finished model in all views, and which images it recognised. Collective."""
        settings = self.task.settings
        options: dict = dict(device=settings.device, precision=settings.precision, threads=self.task.decoders)
        member = [(self.network.model, self.network.state())]
        if finished:
            return evaluate.in_all_views(self.world, member, self.task.test_images, **options)
        counted = evaluate.counts(self.world, member, self.task.test_images, **options)
        result = counted["members"][0]
        correct = {"test": result.pop("correct")}
        return {"images": counted["images"], **result}, correct

    def _check_replicas(self) -> None:
        """Raises on every rank unless weights, statistics and the update's vectors are bit-identical. Collective."""
        digest = 0
        for vector in (self.network.weights, self.network.statistics, *self.update.vectors.values()):
            digest = zlib.crc32(vector.cpu().numpy(), digest)  # type: ignore[arg-type]
        with self.world.together():
            if digest != self.world.broadcast(digest):
                raise ReproError(
                    f"the weights, statistics or update of rank {self.world.rank} are no longer those of rank 0: faulty "
                    f"memory, or an MPI that does not return the same sum on all ranks. The last checkpoint is from "
                    f"before; the same command continues from it."
                )

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.world.rank != 0:
            return
        self.run.flush()  # those rows are not written again
        folder = self.run.folder / "checkpoints"
        state = self.network.state() | {VECTOR + name: vector.cpu() for name, vector in self.update.vectors.items()}
        progress = {"run": self.run.folder.name} | {name: getattr(self, name) for name in CARRIED}
        checkpoint.save(folder / str(self.step), state, progress)
        checkpoint.prune(folder)

    def _resume(self) -> None:
        folder = self.run.folder / "checkpoints"
        state, progress = checkpoint.newest(folder)
        if progress.get("run") != self.run.folder.name:
            raise checkpoint.CheckpointError(
                f"the checkpoint in {folder} is of the run {progress.get('run')}: it does not belong in this folder"
            )
        try:
            for name, vector in self.update.vectors.items():
                vector.copy_(state.pop(VECTOR + name))
            self.network.load(state)
        except (KeyError, RuntimeError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint in {folder} is not of this network: {error}") from error
        for name in CARRIED:
            setattr(self, name, progress[name])
        log.info("continuing after step %d, from %s", self.step, self.run.folder)

    def _outlook(self) -> str:
        recipe, seconds, ranks = self.task.recipe, time.monotonic() - self.began, self.world.size
        rate = (recipe.images(self.step) - recipe.images(self.first)) / seconds
        left, images = recipe.iterations - self.step, recipe.images() - recipe.images(self.step)
        hours = images / rate / 3600
        return (
            f"stopped on request after step {self.step} of {recipe.iterations}. At this call's {rate:.3g} images/s on {ranks} "
            f"{'rank' if ranks == 1 else 'ranks'} (evaluations included), the other {left} steps of {images / left:.5g} "
            f"images take {hours:.3g} hours ({hours / 24:.3g} days). The same command continues the run."
        )
