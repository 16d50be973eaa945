# Every target that needs root says so. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
LINK := /usr/local/bin/dnatctl
COMPILED := build/compiled/.ready
PREFIX := /usr/local
SOAK_DEATHS := 200
SOAK_HISTORIES := 20
FUZZ_SECONDS := 60

.PHONY: help setup compiled demo demo-contrast test unit unit-compiled bpf netns conformance packaging store vm-test vm-short vagrant-test bench bench-short load load-short soak fuzz lint format reference install uninstall deb install-test clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP) $(if $(filter 0,$(shell id -u)),$(LINK)) ## install packages, make the virtual environment, put dnatctl on the PATH (root)

$(STAMP): pyproject.toml scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) LINK=$(LINK) scripts/setup.sh
	@touch $@

# A link into a checkout that is no more counts as missing.
$(LINK): | $(STAMP)
	@ln -sfn $(CURDIR)/$(VENV)/bin/dnatctl $@

compiled: $(COMPILED) ## the port server's pure modules as C extensions, in build/compiled (a C compiler, Python's headers)

$(COMPILED): $(STAMP) setup.py $(shell find control ebpf -name '*.py' -o -name '*.[ch]')
	@rm -rf build/compiled/dnat
	@DNAT_COMPILE=1 $(PY) -W ignore setup.py -q build --build-lib build/compiled
	@touch $@

demo: setup ## two phones behind one address make real calls (root)
	@$(VENV)/bin/dnatctl lab demo

demo-contrast: setup ## the same calls through masquerading, an ALG, a relay and dnat: a table and a picture (root, 5 min)
	@$(PY) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[bench]'
	@PYTHONPATH=tests/bench $(PY) -m dnatcontrast

# Daemons and packets share the processors with whatever else runs there. A test of theirs that fails is tried once
# more and named at the end; a layer with more than three of them fails (tests/conftest.py).
AGAIN := --reruns 1 -raR

LAYERS := unit unit-compiled store bpf netns conformance load-short packaging

test: setup lint ## every test layer (root)
	@scripts/beside.sh vm-short -- $(LAYERS)

unit: setup ## protocol, allocator, configuration: no root, seconds
	@$(PY) -m pytest tests/unit tests/fuzz

unit-compiled: compiled ## the same of what is compiled: no root, a minute
	@PYTHONPATH=$(CURDIR)/build/compiled DNAT_SOAK=0.1 $(PY) -m pytest tests/unit/leases tests/unit/pap

store: setup ## lease stores on a real etcd of three members: no root, a minute
	@$(PY) -m pytest $(AGAIN) tests/store

bpf: setup ## packets through the programs in the kernel, by BPF_PROG_TEST_RUN (root)
	@$(PY) -m pytest tests/bpf -n 2 --dist loadfile

netns: setup ## real daemons and real traffic in network namespaces (root)
	@$(PY) -m pytest $(AGAIN) tests/netns tests/lab -n 2 --dist loadfile

vm-test: setup ## packets on kernels of several ages, the package on virtual machines (root, QEMU, 20 min emulated)
	@$(PY) -m pytest tests/vm/test_kernels.py
	@DNAT_LAB=qemu $(PY) -m pytest tests/lab

vm-short: setup ## the two oldest kernels, fewer packet tests (root, QEMU, 3 min emulated)
	@DNAT_VM_KERNELS="$${DNAT_VM_KERNELS:-5.10 6.1}" $(PY) -m pytest $(AGAIN) tests/vm/test_short.py

vagrant-test: setup ## the lab on Vagrant's machines: up, tests, destroyed (libvirt or VirtualBox)
	@vagrant/test.sh

conformance: setup ## every requirement of the NAT documents, on the wire; writes docs/conformance.md (root)
	@$(PY) -m pytest $(AGAIN) tests/conformance

bench: setup compiled ## measure beside other routers: tables, JSON and pictures in bench-output (root, 15 min)
	@$(PY) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[bench]'
	@PYTHONPATH=tests/bench:tests/bpf $(PY) -m dnatbench

bench-short: setup compiled ## the same with few rounds, to see that it works (root, 90 s)
	@$(PY) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[bench]'
	@PYTHONPATH=tests/bench:tests/bpf $(PY) -m dnatbench --short

load: setup ## 200 calls at once, 500 calls a second, and what a call costs the router: tables in load-output (root, 3 min)
	@PYTHONPATH=tests/load:tests/bench:tests/bpf:tests/netns $(PY) -m dnatload

load-short: setup ## the same with few calls: none may fail (root, 40 s)
	@$(PY) -m pytest $(AGAIN) tests/load

soak: setup ## daemons killed SOAK_DEATHS times, longer histories of the protocol (root, half an hour)
	@DNAT_SOAK=$(SOAK_HISTORIES) $(PY) -m pytest tests/unit/pap/test_model.py
	@DNAT_SOAK_DEATHS=$(SOAK_DEATHS) $(PY) -m pytest -s tests/netns/test_mayhem.py

fuzz: setup ## look for octets that no reader survives, FUZZ_SECONDS for each reader
	@$(PY) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[fuzz]'
	@tests/fuzz/fuzz.sh $(PY) $(FUZZ_SECONDS)

packaging: setup ## wheel, systemd units, manual pages; beside NetworkManager, dhcpcd and Docker (root)
	@$(PY) -m pytest $(AGAIN) tests/install --ignore tests/install/test_clean_root.py -n 2 --dist loadfile

install-test: setup ## the Debian package on clean Debian roots (root, a few minutes)
	@$(PY) -m pytest tests/install/test_clean_root.py

install: ## into PREFIX, by default /usr/local (root)
	@PYTHON=$(PYTHON) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) packaging/install.sh

uninstall: ## remove it again; PURGE=1: configuration and leases, too (root)
	@PREFIX=$(PREFIX) PURGE=$(PURGE) packaging/uninstall.sh

deb: ## build the Debian package in dist/
	@PYTHON=$(PYTHON) packaging/deb.sh

reference: setup ## write docs/reference.md from the code
	@$(PY) packaging/documents.py reference > docs/reference.md

lint: setup ## ruff, mypy, clang-format
	@$(VENV)/bin/ruff check control tests packaging setup.py
	@$(VENV)/bin/ruff format --check control tests packaging setup.py
	@$(VENV)/bin/mypy
	@$(VENV)/bin/clang-format --dry-run -Werror ebpf/*.c ebpf/include/dnat/*.h

format: setup ## put the sources into the one format
	@$(VENV)/bin/ruff check --fix control tests packaging setup.py
	@$(VENV)/bin/ruff format control tests packaging setup.py
	@$(VENV)/bin/clang-format -i ebpf/*.c ebpf/include/dnat/*.h

clean: ## remove what setup and the tools made here
	rm -rf $(VENV) build dist control/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output bench-output contrast-output
