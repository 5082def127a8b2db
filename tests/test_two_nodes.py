"""Two network namespaces: a way between them, and nothing left behind. Skipped where the machine does not allow them."""

import subprocess

import pytest

from bench import two_nodes


def names() -> list[str]:
    return [
        line.split()[0] for line in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines()
    ]


@pytest.fixture
def allowed():
    try:
        with two_nodes.connected(1000):
            pass
    except two_nodes.NoNamespaces as error:
        pytest.skip(f"no network namespaces here: {error}")


def test_each_sees_its_own_end_of_the_wire_only(allowed):
    with two_nodes.connected(1000) as places:
        for number, place in enumerate(places, 1):
            shown = subprocess.run([*place, "ip", "-o", "-4", "address"], capture_output=True, text=True).stdout
            assert f"10.77.0.{number}/24" in shown and f"10.77.0.{3 - number}/" not in shown
            assert two_nodes.DEVICE in shown


def test_nothing_is_left_behind_whatever_happens_inside(allowed):
    before = names()
    with pytest.raises(KeyError), two_nodes.connected(1000):
        assert len(names()) == len(before) + 2
        raise KeyError
    assert names() == before


def test_what_a_killed_process_left_is_removed_by_the_next(allowed):
    dead = subprocess.Popen(["true"])
    dead.wait()
    subprocess.run(["ip", "netns", "add", f"repro-{dead.pid}-a"], check=True)
    with two_nodes.connected(1000):
        assert f"repro-{dead.pid}-a" not in names()


def test_without_ip_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(two_nodes.NoNamespaces, match="iproute2"), two_nodes.connected(1000):
        pass
