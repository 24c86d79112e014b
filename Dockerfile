# The image of a job's containers. `docker build -t syncbn:cpu .`, or another target with --target:
# cpu (the last and therefore the default), mpi (cpu with an ssh server, for MPIJob), gpu (CUDA, NCCL).
# Needs BuildKit, Docker's default builder, which skips the stages that a target does not use.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:12.9.1-devel-ubuntu22.04

# ---- the base of all stages; the user is root until the end of an image, which only then is complete
FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/syncbn/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=3 \
    LAUNCHER_OUTPUT=/runs \
    MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --uid 1000 --gid 0 --create-home trainer \
    && install --directory --owner trainer --group 0 --mode 0775 /runs \
    && python -m venv /opt/syncbn
WORKDIR /src
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["launcher", "health"]
ENTRYPOINT ["python", "-m", "launcher"]
CMD ["--help"]

# ---- the packages, from pyproject.toml: their layers stay cached while the lists are the same
FROM base AS requirements
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py

FROM base AS packages-cpu
COPY constraints.txt ./
COPY --from=requirements /src/cpu.txt ./
RUN pip install --constraint constraints.txt --requirement cpu.txt

FROM base AS packages-gpu
COPY constraints.txt ./
COPY --from=requirements /src/gpu.txt ./
RUN pip install --constraint constraints.txt --requirement gpu.txt

# ---- compilation, with the packages mounted from their stages; the images copy only Horovod's wheel
# and the library of C++ operations
FROM base AS compiler
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt ./
COPY --from=requirements /src/horovod.txt ./

FROM scratch AS recipe
COPY launcher/__init__.py launcher/errors.py /launcher/
COPY launcher/cli/__init__.py launcher/cli/install_horovod.py /launcher/cli/
COPY launcher/horovod_build /launcher/horovod_build
COPY docker/build_horovod.py /

FROM compiler AS horovod-cpu
COPY --from=recipe / ./
RUN --mount=type=bind,from=packages-cpu,source=/opt/syncbn,target=/opt/syncbn,rw \
    --mount=type=cache,target=/cache \
    pip install --constraint constraints.txt --requirement horovod.txt \
    && python build_horovod.py /cache /wheels

FROM compiler AS operations-cpu
COPY syncbn/native native
RUN python native/compiler.py --output /operations

FROM ${CUDA_IMAGE} AS cuda

FROM compiler AS horovod-gpu
COPY --from=cuda /usr/local/cuda /usr/local/cuda
COPY --from=cuda /usr/include/nccl*.h /usr/include/
COPY --from=cuda /usr/lib/x86_64-linux-gnu/libnccl* /usr/lib/x86_64-linux-gnu/
ENV PATH=/usr/local/cuda/bin:$PATH
COPY --from=recipe / ./
RUN --mount=type=bind,from=packages-gpu,source=/opt/syncbn,target=/opt/syncbn,rw \
    --mount=type=cache,target=/cache \
    pip install --constraint constraints.txt --requirement horovod.txt \
    && python build_horovod.py --gpu /cache /wheels

# ---- the images
FROM packages-gpu AS gpu
RUN --mount=type=bind,from=horovod-gpu,source=/wheels,target=/src/wheels \
    pip install --constraint constraints.txt wheels/*.whl
COPY pyproject.toml README.md LICENSE ./
COPY syncbn syncbn
COPY launcher launcher
RUN pip install --no-deps . && rm -rf /src/*
USER 1000:0
WORKDIR /runs

FROM packages-cpu AS trainer
RUN --mount=type=bind,from=horovod-cpu,source=/wheels,target=/src/wheels \
    pip install --constraint constraints.txt wheels/*.whl
COPY --from=operations-cpu /operations /opt/syncbn/lib/syncbn
COPY pyproject.toml README.md LICENSE ./
COPY syncbn syncbn
COPY launcher launcher
RUN pip install --no-deps . && rm -rf /src/*
WORKDIR /runs

FROM trainer AS mpi
RUN apt-get update && apt-get install --yes --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
COPY docker/ssh_config /etc/ssh/ssh_config.d/launcher.conf
COPY docker/sshd_config /etc/ssh/sshd_config
COPY docker/serve-ssh /usr/local/bin/
EXPOSE 2222
USER 1000:0

FROM trainer AS cpu
USER 1000:0
