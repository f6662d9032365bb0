# The image of a cluster's pods, for `boomspec submit --kuberay --image IMAGE`: boomspec and Ray in the versions that
# the tests ran with. The version of boomspec in it must be the one that prints the manifest.
#
#   docker build --tag registry.example.com/boomspec .
#
# torch brings CUDA's libraries; the driver is the machine's. For machines without a GPU a much smaller image:
#
#   docker build --tag registry.example.com/boomspec-cpu --build-arg INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim

# KubeRay's probes call wget; a compiler is what torch.compile needs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/boomspec
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY boomspec boomspec
COPY runners runners
ARG INDEX=https://pypi.org/simple
ARG EXTRAS=run,s3,wandb,mlflow
RUN pip install --no-cache-dir --extra-index-url "$INDEX" --constraint constraints.txt ".[$EXTRAS]"

RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray
