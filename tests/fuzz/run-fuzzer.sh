#!/bin/sh
# run-fuzzer.sh FUZZER CORPUS RUNS [OPTION...] - a short run from the corpus; what it finds beyond goes to a folder that is thrown away. An input that fails is
# kept in the current folder as crash-*; `FUZZER crash-...` runs it alone. For a long run: FUZZER -dict=... NEW-FOLDER CORPUS.
set -eu
fuzzer=$1 corpus=$2 runs=$3
shift 3
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
"$fuzzer" -runs="$runs" -seed=1 -max_total_time=60 -rss_limit_mb=1024 -timeout=10 -print_final_stats=0 -verbosity=0 "$@" "$found" "$corpus"
