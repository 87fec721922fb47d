#!/bin/sh
# Runs clients that other people wrote, and clients that misbehave, against `foveal serve` with its built-in model on the CPU.
# A line for each check; the exit status says whether all passed. README.md says what each script checks.
#
# run.sh [--quick | --long]
#   --quick   without aiperf, whose installation is 1.2 GB; clients vanish for 15 s
#   --long    clients vanish for ten minutes
# FOVEAL_BINARY names another binary than target/debug/foveal, FOVEAL_CLIENTS_VENV another folder than target/clients-venv.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${FOVEAL_CLIENTS_VENV:-$root/target/clients-venv}
export FOVEAL_BINARY="${FOVEAL_BINARY:-$root/target/debug/foveal}" PYTHONDONTWRITEBYTECODE=1

aiperf=yes seconds=60
case "${1:-}" in
  --quick) aiperf=no seconds=15 ;;
  --long) seconds=600 ;;
  "") ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
[ -x "$FOVEAL_BINARY" ] || { echo "no program at $FOVEAL_BINARY: cargo build -p foveal-runtime" >&2; exit 2; }

# A folder whose installation was cut short is made anew; so is one of other versions.
install() {
  mark="$venv/$1"
  cmp -s "$here/$1" "$mark" && return
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/$1"
  cp "$here/$1" "$mark"
}
install requirements.txt
[ $aiperf = no ] || install requirements-aiperf.txt

failed=
run() {
  "$venv/bin/python" "$here/$@" || failed="$failed $1"
}
start=$(date +%s)
run openai_client.py
run vllm_shapes.py
run malformed.py --count 1000
run shutdown.py
[ $aiperf = no ] || run aiperf_client.py
run vanish.py --seconds $seconds
echo "$(($(date +%s) - start)) s"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
