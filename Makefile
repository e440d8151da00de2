# SPDX-License-Identifier: Apache-2.0
#
# make run     watch this machine (installs what is missing first)
# make demo    the same, with a few local HTTP programs to look at
# make test    all checks and tests
# make image   a container image for the nodes of a Kubernetes cluster
#
# ARGS='...' is passed on: `make run ARGS='--listen 127.0.0.1:9500'`, `make test-unit ARGS='-k btf'`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
OUT := src/podscope/_bpf
ARGS ?=

# Looked up when used, not when read: `packages` may have to install them first.
first_of = $(shell for c in $(1); do command -v $$c && exit; done; echo $(firstword $(1)))
CLANG ?= $(call first_of,clang-19 clang-20 clang-21 clang)
LLVM_STRIP ?= $(call first_of,llvm-strip-19 llvm-strip-20 llvm-strip-21 llvm-strip)
CLANG_FORMAT ?= $(call first_of,clang-format-19 clang-format)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

MACHINE := $(shell uname -m)
ARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,x86,$(MACHINE)))
BPF_CFLAGS := -g -O2 -target bpf -D__TARGET_ARCH_$(ARCH) -Wall -Werror -Ibpf \
	-idirafter /usr/include/$(MACHINE)-linux-gnu
BPF_OBJECTS := $(patsubst bpf/%.bpf.c,$(OUT)/%.bpf.o,$(wildcard bpf/*.bpf.c))
# For kernels whose BPF has no atomic fetch instructions (before Linux 5.12).
OLDER := $(foreach name,http listen tcp dns,$(if $(wildcard bpf/$(name).bpf.c),$(name)))
BPF_OBJECTS += $(OLDER:%=$(OUT)/%_v2.bpf.o)
C_SOURCES = $(shell find bpf bench tests -name '*.[ch]' 2>/dev/null)
PYTHON_SOURCES := $(wildcard src tests demo bench bpf) hatch_build.py
KERNEL_TESTS := $(wildcard tests/kernel)

.PHONY: help
help:
	@sed -n '/^# make /s/^# //p' Makefile
	@echo 'also: fuzz lint format format-check types bpf wheel test-unit test-kernel test-kernels bench clean'

# --- what is needed -------------------------------------------------------------------------

.PHONY: packages test-packages
packages:
	@scripts/install-packages run
test-packages:
	@scripts/install-packages run test

$(VENV)/.made: | packages
	@echo '  VENV    $(VENV)'
	@scripts/make-venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml hatch_build.py | bpf
	@echo '  PIP     podscope'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed pyproject.toml
	@echo '  PIP     tools for tests'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

.PHONY: venv dev
venv: $(VENV)/.installed
# Byte code is written by the user, so that root leaves no files behind.
	@$(BIN)/python -m compileall -q src/podscope
dev: $(VENV)/.dev test-packages

# --- kernel programs ------------------------------------------------------------------------

.PHONY: bpf bpf-objects
bpf: bpf-objects | packages
bpf-objects: $(BPF_OBJECTS)

define compile_bpf
@command -v $(CLANG) >/dev/null || { echo 'podscope: clang is not installed: apt install clang-19 llvm-19, or set CLANG=/path/to/clang' >&2; exit 1; }
@command -v $(LLVM_STRIP) >/dev/null || { echo 'podscope: llvm-strip is not installed: apt install llvm-19, or set LLVM_STRIP=/path/to/llvm-strip' >&2; exit 1; }
@mkdir -p build/bpf $(OUT)
@echo '  BPF     $@'
@$(CLANG) $(BPF_CFLAGS) $(1) -MMD -MP -MT $@ -MF build/bpf/$(@F:.o=.d) -c $< -o build/bpf/$(@F)
@$(LLVM_STRIP) -g build/bpf/$(@F) -o $@
endef

$(OUT)/%.bpf.o: bpf/%.bpf.c Makefile | maybe-packages
	$(call compile_bpf,-mcpu=v3)

$(OLDER:%=$(OUT)/%_v2.bpf.o): $(OUT)/%_v2.bpf.o: bpf/%.bpf.c Makefile | maybe-packages
	$(call compile_bpf,-mcpu=v2 -DPODSCOPE_NO_ATOMICS -DPODSCOPE_NO_LOOP)

# The build of a wheel may not install packages: it compiles with what is there.
.PHONY: maybe-packages
ifeq ($(filter bpf-objects,$(MAKECMDGOALS)),)
maybe-packages: packages
else
maybe-packages: ;
endif

-include $(wildcard build/bpf/*.d)

# --- use ------------------------------------------------------------------------------------

.PHONY: run demo
run: venv bpf
	@$(SUDO) $(BIN)/podscope up $(ARGS)

demo: venv bpf
	@$(BIN)/python demo/run.py $(SUDO) $(BIN)/podscope up $(ARGS)

# --- checks ---------------------------------------------------------------------------------

.PHONY: lint format format-check types
lint: dev
	@$(BIN)/ruff check --quiet $(PYTHON_SOURCES)

format: dev
	@$(BIN)/ruff check --quiet --select I --fix $(PYTHON_SOURCES)
	@$(BIN)/ruff format --quiet $(PYTHON_SOURCES)
	@[ -z '$(C_SOURCES)' ] || $(CLANG_FORMAT) -i $(C_SOURCES)

format-check: dev
	@$(BIN)/ruff format --quiet --diff $(PYTHON_SOURCES)
	@[ -z '$(C_SOURCES)' ] || $(CLANG_FORMAT) --dry-run --Werror $(C_SOURCES)

types: dev
	@$(BIN)/mypy --no-error-summary

.PHONY: test test-unit test-kernel test-kernels
# What failed is kept there: ARGS=--last-failed runs that again.
PYTEST := PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -o cache_dir=build/tested
test: lint format-check types bpf
	@$(SUDO) env $(PYTEST) tests/unit $(KERNEL_TESTS) tests/engines $(ARGS)

test-unit: dev bpf
	@$(PYTEST) tests/unit $(ARGS)

test-kernel: dev bpf
	@$(SUDO) env $(PYTEST) tests/kernel $(ARGS)

# The same tests on other kernels, in QEMU; needs root.
test-kernels: dev bpf
	@$(SUDO) $(BIN)/python tests/kernels/run $(ARGS)

# In the cluster that PODSCOPE_KUBECONFIG names; see tests/cluster/conftest.py.
.PHONY: test-cluster
test-cluster: dev
	@$(PYTEST) tests/cluster $(ARGS)

# Pure parts of the kernel programs, built for this machine, under sanitizers.
FUZZ_SECONDS ?= 60
.PHONY: host fuzz
host: dev
	@$(MAKE) -s -f tests/host/build.mk CLANG='$(CLANG)' host-programs host-fuzzer
test test-unit: host

fuzz: host
	@PYTHONPATH=tests/unit $(BIN)/python -B -m h1_messages build/host/corpus
	@build/host/h1_fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -verbosity=0 \
		-dict=tests/host/h1.dict -artifact_prefix=build/host/ build/host/corpus
	@echo 'fuzz: nothing found in $(FUZZ_SECONDS) s'

.PHONY: bench bench-objects
bench-objects: bpf $(patsubst bench/bpf/%.bpf.c,build/bench/%.bpf.o,$(wildcard bench/bpf/*.bpf.c))
build/bench/%.bpf.o: bench/bpf/%.bpf.c Makefile
	@mkdir -p $(@D)
	@echo '  BPF     $@' >&2
	@$(CLANG) $(BPF_CFLAGS) -mcpu=v3 -c $< -o $@

bench: dev bench-objects
	@$(SUDO) bench/run $(ARGS)

# --- release --------------------------------------------------------------------------------

.PHONY: wheel
wheel: dev bpf
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls -1t dist/*.whl | head -1

# A container image for the nodes of a cluster: dist/podscope-image.tar, named $(IMAGE).
# What it installs with pip is fetched here, for the Python of its base.
IMAGE ?= docker.io/library/podscope:dev
IMAGE_PYTHON := 3.11
ENGINE ?= $(call first_of,buildah docker)
PLATFORMS := linux manylinux2014 manylinux_2_28
# ARGS, such as --isolation=chroot, are passed to the engine.
.PHONY: image
image: wheel
	@rm -rf dist/wheels dist/podscope-image.tar
	@echo '  PIP     dist/wheels'
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --dest dist/wheels \
		--only-binary :all: --python-version $(IMAGE_PYTHON) \
		$(PLATFORMS:%=--platform %_$(MACHINE)) \
		"$$(ls -1t dist/*.whl | head -1)[kubernetes,otlp-grpc,sinks]"
	@echo '  IMAGE   $(IMAGE)'
	@ENGINE='$(ENGINE)' scripts/build-image '$(IMAGE)' dist/podscope-image.tar $(ARGS)

.PHONY: clean
clean:
	rm -rf build dist $(OUT) $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests demo -name __pycache__ -type d -prune -exec rm -rf {} +
