# syntax=docker/dockerfile:1
#
# Not yet built as an image: no container builder was available. .ci/run tests its parts, namely
# deploy/install.sh and the cargo build. Build and run:
#
#   docker build -t tombola .
#   docker run -p 8000:8000 -e TOMBOLA_API_KEY -v tombola-cache:/data/cache \
#       -v tombola-tickets:/data/tickets tombola
#
# Without a key, on this machine alone: -p 127.0.0.1:8000:8000 -e TOMBOLA_INSECURE_NO_AUTH=true

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY deploy/install.sh deploy/install.sh
RUN bash deploy/install.sh
COPY . .
# The two mounts cache crates and objects between builds. The binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked && install -D target/release/tombola /out/tombola

# For NVIDIA GPUs (the default target is the last stage, for CPUs), not yet built either:
#
#   docker build --target cuda -t tombola:cuda .
#   docker run --gpus all ... tombola:cuda
FROM build AS build-cuda
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    variables=$(bash deploy/cuda/toolkit.sh /opt/cuda-toolkit) && eval "$variables" \
    && cargo build --release --locked --features cuda && install -D target/release/tombola /out/tombola-cuda

FROM debian:bookworm-slim AS runtime
COPY deploy/install.sh /tmp/install.sh
RUN bash /tmp/install.sh --runtime && rm -rf /tmp/install.sh /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home --home-dir /home/tombola tombola \
    && install -d -o tombola -g tombola /data /data/cache /data/tickets
# Docker copies this folder into a new volume, so that the first start has tickets to swap.
COPY --chown=tombola:tombola adapters/*.safetensors /data/tickets/

WORKDIR /data
# All interfaces of the container, so the server wants keys. `docker run --publish` decides who can
# reach them.
ENV TOMBOLA_HOST=0.0.0.0 \
    TOMBOLA_PORT=8000 \
    TOMBOLA_CACHE_DIR=/data/cache \
    TOMBOLA_TICKETS=/data/tickets
VOLUME ["/data/cache", "/data/tickets"]
EXPOSE 8000
# The first start fetches the default base, which can take minutes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['TOMBOLA_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["tombola"]

FROM runtime AS cuda
# cuBLAS and cuRAND. The container runtime provides the driver's library.
RUN python3 -m pip install --break-system-packages --no-cache-dir --no-deps --target /opt/cuda \
    nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35
ENV LD_LIBRARY_PATH=/opt/cuda/nvidia/cu13/lib
COPY --from=build-cuda /out/tombola-cuda /usr/local/bin/tombola
USER tombola

FROM runtime AS cpu
COPY --from=build /out/tombola /usr/local/bin/tombola
USER tombola
