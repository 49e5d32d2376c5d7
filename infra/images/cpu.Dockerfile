# docker build -f infra/images/cpu.Dockerfile -t opdscope:cpu .
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc=4:12.2.0-3 libc6-dev=2.36-9* \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/opdscope
COPY constraints.txt pyproject.toml README.md ./
COPY schemas schemas
COPY tasks tasks
COPY flows flows
ARG EXTRAS=s3
RUN pip install --no-cache-dir -c constraints.txt "torch==2.13.0" \
    && pip install --no-cache-dir -c constraints.txt -e ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 opdscope

USER 1000
WORKDIR /home/opdscope
ENV PREFECT_HOME=/home/opdscope/prefect DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
CMD ["prefect", "worker", "start", "--pool", "opdscope", "--type", "process"]
