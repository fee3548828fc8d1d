# Thin wrappers: Meson builds, tests/run tests, demo/run shows. Each target installs what it needs (Debian 12, root).
BUILD ?= build

.PHONY: all deps demo check bench sim guests clean

all: $(BUILD)/build.ninja
	ninja -C $(BUILD) --quiet

deps:
	@packaging/install-deps

$(BUILD)/build.ninja: | deps
	meson setup $(BUILD) >/dev/null

demo: all guests
	demo/run

check:
	@tests/run

bench: all guests
	bench/run

guests:
	@guests/build-tiny
	@guests/build-demo

sim: all
	$(BUILD)/tests/sim/sim --forever

clean:
	rm -rf $(BUILD)
