# syntax=docker/dockerfile:1
#
# The server as an image, for CPUs (the default) or for NVIDIA GPUs:
#
#   docker build --target cpu -t vecstore:cpu .
#   docker build --target gpu -t vecstore:gpu .
#   docker build --target gpu --build-arg GPU_EXTRA=gpu-cuvs -t vecstore:gpu .      # CUDA 13 with cuVS: graphs
#   docker run -v vecstore:/var/lib/vecstore -p 127.0.0.1:7601:7601 vecstore:cpu
#
# It runs as user 10001, writes to /var/lib/vecstore alone (and /tmp), and listens on all interfaces; where nobody said who
# may call, deploy/image/entrypoint makes a token and prints it once. Any command of vecstore can be given in place of serve.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY vecstore ./vecstore
RUN python -m venv /opt/vecstore && pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM build AS build-cpu
# By its file, so that no other package of that name can come in its place.
RUN --mount=type=cache,target=/var/cache/pip \
    set -- /wheels/*.whl && /opt/vecstore/bin/pip install "$1[cpu,server]"

FROM build AS build-gpu
ARG GPU_EXTRA=gpu
# The wheels bring CUDA's own libraries; of the machine only NVIDIA's driver is used. CuPy compiles with NVRTC.
RUN --mount=type=cache,target=/var/cache/pip \
    set -- /wheels/*.whl && /opt/vecstore/bin/pip install "$1[$GPU_EXTRA,server]"

FROM python:${PYTHON}-slim-bookworm AS runtime
RUN groupadd --gid 10001 vecstore \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/vecstore --shell /usr/sbin/nologin vecstore \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/vecstore
COPY deploy/image/entrypoint deploy/image/healthy /usr/local/bin/
ENV PATH=/opt/vecstore/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    VECSTORE_SERVER_DATA=/var/lib/vecstore/store \
    VECSTORE_SERVER_LISTEN=0.0.0.0:7601 \
    VECSTORE_SERVER_HTTP=0.0.0.0:7602
USER 10001:10001
WORKDIR /var/lib/vecstore
VOLUME /var/lib/vecstore
EXPOSE 7601 7602
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --start-interval=1s --retries=3 CMD ["healthy"]
ENTRYPOINT ["entrypoint"]
CMD ["serve"]

FROM runtime AS gpu
# CuPy keeps what it has compiled in a folder that must be writable; one GPU's kernels take seconds to compile again.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility CUPY_CACHE_DIR=/tmp/cupy
COPY --from=build-gpu /opt/vecstore /opt/vecstore

FROM runtime AS cpu
COPY --from=build-cpu /opt/vecstore /opt/vecstore
