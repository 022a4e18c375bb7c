# One image for every node of a cluster: head, workers and submitted jobs. docs/cluster.md builds
# and uses it. Checked offline by tests/test_cluster_files.py; not built by this project's tests.
#   docker build -t REGISTRY/mpq:0.1.0 .
FROM python:3.11-slim

# The project compiles nothing; wget is what KubeRay's probes call.
RUN apt-get update -q \
    && apt-get install -y -q --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

# Nobody's token, runs or cache is in the image, and nothing in it runs as root.
RUN useradd --create-home --uid 1000 mpq
WORKDIR /opt/mpq-orchestrator
COPY pyproject.toml README.md LICENSE ./
COPY solvers ./solvers
COPY trainers ./trainers
COPY orchestrator ./orchestrator
COPY configs ./configs
RUN pip install --no-cache-dir '.[postgres]' boto3

USER mpq
WORKDIR /home/mpq
# Ray runs a task that ran out of memory again without end, unless its owner, which may be a
# process on any node, was started with a number of retries.
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_task_oom_retries=1 \
    MLFLOW_DISABLE_TELEMETRY=true
CMD ["mpq", "doctor"]
