# docker build --tag parley .            (or: make image)
# docker run --publish 8000:8000 --volume parley:/data --stop-timeout 45 parley
#
# --stop-timeout: running answers may take PARLEY_SERVER__DRAIN_S (30) after SIGTERM.
#
# Every package is the one of requirements.lock, by its hash. For a smaller image without CUDA, make a lock of the CPU
# builds of torch (make lock LOCK=requirements-cpu.lock LOCK_ARGS="--torch-backend cpu") and name both:
#   --build-arg LOCK=requirements-cpu.lock --build-arg PIP_EXTRA_INDEX_URL=…    (PIP_INDEX_URL replaces the default index)

FROM python:3.11-slim AS builder
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG LOCK=requirements.lock
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /src
# the requirements first: a change of ours then reuses this layer
COPY ${LOCK} requirements.lock
RUN /venv/bin/pip install --require-hashes --requirement requirements.lock
COPY . .
# nothing is fetched here: it is built by the setuptools of the lock
RUN /venv/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim
# A compiler stays in the image, as the kernels of a CPU are compiled for the processor that they run on (-march=native),
# which is not that of the builder. Without one (--build-arg COMPILER=) the answers are the same, but slower on
# a CPU; on a GPU nothing is missing. What it makes lies in /data, so that a restart does not compile again.
ARG COMPILER=g++
# hadolint ignore=DL3008
RUN if [ -n "${COMPILER}" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends "${COMPILER}" && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 1000 --create-home parley && install --directory --owner parley --group parley /data
COPY --from=builder /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/hub \
    PARLEY_SERVER__HOST=0.0.0.0
# by number, so that Kubernetes can tell that it is not root
USER 1000:1000
# models, the database of a single replica, files, and whatever a hub sends: all that outlives the container
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.getenv('PARLEY_SERVER__PORT', '8000') + '/health/live', timeout=4)"]
# it migrates the database itself and fetches what is missing; the exec form, so that SIGTERM reaches it
CMD ["parley", "serve"]
