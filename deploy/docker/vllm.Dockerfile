# syntax=docker/dockerfile:1.7
# The whole cluster with ray.serve.llm, for tiers of the engine `vllm`: its pins (torch, transformers,
# protobuf, numpy) conflict with those of cluster.Dockerfile, so every node of such a cluster, gateways
# too, runs this image. It was never built, and vLLM was never served from it.
# `docker build -f deploy/docker/vllm.Dockerfile -t cascade-cluster-vllm .` from the root of the
# repository. Pin the base by what you have checked: --build-arg PYTHON_DIGEST=@sha256:...
#
# CUDA's libraries come with the wheels, the driver with the container runtime of the node.
ARG PYTHON_TAG=3.12.11-slim-bookworm
ARG PYTHON_DIGEST=

FROM python:${PYTHON_TAG}${PYTHON_DIGEST} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/cascade
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY cascade cascade
COPY cloud cloud
COPY edge edge
ARG EXTRAS=cloud,vllm,openai,anthropic
RUN /opt/cascade/bin/pip install --only-binary=:all: ".[${EXTRAS}]"

FROM python:${PYTHON_TAG}${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="cascade-cluster-vllm" \
      org.opencontainers.image.licenses="Apache-2.0"
# As in gpu.Dockerfile, the one exception to "no compiler": Triton compiles its launchers when vLLM
# starts.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 cascade \
 && useradd --uid 10001 --gid cascade --create-home --shell /usr/sbin/nologin cascade \
 && install -d -o cascade -g cascade /var/lib/cascade /srv/registry /tmp/ray
COPY --from=build /opt/cascade /opt/cascade
ENV PATH=/opt/cascade/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CASCADE_HOME=/var/lib/cascade \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /home/cascade
VOLUME /var/lib/cascade
EXPOSE 7443
HEALTHCHECK --interval=10s --timeout=10s --start-period=900s --retries=3 \
    CMD ["python", "-m", "cloud.probe"]
CMD ["cascade", "cluster", "up"]
