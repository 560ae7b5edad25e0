# syntax=docker/dockerfile:1.7
# What a device runs, without any extra: `docker build -f deploy/docker/device.Dockerfile
# -t cascade-device .` from the root of the repository.
ARG PYTHON_TAG=3.11.13-slim-bookworm
ARG PYTHON_DIGEST=

FROM python:${PYTHON_TAG}${PYTHON_DIGEST} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/cascade
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY cascade cascade
COPY cloud cloud
COPY edge edge
RUN /opt/cascade/bin/pip install --only-binary=:all: .

FROM python:${PYTHON_TAG}${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="cascade-device" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 cascade \
 && useradd --uid 10001 --gid cascade --create-home --shell /usr/sbin/nologin cascade \
 && install -d -o cascade -g cascade /var/lib/cascade
COPY --from=build /opt/cascade /opt/cascade
ENV PATH=/opt/cascade/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CASCADE_HOME=/var/lib/cascade
USER 10001:10001
WORKDIR /home/cascade
VOLUME /var/lib/cascade
# A device listens on nothing: healthy is what can open the bundle that it was given.
HEALTHCHECK --interval=60s --timeout=20s --start-period=300s --retries=3 \
    CMD ["python", "-c", "from cascade import home; raise SystemExit(not home.delivery_path().exists())"]
ENTRYPOINT ["cascade"]
CMD ["--help"]
