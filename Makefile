# Everything is reachable from here; `make help` lists it. Needs only make and a shell to start with.

PREFIX  ?= /usr
DESTDIR ?=
BINS    ?= faced mqfwd s3put sideloadd sideload otad depotd spyglassd sorterd
CARGO   ?= cargo
# Cargo features of the binaries: "privacy" gives spyglassd [stream.privacy], and with it OpenCV.
FEATURES ?=
# What `make demo` uses; see `tests/src/bin/demo.rs`.
STORE   ?= dir
SOURCE  ?=
BROKER  ?= mosquitto

export PATH := $(HOME)/.cargo/bin:$(PATH)
export BINS FEATURES

PACKAGES = $(foreach b,$(BINS),-p $(b))
WITH     = $(if $(and $(FEATURES),$(filter spyglassd,$(BINS))),--features "$(foreach f,$(FEATURES),spyglassd/$(f))")
UNITS    = $(wildcard systemd/*.service systemd/*.socket systemd/*.target)
SCRIPTS  = $(wildcard etc/*.sh tests/*.sh tests/bench/*.sh tests/device/*.sh) .ci/run

.DELETE_ON_ERROR:
.PHONY: help deps build demo demo-ota demo-spyglass demo-sorter test check bench fuzz models install uninstall

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo
	@echo '  BINS="mqfwd s3put"      a subset (build, install): then neither OpenCV nor GStreamer is needed'
	@echo '  FEATURES=privacy        (build, install) spyglassd blurs faces where it is told to; needs OpenCV'
	@echo '  DESTDIR= PREFIX=/usr    where install puts it'
	@echo '  STORE=s3  SOURCE=v4l:/dev/video0 (or a file, rtsp://, folder)  BROKER=none     for the demo'

deps: ## packages for building, testing and the demo; Rust through rustup if there is none new enough
	@etc/deps.sh build test demo

build: ## release binaries of BINS in target/release
	@etc/deps.sh build
	$(CARGO) build --release $(PACKAGES) $(WITH)

demo: ## the whole face pipeline on this machine, with a table and a page at the end
	@etc/deps.sh build demo
	@if [ "$(STORE)" = s3 ]; then CI=1 etc/tools.sh s3s; fi
	$(CARGO) build --release -p faced -p mqfwd -p s3put -p e2e --bins
	@STORE='$(STORE)' SOURCE='$(SOURCE)' BROKER='$(BROKER)' EDGE_BIN_DIR=target/release exec target/release/demo

demo-spyglass: ## a moving test pattern, with the addresses of its page and its RTSP stream
	@BINS=spyglassd etc/deps.sh build demo
	$(CARGO) build --release -p spyglassd --bin spyglassd --example produce
	@EDGE_BIN_DIR=target/release exec tests/demo-spyglass.sh

demo-sorter: ## a sorting arm that sees drawn scenes: what it is told to do beside what is right, and the page
	@BINS=sorterd etc/deps.sh build demo
	@CI=1 etc/tools.sh arm
	$(CARGO) build --release -p sorterd --bin sorterd
	@EDGE_BIN_DIR=target/release exec tests/demo-sorter.sh

demo-ota: ## an update: published, polled, switched to; then a broken one, rolled back by itself
	@BINS="otad depotd" etc/deps.sh build
	$(CARGO) build --release -p otad -p depotd
	@EDGE_BIN_DIR=target/release exec tests/demo-ota.sh

test: ## unit, simulation and end-to-end tests; installs what they need
	@etc/deps.sh build test demo
	@etc/tools.sh s3s moto arm onnx
	@tests/run.sh

check: ## formatting, lints, licences and advisories, units, shell scripts, house style
	@etc/deps.sh build test check
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p spyglassd -p sorterd --features spyglassd/privacy --all-targets --locked -- -D warnings
	shellcheck $(SCRIPTS)
	@tests/units.sh $(UNITS)
	$(CARGO) metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	$(CARGO) test -q -p e2e --test style
	@etc/tools.sh deny
	@tests/deny.sh

bench: ## a table of measurements beside those of other tools, taken in the same run
	@etc/deps.sh build test bench
	@CI=1 etc/tools.sh s3s arm
	@etc/tools.sh watchexec
	$(CARGO) build --release -p faced -p mqfwd -p s3put -p sideload -p sideloadd -p otad -p depotd -p spyglassd -p sorterd -p e2e --bins --examples
	@EDGE_BIN_DIR=target/release exec target/release/bench

fuzz: ## every fuzz target for FUZZ_S seconds (20)
	@tests/fuzz.sh

models: ## the published YuNet model into models/, its sha256 checked
	@etc/models.sh

install: ## binaries, units and /etc/edge/*.toml; an edited .toml is never overwritten
	@for b in $(BINS); do [ -x target/release/$$b ] || { $(MAKE) --no-print-directory build; break; }; done
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' etc/install.sh install

uninstall: ## what install put there; keeps edited configuration (PURGE=1 does not) and state
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' etc/install.sh uninstall
