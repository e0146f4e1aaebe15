# syntax=docker/dockerfile:1
#
#   docker build -t understudy .                          installs the newest CUDA build of PyTorch
#   docker build -t understudy --build-arg TORCH=cpu \
#     --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels> .
#
# TORCH=cpu installs the pinned versions, TORCH=cuda the newest ones. The CUDA wheels contain their
# libraries, so both use the same base image; the host needs only the NVIDIA runtime.
# EXTRAS=cluster adds Ray (docs/cluster.md).

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH=cuda
ARG EXTRAS="traces"
ARG PIP_EXTRA_INDEX_URL=""
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN case "${TORCH}" in \
      cpu) make install PREFIX=/opt/understudy EXTRAS="${EXTRAS}" ;; \
      cuda) make install PREFIX=/opt/understudy EXTRAS="${EXTRAS}" CONSTRAINTS= ;; \
      *) echo "TORCH must be cpu or cuda, not '${TORCH}'" >&2; exit 1 ;; \
    esac

FROM python:${PYTHON_VERSION}-slim
ARG TORCH=cuda
# Triton compiles a launcher for each GPU kernel with it, at a model's first start.
# hadolint ignore=DL3008
RUN if [ "${TORCH}" = cuda ]; then \
      apt-get update \
      && apt-get install --no-install-recommends -y gcc libc6-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --create-home --uid 1000 understudy
COPY --from=build /opt/understudy /opt/understudy
ENV PATH=/opt/understudy/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/home/understudy/.cache/huggingface \
    TRITON_CACHE_DIR=/home/understudy/.cache/triton \
    UNDERSTUDY_HOST=0.0.0.0 \
    UNDERSTUDY_PORT=8000
USER understudy
WORKDIR /home/understudy
# Made here so that a volume that is mounted over it belongs to the user.
RUN mkdir -p /home/understudy/.cache
VOLUME /home/understudy/.cache
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["understudy", "health"]
# Addresses other than loopback need a key: set UNDERSTUDY_API_KEY, or use --insecure.
ENTRYPOINT ["understudy"]
CMD ["serve"]
