# docker build --tag parley .            (or: make image)
# docker run --publish 8000:8000 --volume parley:/data parley
#
# For a smaller image without CUDA, name an index that has CPU builds of torch:
#   --build-arg PIP_EXTRA_INDEX_URL=…    (PIP_INDEX_URL replaces the default index)

FROM python:3.11-slim AS builder
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /src
# the requirements first: a change of ours then reuses this layer
COPY requirements.txt .
RUN /venv/bin/pip install --requirement requirements.txt
COPY . .
RUN /venv/bin/pip install --no-deps .

FROM python:3.11-slim
RUN useradd --uid 1000 --create-home parley && install --directory --owner parley --group parley /data
COPY --from=builder /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/hub \
    PARLEY_SERVER__HOST=0.0.0.0
USER parley
# models, the database of a single replica, and whatever a hub sends: all that outlives the container
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.getenv('PARLEY_SERVER__PORT', '8000') + '/health/live', timeout=4)"]
# it migrates the database itself and fetches what is missing; the exec form, so that SIGTERM reaches it
CMD ["parley", "serve"]
