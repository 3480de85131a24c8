# An image that trains on all GPUs of a node. See docs/cluster.md.
#   docker build -t lsdali .
#   docker build -t lsdali --build-arg BASE=<NVIDIA's PyTorch image, such as tag 25.09-py3> .
# The base is any Debian or Ubuntu with Python 3.10 or newer, or with apt to install it. What it has of torch, torchvision,
# DALI and apex is used; what it lacks comes as wheels, which bring CUDA's libraries. The driver is the host's.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN python3 -c 'import ensurepip, venv' || { \
      apt-get update \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
      && rm -rf /var/lib/apt/lists/*; }

# Dependencies depend on setup.py alone, so that this layer of about 7 GB is kept when the code changes.
# DALI has one package for each major version of CUDA; a second one beside that of the base would overwrite it.
ENV PATH=/opt/lsdali/bin:${PATH}
WORKDIR /lsdali
COPY setup.py ./
RUN mkdir lsdali && echo '__version__ = "0"' > lsdali/__init__.py && touch README.md \
    && python3 -m venv --system-site-packages /opt/lsdali \
    && pip install --no-cache-dir --disable-pip-version-check 'setuptools>=64' \
    && python setup.py --quiet egg_info \
    && sed '/^\[/,$d' lsdali.egg-info/requires.txt > /tmp/requirements.txt \
    && if python -c 'import nvidia.dali' 2> /dev/null; then sed -i '/^nvidia-dali/d' /tmp/requirements.txt; fi \
    && pip install --no-cache-dir --disable-pip-version-check --requirement /tmp/requirements.txt \
    && rm -r lsdali lsdali.egg-info README.md setup.py /tmp/requirements.txt

COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . && rm -rf build ./*.egg-info \
    && install -d -m 1777 runs cache

# Any user may run it (docker run -u), also one that the image does not know; nothing outside these volumes is written.
# USER tells torch whose caches these are.
ENV LSDALI_IMAGE=1 LSDALI_CACHE=/lsdali/cache HOME=/tmp USER=lsdali PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER 1000:1000
VOLUME ["/lsdali/runs", "/lsdali/cache"]

# Versions, and a decoded JPEG: an image that cannot decode one is not built.
RUN lsdali env

ENTRYPOINT ["bash", "/lsdali/bash_scripts/launch.sh"]
CMD ["--help"]
