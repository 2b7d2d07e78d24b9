#!/usr/bin/env bash
# Lays out what `cargo build --features cuda` needs, from PyPI packages: a CUDA 13.0 compiler and headers, and
# stand-ins for CUDA's libraries that open the real ones when they are first called (see libraries.py), so that
# the binary starts on a machine without a GPU. About 100 MB to fetch, 270 MB on disk; no root; does nothing where
# all is there. An own toolkit (CUDA_HOME, nvcc on PATH) does as well.
#
#   deploy/cuda/toolkit.sh FOLDER       lays it out, and prints the variables that a build wants:
#   variables=$(deploy/cuda/toolkit.sh FOLDER) && eval "$variables" && cargo build --release --features cuda
#
# CUDA_COMPUTE_CAP (default 90: H100, H200) is the architecture of candle's own kernels; ours are built for 80 and 90.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: toolkit.sh FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)

# Of one release, which the driver has to know: its PTX is compiled there for cards newer than ours.
packages=(
  nvidia-cuda-nvcc==13.0.88    # the compiler driver, ptxas, fatbinary
  nvidia-nvvm==13.0.88         # its optimiser
  nvidia-cuda-crt==13.0.88     # headers that it includes by itself
  nvidia-cuda-runtime==13.0.96 # cuda_bf16.h and the like, the static runtime
  nvidia-cuda-cccl==13.0.85    # headers that those include
)

lay_out() {
  local new
  new=$(mktemp -d "$folder/new.XXXXXX")
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
    --only-binary=:all: --target "$new" "${packages[@]}" >&2
  rm -rf "$folder/cuda" "$folder/libraries-of"
  mv "$new/nvidia/cu13" "$folder/cuda"
  rm -rf "$new"
  # As build scripts look for them; only the static runtime, so that nothing has to be found at the start.
  ln -s lib "$folder/cuda/lib64"
  ln -s libcudart_static.a "$folder/cuda/lib/libcudart.a"
  printf '%s\n' "${packages[@]}" >"$folder/packages"
}

if ! printf '%s\n' "${packages[@]}" | cmp -s - "$folder/packages"; then
  lay_out
fi
# Again after another cudarc came into Cargo.lock, or after an edit.
lock=$(sed -n '/^name = "cudarc"/,/^$/p' "$here/../../Cargo.lock" && sha256sum <"$here/libraries.py")
if [ "$lock" != "$(cat "$folder/libraries-of" 2>/dev/null)" ]; then
  (cd "$here/../.." && python3 deploy/cuda/libraries.py "$folder/cuda/lib") >&2
  printf '%s\n' "$lock" >"$folder/libraries-of"
fi

printf 'export CUDA_HOME=%q\n' "$folder/cuda"
printf 'export PATH=%q:"$PATH"\n' "$folder/cuda/bin"
printf 'export CUDA_COMPUTE_CAP=%q\n' "${CUDA_COMPUTE_CAP:-90}"
