# syntax=docker/dockerfile:1
# Images of the stack in docker-compose.yml; each target is one of them. What they install is pinned by the
# lock files of deploy/locks, with hashes; those are parts of requirements.lock (`make lock`).

FROM python:3.13-slim-trixie AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY deploy/locks/build.lock deploy/locks/build.lock
RUN python -m venv /build \
 && /build/bin/python -m pip install --require-hashes --only-binary :all: -r deploy/locks/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY otel_metering otel_metering
COPY receiver receiver
COPY query_api query_api
RUN /build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Against a ClickHouse server.
FROM wheel AS server-packages
COPY deploy/locks/server.lock deploy/locks/server.lock
RUN python -m venv /app \
 && /app/bin/python -m pip install --require-hashes --only-binary :all: -r deploy/locks/server.lock \
 && /app/bin/python -m pip install --no-deps --no-index --find-links /wheels otel-metering \
 && /app/bin/python -m pip uninstall --yes pip

# With ClickHouse inside the process: half a gigabyte more.
FROM wheel AS embedded-packages
COPY deploy/locks/embedded.lock deploy/locks/embedded.lock
RUN python -m venv /app \
 && /app/bin/python -m pip install --require-hashes --only-binary :all: -r deploy/locks/embedded.lock \
 && /app/bin/python -m pip install --no-deps --no-index --find-links /wheels otel-metering \
 && /app/bin/python -m pip uninstall --yes pip

# Folders that volumes are mounted on take their owner from here.
FROM python:3.13-slim-trixie AS base
RUN groupadd --gid 10001 metering \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin metering \
 && install --directory --owner=10001 --group=10001 /data /keys /keys/collector /keys/grafana
COPY deploy/meters /etc/otel-metering
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    METERING_DATA_DIR=/data \
    METERING_METERS_FILE=/etc/otel-metering/meters.yaml
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["otel-metering"]

FROM base AS server
COPY --from=server-packages /app /app
CMD ["receiver"]

FROM base AS embedded
COPY --from=embedded-packages /app /app
CMD ["up"]

FROM golang:1.26-alpine AS collector-program
ENV CGO_ENABLED=0 GOFLAGS=-trimpath
RUN GOBIN=/usr/local/bin go install go.opentelemetry.io/collector/cmd/builder@v0.159.0
WORKDIR /src
COPY collector/manifest.yaml manifest.yaml
RUN builder --config=manifest.yaml

FROM alpine:3.22 AS collector
RUN addgroup -g 10001 otelcol \
 && adduser -D -H -u 10001 -G otelcol otelcol \
 && install -d -o 10001 -g 10001 /var/lib/otelcol
COPY --from=collector-program /src/out/otelcol-metering /usr/local/bin/otelcol-metering
COPY collector-config.yaml collector /etc/otelcol/
USER 10001:10001
ENTRYPOINT ["otelcol-metering"]
CMD ["--config=/etc/otelcol/collector-config.yaml"]
