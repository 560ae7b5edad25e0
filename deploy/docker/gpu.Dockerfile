# syntax=docker/dockerfile:1.7
# vLLM as an OpenAI-compatible server, for a tier of the engine `openai`: its pins conflict with those
# of the cluster, so it is an image of its own and has nothing of this repository in it.
# `docker build -f deploy/docker/gpu.Dockerfile -t cascade-vllm deploy/docker`
#
# CUDA's libraries come with the wheels, the driver with the container runtime of the node.
ARG PYTHON_TAG=3.12.11-slim-bookworm
ARG PYTHON_DIGEST=

FROM python:${PYTHON_TAG}${PYTHON_DIGEST} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/vllm
COPY vllm-requirements.txt ./
RUN /opt/vllm/bin/pip install --only-binary=:all: --requirement vllm-requirements.txt

FROM python:${PYTHON_TAG}${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="cascade-vllm" \
      org.opencontainers.image.licenses="Apache-2.0"
# The one exception to "no compiler": Triton compiles its launchers when vLLM starts.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 cascade \
 && useradd --uid 10001 --gid cascade --create-home --shell /usr/sbin/nologin cascade
COPY --from=build /opt/vllm /opt/vllm
ENV PATH=/opt/vllm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /home/cascade
EXPOSE 8000
# vLLM's server speaks HTTP, not grpc.health.v1.
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vllm", "serve"]
