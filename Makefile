# make demo | serve | test | lint | bakeoff | bakeoff-mnist | bench-gain | bench-speed | bench-students | bench-null | bench-drift | bench-modes | bench-rejected | soak | kills | scale | pins | readme | clean; all but the last make the environment too. Nothing is installed outside .venv.
PYTHON ?= python3
BIN := .venv/bin
UV := 0.13.8
STAMP := .venv/.installed

export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
# Without compiled bytecode each process of a run would compile torch and the rest again: seconds a stage.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo serve test lint bakeoff bakeoff-mnist bench-gain bench-speed bench-students bench-null bench-drift bench-modes bench-rejected soak kills scale pins readme clean

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is missing or older than 3.11; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) lacks the module venv; install it (Debian: apt install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	$(BIN)/tailforge run --no-release

# Prefect's server at 127.0.0.1:4200, its workers and this project's schedule, until Ctrl-C.
serve: install
	$(BIN)/tailforge serve

# One for each processor and one more, since some wait for servers, at most four, each on a thread. The tests of a file share what
# they start, so a file stays together. In the order of tests/conftest.py: by default files of few tests come last, and those are
# the longest.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/lint-imports

pins:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --group dev pyproject.toml -o requirements.txt

# Every family of generators on the embedded digits: docs/bakeoff.md, docs/bakeoff.csv and pictures.
bakeoff: install
	$(BIN)/tailforge bakeoff --out docs -S measure.rows=300

# The same on MNIST with its long-tail list, from the folder of data sets that TAILFORGE_DATASETS names.
MNIST := .tailforge/mnist
bakeoff-mnist: install
	@test -f "$(TAILFORGE_DATASETS)/mnist/mnist_lt_ir100.json" || \
		{ echo "error: TAILFORGE_DATASETS=$(TAILFORGE_DATASETS) holds no mnist with its list mnist_lt_ir100.json" >&2; exit 2; }
	test -d $(MNIST) || $(BIN)/tailforge init $(MNIST) --data $(TAILFORGE_DATASETS)/mnist
	cp $(TAILFORGE_DATASETS)/mnist/mnist_lt_ir100.json $(MNIST)/data/lists/
	cd $(MNIST) && $(CURDIR)/$(BIN)/tailforge bakeoff --name mnist --out $(CURDIR)/docs \
		-S scarcity.kind=ids -S scarcity.ids=data/lists/mnist_lt_ir100.json \
		-S sample.fill_to=200 -S sample.surplus=1.0 -S measure.rows=100

# Every arm on real scarce data, five seeds: benchmarks/results and docs/benchmarks.md. DATASETS="digits wbc_bccd@1" for some, @1 with another seed.
bench-gain: install
	$(BIN)/python -m benchmarks.gain $(DATASETS)

# On what bench-gain left: a student's plan, one change at a time (docs/experiments.md); how often A/A is called a gain.
bench-students: install
	$(BIN)/python -m benchmarks.students $(DATASETS)

bench-null: install
	$(BIN)/python -m benchmarks.null $(DATASETS)

# How often equal data are called drifted, and how often a change is found (docs/drift.md).
bench-drift: install
	$(BIN)/python -m benchmarks.drift

# Settings of the classifier's modes, on validation rows: a table in docs/encoder.md.
bench-modes: install
	$(BIN)/python -m benchmarks.modes $(DATASETS)

# What the gate rejects: a table in docs/validation.md.
bench-rejected: install
	$(BIN)/python -m benchmarks.rejected $(DATASETS)

# Twenty scheduled runs in a row while their parts are killed: docs/soak.md. About half an hour.
soak: install
	$(BIN)/python -m benchmarks.soak

# Whole runs killed thirty times at random moments, compared with one undisturbed: docs/kills.md.
kills: install
	$(BIN)/python -m benchmarks.kills

# Speed beside a plain recipe, cost a row, packing, overhead: benchmarks/results and docs/speed.md. PARTS="scaling packing" for some.
bench-speed: install
	$(BIN)/python -m benchmarks.speed $(PARTS)

# What a million images would take on 8, 64 and 512 GPUs: docs/scale.md, from what bench-speed and bakeoff have left.
scale: install
	$(BIN)/python -m benchmarks.scale

# The table in README.md from the metrics.json that is there.
readme: install
	$(BIN)/python -m benchmarks.readme_table

clean:
	rm -rf .venv .tailforge dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
