#!/usr/bin/env bash
# What the manylinux container lacks: ccache, since the kernels are the same for every Python, and
# for CUDA wheels nvcc. Usage: prepare_container.sh [CUDA version, such as 13.0]
set -euo pipefail
cuda=${1:-}
dnf -y install epel-release
dnf -y install ccache
if [ -n "$cuda" ]; then
  curl -fsSL -o /etc/yum.repos.d/cuda.repo \
    https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo
  package=${cuda//./-}
  dnf -y install "cuda-nvcc-$package" "cuda-cudart-devel-$package" "cuda-driver-devel-$package"
  ln -sfn "/usr/local/cuda-$cuda" /usr/local/cuda
fi
