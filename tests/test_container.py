"""The image of slurm/container.def, built and run without Apptainer, which Debian 12 lacks, and without a registry of images.

buildah takes the definition's steps on a root made by debootstrap (mmdebstrap), as debian:bookworm-slim is one. Ranks are
started as on a cluster, by the host's mpiexec, and each enters the image by bubblewrap, as Apptainer does it: a read-only
root, the host's processes, network, devices and environment, and some of its folders.
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from repro.run import records

from conftest import ROOT, SMOKE, mpiexec, run

DEFINITION = (ROOT / "slurm" / "container.def").read_text()
TOOLS = "buildah", "mmdebstrap", "bwrap"
BUILD = 1500  # seconds, most of them to fetch torch and copy it


def section(name: str) -> str:
    return re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.M | re.S)[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The image's files."""
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent or os.geteuid() != 0:
        pytest.skip(f"no {', '.join(absent) or 'root'} here: `make test-image` installs what it can")
    folder = tmp_path_factory.mktemp("image")
    storage = ["--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs"]

    def buildah(*words, timeout=BUILD) -> str:
        done = run("buildah", *storage, *words, timeout=timeout)
        assert done.returncode == 0, f"buildah {words}: {done.stderr[-3000:]}"
        return done.stdout.strip()

    made = run("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", folder / "base.tar", timeout=BUILD)
    assert made.returncode == 0, made.stderr
    container = buildah("from", "scratch")
    try:
        buildah("add", "--quiet", container, folder / "base.tar", "/")
        for line in section("files").strip().splitlines():
            *sources, target = line.split()
            for source in sources:
                folders = (ROOT / source).is_dir() or target.endswith("/")
                to = f"{target.rstrip('/')}/{source}" if target.endswith("/") else target
                assert folders, f"{line}: name a folder"
                buildah("copy", "--quiet", container, ROOT / source, to)
        buildah(
            "run", "--isolation", "chroot", "--network", "host", *of_the_host(), container, "--", "sh", "-ec", section("post")
        )
        yield Path(buildah("mount", container))
    finally:
        buildah("rm", "--all")
        shutil.rmtree(folder)


def of_the_host() -> list[str]:
    """Options by which the build fetches packages as `make setup` does here: from its cache, with its certificates."""
    cache = run(Path(sys.executable).parent / "uv", "cache", "dir").stdout.strip()
    mounts = {cache: "/host-cache", "/etc/ssl/certs": "/host-certificates"}
    environment = {"UV_CACHE_DIR": "/host-cache"}
    if (certificates := Path("/etc/ssl/certs/ca-certificates.crt")).exists():
        file = f"/host-certificates/{certificates.name}"
        environment |= dict.fromkeys(["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"], file)
    return [
        *(word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}")),
        *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
    ]


@pytest.fixture(scope="module")
def in_the_image(root, tmp_path_factory):
    """A command that runs Python in the image, with the MPI library of this environment and a folder of the host."""
    environment = Path(sys.prefix)
    library = next((environment / "lib").glob("libmpi.so*"), None)
    if not library:
        pytest.skip("no MPI library in this environment: `make setup` puts MPICH's there")
    shared = tmp_path_factory.mktemp("shared")
    for folder in (environment / "lib", shared):  # as Apptainer does it; the image's root is read-only for bwrap
        (root / str(folder).lstrip("/")).mkdir(parents=True, exist_ok=True)
    script = shared / "python"
    exports = "; ".join(line.strip() for line in section("environment").strip().splitlines())
    host = [f"--{kind} {path} {path}" for kind, path in (("ro-bind", environment / "lib"), ("bind", shared))]
    script.write_text(f"""#!/bin/sh
exec bwrap --ro-bind {root} / --dev-bind /dev /dev --proc /proc --bind /tmp /tmp {" ".join(host)} \\
    --setenv PATH /usr/bin:/bin --setenv LD_LIBRARY_PATH {environment / "lib"} --setenv HOME /tmp --chdir / \\
    sh -c {shlex.quote(exports + '; exec python "$@"')} - "$@"
""")
    script.chmod(0o755)
    return script, shared


@pytest.mark.slow
def test_two_ranks_in_the_image_train_the_weights_of_those_outside(in_the_image, digits):
    python, shared = in_the_image
    shutil.copytree(digits, shared / "digits")
    train = ["-m", "repro", "train", SMOKE["recipe"], "--shrink", SMOKE["shrink"], "--device", "cpu"]
    train += ["--data", shared / "digits"]
    outside = mpiexec(2, *train, "--out", shared / "outside", timeout=600, PYTHONPATH=str(ROOT))
    assert outside.returncode == 0, outside.stderr
    launcher = Path(sys.executable).parent / "mpiexec"
    listed = run(launcher, "-n", 2, python, "-m", "repro", "ranks", PYTHONPATH="")
    assert "all 2 ranks see each other" in listed.stdout, listed.stdout + listed.stderr
    inside = run(launcher, "-n", 2, python, *train, "--out", shared / "inside", timeout=600, PYTHONPATH="")
    assert inside.returncode == 0, inside.stderr
    found = [records.read(Path(done.stdout.splitlines()[-1])) for done in (outside, inside)]
    assert found[0]["ranks"] == found[1]["ranks"] == 2
    assert found[0]["weights_sha256"] == found[1]["weights_sha256"]


@pytest.mark.slow
def test_one_process_in_the_image_needs_no_mpi(root):
    exports = "; ".join(line.strip() for line in section("environment").strip().splitlines())
    program = f"{exports}; {section('runscript').strip()}"
    listed = run("bwrap", "--ro-bind", root, "/", "--dev", "/dev", "--proc", "/proc", "sh", "-c", program, "-", "recipes")
    assert listed.returncode == 0 and "resnet50_448nodes " in listed.stdout, listed.stderr
