#!/usr/bin/env bash
# Installs a CUDA 13.0 toolkit for `cargo build --features cuda`, from PyPI packages and without
# root: the compiler, the headers, and stand-ins for CUDA's libraries. The stand-ins open the real
# libraries on the first call (see libraries.py), so the binary also starts on machines without a
# GPU. The download is about 100 MB, the installation 270 MB; a repeated run installs nothing. An
# installed toolkit (CUDA_HOME, nvcc on PATH) also works.
#
# Installs to FOLDER and prints the build's environment variables:
#   variables=$(deploy/cuda/toolkit.sh FOLDER)
#   eval "$variables" && cargo build --release --features cuda
#
# CUDA_COMPUTE_CAP (default 90: H100 and H200) is the architecture for candle's kernels; ours are
# compiled for 80 and 90.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: toolkit.sh FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)

# All from one CUDA release. The driver must support it, since it compiles the PTX for newer GPUs.
packages=(
  nvidia-cuda-nvcc==13.0.88    # the compiler driver, ptxas, fatbinary
  nvidia-nvvm==13.0.88         # its optimizer
  nvidia-cuda-crt==13.0.88     # headers that nvcc includes implicitly
  nvidia-cuda-runtime==13.0.96 # headers like cuda_bf16.h, and the static runtime
  nvidia-cuda-cccl==13.0.85    # headers that the others include
)

install_packages() {
  local new
  new=$(mktemp -d "$folder/new.XXXXXX")
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
    --no-compile --only-binary=:all: --target "$new" "${packages[@]}" >&2
  rm -rf "$folder/cuda" "$folder/libraries-of"
  mv "$new/nvidia/cu13" "$folder/cuda"
  rm -rf "$new"
  # The paths where build scripts look. Linking the static runtime lets the binary start without any
  # CUDA library.
  ln -s lib "$folder/cuda/lib64"
  ln -s libcudart_static.a "$folder/cuda/lib/libcudart.a"
  printf '%s\n' "${packages[@]}" >"$folder/packages"
}

if ! printf '%s\n' "${packages[@]}" | cmp -s - "$folder/packages"; then
  install_packages
fi
# Rebuilds the stand-ins if libraries.py or the cudarc version in Cargo.lock has changed.
lock=$(sed -n '/^name = "cudarc"/,/^$/p' "$here/../../Cargo.lock"; sha256sum <"$here/libraries.py")
if [ "$lock" != "$(cat "$folder/libraries-of" 2>/dev/null)" ]; then
  (cd "$here/../.." && python3 deploy/cuda/libraries.py "$folder/cuda/lib") >&2
  printf '%s\n' "$lock" >"$folder/libraries-of"
fi

printf 'export CUDA_HOME=%q\n' "$folder/cuda"
printf 'export PATH=%q:"$PATH"\n' "$folder/cuda/bin"
printf 'export CUDA_COMPUTE_CAP=%q\n' "${CUDA_COMPUTE_CAP:-90}"
