# A target is one line; what it does is in the script or program it calls.
.DEFAULT_GOAL := help
CARGO ?= cargo
PREFIX ?= /usr/local
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Builds run as you, tests as root.
RUN_TESTS := $(if $(SUDO),CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_RUNNER="sudo -E env PATH=$(PATH)")
# Figures are of what is installed; a smoke run takes what the tests have built.
BENCH := $(if $(QUICK),,--release)
BENCH_FLAGS := $(addprefix --only ,$(ONLY)) $(if $(QUICK),--quick) $(addprefix --rounds ,$(ROUNDS))

.PHONY: help setup build demo test test-kernels test-simulation h2spec fuzz bench-l4 bench-auth bench-l7 check install uninstall dist clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what building needs; says what first, asks on a terminal
	@deploy/setup

build: setup ## build the kernel programs and the binary
	@$(CARGO) build --workspace --bins --examples

demo: ## the Star Wars story on this machine; KEEP=1 leaves it running
	@deploy/setup "[1/4] toolchain" && examples/star-wars/demo

test: ## every test, those that need root and the kernel included
	@PEERS=1 deploy/setup && $(CARGO) build --workspace --bins --examples && $(RUN_TESTS) $(CARGO) test --workspace

test-kernels: setup ## the kernel programs and the lab on emulated 6.1 and 6.12; root, Debian; KERNELS= and ONLY= choose
	@conformance/kernels/run

test-simulation: setup ## node against node with everything that can go wrong; SEEDS=2000, FIRST_SEED=0 choose
	@SEEDS=$(or $(SEEDS),2000) $(CARGO) test -p auth-agent --test simulation

bench-l4: setup ## measure the kernel path, root; ONLY="l4.tc l4.run" rows, QUICK=1 a smoke run, ROUNDS=9
	@$(CARGO) build $(BENCH) --workspace --bins --examples && $(RUN_TESTS) $(CARGO) run --quiet $(BENCH) -p conformance --bin bench -- l4 $(BENCH_FLAGS)

bench-auth: setup ## measure authentication: first connections, established ones, withdrawal; root; ONLY=, QUICK=1, ROUNDS= likewise
	@$(CARGO) build $(BENCH) --workspace --bins --examples && $(RUN_TESTS) $(CARGO) run --quiet $(BENCH) -p conformance --bin bench -- auth $(BENCH_FLAGS)

bench-l7: setup ## measure the L7 proxy beside Envoy, nginx and HAProxy, which it installs; root; ONLY=, QUICK=1, ROUNDS= likewise
	@deploy/peers && $(CARGO) build $(BENCH) --workspace --bins --examples && $(RUN_TESTS) $(CARGO) run --quiet $(BENCH) -p conformance --bin bench -- l7 $(BENCH_FLAGS)

h2spec: ## HTTP/2 conformance of the L7 proxy, 145 cases; needs Go, which fetches the tool
	@l7-proxy/tests/h2spec

fuzz: ## fuzz what the L7 proxy reads, each target for SECONDS=60, or TARGET= alone; stable Rust, a C++ compiler
	@l7-proxy/fuzz/run $(or $(SECONDS),60) $(TARGET)

check: setup ## format and lints, as CI runs them
	@$(CARGO) fmt --check && $(CARGO) fmt --check --manifest-path l7-proxy/fuzz/Cargo.toml && $(CARGO) tree --quiet --locked --manifest-path l7-proxy/fuzz/Cargo.toml >/dev/null && deploy/check-ebpf && $(CARGO) clippy --workspace --all-targets -- -D warnings

install: setup ## binary, completions and systemd units under PREFIX
	@$(CARGO) build --release --bin ferromesh && $(SUDO) deploy/install install $(PREFIX)

uninstall: ## take them away again
	@$(SUDO) deploy/install uninstall $(PREFIX)

dist: setup ## a tar archive of the same files under target/
	@$(CARGO) build --release --bin ferromesh && deploy/install dist target

clean: ## remove what was built
	@$(CARGO) clean
