# Thin wrappers: Meson builds, tests/run tests, demo/run shows. Each target installs what it needs (Debian 12, root).
BUILD ?= build

.PHONY: all deps demo check bench sim fuzz campaign guests clean

all: $(BUILD)/build.ninja
	@echo "building $(BUILD) (a few minutes, the first time)"
	@if [ -t 1 ]; then ninja -C $(BUILD); else ninja -C $(BUILD) --quiet; fi

deps:
	@packaging/install-deps

$(BUILD)/build.ninja: | deps
	@echo "setting up $(BUILD)"
	@meson setup $(BUILD) >/dev/null

demo: all guests
	demo/run

check:
	@tests/run

bench: all guests
	bench/run
	bench/tls

guests:
	@guests/build-tiny
	@guests/build-demo

sim: all
	$(BUILD)/tests/sim/sim --forever

# Each fuzzer for FUZZ_SECONDS; what it finds goes to build/fuzz/NAME, an input that fails to build/fuzz/NAME-crash-*.
FUZZ_SECONDS ?= 60
fuzz: all
	@[ -e $(BUILD)/tests/fuzz/options ] || { echo "fuzz: no clang when Meson set up $(BUILD): there are no fuzzers" >&2; exit 1; }
	@while read -r name options; do mkdir -p $(BUILD)/fuzz/$$name; echo "$$name:"; \
	$(BUILD)/tests/fuzz/fuzz-$$name $$options -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -verbosity=0 -artifact_prefix=$(BUILD)/fuzz/$$name- \
	$(BUILD)/fuzz/$$name tests/fuzz/corpus/$$name < /dev/null || exit 1; done < $(BUILD)/tests/fuzz/options

# Real faults on real guests, in the random order that SEED gives.
campaign: all guests
	tests/campaign/run --faults $(or $(FAULTS),100) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(BUILD)
