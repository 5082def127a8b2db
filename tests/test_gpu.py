"""On a real GPU: the same bits each time, on ranks that share it and after a kill; graphs; alignment; NCCL; evaluation."""

import json
from pathlib import Path

import pytest
import torch

from repro import evaluate
from repro.images.data import Images
from repro.model import Network, find_device
from repro.ranks import comm, nccl
from repro.resnet import build
from repro.train import train

from conftest import SMOKE, kill_after_first_checkpoint, mpiexec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")
ON_GPU = SMOKE | {"device": "cuda"}


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> Path:
    return Path(train(**ON_GPU, data=digits, out=str(tmp_path_factory.mktemp("gpu"))))


def weights_of(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["weights_sha256"]


def batch(images: int, size: int, channels: int, classes: int):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, channels, size, size, generator=generator), torch.arange(images) % classes


def test_the_same_run_again_has_the_same_bits(trained, digits, tmp_path):
    assert weights_of(Path(train(**ON_GPU, data=digits, out=str(tmp_path)))) == weights_of(trained)


def test_two_ranks_that_share_a_gpu_have_the_bits_of_one(trained, digits, tmp_path):
    command = ["-m", "repro", "train", ON_GPU["recipe"], "--shrink", "smoke", "--seed", ON_GPU["seed"], "--device", "cuda"]
    done = mpiexec(2, *command, "--data", digits, "--out", tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert weights_of(next(tmp_path.iterdir())) == weights_of(trained)


def test_a_killed_run_that_continues_has_the_same_bits(trained, digits, tmp_path):
    killed = kill_after_first_checkpoint(tmp_path, **ON_GPU, data=digits)
    assert "weights_sha256" not in json.loads((killed / "run.json").read_text())
    assert weights_of(Path(train(**ON_GPU, data=digits, out=str(tmp_path)))) == weights_of(trained)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name, workers, size, channels", [("resnet50", 1, 64, 3), ("resnet11", 4, 8, 1)])
def test_a_graph_has_the_bits_of_the_pass_that_it_records(precision, name, workers, size, channels):
    device, found = find_device("cuda"), []
    images, labels = batch(16 * workers, size, channels, 10)
    for graphs in (True, False):
        torch.manual_seed(0)
        network = Network(build(name, 10, channels), device, 16 if workers > 1 else 0)
        if not graphs:
            network.graphs = None
        for _ in range(4):  # the first pass is examined, the second recorded
            images = images.flip(0)
            found.append(network.contribute(images, labels, precision).cpu().clone())
        assert not graphs or len(network.graphs) == 1
    for number in range(4):
        assert torch.equal(found[number], found[4 + number]), f"pass {number}"
    assert not torch.equal(found[2], found[3]), "a graph computes the images that it is given"


@pytest.mark.parametrize("classes", [3, 7, 10, 365])
def test_any_number_of_classes_can_be_trained_and_a_gpu_finds_the_cpus_gradient(classes):
    """With 10 classes the classifier's weights would begin in the middle of 16 bytes, where a GPU's matrix product fails."""
    images, labels = batch(16, 8, 1, classes)
    found = []
    for device in ("cpu", find_device("cuda")):
        torch.manual_seed(0)
        found.append(Network(build("resnet11", classes, 1), device).contribute(images, labels).cpu())
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-5


def test_nccl_sums_vectors_that_stay_on_the_gpu():
    find_device("cuda")
    group, vector = nccl.Group(comm.World(), "nccl"), torch.arange(1000, device="cuda")
    group.sum(vector)
    requests = [group.start_sum(vector[:10])]
    group.finish(requests)
    assert torch.equal(vector.cpu(), torch.arange(1000)), "of one rank, the sum is its own"


def test_a_model_has_the_same_accuracy_on_gpu_and_cpu(digits):
    torch.manual_seed(1)
    model = build("resnet11", 10, 1)
    state = model.state_dict()
    images = Images(digits, "test").first(601)
    on_cpu = evaluate.counts(comm.World(), [(model, state)], images)["members"][0]
    on_gpu = evaluate.counts(comm.World(), [(model.to(find_device("cuda")), state)], images, device="cuda")["members"][0]
    assert abs(on_cpu["top1"] - on_gpu["top1"]) <= 2 and on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-4)
