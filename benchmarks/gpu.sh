#!/bin/sh
# What a GPU shows in fifteen minutes: its tests, waits, speed and share of peak of each space, kill and resume, as Markdown
# tables. Without a GPU, or with FAKE=1, the same runs on the fake GPU of the tests, which counts but measures no time.
#
#     PYTHON=.venv/bin/python benchmarks/gpu.sh [--spaces tiny,small] [--only speed]
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py ${FAKE:+--fake} "$@"
