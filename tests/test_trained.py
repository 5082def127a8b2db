"""Which code trained the runs in a folder: this one, or another, and then what has changed since."""

import pytest

from repro import ReproError
from repro.run import trained

DEFINITIONS = {"same": "1", "step": "2", "gone_since": "3", "train": "4"}


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A folder of runs whose code was noted and then changed."""
    monkeypatch.setattr(trained, "code_definitions", lambda: DEFINITIONS)
    monkeypatch.setattr(trained, "code_digest", lambda: "earlier")
    trained.note(tmp_path)
    monkeypatch.setattr(trained, "code_definitions", lambda: {"same": "1", "step": "5", "train": "6", "added": "7"})
    monkeypatch.setattr(trained, "code_digest", lambda: "now")
    return tmp_path


def test_runs_by_the_code_at_hand_are_said_to_be(noted):
    assert trained.by(noted, [("now", "0.2.0+abc")] * 2) == "trained by this code"


def test_what_has_changed_since_is_named(noted):
    said = trained.by(noted, [("earlier", "0.2.0+abc")] * 2)
    changes = "step (changed), train (changed), gone_since (gone), added (new)"
    assert said == f"trained by other code (0.2.0+abc): 4 definitions differ: {changes}"
    some = trained.by(noted, [("earlier", "0.2.0+abc"), ("now", "0.2.0+def"), ("earlier", "0.2.0+abc")])
    assert some.startswith("2 of them trained by other code (0.2.0+abc): 4 definitions differ: ")


def test_many_changes_are_counted_and_the_first_named(noted, monkeypatch):
    monkeypatch.setattr(trained, "code_definitions", lambda: {f"name{number:02}": "0" for number in range(30)})
    said = trained.by(noted, [("earlier", "0.2.0")])
    assert ": 34 definitions differ: gone_since (gone), same (gone), " in said and said.endswith("name07 (new) and 22 more")


def test_code_that_was_not_noted_is_other_code_and_no_more_is_known(noted):
    for codes in (["before"], ["before", "earlier"]):
        said = trained.by(noted, [(code, f"0.1.{number}") for number, code in enumerate(codes)])
        assert said == f"trained by other code ({', '.join(f'0.1.{number}' for number in range(len(codes)))})"


def test_the_same_definitions_under_another_digest_are_no_difference(noted, monkeypatch):
    monkeypatch.setattr(trained, "code_definitions", lambda: DEFINITIONS)
    assert trained.by(noted, [("earlier", "0.2.0")]) == "trained by other code (0.2.0): no definitions differ"


@pytest.mark.parametrize("content", ["{", "[]", '{"code": "earlier", "version": "", "definitions": {"step": 1}}'])
def test_a_damaged_note_is_named(noted, content):
    (noted / trained.NAME).write_text(content)
    with pytest.raises(ReproError, match="code.json is damaged .*: delete it"):
        trained.by(noted, [("earlier", "0.2.0")])
