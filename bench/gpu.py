"""How fast ResNet-50 trains on one GPU with the released images per worker, beside PyTorch's own loop on the same GPU.

The loops take turns for several rounds; images are in the host's memory. Writes results/bench/gpu.json:

    python -m bench.gpu
"""

import time
from itertools import repeat

import torch
from torch.nn import functional as F

from bench.report import row, save
from repro import ReproError, train
from repro.allreduce import Average
from repro.model import Network, find_device
from repro.optim import SGD
from repro.ranks import comm
from repro.replica import Replica
from repro.resnet import build
from repro.scaling.probe import steady
from repro.schedule import at

IMAGES = 16, 32, 64, 128  # per worker: 16 and 32 are the release's
WORKERS = 8  # of a step on this GPU; they are computed one after the other
ROUNDS, SECONDS = 5, 0.6
RATE, WEIGHT_DECAY = 0.0, 5e-5  # the images are always the same: at rate 0 the weights stay finite, and the work is the same


def batch(images: int, size: int = 224):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    return pixels, torch.randint(1000, (images,), generator=generator)


def ours(images: int, graphs: bool = True):
    """A function that trains a step of `WORKERS` workers, and the number of its images."""
    network = Network(build("resnet50", 1000), find_device("cuda"))
    if not graphs:
        network.graphs = None
    average = Average("exact", comm.World(), WORKERS, network)
    recipe, batches = steady(WORKERS, images, RATE), repeat(batch(images))
    replica = Replica(comm.World(), network, SGD(network, recipe), average, "bf16")
    return lambda: float(train.step(replica, batches, at(recipe, 0)).loss), WORKERS * images


def pytorch(images: int, graphs: bool = False, tuned: bool = False):
    """A plain loop: a step has one batch, and its loss is read at each step, as ours is.

    cuDNN is set as for `ours`, unless `tuned`: then it chooses its algorithms by trying them, when the graphs are recorded, the
    batch is copied from pinned memory, and the update is one fused kernel.
    """
    from torchvision.models import resnet50

    model = resnet50().cuda().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, fused=tuned)
    pixels, labels = (part.pin_memory() if tuned else part for part in batch(images))
    run = model
    if graphs:
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=tuned, deterministic=not tuned, allow_tf32=False)
        with cudnn, torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            run = torch.cuda.make_graphed_callables(model, (pixels.cuda(),))

    def step():
        there = [part.to("cuda", non_blocking=tuned) for part in (pixels, labels)]
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=not graphs):
            loss = F.cross_entropy(run(there[0]), there[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, images


LOOPS = {
    "ours": ours,
    "ours, without graphs": lambda images: ours(images, graphs=False),
    "PyTorch": pytorch,
    "PyTorch, graphed": lambda images: pytorch(images, graphs=True),
    "PyTorch, graphed and tuned": lambda images: pytorch(images, graphs=True, tuned=True),
}


def images_per_second(step, images: int, seconds: float) -> float:
    torch.cuda.synchronize()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        step()
        steps += 1
    torch.cuda.synchronize()
    return steps * images / (time.perf_counter() - start)


def main() -> None:
    if not torch.cuda.is_available():
        raise ReproError("torch sees no GPU on this machine: there is nothing to measure")
    torch.manual_seed(0)
    rows = []
    for images in IMAGES:
        loops = {name: make(images) for name, make in LOOPS.items()}
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(ROUNDS + 1):
            for name, (step, count) in loops.items():
                rates[name] += [images_per_second(step, count, SECONDS if number else 0.3)]
        rates = {name: each[1:] for name, each in rates.items()}  # the first round warms up
        for peer in list(LOOPS)[1:]:
            unit = f"images/s, ResNet-50 at 224 px, bf16, {images} images per worker"
            rows.append(row("training on one GPU", rates["ours"], rates[peer], peer, unit))
            print(f"{images:4} images: {rows[-1]['ours']:6.0f} against {rows[-1]['peer']:6.0f} {peer}", flush=True)
        del loops, step
        torch.cuda.empty_cache()
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    save("gpu", rows, {"command": "python -m bench.gpu", "rounds": ROUNDS} | gpu)


if __name__ == "__main__":
    main()
