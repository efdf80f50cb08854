# Every recipe works from a bare environment: .venv is made where it is missing, and its programs come first on PATH.
PYTHON ?= python3
PIP_ARGS ?=
PARAMS ?=
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
WORLD ?= work/world
VARIANT ?= scalar_rgb
INSTALLED := .venv/.installed
LOCK_VENV := .venv-lock

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test up down drill drill-operations drill-restore drill-team world base base-cpu base-more base-flow lint format lock render clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(INSTALLED)  ## Make .venv with the pinned dependencies (PIP_ARGS="..." goes to pip, e.g. for another build of torch)

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) flows/preflight.py
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## The whole pipeline on the demo clips (PARAMS=params/smoke.yaml: every step, in minutes, in a copy)
	@python flows/preflight.py
	python -m flows demo $(if $(PARAMS),--params $(PARAMS))

test: $(INSTALLED)  ## The tests
	@python flows/preflight.py
	python -m pytest

up: $(INSTALLED)  ## Prefect, workers and MLflow on loopback, with all deployments (PREFECT_PORT=4200 MLFLOW_PORT=5000)
	@python -m flows up --prefect-port $(PREFECT_PORT) --mlflow-port $(MLFLOW_PORT)

down: $(INSTALLED)  ## End what `make up` started here, and nothing else
	@python -m flows down

drill-operations: $(INSTALLED)  ## Two weeks of operation against real servers: better, worse, rollback (some minutes)
	python -m tests.drills.two_weeks

drill-restore: $(INSTALLED)  ## Back up a project that runs, lose it, restore it, and compare what is served (some minutes)
	python -m tests.drills.restore

drill-team: $(INSTALLED)  ## Two workers in two clones, PostgreSQL and an S3 server as plain processes (some minutes)
	python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[team]'
	python -m tests.drills.team

drill: $(INSTALLED)  ## Kill both trainings in the middle and compare the models' bytes; the slow tests (some minutes)
	python -m tests.drills.kill_and_resume
	python -m pytest -m drill

world: $(INSTALLED)  ## Render and pack the base model's training world (an hour; VARIANT=llvm_ad_rgb needs LLVM, else many)
	python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[render]'
	python -m demo.render world --out $(WORLD)/objects --variant $(VARIANT)
	python -m demo.render pack --world $(WORLD)/objects --out $(WORLD)/shards

base: $(INSTALLED)  ## Train and export checkpoints/base from the world (one GPU, 20 minutes)
	python -m imprint train-base --shards $(WORLD)/shards --params params/base.yaml

base-cpu: $(INSTALLED)  ## The same on two idle CPU cores, within two hours
	OMP_WAIT_POLICY=ACTIVE python -m imprint train-base --shards $(WORLD)/shards --params params/base-cpu.yaml

base-more: $(INSTALLED)  ## Go on training checkpoints/base, 80 min on one CPU core with AVX512_BF16; as often as you like
	python -m imprint train-base --shards $(WORLD)/shards --params params/base-more.yaml --work work/base-more

base-flow: $(INSTALLED)  ## Train the appearance flow of checkpoints/base alone, 75 min on one CPU core with AVX512_BF16
	python -m imprint train-base --shards $(WORLD)/shards --params params/base-flow.yaml --work work/base-flow

lint: $(INSTALLED)  ## Style and types
	python -m ruff check .
	python -m ruff format --check .
	python -m pyright

format: $(INSTALLED)  ## Mend the style
	python -m ruff check --fix .
	python -m ruff format .

lock:  ## Renew constraints.txt: the newest that pyproject.toml allows, in a fresh environment
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev,render,team]'
	head -n 1 constraints.txt > constraints.new
	$(LOCK_VENV)/bin/python -m pip freeze --exclude-editable | sed -E 's/\+[A-Za-z0-9.]+$$//' | sort -f >> constraints.new
	mv constraints.new constraints.txt
	rm -rf $(LOCK_VENV)

render: $(INSTALLED)  ## Render the shipped clips and test cases anew (hours)
	python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[render]'
	python -m demo.render

clean:  ## Remove what the pipeline made here; .venv and DVC's cache stay
	rm -rf data models reports metrics work mlruns mlflow.db dvc.lock demo/dvc.lock .prefect
