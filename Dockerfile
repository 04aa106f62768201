# SPDX-License-Identifier: Apache-2.0
# Three images from one file, each `docker build --target NAME -t otpr:NAME .`:
#   robot    ROS 2 Jazzy, policy node and recorder, ONNX Runtime for CUDA; no torch, no simulator
#   sim      robot + the simulated twin; what `make demo` runs
#   trainer  training and export on an NVIDIA GPU; what `make train-lift` runs
# Each runs as user 2000, who owns nothing but a home.
# None has a HEALTHCHECK of its own: `otpr bringup` ends when any of its nodes ends, so the container's state is the nodes' state.

FROM ros:jazzy-ros-base AS robot
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# apt's versions are not pinned: its repositories keep only the newest one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
# ROS is the system's here (no requirements/ros.txt): the environment sees it through --system-site-packages.
RUN python3 -m venv --system-site-packages /opt/otpr
WORKDIR /opt/otpr/src
COPY requirements requirements
RUN /opt/otpr/bin/python -m pip install --no-cache-dir -c requirements/constraints.txt -r requirements/build.txt \
    && /opt/otpr/bin/python -m pip install --no-cache-dir -c requirements/constraints.txt \
        -r requirements/robot.txt -r requirements/runtime-gpu.txt
COPY launch launch
COPY ros2_ws/src/otpr ros2_ws/src/otpr
COPY ros2_ws/src/otpr_policy ros2_ws/src/otpr_policy
COPY ros2_ws/src/otpr_operator ros2_ws/src/otpr_operator
RUN /opt/otpr/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation \
        ./ros2_ws/src/otpr ./ros2_ws/src/otpr_policy ./ros2_ws/src/otpr_operator \
    && useradd --create-home --uid 2000 otpr
# `ros2` starts with the system's interpreter and must find our packages too, both as ROS packages and as modules.
ENV PATH=/opt/otpr/bin:$PATH \
    AMENT_PREFIX_PATH=/opt/otpr \
    PYTHONPATH=/opt/otpr/lib/python3.12/site-packages
USER 2000
WORKDIR /home/otpr
# The base image's entry point sources ROS and then becomes the command, so that a signal to the container reaches it.
ENTRYPOINT ["/ros_entrypoint.sh"]
CMD ["otpr", "doctor"]

FROM robot AS sim
USER 0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/otpr/src
RUN /opt/otpr/bin/python -m pip install --no-cache-dir -c requirements/constraints.txt -r requirements/sim.txt \
    && /opt/otpr/bin/python -m pip install --no-cache-dir --no-deps -c requirements/constraints.txt -r requirements/sim-nodeps.txt
COPY sim sim
RUN /opt/otpr/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation ./sim
COPY policies policies
USER 2000
WORKDIR /home/otpr
CMD ["otpr", "demo", "/opt/otpr/src/policies/lift.onnx"]

# torch brings its own CUDA libraries; the base image brings what makes the container see the GPU.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS trainer
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libegl1 libosmesa6 make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 2000 otpr
WORKDIR /home/otpr/src
COPY --chown=2000 . .
RUN chown 2000 .
USER 2000
RUN make env-trainer RUNTIME=gpu
ENV PATH=/home/otpr/src/.venv/bin:$PATH
CMD ["otpr", "doctor"]
