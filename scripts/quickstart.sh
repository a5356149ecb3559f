#!/usr/bin/env bash
# From a fresh clone to a distilled, measured and judged student: makes .venv, then runs the quickstart recipe.
# Arguments go to `edgedistill run quickstart`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
prepare
echo "edgedistill is in .venv; to call it by its name: . .venv/bin/activate" >&2
exec .venv/bin/edgedistill run quickstart "$@"
