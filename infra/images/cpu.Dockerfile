# docker build -f infra/images/cpu.Dockerfile -t opdscope:cpu .
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc=4:12.2.0-3 libc6-dev=2.36-9* \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/opdscope/.venv/bin:$PATH
WORKDIR /opt/opdscope
COPY constraints.txt pyproject.toml README.md ./
COPY infra/setup.sh infra/
COPY schemas schemas
COPY tasks tasks
COPY flows flows
ARG EXTRAS=s3
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 sh -c '. infra/setup.sh && setup "[$EXTRAS]"' infra/image \
    && useradd --create-home --uid 1000 opdscope

USER 1000
WORKDIR /home/opdscope
ENV PREFECT_HOME=/home/opdscope/prefect DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
CMD ["prefect", "worker", "start", "--pool", "opdscope", "--type", "process"]
