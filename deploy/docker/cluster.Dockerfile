# syntax=docker/dockerfile:1.7
# Gateway and tiers on CPUs: `docker build -f deploy/docker/cluster.Dockerfile -t cascade-cluster .`
# from the root of the repository. Pin the base by what you have checked:
#   --build-arg PYTHON_DIGEST=@sha256:...
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
ARG EXTRAS=cloud,openai,anthropic
# Wheels only: nothing is compiled, here or in the image.
RUN /opt/cascade/bin/pip install --only-binary=:all: ".[${EXTRAS}]"

FROM python:${PYTHON_TAG}${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="cascade-cluster" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 cascade \
 && useradd --uid 10001 --gid cascade --create-home --shell /usr/sbin/nologin cascade \
 && install -d -o cascade -g cascade /var/lib/cascade /srv/registry /tmp/ray
COPY --from=build /opt/cascade /opt/cascade
ENV PATH=/opt/cascade/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CASCADE_HOME=/var/lib/cascade \
    RAY_USAGE_STATS_ENABLED=0
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /home/cascade
VOLUME /var/lib/cascade
EXPOSE 7443
# grpc.health.v1 over TLS, of the cluster that this container's client profile names.
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-m", "cloud.probe"]
CMD ["cascade", "cluster", "up"]
