# syntax=docker/dockerfile:1
#
# No image could be built where this file was written. What it installs is up to deploy/install.sh, which
# .ci/run runs too, as it does the same cargo build; the rest is untried. Build and run:
#
#   docker build -t tombola .
#   docker run -p 8000:8000 -v tombola-cache:/data/cache -v tombola-tickets:/data/tickets tombola

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY deploy/install.sh deploy/install.sh
RUN bash deploy/install.sh
COPY . .
# The two mounts keep crates and objects between builds; the binary has to be copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked && install -D target/release/tombola /out/tombola

FROM debian:bookworm-slim
COPY deploy/install.sh /tmp/install.sh
RUN bash /tmp/install.sh --runtime && rm -rf /tmp/install.sh /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home --home-dir /home/tombola tombola \
    && install -d -o tombola -g tombola /data /data/cache /data/tickets
COPY --from=build /out/tombola /usr/local/bin/tombola
# A new volume is filled from here, so that the first start already has tickets to swap.
COPY --chown=tombola:tombola adapters/*.safetensors /data/tickets/

USER tombola
WORKDIR /data
# All interfaces of the container; who may reach them is decided by what is published.
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
