# Builds the service, and puts a Redis beside it, so that the embedded default works: one container, one volume.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY migrations-lua migrations-lua
# The manifest names them; they are not built here.
RUN mkdir -p tests/it benches && touch tests/it/main.rs benches/http.rs
RUN cargo build --release --locked --bin streamkeep

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data streamkeep \
    && install --directory --owner=streamkeep --mode=0700 /data
COPY --from=build /src/target/release/streamkeep /usr/local/bin/streamkeep
USER streamkeep
VOLUME /data
ENV STREAMKEEP_DATA=/data STREAMKEEP_LISTEN=0.0.0.0:7070
EXPOSE 7070
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["streamkeep", "health"]
# SIGTERM drains; the service then ends its Redis.
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamkeep"]
CMD ["serve"]
