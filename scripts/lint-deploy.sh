#!/bin/sh
# Checks deploy/: the manifests of Kubernetes by its schemas, all YAML, the shell script, and the container composition where
# the program for that is there. What cannot be checked here is told and left out. Alert rules are for `make prometheus`.
set -eu
cd "$(dirname "$0")/.."
sh -n deploy/backup.sh
left_out() { echo "WARNING: $1: LEFT OUT, $2" >&2; }
scripts/ensure-tool.sh python3 && venv=$(scripts/venv.sh tests/deploy/requirements.txt) || {
    left_out "deploy/kubernetes" "it needs python3 with venv, and PyPI"
    exit 0
}
"$venv/bin/kubernetes-validate" --strict --quiet deploy/kubernetes/*.yaml
"$venv/bin/python" -c 'import sys, yaml; [list(yaml.safe_load_all(open(file))) for file in sys.argv[1:]]' \
    deploy/compose.yaml deploy/prometheus/alerts.yml
if docker compose version >/dev/null 2>&1; then
    docker compose --file deploy/compose.yaml config --quiet
else
    left_out "deploy/compose.yaml but for its syntax" "docker compose is not there"
fi
