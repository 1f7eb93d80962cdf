# `make` lists the targets. Every target makes the environment first; after that, make only compares time stamps.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.complete
SERVICES := .venv-services/.complete
LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet --no-emit-index-url
export PATH := $(CURDIR)/$(BIN):$(PATH)
# macOS's make 3.81 looks simple commands up itself, in the PATH of before, unless this is set
SHELL := bash
# a container's user may have no home to write uv's cache to
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export UV_NO_CACHE := 1
endif

# one that broke off before pip was in it, or is of another Python than the system's now, is made anew
define make_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Lineup needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(@D)/bin/pip && $(@D)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(@D)/bin/uv pip install --python $(@D)/bin/python --quiet --compile-bytecode --require-hashes -r $<
	$(@D)/bin/uv pip install --python $(@D)/bin/python --quiet --no-deps -e .
	touch $@
endef

$(ENV): requirements.lock pyproject.toml
	$(make_environment)

$(SERVICES): requirements-services.lock pyproject.toml  # dvc-s3 holds python-dateutil back
	$(make_environment)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-16s%s\n", $$1, $$2}'

repro: git $(ENV)  ## run the pipeline: data, all architectures, leaderboard, champion; JOBS=4 trains four at a time
	@# a killed dvc may leave an empty one, which stops all others; of the future: the clock was set back
	@find .dvc/tmp/rwlock -empty \( -mmin +1 -o -newermt '1 minute' \) -delete 2>/dev/null || true
	$(if $(filter-out 1,$(JOBS)),python -m stages.train_all $(JOBS))
	dvc repro

git:
	@grep -qs no_scm .dvc/config .dvc/config.local || git rev-parse --git-dir >/dev/null || \
		{ echo "DVC needs a Git repository, and git says why it has none here. Clone it, or: git init && git add --all &&" \
		"git commit -m start; or, without Git: make .venv/.complete; .venv/bin/dvc config --local core.no_scm true"; exit 2; }
	@grep -qs no_scm .dvc/config .dvc/config.local || \
		{ git config user.name && git config user.email; } >/dev/null || \
		echo "dvc exp run will need to know who you are:" \
		"git config --global user.name Ann; git config --global user.email ann@example.org"

test: $(ENV)  ## what must hold of the code, in under five minutes
	python -m pytest -q

test-slow: $(ENV)  ## what takes minutes: browsers, servers, kills
	python -m pytest -q -m slow

test-services: $(SERVICES)  ## a team's servers: PostgreSQL (Debian's package), MLflow with passwords, S3
	.venv-services/bin/python -m pytest -q -m services tests/services

ui: $(ENV)  ## browse experiments and models: MLflow on http://127.0.0.1:5000
	@echo 'Runs of the first dataset: http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning'
	@echo 'All: click Model training at the top left, which the browser remembers, then Experiments'
	mlflow ui --host 127.0.0.1

cluster: $(ENV)  ## add Ray: then LINEUP_RAY=host:port trains on its nodes
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode --require-hashes -r requirements-cluster.lock

search: $(ENV)  ## find better settings of one architecture: make search A=cnn, twenty minutes
	python -m stages.search $(or $(A),cnn)

sync: $(ENV)  ## record in MLflow what it lacks
	python -m stages.sync

NO_SCORES := Created|.*[./]|(val|test)_|(dataset|model|seed|architectures|parameters|models|evaluation)$$
experiments: $(ENV)  ## compare DVC's experiments: what differs, what ships, each validation score
	@dvc exp show --only-changed --no-pager --drop 'Created|val_|.*/|(?!(dataset|model|seed)$$)[a-z0-9]+$$'
	@echo "Each architecture's validation score:"
	@dvc exp show --only-changed --no-pager --drop '$(NO_SCORES)'

report: $(ENV)  ## one self-contained page: report.html
	python -m stages.report

demo: $(ENV)  ## draw a digit in the browser and see what the registered models say
	python -m stages.demo

lint: $(ENV)  ## ruff: mistakes and formatting
	ruff check .
	ruff format --check .

BENCHMARKS := "loop.py speed" latency.py tracking.py tutorials.py "growth.py images" "growth.py runs"
bench: $(ENV)  ## measure speed, an hour on an idle machine: ratios of what alternates, also in benchmarks.md
	dvc repro --quiet
	for each in $(BENCHMARKS); do printf "\n## %s\n\n" "$$each"; python tests/benchmarks/$$each || exit; done > benchmarks.md
	cat benchmarks.md

verify: $(ENV)  ## train MNIST with precision: portable, and compare the bytes with ours
	python tests/benchmarks/portable.py

lock: $(ENV)  ## choose the newest versions that fit together
	$(LOCK) --upgrade --extra test --extra tensorboard --extra demo pyproject.toml -o requirements.lock
	$(LOCK) --extra cluster --constraint requirements.lock pyproject.toml -o requirements-cluster.lock
	cp requirements.lock requirements-services.lock  # uv keeps what it finds there, where it can
	$(LOCK) --extra test --extra services pyproject.toml -o requirements-services.lock

clean:  ## remove what runs made: models, evaluation, export; DVC's cache and MLflow's store stay
	rm -rf models evaluation export data/raw data/split runs report.html dvc_plots seeds search

.PHONY: help git repro test test-slow test-services ui cluster search sync experiments report demo lint bench verify lock clean
