"""Counts against a slow, obvious loop, on any number of ranks; ensembles average predictions."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from on_ranks import evaluated

from repro import ReproError, evaluate
from repro.export import export
from repro.images.data import Images, Stream
from repro.model import Network
from repro.ranks.comm import World
from repro.resnet import build
from repro.run import checkpoint, records
from repro.run.shapes import recipe_of
from repro.schedule import Place, Recipe, Stage, at

from conftest import COUNTS

COUNT = 601  # three chunks, the last of them short
ALONE = World()


@pytest.fixture(scope="module")
def logits(digits):
    """Each of two random members' logits (float64), an image at a time, and the labels."""
    images, members = Images(digits, "test").first(COUNT), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build("resnet11", 10, 1).eval()
        with torch.no_grad():
            members.append([model(images.test_batch(i, i + 1)[0])[0].double().tolist() for i in range(COUNT)])
    return members, [images.load(i)[0] for i in range(COUNT)]


def places(scores, labels):
    """The place of each image's label among the classes, from 0."""
    return [sorted(range(10), key=lambda c: (-row[c], c)).index(label) for row, label in zip(scores, labels)]


def obvious(scores, labels):
    """Images whose label is first, and among the first five."""
    return {
        "top1": sum(place < 1 for place in places(scores, labels)),
        "top5": sum(place < 5 for place in places(scores, labels)),
    }


def softmax(row):
    powers = [2.718281828459045 ** (value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def mean(*rows):
    return [sum(values) / len(values) for values in zip(*rows)]


def random_states(number, spread=1.0):
    states = []
    for seed in range(1, number + 1):
        torch.manual_seed(seed)
        model = build("resnet11", 10, 1)
        with torch.no_grad():
            model.fc.weight.mul_(spread)
        states.append(model.state_dict())
    return states


def counts(digits, states, limit=COUNT, world=ALONE, **options):
    model = build("resnet11", 10, 1)
    return evaluate.counts(world, [(model, state) for state in states], Images(digits, "test").first(limit), **options)


def test_counts_equal_the_obvious_loop(digits, logits):
    members, labels = logits
    found = evaluated(World(), digits)
    assert found["images"] == COUNT
    for row, scores in zip(found["members"], members):
        assert {key: row[key] for key in ("top1", "top5")} == obvious(scores, labels)
        assert row["correct"] == [place == 0 for place in places(scores, labels)] and sum(row["correct"]) == row["top1"]
        entropy = -sum(torch.tensor(softmax(row)).log()[label].item() for row, label in zip(scores, labels)) / COUNT
        assert row["loss"] == pytest.approx(entropy, rel=1e-5)


def test_counts_need_not_guess_at_a_tie():
    correct, _ = evaluate._tally(torch.zeros(10, 10), torch.arange(10))  # all classes alike: the lower ones rank first
    assert correct.tolist() == [[place < 1 for place in range(10)], [place < 5 for place in range(10)]]


@pytest.mark.parametrize("average", ["softmax", "logit"])
def test_an_ensemble_averages_predictions(digits, average):
    states = random_states(3, spread=400)  # sure of themselves, so the two averages differ
    labels, members = [], [[] for _ in states]
    images, model = Images(digits, "test").first(COUNT), build("resnet11", 10, 1).eval()
    for member, state in zip(members, states):
        model.load_state_dict(state)
        with torch.no_grad():
            member.extend(model(images.test_batch(0, COUNT)[0]).double().tolist())
    labels = [images.load(i)[0] for i in range(COUNT)]
    votes = {"softmax": [mean(*map(softmax, rows)) for rows in zip(*members)], "logit": [mean(*rows) for rows in zip(*members)]}
    found = counts(digits, states, average=average)["ensemble"]
    assert {key: found[key] for key in ("top1", "top5")} == obvious(votes[average], labels)
    assert found["correct"].tolist() == [place == 0 for place in places(votes[average], labels)]
    assert obvious(votes["softmax"], labels) != obvious(votes["logit"], labels), "this test cannot tell them apart"


@pytest.mark.parametrize("average", ["softmax", "logit"])
def test_an_ensemble_of_one_is_its_member(digits, average):
    found = counts(digits, random_states(1), average=average)
    assert {key: found["ensemble"][key] for key in ("top1", "top5")} == {
        key: found["members"][0][key] for key in ("top1", "top5")
    }
    assert found["ensemble"]["loss"] == pytest.approx(found["members"][0]["loss"], rel=1e-9)


@pytest.mark.parametrize("limit", [1, 250, 601])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_shares_are_a_partition(digits, ranks, limit):
    """Simulated ranks whose sums are left undone: their counts add up to those of one rank."""
    states = random_states(2)

    def world(rank):
        return SimpleNamespace(
            rank=rank, size=ranks, sum=lambda array: None, together=nullcontext, check=lambda error: None, beat=lambda: None
        )

    shares = [counts(digits, states, limit, world(rank)) for rank in range(ranks)]
    one = counts(digits, states, limit)
    for kind in ("top1", "top5"):
        assert sum(share["ensemble"][kind] for share in shares) == one["ensemble"][kind]
        for member in range(2):
            assert sum(share["members"][member][kind] for share in shares) == one["members"][member][kind]


@pytest.mark.counts_for("evaluation")
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_real_ranks_count_the_same(digits, on_ranks, ranks):
    assert on_ranks(ranks).counts == evaluated(World(), digits)


@pytest.mark.counts_for("evaluation")
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_real_ranks_average_the_same_weights(run, digits, on_ranks, ranks):
    alone = evaluate.ensemble(str(run), ["main", "collapse"], "weights", digits, world=ALONE)
    assert on_ranks(ranks).mean_of_weights == alone


def test_evaluation_leaves_training_alone(digits):
    """The test images of a batch do not influence each other, and running statistics stay."""
    state = random_states(1)[0]
    model = build("resnet11", 10, 1)
    evaluate.counts(World(), [(model, state)], Images(digits, "test").first(300))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_unknown_average_is_told_what_was_meant(digits):
    with pytest.raises(ReproError, match="Did you mean logit?"):
        counts(digits, random_states(1), average="logits")


def test_the_zoomed_view_and_the_training_view_show_other_images_and_the_same_ones_each_time(digits):
    """Against the forward pass of each image alone, as `Images` shows it."""
    (state,), images, model = random_states(1, spread=400), Images(digits, "test").first(300), build("resnet11", 10, 1).eval()
    model.load_state_dict(state)
    found = {}
    for view in evaluate.VIEWS:
        counted = counts(digits, [state], limit=300, view=view)
        with torch.no_grad():
            scores = [model(images.test_batch(i, i + 1, view)[0])[0].double().tolist() for i in range(300)]
        labels = [images.load(i)[0] for i in range(300)]
        assert {key: counted["members"][0][key] for key in ("top1", "top5")} == obvious(scores, labels), view
        assert counts(digits, [state], limit=300, view=view)["members"][0]["loss"] == counted["members"][0]["loss"]
        found[view] = counted["members"][0]["loss"]
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("members", [1, 2])
def test_in_all_views_is_counts_of_each_view(digits, monkeypatch, members):
    monkeypatch.setitem(evaluate.VIEWS, "zoom", 100)
    states, images, model = random_states(members, spread=400), Images(digits, "test").first(301), build("resnet11", 10, 1)
    result, correct = evaluate.in_all_views(ALONE, [(model, state) for state in states], images, average="logit")
    assert list(correct) == ["test", "zoom", "scale_aspect"] and list(result["views"]) == ["zoom", "scale_aspect"]
    for view, number in (("test", 301), ("zoom", 100), ("scale_aspect", 301)):
        counted = counts(digits, states, limit=301, view=view, average="logit")
        expected = counted["ensemble"] if members > 1 else counted["members"][0]
        assert correct[view].tolist() == expected.pop("correct").tolist() and len(correct[view]) == number
        found = {**result, **result["views"]}[view] if view != "test" else {k: v for k, v in result.items() if k != "views"}
        assert found == {"images": number, **expected}


# --- Which images were recognised ------------------------------------------------------------------------------------------


def test_what_was_recognised_comes_back_as_it_was(tmp_path):
    correct = {"test": np.array([True, False, True]), "zoom": np.array([False])}
    records.save_correct(tmp_path, "a+b.softmax", correct)
    records.save_correct(tmp_path, "a", {"test": np.array([], bool)})
    found = records.load_correct(tmp_path, "a+b.softmax")
    assert {view: (array.dtype, array.tolist()) for view, array in found.items()} == {
        "test": (bool, [True, False, True]),
        "zoom": (bool, [False]),
    }
    assert records.load_correct(tmp_path, "a")["test"].tolist() == []
    assert sorted(path.name for path in (tmp_path / "correct").iterdir()) == ["a+b.softmax.npz", "a.npz"], "nothing temporary"


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "text", "flipped", "objects"])
def test_a_damaged_record_of_what_was_recognised_is_named(tmp_path, damage):
    path = tmp_path / "correct" / "main.npz"
    records.save_correct(tmp_path, "main", {"test": np.arange(1000) % 3 == 0})
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "objects":
        np.savez(path, test=np.array([{}], dtype=object))
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes(255 - byte for byte in content[middle : middle + 8]) + content[middle + 8 :]
        path.write_bytes({"empty": b"", "short": content[:-30], "text": b"not a file of arrays", "flipped": flipped}[damage])
    with pytest.raises(ReproError, match="correct/main.npz cannot be read .* delete the folder to train again"):
        records.load_correct(tmp_path, "main")


# --- Ensembles of a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def test_an_ensemble_of_a_run_averages_its_snapshots_and_is_recorded(run, digits, monkeypatch):
    for view in records.OTHER_VIEWS:
        monkeypatch.setitem(evaluate.VIEWS, view, 300)  # fewer images than there are
    states = [checkpoint.load(run / "snapshots" / stage)[0] for stage in ("main", "collapse")]
    views = {}
    for view, images in (("test", COUNTS["test"]), ("zoom", 300), ("scale_aspect", 300)):
        views[view] = counts(digits, states, limit=COUNTS["test"], view=view)["ensemble"] | {"images": images}
    correct = {view: expected.pop("correct").tolist() for view, expected in views.items()}
    for average in ("softmax", "logit", "softmax"):
        entry = evaluate.ensemble(str(run), members=["main", "collapse"], average=average, data=digits)
        if average == "softmax":
            expected = views["test"] | {"views": {view: views[view] for view in ("zoom", "scale_aspect")}}
            assert entry == {"members": ["main", "collapse"], "average": "softmax"} | expected
            found = records.load_correct(run, "main+collapse.softmax")
            assert {view: array.tolist() for view, array in found.items()} == correct
    assert [each["average"] for each in records.ensembles(run)] == ["logit", "softmax"], "one entry for each average"
    assert records.ensembles(run)[-1] == entry


def test_the_mean_of_weights_is_one_model_with_statistics_of_its_own(run, digits, monkeypatch):
    """Against plain sums, and torch's own batch norm over one worker's images at a time."""
    monkeypatch.setattr(evaluate, "STATISTICS_IMAGES", 50)
    recipe, stages = recipe_of(records.read(run)), ["main", "collapse"]
    states = [checkpoint.load(run / "snapshots" / stage)[0] for stage in stages]
    mean = {name: sum(state[name].double() for state in states) / 2 for name in states[0]}
    stream, seen = Stream(Images(digits, "train").first(recipe.epoch_images), 5, recipe.images_per_worker), []
    end = recipe.iterations  # the collapse goes on from main's end, so steps are places
    for step in range(end, end - (-50 // recipe.global_batch)):
        now = replace(at(recipe, end - 1), place=Place(step, step * recipe.global_batch))
        for worker in range(recipe.workers):
            model = build("resnet11", 10, 1)
            model.load_state_dict(mean)
            for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
                norm.momentum = 1.0  # nothing but this batch
            model(stream.batch(now, worker)[0])
            seen.append({name: value for name, value in model.state_dict().items() if "running" in name})
    mean |= {name: sum(each[name] for each in seen) / len(seen) for name in seen[0]}
    expected = counts(digits, [mean], limit=COUNTS["test"])["members"][0]
    for average in ("softmax", "weights"):
        entry = evaluate.ensemble(str(run), members=stages, average=average, data=digits)
    assert (entry["members"], entry["average"]) == (stages, "weights")
    assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert records.load_correct(run, "main+collapse.weights")["test"].tolist() == expected["correct"].tolist()
    assert [each["average"] for each in records.ensembles(run)] == ["softmax", "weights"]


def test_a_runs_own_members_are_its_collapses(run, digits):
    entry, end = evaluate.ensemble(str(run), data=digits), records.read(run)["ends"]["collapse"]
    assert entry["members"] == ["collapse"]
    assert (entry["top1"], entry["top5"]) == (end["top1"], end["top5"])
    one, end = (records.load_correct(run, name) for name in ("collapse.softmax", "collapse"))
    assert all((one[view] == end[view]).all() for view in ("test", "zoom", "scale_aspect"))


def test_an_ensemble_of_what_is_not_there_is_refused(run, killed, digits, tmp_path):
    for folder in (killed, tmp_path):
        with pytest.raises(ReproError, match="not the folder of a complete run"):
            evaluate.ensemble(str(folder), data=digits)
    with pytest.raises(ReproError, match="Did you mean collapse?"):
        evaluate.ensemble(str(run), members=["colapse"], data=digits)
    (run / "snapshots" / "main.safetensors").unlink()
    with pytest.raises(ReproError, match="no snapshot"):
        evaluate.ensemble(str(run), members=["main"], data=digits)


def test_a_run_of_somebody_else_does_not_write_outside_its_folder(run, digits):
    """Its stage is named so that the ensemble's file would be two folders above."""
    text = (run / "run.json").read_text().replace('"collapse"', '"../../escaped"')
    (run / "run.json").write_text(text)
    for suffix in ("safetensors", "json"):
        shutil.copyfile(run / "snapshots" / f"collapse.{suffix}", run.parent / f"escaped.{suffix}")
    before = set(run.parent.iterdir())
    with pytest.raises(ReproError, match="run.json is damaged .*a stage's name is '../../escaped'"):
        evaluate.ensemble(str(run), data=digits)
    assert set(run.parent.iterdir()) == before


def test_the_file_of_an_ensemble_of_many_members_has_a_short_name(tmp_path):
    members = [f"a_long_name_of_a_stage_{number:02}" for number in range(24)]
    names = {records.ensemble_name(chosen, average) for chosen in (members, members[::-1]) for average in ("softmax", "logit")}
    assert len(names) == 4 and records.ensemble_name(members, "logit") in names
    for name in names:
        records.save_correct(tmp_path, name, {"test": np.array([True, False])})
    assert records.tested(tmp_path) == sorted(names)
    assert records.ensemble_name(["a", "b"], "softmax") == "a+b.softmax"


def test_statistics_computed_again_are_the_mean_of_each_workers_own(digits, monkeypatch):
    monkeypatch.setattr(evaluate, "STATISTICS_IMAGES", 2 * 3 * 8 - 1)  # two steps of three workers
    recipe = Recipe("r", (Stage("s", 9, 0.1),), workers=3, images_per_worker=8)
    stream = Stream(Images(digits, "train"), 7, 8)
    torch.manual_seed(0)
    model = build("resnet11", 10, 1)
    network = Network(model, images_per_worker=8)
    before = network.weights.clone()
    evaluate.recompute_statistics(World(), network, stream, at(recipe, 5), 2, "fp32")
    assert torch.equal(network.weights, before)
    seen = [model.conv1(stream.batch(at(recipe, step), worker)[0]) for step in (5, 6) for worker in range(3)]
    means, variances = (torch.stack(values).mean(0) for values in zip(*((x.mean((0, 2, 3)), x.var((0, 2, 3))) for x in seen)))
    assert torch.allclose(model.bn1.running_mean, means, atol=1e-5)
    assert torch.allclose(model.bn1.running_var, variances, rtol=1e-4)


def test_the_result_of_a_recipe_without_members_is_its_last_stage(run, digits):
    record = json.loads((run / "run.json").read_text())
    for stage in record["recipe"]["stages"]:
        stage["member"] = False
    (run / "run.json").write_text(json.dumps(record))
    assert evaluate.ensemble(str(run), data=digits)["members"] == ["collapse"]
    assert [path.stem for path in map(Path, export(str(run), data=digits))] == [f"{run.name}-collapse"]
    assert records.result(run) == record["ends"]["collapse"]
