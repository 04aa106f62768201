# SPDX-License-Identifier: Apache-2.0
# The commands of this repository. `make` alone lists them.

EPISODES ?= 20
# Policy file that `make demo` runs.
POLICY ?= policies/lift.onnx
# Length of each case of `make bench-realtime` [s].
SECONDS_EACH ?= 30
# Options of the random part of `make test-faults`.
CHAOS ?= --minutes 15
# cpu or gpu: which ONNX Runtime to install, see requirements/runtime-*.txt.
RUNTIME ?= cpu
# Package index to take torch from, for another build than the default one (such as torch's own index of CPU builds).
TORCH_INDEX ?=
# Further options for pytest, such as PYTEST="-k safety".
PYTEST ?=
# The interpreter that makes the environment: the first of these that can run OTPR. `make PYTHON=...` names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	if $$python -c $(SUPPORTED) >/dev/null 2>&1; then command -v $$python; break; fi; done)

SUPPORTED := 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
VENV := .venv
BIN := $(VENV)/bin
# As a module: pip's script for the command does not start from a path that has a space in it.
OTPR := $(BIN)/python -m otpr_policy.cli
# One empty file per finished step. A step is done again when the files that it depends on are newer.
DONE := $(VENV)/done
SRC := ros2_ws/src
# `make test` has two parts: tests of simulation and training, which share the cores, and all others, which have them to themselves because
# many are about time. Where PYTEST chooses, it may choose none of a part, pytest's exit status 5; without it, no tests are an error.
NONE_CHOSEN = $(if $(PYTEST),5,an error)
CONSTRAINTS := requirements/constraints.txt
# Conflicts are not reported because robosuite's wishes are ignored on purpose (requirements/sim-nodeps.txt).
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-warn-conflicts
EDITABLE := $(PIP) --no-deps --no-build-isolation
FAILED = { echo "make: '$@' failed: read the lines above, check the network and the free disk space, then run make again" >&2; exit 1; }

# The ROS wheels mark an environment whose library path they have set; a mark inherited from another environment would be wrong here.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
# Nor may modules of another ROS or Python installation come before those of the environment.
unexport PYTHONPATH
unexport AMENT_PREFIX_PATH

.DELETE_ON_ERROR:
.PHONY: help demo walkthrough test test-slow test-faults check format train-lift bench-sim bench-candidates bench-transport bench-bridger bench-inference bench-realtime bench-ros mutate-safety env env-sim env-trainer clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done

demo: env-sim  ## run the shipped policy, or POLICY=FILE, on the simulated robot over ROS 2 (EPISODES=20); needs no torch
	@$(OTPR) demo $(POLICY) --episodes $(EPISODES) --out out/demo --overwrite

walkthrough: env-trainer  ## docs/walkthrough.md: demonstrations by scripted keys, cloning, export, trials of two policies (a quarter of an hour)
	@$(BIN)/python tests/walkthrough.py

test: check  ## checks and tests, what CI runs; without those that take minutes each
	@$(BIN)/python -m pytest -m "not slow" tests/sim tests/trainer -n auto --maxprocesses 4 --dist loadfile $(PYTEST) || [ $$? = "$(NONE_CHOSEN)" ]
	@$(BIN)/python -m pytest -m "not slow" --ignore tests/sim --ignore tests/trainer $(PYTEST) || [ $$? = "$(NONE_CHOSEN)" ]

test-slow: env  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(PYTEST)

test-faults: env  ## fault injection: every fault, then 15 minutes of them at random (CHAOS="--hours 8 --seed 3"); writes out/faults/chaos.json
	@$(BIN)/python -m pytest -m faults $(PYTEST)
	@PYTHONPATH=tests $(BIN)/python -m faults.chaos $(CHAOS)

check: env  ## style, format, types, Dockerfile
	@echo "== checking style, format, types and Dockerfile"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile

format: env  ## put all files into the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

train-lift: env-trainer  ## from no data to out/lift/lift.onnx: demonstrations, training, export, evaluation
	$(OTPR) demos collect --task lift --episodes 100 --out out/lift/demos --overwrite
	$(OTPR) train bc --task lift --demos out/lift/demos --out out/lift/run --overwrite
	$(OTPR) export out/lift/run --out out/lift/lift.onnx --overwrite
	$(OTPR) eval out/lift/lift.onnx --task lift --episodes 100

bench-sim: env-sim  ## steps per second of the simulation: stock robosuite, ours, MuJoCo alone; writes out/bench/sim.json
	@$(BIN)/python benchmarks/sim.py

bench-candidates: env-trainer  ## what 8 candidates and the critic that chooses cost on one thread; writes out/bench/candidates.json
	@$(BIN)/python benchmarks/candidates.py

bench-transport: env-trainer  ## time of exact transport plans, ours and POT's side by side; writes out/bench/transport.json
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/transport.py

bench-bridger: env-trainer  ## success of BRIDGER by steps, source, form and demonstrations against DDIM (hours; goes on where it was); writes runs/bridger
	@$(BIN)/python benchmarks/bridger.py --out runs/bridger

mutate-safety: env  ## breaks the safety layer in every small way and asks whether a test notices; writes out/mutation/safety.json
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/mutate_safety.py

bench-inference: env-trainer  ## one inference on one thread: torch, the exported graph, plain C; writes out/bench/inference.json
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/inference.py

bench-realtime: env-sim  ## missed ticks of a 100 Hz loop beside busy processes, with SCHED_FIFO and without (SECONDS_EACH=30; 600 is the long one)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/realtime.py --seconds $(SECONDS_EACH)

bench-ros: env-sim  ## from observation to command over ROS 2, against a bare rclpy echo node; writes out/bench/ros_latency.json
	@OMP_NUM_THREADS=1 ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST $(BIN)/python benchmarks/ros_latency.py

env: env-trainer $(DONE)/dev  ## the whole environment, in .venv

env-sim: $(DONE)/robot $(DONE)/sim $(DONE)/packages $(DONE)/otpr

env-trainer: env-sim $(DONE)/trainer $(DONE)/packages-trainer

clean:  ## remove the environment, builds and caches; out/ and runs/ stay
	rm -rf $(VENV) ros2_ws/build ros2_ws/install ros2_ws/log .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf $(SRC)/*/build $(SRC)/*/*.egg-info sim/build sim/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DONE)/venv:
	@if [ -z "$(PYTHON)" ]; then echo "make: no Python 3.10 to 3.13 found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi
	@if ! $(PYTHON) -c $(SUPPORTED) 2>/dev/null; then echo "make: $(PYTHON) is not Python 3.10 to 3.13; name another: make PYTHON=/path/to/python" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "make: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; fi
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || $(FAILED)
	@$(PIP) -c $(CONSTRAINTS) -r requirements/build.txt || $(FAILED)
	@mkdir -p $(DONE) && touch $@

# Each of these is ordered after the one that it builds on, so that `make -j` does not run two pips in one environment.

$(DONE)/robot: requirements/robot.txt requirements/runtime-$(RUNTIME).txt requirements/ros.txt $(CONSTRAINTS) | $(DONE)/venv
	@echo "== installing the robot's side: numpy, ONNX Runtime, ROS 2"
	@$(PIP) -c $(CONSTRAINTS) -r requirements/robot.txt -r requirements/runtime-$(RUNTIME).txt -r requirements/ros.txt || $(FAILED)
	@touch $@

$(DONE)/sim: requirements/sim.txt requirements/sim-nodeps.txt $(CONSTRAINTS) | $(DONE)/robot
	@echo "== installing the simulator: MuJoCo, robosuite"
	@$(PIP) -c $(CONSTRAINTS) -r requirements/sim.txt || $(FAILED)
	@$(PIP) -c $(CONSTRAINTS) --no-deps -r requirements/sim-nodeps.txt || $(FAILED)
	@touch $@

$(DONE)/packages: $(SRC)/otpr_policy/setup.py $(SRC)/otpr_operator/setup.py sim/setup.py | $(DONE)/sim
	@echo "== installing our own packages, editable"
	@$(EDITABLE) -e $(SRC)/otpr_policy -e $(SRC)/otpr_operator -e sim || $(FAILED)
	@touch $@

# Not editable: launch files and robot contracts are data, which an editable install leaves out.
$(DONE)/otpr: $(SRC)/otpr/setup.py $(SRC)/otpr/package.xml $(wildcard launch/*.launch.py) $(wildcard $(SRC)/otpr/config/robots/*.yaml) | $(DONE)/packages
	@echo "== installing launch files and robot contracts"
	@$(EDITABLE) --force-reinstall ./$(SRC)/otpr || $(FAILED)
	@touch $@

$(DONE)/torch: requirements/torch.txt $(CONSTRAINTS) | $(DONE)/otpr
	@echo "== installing torch (the largest download)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c $(CONSTRAINTS) -r requirements/torch.txt || $(FAILED)
	@touch $@

$(DONE)/trainer: requirements/trainer.txt $(CONSTRAINTS) | $(DONE)/torch
	@echo "== installing the trainer"
	@$(PIP) -c $(CONSTRAINTS) -r requirements/trainer.txt || $(FAILED)
	@touch $@

$(DONE)/packages-trainer: $(SRC)/otpr_trainer/setup.py | $(DONE)/trainer
	@$(EDITABLE) -e $(SRC)/otpr_trainer || $(FAILED)
	@touch $@

$(DONE)/dev: requirements/dev.txt $(CONSTRAINTS) | $(DONE)/packages-trainer
	@echo "== installing what tests and checks need"
	@$(PIP) -c $(CONSTRAINTS) -r requirements/dev.txt || $(FAILED)
	@touch $@
