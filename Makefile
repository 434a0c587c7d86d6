# make demo | make test | make quality | make bench: each creates the virtual environment when it is missing.
# Variables may be overridden: make test VENV=/tmp/venv PYTEST_ARGS="-k lpg -x"

PYTHON ?= python3
VENV ?= .venv
PY ?= $(VENV)/bin/python
# Of `make fuzz`: inputs of each kind, which ones (each seed gives others), where their files lie (in memory, where the system
# has such a place), and arguments of pytest that choose kinds, such as `-k coco`.
FUZZ_INPUTS ?= 100000
FUZZ_SEED ?= 0
FUZZ_TMP ?= $(shell test -w /dev/shm && echo /dev/shm)
FUZZ_ARGS ?=
# Extra arguments for pip, such as an index that serves CPU builds of torch.
PIP_ARGS ?=
# One worker per core; a test uses one thread (OMP_NUM_THREADS).
PYTEST_ARGS ?= -n auto --dist loadfile
DEMO ?= runs/demo
# What `benchmarks/tables.py run` gets, such as `ablations/base --data /photographs`; nothing: every cell.
BENCH_ARGS ?=
# The photographs of `make bench-domains`, where its results go, and further arguments.
DATA ?= $(LPG_HF_DATA)
DOMAINS ?= runs/domains
DOMAINS_ARGS ?=
SPEED_ARGS ?=
# Of `make lpg-base`: what `benchmarks/lpg_small.py data --archive` wrote, and further settings of the training.
ARCHIVE ?= lpg_base.tar
LPG_BASE_ARGS ?=
GPU_ARGS ?=
DEMO_CONFIG ?= training/configs/quickstart.yaml
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
# All are given so that accelerate has no default to warn about (its own is a single CPU thread); a GPU is used if there is one.
LAUNCH ?= $(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(THREADS)
STAMP := $(VENV)/.installed
SOURCES := lpg_hf training tests $(wildcard benchmarks examples)

.PHONY: install demo bench bench-domains bench-speed lpg-base gpu-check test test-slow test-floors crash fuzz test-peer \
	test-consumers quality style clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@# The dense CRF is compiled from source: without a compiler everything else still works and its tests are skipped.
	$(PY) -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e ".[crf]" \
		|| echo "note: pydensecrf2 could not be built (a C++ compiler is needed); going on without the dense CRF"
	touch $(STAMP)

demo: $(STAMP)
	$(PY) -m lpg_hf.data.synthetic $(DEMO)/data
	$(LAUNCH) training/em.py --config $(DEMO_CONFIG)
	$(LAUNCH) training/deploy.py --config $(DEMO_CONFIG)
	$(PY) benchmarks/demo_photos.py data $(DEMO)/photos
	$(PY) -m lpg_hf.cli masks $(DEMO)/photos/boxes.json --images $(DEMO)/photos/images --out $(DEMO)/photos/masks --model lpg-base \
		--write png,coco --overwrite
	$(PY) benchmarks/demo_photos.py panel $(DEMO)/photos

# Every cell that is not finished, then results/TABLES.md: many hours for all; it may be stopped, and the same command resumes it.
bench: $(STAMP)
	$(PY) benchmarks/tables.py run $(BENCH_ARGS); failed=$$?; $(PY) benchmarks/tables.py render && exit $$failed

# IoU per box of the bundled generators and of those without training in twelve sets, boxes as they are and moved:
# make bench-domains DATA=/photographs DOMAINS_ARGS="--limit 30"
bench-domains: $(STAMP)
	$(PY) benchmarks/domains.py --data $(DATA) --out $(DOMAINS) $(DOMAINS_ARGS)

# lpg-base from an archive of its data, on a GPU if there is one; 14 hours on a CPU core. The same command goes on where it was stopped.
# make lpg-base ARCHIVE=lpg_base.tar LPG_BASE_ARGS="--run.num_workers 8"
LPG_BASE_DATA := runs/lpg_base_data
lpg-base: $(STAMP) $(LPG_BASE_DATA)
	$(LAUNCH) training/em.py --config training/configs/lpg_base.yaml --aux.annotations $(LPG_BASE_DATA)/boxes.json \
		--aux.images $(LPG_BASE_DATA) $(LPG_BASE_ARGS)

$(LPG_BASE_DATA):
	mkdir -p $@.part && tar -xf $(ARCHIVE) -C $@.part && mv $@.part $@

# results/SPEED.md: some minutes; make bench-speed SPEED_ARGS="--against ../before" compares with another checkout.
bench-speed: $(STAMP)
	$(PY) benchmarks/speed.py --quick $(SPEED_ARGS)

# What has to be seen once on a GPU: minutes, into results/gpu; make gpu-check GPU_ARGS="--device cpu --tiny" is a dry run.
gpu-check: $(STAMP)
	$(PY) benchmarks/gpu_check.py $(GPU_ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest $(PYTEST_ARGS)

# What takes minutes: runs that are killed and resumed, checkpoints without the package, notebooks.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "slow and not gpu and not peer and not consumers" $(PYTEST_ARGS)

# The tests with the oldest versions that pyproject.toml allows, in an environment of their own. Of torch pip's choice.
FLOORS ?= .venv-floors

test-floors:
	test -x $(FLOORS)/bin/python || $(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints-oldest.txt -e ".[dev]"
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest $(PYTEST_ARGS)

# Kills, signals, full disks and several processes at once, for every command that writes: about half an hour.
ROUNDS ?= 12

crash: $(STAMP)
	LPG_HF_CRASH_ROUNDS=$(ROUNDS) OMP_NUM_THREADS=1 $(PY) -m pytest tests/crash -n 0 -m ""

# Changed files of every kind that is read (tests/fuzz): five to twenty-five minutes a kind and core; the first fault of a kind ends it.
fuzz: $(STAMP)
	TMPDIR=$(FUZZ_TMP) LPG_HF_FUZZ=$(FUZZ_INPUTS) LPG_HF_FUZZ_SEED=$(FUZZ_SEED) OMP_NUM_THREADS=1 $(PY) -m pytest tests/fuzz \
		-o timeout=0 -o tmp_path_retention_policy=failed -n auto $(FUZZ_ARGS)

test-peer: $(STAMP)
	$(PY) tests/peer/fetch.py
	LPG_HF_PEER=1 OMP_NUM_THREADS=1 $(PY) -m pytest tests/peer -m "" $(PYTEST_ARGS)

# The packages that read what we write, at fixed versions, without what only their other parts need.
CONSUMERS := .cache/consumers
CONSUMER_PACKAGES := labelme==6.0.0 ultralytics==8.4.190 ultralytics-thop matplotlib contourpy cycler fonttools kiwisolver pyparsing \
	polars polars-runtime-32

test-consumers: $(STAMP)
	$(PY) -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --upgrade --no-deps --target $(CONSUMERS) \
		$(CONSUMER_PACKAGES)
	LPG_HF_CONSUMERS=$(CURDIR)/$(CONSUMERS) OMP_NUM_THREADS=1 $(PY) -m pytest tests/consumers -m "" $(PYTEST_ARGS)

quality: $(STAMP)
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)
	$(PY) -m vulture
	$(PY) -m pyright --pythonpath $(PY)

style: $(STAMP)
	$(PY) -m ruff check --fix $(SOURCES)
	$(PY) -m ruff format $(SOURCES)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache $(DEMO)
