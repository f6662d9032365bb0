"""A compiled graph as a job of Slurm: the sbatch script that `boomspec submit --slurm` prints.

The script starts Ray on the machines of its allocation, runs the graph on the first of them, and ends the steps that
hold Ray. On each machine Ray writes into a folder below /tmp that nobody else can enter, and that is removed at the
end; what is published is as readable as the user's umask makes it.
Its cluster has a token, made in the job, which goes from machine to machine in the environment of the steps: no file
holds it, and no list of processes shows it. The dashboard listens on loopback of the first machine.
A job that is preempted or runs out of time gets a signal two minutes before, writes its checkpoints, and continues from
them when it is queued again.
"""

import json
import shlex
from pathlib import Path

from boomspec.core.graph import TaskGraph
from boomspec.plan.demand import KEEPALIVE, OBJECT_STORE, machine


def script(graph: TaskGraph, runner: list[str], log: Path, *, nodes: int = 1) -> str:
    """The script; all paths are the machines'. runner: a Python with boomspec's runners, and what it is to run."""
    size = machine(graph, nodes=nodes)
    assert size is not None  # a graph has tasks
    values = {
        "NAME": graph.name,
        "NODES": str(nodes),
        "GIBIBYTES": str(size.gibibytes),
        "LOG": shlex.quote(str(log)),
        "PYTHON": shlex.quote(runner[0]),
        "CPUS": str(size.cpus),
        "IF-GPUS": f"\n#SBATCH --gpus-per-node={size.gpus}" if size.gpus else "",
        "GPUS": str(size.gpus),
        "MEMORY": f"--memory={size.claimable} --object-store-memory={OBJECT_STORE}",
        "RESOURCES": f"--resources={shlex.quote(json.dumps(size.resources))} " if size.resources else "",
        "KEEPALIVE": " ".join(f"{name}={value}" for name, value in KEEPALIVE.items()),
        "RUNNER": shlex.join(runner),
    }
    text = _SCRIPT
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


_SCRIPT = r"""#!/bin/bash
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@CPUS@@IF-GPUS@
#SBATCH --mem=@GIBIBYTES@G
#SBATCH --output=@LOG@
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

python=@PYTHON@
ray=$(dirname "$python")/ray
mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
address=$({ hostname --ip-address; hostname -I; } | tr ' ' '\n' | grep -E '^[0-9.]+$' | grep -v '^127\.' | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000 * 2))
temporary=/tmp/boomspec-$SLURM_JOB_ID

# Ray's ports take connections from everywhere, so nobody without this token is let in.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 @KEEPALIVE@
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

steps=()
driver=
finish() {
  trap - EXIT
  # The steps of this job, and no other Ray on these machines.
  if ((${#steps[@]})); then
    kill -TERM "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" 2>/dev/null || true
    # A step whose srun is ended may be killed before it has tidied up.
    timeout 60 srun --nodes="${#machines[@]}" --ntasks="${#machines[@]}" --overlap rm -rf "$temporary" || true
  fi
}
trap finish EXIT
trap '[[ -z $driver ]] || kill -TERM "$driver"' TERM INT

on_machine() {  # FOLDER COMMAND...: with a folder that nobody else can enter (Ray opens those that it makes to all)
  local folder=$1 ; shift
  mkdir -p -m 700 "$folder" && [[ -O $folder && ! -L $folder ]] && chmod 700 "$folder" || exit 1
  "$@" &
  trap "kill -TERM $! 2>/dev/null" TERM
  while kill -0 "$!" 2>/dev/null; do wait "$!"; done
  rm -rf "$folder"
}

start() {  # HOW_MANY WHERE... -- OPTIONS OF RAY...
  local where=("--nodes=$1" "--ntasks=$1") ; shift
  while [[ $1 != -- ]]; do where+=("$1"); shift; done
  shift
  srun "${where[@]}" --export=ALL --overlap --kill-on-bad-exit=0 \
    bash -c "$(declare -f on_machine); on_machine \"\$@\"" - "$temporary" \
    "$ray" start --block --num-cpus=@CPUS@ --num-gpus=@GPUS@ @MEMORY@ @RESOURCES@--disable-usage-stats "$@" &
  steps+=($!)
}

start 1 --nodelist="$head" -- --head --node-ip-address="$address" --port="$port" --temp-dir="$temporary/ray" \
  --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1))
for _ in $(seq 120); do
  if (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; then break; fi
  sleep 1
done
if ((${#machines[@]} > 1)); then
  start $((${#machines[@]} - 1)) --exclude="$head" -- --address="$address:$port"
fi

# Every machine must be there: a task that no machine can run is an error.
"$python" -P - "$address:$port" "${#machines[@]}" <<'EOF'
import sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
until = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    if time.monotonic() > until:
        sys.exit("not every machine of the allocation has joined the Ray cluster")
    time.sleep(1)
EOF

@RUNNER@ --address "$address:$port" &
driver=$!
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do  # a signal ends `wait`, not the driver
  code=0
  wait "$driver" || code=$?
done
exit "$code"
"""
