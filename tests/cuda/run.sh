#!/usr/bin/env bash
# CUDA checks that need no GPU, in about a minute: the kernels compile for sm_80 and sm_90, clippy
# passes on the code that launches them, and the kernels' logic passes its tests on the host, under
# sanitizers. deploy/cuda/toolkit.sh installs the CUDA toolkit in FOLDER, if it is not there yet.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: run.sh FOLDER" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
variables=$(bash deploy/cuda/toolkit.sh "$1")
eval "$variables"
scratch=$(mktemp -d)
host=""
trap 'kill $host 2>/dev/null || true; rm -rf "$scratch"' EXIT

# Runs in parallel with clippy, which takes longer.
(
  c++ -std=c++20 -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=undefined \
    -I "$CUDA_HOME/include" -I src/kernels/cuda/device tests/cuda/kernels.cpp -o "$scratch/kernels"
  "$scratch/kernels"
) &
host=$!
NVCC=$PWD/tests/cuda/nvcc \
  cargo clippy --locked --release --features cuda --all-targets -- -D warnings
wait "$host"
