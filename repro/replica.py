"""What each rank trains: one of several identical copies of the network, with the rule that updates it."""

from dataclasses import dataclass

import torch

from repro.allreduce import Average
from repro.model import Network
from repro.optim import Update
from repro.overlap import average_for
from repro.ranks.comm import World
from repro.ranks.memory import keep_freed


@dataclass(frozen=True)
class Replica:
    """The network, whose weights are bit-identical on all ranks (in `exact`, on any number of them), and what updates it."""

    world: World  # the ranks, of which this process is one
    network: Network
    update: Update
    average: Average  # over all workers
    precision: str  # fp32 or bf16
    bn_momentum: float = 0.05  # share of a step's batch statistics in the running ones


def assemble(world, task) -> Replica:
    """Returns the replica of a `task.Task`, with the initial weights of its seed. Collective on GPUs."""
    recipe, settings = task.recipe, task.settings
    keep_freed()
    torch.set_num_threads(settings.threads)  # kernels split their sums by thread, so the result depends on it
    torch.manual_seed(settings.seed)
    network = Network(task.build(), settings.device, recipe.images_per_worker)
    average = average_for(settings.reduction, world, recipe.workers, network, recipe.workers_per_pass)
    return Replica(world, network, task.make_update(network), average, settings.precision, recipe.bn_momentum)
