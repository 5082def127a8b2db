"""Any `nn.Module` as flat vectors, with batch statistics as values; which model a name stands for, and on which device.

`Network` keeps parameters and running statistics as views of two flat vectors, and one worker's contribution to the average
(gradients, batch statistics, loss, number of correct predictions) as views of a third. The optimizer and the averaging
then work on whole vectors and know nothing about layers.
"""

import os
import random
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from repro import ReproError, choose
from repro.resnet import ResNet, build
from repro.run import own
from repro.run.settings import DEVICES, PRECISIONS
from repro.schedule import MODELS

ALIGNED = 4  # elements: cuBLAS and cuDNN read 16 bytes at once, and fail or fall back where a tensor begins in between
# With these set, oneDNN, MKL, torch or cuBLAS choose other kernels, some of a lower precision.
CHOOSING = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
RANDOM = "draws random numbers from {} generator in its forward pass, so the weights would depend on the number of ranks"
TRIES, TRYING = 16, 0.3  # passes over the same images, of a user's own model, and seconds after which there is no further one


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over one worker's images, which returns their mean and variance as buffers instead of accumulating them.

    `batch_mean` and `batch_var` (unbiased) are filled in training; with several workers they hold the means over workers. The
    running statistics change only through `Network.update_statistics`, after the averages over all workers are known.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    batch_mean: torch.Tensor
    batch_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    workers: int = 1  # whose images a batch holds, one worker's after the other's

    @classmethod
    def adopt(cls, norm: nn.Module) -> "BatchNorm":
        """Turns one of torch's batch norms into one of ours, in place, so that references to it stay valid."""
        norm.__class__ = cls
        assert isinstance(norm, cls)
        norm.register_buffer("batch_mean", torch.zeros_like(norm.running_mean), persistent=False)
        norm.register_buffer("batch_var", torch.ones_like(norm.running_var), persistent=False)
        return norm

    def forward(self, x):
        if not self.training:
            return self._normalise(x, self.running_mean, self.running_var, 0.0)
        if self.workers == 1:  # without a split: even into one part, its gradient is a copy
            return self._normalise(x, self.batch_mean, self.batch_var, 1.0)
        # Torch's own kernel once a worker: with momentum 1, 1/2, 1/3 ... its "running" statistics are the mean over workers.
        parts = enumerate(x.split(len(x) // self.workers), 1)
        return torch.cat([self._normalise(part, self.batch_mean, self.batch_var, 1 / n) for n, part in parts])

    def _normalise(self, x, mean, variance, momentum: float):
        """As F.batch_norm, without its checks, which cost a small network 5% of a step."""
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, self.weight, self.bias, mean, variance, self.training, momentum, self.eps, cudnn)


def builder(
    name: str, classes: int, channels: int, size: int, stride: str = "v1.5", zero_gamma: str = "last_of_stage"
) -> Callable[[], nn.Module]:
    """Returns a function that builds a model: ours, or a user's `mine.py:my_net`, called as my_net(classes=, channels=).

    A user's own model is tried on two random images of `size` pixels: raises ReproError if it cannot be trained, or if the same
    seed or the same images give different results.
    """
    if not own.is_own(name):
        choose("model", name, MODELS)
        return partial(build, name, classes, channels, stride, zero_gamma)
    function = own.load(name)
    if not callable(function):
        raise ReproError(f"{name} is not a function: write a `def my_net(classes, channels)` that returns a torch.nn.Module")
    build_own = partial(function, classes=classes, channels=channels)
    with torch.random.fork_rng(devices=[]):
        _try(name, build_own, torch.randn(2, channels, size, size), classes)
    return build_own


def _try(name: str, build_own: Callable, images: torch.Tensor, classes: int) -> None:
    """Builds a user's model and computes a few contributions; raises ReproError that names the failing part."""
    action = "is built"

    def built() -> Network:
        torch.manual_seed(0)
        model = build_own()
        if not isinstance(model, nn.Module):
            raise ReproError(f"it returned {type(model).__name__} and not a torch.nn.Module")
        return Network(model)

    def bits(network: Network) -> list[bytes]:  # in which NaN equals itself
        contribution = network.contribute(images, torch.arange(len(images)) % classes)
        return [vector.numpy().tobytes() for vector in (network.weights, contribution)]

    try:
        network = built()
        action = f"is trained on {tuple(images.shape)} images"
        first = bits(network)
        logits = tuple(network.model(images).shape)
        if logits != (len(images), classes):
            raise ReproError(f"it returned {logits} for {len(images)} images: it must return logits, {(len(images), classes)}")
        until = time.monotonic() + TRYING
        for _ in range(TRIES):
            if bits(network) != first:
                raise ReproError(
                    "the same images give different results, so the weights would depend on the number of ranks: remove what "
                    "is random in its forward pass, and what it remembers from one batch for the next"
                )
            if time.monotonic() > until:
                break
        if bits(built()) != first:
            raise ReproError("the same seed gives another network: draw what is random in it from torch's generator")
    except ReproError as error:
        raise ReproError(f"{name}: {error}") from error
    except Exception as error:
        raise ReproError(f"{name} fails when it {action} ({type(error).__name__}: {error}): fix it") from error


def generators(cuda: bool = False) -> dict[str, bytes]:
    """The states of the generators from which any code can draw random numbers, by whose they are."""
    of_torch = (torch.cuda if cuda else torch).get_rng_state().numpy().tobytes()
    of_numpy = [value.tobytes() if isinstance(value, np.ndarray) else value for value in np.random.get_state()]
    return {"torch's": of_torch, "Python's": repr(random.getstate()).encode(), "NumPy's": repr(of_numpy).encode()}


def find_device(name: str, node_rank: int = 0) -> str:
    """Returns the device of that name; "auto" is a GPU if torch sees one, otherwise the CPU.

    From then on, "cuda" is the GPU of this rank (the ranks of a node are assigned to its GPUs in turn), and this process, also
    where it evaluates or exports, uses deterministic kernels of cuDNN and no TF32.
    """
    if choose("device", name, DEVICES) == "cpu" or name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if not torch.cuda.is_available():
        raise ReproError("device cuda was requested, but this torch sees no GPU: use --device cpu")
    torch.cuda.set_device(node_rank % torch.cuda.device_count())
    # Without the first, cuDNN sums in varying order, and the same run twice ends with different weights. fp32 means float32.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return "cuda"


def find_precision(name: str, device: str, small: bool) -> str:
    """Returns the precision of that name; "auto" is bf16 if the device multiplies it natively and images are not small."""
    if choose("precision", name, PRECISIONS) != "auto":
        return name
    if small:  # a small network spends its time on starting operations, and bf16 needs more of them
        return "fp32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def kernels(device: str) -> str:
    """What decides the last bits besides packages: the GPU, or which of the processor's instructions torch uses.

    Variables of the environment that change this (`CHOOSING`) follow.
    """
    found = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return ", ".join([found, *(f"{name}={os.environ[name]}" for name in CHOOSING if os.environ.get(name))])


class Network:
    """A model whose parameters, statistics and gradients are views of flat vectors.

    weights       (P,) parameters, in the order in which backward yields their gradients; those of batch norm come last, from
                  index `undecayed` on. Each begins at a multiple of `ALIGNED`; what is between them stays zero
    statistics    (S,) running means and variances, placed in the same way; S is 0 without batch norm
    contribution  (P + S + 2,) one pass's part of the average: gradients, batch means and variances, then the mean loss of a
                  worker's images and their number of correct predictions; each is a sum over the workers of the pass

    The model, any that maps images (N, C, H, W) to logits (N, classes), is changed in place: torch's batch norms become
    `BatchNorm`, whose momentum is the argument of `update_statistics`. Parameters that require no gradient stay unchanged.
    Raises ReproError for a model that flat vectors cannot hold, or whose weights would depend on the number of ranks.
    """

    def __init__(self, model: nn.Module, device="cpu", images_per_worker: int = 0):
        """`images_per_worker`: of this many images the first are one worker's, the next another's; 0: all are one worker's."""
        _check(model)
        self.model = model.to(device)
        norms = [BatchNorm.adopt(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        trained = [parameter for parameter in reversed(list(model.parameters())) if parameter.requires_grad]
        gammas_betas = {id(p): p for norm in reversed(norms) for p in (norm.weight, norm.bias) if p.requires_grad}
        parameters = [p for p in trained if id(p) not in gammas_betas] + list(gammas_betas.values())
        self.undecayed = sum(_room(p) for p in trained if id(p) not in gammas_betas)
        self.ends = list(accumulate(map(_room, parameters)))  # in `weights`, of each parameter
        size = self.ends[-1]
        self.weights = torch.zeros(size, device=device)
        running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        batch = [buffer for norm in norms for buffer in (norm.batch_mean, norm.batch_var)]
        self.statistics = torch.zeros(sum(map(_room, running)), device=device)
        self.contribution = torch.zeros(size + len(self.statistics) + 2, device=device)
        self.gradients, self.batch_statistics = self.contribution[:size], self.contribution[size:-2]
        self.loss, self.correct = self.contribution[-2], self.contribution[-1]
        _adopt(parameters, self.weights)
        _adopt(running, self.statistics)
        _adopt(batch, self.batch_statistics)
        for parameter, gradient in zip(parameters, _views(parameters, self.gradients)):
            parameter.grad = gradient
        self.norms, self.parameters, self.images_per_worker = norms, parameters, images_per_worker
        self.examined = False
        # Only of our own networks is it known that they do the same operations each time.
        self.graphs: dict | None = {} if self.weights.is_cuda and type(model) is ResNet else None

    def contribute(self, images: torch.Tensor, labels: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
        """Forward and backward of the images (N, C, H, W) and labels (N,) of one or more workers; returns `contribution`.

        Raises ReproError in the first call if the model draws random numbers (`generators`), changes buffers other than batch
        norm's, or does not return logits (N, classes).
        """
        images, labels = images.to(self.weights.device), labels.to(self.weights.device)
        self.model.train()
        if self.graphs is None or not self.examined:
            self._compute(images, labels, precision)
        else:
            kind = images.shape, precision
            if kind not in self.graphs:
                self.graphs[kind] = Graph(partial(self._compute, precision=precision), images, labels)
            self.graphs[kind].replay(images, labels)
        return self.contribution

    @torch.no_grad()
    def observe(self, images: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
        """Forward of the images (N, C, H, W) of one or more workers; returns their batch statistics (S,), sums over workers."""
        self.model.train()
        self._forward(images.to(self.weights.device), precision)
        return self.batch_statistics

    def _forward(self, images: torch.Tensor, precision: str) -> torch.Tensor:
        """Returns logits (N, classes), and fills `batch_statistics`."""
        workers = len(images) // self.images_per_worker if self.images_per_worker else 1
        for norm in self.norms:
            norm.workers = workers
        # Without a cache of converted weights: each is used once, and a graph must not depend on what is kept from before.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            logits = self.model(images)
        if workers > 1:
            with torch.no_grad():
                self.batch_statistics *= workers
        return logits

    def _compute(self, images: torch.Tensor, labels: torch.Tensor, precision: str) -> None:
        self.gradients.zero_()
        buffers, drawn = ({}, {}) if self.examined else (self._constants(), generators(self.weights.is_cuda))
        logits = self._forward(images, precision)
        if not self.examined:
            self._examine(buffers, drawn, logits, labels)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") / (self.images_per_worker or len(labels))
        loss.backward()
        self.loss.copy_(loss.detach())
        self.correct.copy_((logits.detach().argmax(1) == labels).sum())

    def _constants(self) -> dict[str, torch.Tensor]:
        """Copies of the buffers that a forward pass must not change, those other than batch norm's, by name."""
        norms = {id(buffer) for norm in self.norms for buffer in norm.buffers()}
        return {name: buffer.clone() for name, buffer in self.model.named_buffers() if id(buffer) not in norms}

    def _examine(self, buffers: dict[str, torch.Tensor], drawn: dict[str, bytes], logits, labels) -> None:
        """Raises ReproError if the first forward pass changed `_constants` or `generators`, or did not return logits."""
        for whose, state in generators(self.weights.is_cuda).items():
            if state != drawn[whose]:
                raise ReproError(f"the model {RANDOM.format(whose)}: remove its dropout, or whatever else is random")
        for name, now in self._constants().items():
            if not torch.equal(buffers[name], now):
                raise ReproError(
                    f"the model changes its buffer {name} in its forward pass, so the weights would depend on the number of "
                    "ranks: only batch norm's buffers are averaged"
                )
        found: Any = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        classes = int(labels.max()) + 1  # there may be more
        if found[:1] != [len(labels)] or len(found) != 2 or found[1] < classes:
            raise ReproError(
                f"the model returned {found} for {len(labels)} images of {classes} or more classes: it must return logits, "
                "one row per image and one column per class"
            )
        self.examined = True

    @torch.no_grad()
    def update_statistics(self, batch_statistics: torch.Tensor, momentum: float) -> None:
        """Updates the running statistics with this step's averaged ones: a bias-corrected moving average.

        Caffe keeps a decayed sum and a decayed count and divides them; the same average has a momentum of
        m / (1 - (1 - m)**t) at its t-th step, which is 1 at the first. Without batch norm there is nothing to do.
        """
        if not self.norms:
            return
        self.norms[0].num_batches_tracked += 1
        for norm in self.norms[1:]:
            norm.num_batches_tracked.copy_(self.norms[0].num_batches_tracked)
        steps = int(self.norms[0].num_batches_tracked)
        self.statistics.lerp_(batch_statistics, momentum / (1 - (1 - momentum) ** steps))

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of parameters, statistics and other buffers under the model's names; for our models, torchvision's names."""
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Loads the values of `state`; raises RuntimeError if names or shapes differ."""
        self.model.load_state_dict(state)


def _check(model: nn.Module) -> None:
    """Raises ReproError for a model that flat vectors cannot hold, or whose weights would depend on the number of ranks."""
    spans = []  # memory ranges: (start, end, name)
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ReproError(f"parameter {name} has no shape yet: use a layer whose number of inputs is given")
        if parameter.dtype != torch.float32:
            raise ReproError(f"parameter {name} is {parameter.dtype}: make the model float32")
        spans.append((parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes, name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ReproError(
            f"the model ({type(model).__name__}) has no parameter that requires a gradient: nothing can be trained"
        )
    for (_, end, first), (start, _, second) in pairwise(sorted(spans)):
        if start < end:
            raise ReproError(f"parameters {first} and {second} share memory: use the same nn.Parameter in both places")
    for name, module in model.train().named_modules():
        what = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ReproError(what + " " + RANDOM.format("torch's") + ": remove it, or set its p to 0")
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm):
            raise ReproError(
                f"{what} is a batch norm, but none of torch's BatchNorm1d, BatchNorm2d and BatchNorm3d: use one of these"
            )
        if not module.affine or not module.track_running_stats:
            raise ReproError(f"{what} has no affine parameters or no running statistics: leave both at torch's default")
        if not module.training:
            raise ReproError(f"{what} stays in evaluation mode during training: leave its mode as model.train() sets it")


def _room(tensor: torch.Tensor) -> int:
    """The elements that a tensor takes in a flat vector, with those up to where the next one may begin."""
    return -(-tensor.numel() // ALIGNED) * ALIGNED


def _views(tensors, flat):
    """Views of `flat` in the tensors' shapes; convolution weights are channels-last, which is faster in oneDNN."""
    for room, tensor in zip(flat.split([_room(tensor) for tensor in tensors]), tensors):
        part = room[: tensor.numel()]
        if tensor.dim() == 4:
            outputs, inputs, height, width = tensor.shape
            yield part.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
        else:
            yield part.view(tensor.shape)


@torch.no_grad()
def _adopt(tensors, flat):
    """Moves the tensors' values into `flat` and makes them views of it."""
    for tensor, view in zip(tensors, _views(tensors, flat)):
        view.copy_(tensor)
        tensor.data = view


# --- On a GPU ---------------------------------------------------------------------------------------------------------

WARM_UP = 3  # passes before the recording, in which cuDNN and cuBLAS choose and allocate, as torch's documentation asks


class Graph:
    """Records `compute(images, labels)`, which must do the same operations each time; its results stay where it writes them."""

    def __init__(self, compute: Callable[[torch.Tensor, torch.Tensor], None], images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels, self.graph = images.clone(), labels.clone(), torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                compute(self.images, self.labels)
        torch.cuda.current_stream().wait_stream(aside)
        # Of this thread alone: NCCL's own thread may ask the GPU for something meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            compute(self.images, self.labels)

    def replay(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
