# Builds the service, and puts a Redis beside it, so that the embedded default works: one container, one volume.
# Whole names, because Podman knows no registry by default.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
# Debug information would be three quarters of the program; backtraces keep the names of functions.
ENV CARGO_PROFILE_RELEASE_DEBUG=false
COPY Cargo.toml Cargo.lock ./
# What the manifest names, all of it empty: tests and benches are not built here.
RUN mkdir -p src tests/it benches/http && touch src/lib.rs tests/it/main.rs benches/http/main.rs && echo 'fn main() {}' > src/main.rs
# The dependencies, in a layer of their own: it holds until they change.
RUN cargo build --release --locked --bin streamkeep
COPY src src
COPY migrations-lua migrations-lua
# The files copied may be older than the empty ones, and Cargo goes by the time.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked --bin streamkeep

FROM docker.io/library/debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 streamkeep \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin streamkeep \
    && install --directory --owner=streamkeep --group=streamkeep --mode=0700 /data
COPY --from=build /src/target/release/streamkeep /usr/local/bin/streamkeep
# By number: Kubernetes' runAsNonRoot does not look names up.
USER 10001:10001
VOLUME /data
# Within the container every address is reached only from where its port is published or its network goes: who may do
# that is for the operator to say, and with STREAMKEEP_KEYS or STREAMKEEP_JWT_KEYS credentials are needed all the same.
ENV STREAMKEEP_DATA=/data STREAMKEEP_LISTEN=0.0.0.0:7070 STREAMKEEP_INSECURE_LISTEN=true
EXPOSE 7070
# The timeout is longer than the command's own of 8 s, so that it can say what is wrong.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s CMD ["streamkeep", "health"]
# SIGTERM drains; the service then ends its Redis.
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamkeep"]
CMD ["serve"]
