"""A network's forward and backward pass as one CUDA graph, which the GPU runs without waiting for Python.

With 16 images per worker, as in the release, a GPU finishes a layer before Python can launch the next. A graph is recorded
once, then launched as a whole; its kernels, and so its bits, are those of the pass that was recorded. It keeps the memory of
that pass.
"""

from collections.abc import Callable

import torch

WARM_UP = 3  # passes before the recording, in which cuDNN and cuBLAS choose and allocate, as torch's documentation wants it


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
