# docker build -f infra/images/gpu.Dockerfile -t opdscope:gpu .
FROM nvidia/cuda:13.0.2-devel-ubuntu22.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends software-properties-common=0.99.22.9 \
    && add-apt-repository -y ppa:deadsnakes/ppa \
    && apt-get install -y --no-install-recommends python3.11=3.11.* python3.11-dev=3.11.* python3.11-venv=3.11.* \
    && rm -rf /var/lib/apt/lists/* \
    && python3.11 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/opdscope
COPY constraints.txt pyproject.toml README.md ./
COPY schemas schemas
COPY tasks tasks
COPY flows flows
RUN pip install --no-cache-dir -c constraints.txt -e ".[s3,vllm]" \
    && useradd --create-home --uid 1000 opdscope

USER 1000
WORKDIR /home/opdscope
ENV PREFECT_HOME=/home/opdscope/prefect DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
CMD ["prefect", "worker", "start", "--pool", "opdscope-gpu", "--type", "process"]
