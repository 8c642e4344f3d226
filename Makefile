# make run    install what is missing, build, answer a Countdown problem with the bundled model, checked
# make run-smollm2    the same with a foreign model of 135 M parameters, fetched once, in plain English
# make test   build and run the default test suite
# make test-slow | bench | format | clean | asan | tsan | fuzz | coverage
BUILD  := build/release
FATHOM := $(BUILD)/fathom
MODEL  := models/SmolLM2-135M-Instruct.Q4_1.gguf
PROMPT ?= What is the capital of France?
PROBLEM ?= Use 27, 7 and 12 to make 22.

.PHONY: run run-smollm2 test test-slow bench format clean build setup asan tsan fuzz coverage
.DELETE_ON_ERROR:

run: build
	$(FATHOM) run bundled/countdown-12m.gguf "$(PROBLEM)" --check countdown --tries 64 --temp 1

run-smollm2: build $(MODEL)
	$(FATHOM) run $(MODEL) "$(PROMPT)" --temp 0

setup:
	@scripts/setup

build: setup
	@test -f $(BUILD)/build.ninja || cmake --preset release
	@cmake --build $(BUILD)

$(MODEL):
	@scripts/fetch-model $@

test: build
	ctest --test-dir $(BUILD) -L default --output-on-failure -j "$$(nproc)"

test-slow: build $(MODEL)
	ctest --test-dir $(BUILD) -L slow --output-on-failure

# Roofs, layers and the bundled model; each target of the design; V2's claims; then every kernel.
# V2LITE=1: also V2-Lite's shape (a file of 10.4 GB in build/bench-models, and as much memory).
bench: build
	$(FATHOM) bench -o $(BUILD)/bench.html
	bench/targets.py --build $(BUILD) $(if $(V2LITE),--v2-lite)
	bench/v2_claims.py --build $(BUILD)
	@for b in $(BUILD)/*_bench; do echo "== $$(basename $$b)"; $$b || exit 1; done

asan tsan: setup
	@test -f build/$@/build.ninja || cmake --preset $@
	@cmake --build build/$@
	ctest --test-dir build/$@ -L default --output-on-failure -j "$$(nproc)"

coverage: setup
	@test -f build/$@/build.ninja || cmake --preset $@
	@cmake --build build/$@
	ctest --test-dir build/$@ -L default --output-on-failure -j "$$(nproc)"
	gcovr --root . --filter src/ --object-directory build/$@ --gcov-ignore-parse-errors --print-summary

# Each fuzz target for RUNS executions under ASan and UBSan.
RUNS ?= 1000000
fuzz:
	@scripts/setup --fuzz
	@test -f build/fuzz/build.ninja || cmake --preset fuzz
	@scripts/fuzz build/fuzz $(RUNS)

format:
	clang-format-14 -i $$(git ls-files 'src/*.h' 'src/*.cc' 'tests/*.h' 'tests/*.cc' 'bench/*.cc' 'tools/*.cc' | grep -v unicode_tables)

clean:
	rm -rf build
