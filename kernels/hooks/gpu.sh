#!/bin/sh
# Whether this container still has its GPU. A `systemctl daemon-reload` on the node can take the devices from running
# containers: the files stay, and cannot be opened any more. The driver's control file answers for all of them, and
# opening it wakes no device.
#   remember   at the container's start: without the file there and then, nothing is looked at later
#   idle       by the readiness probe: the second look in a row without it ends the agent, unless a job is here. Only with a
#              job it is not idle
#   started    before a job: fails it, rather than let it pass without a GPU
#   completed  after a job: leaves a mark only, the job is not over yet
dir=${CUDA_RUNNER_DIR:-/run/cuda-runner}
file=${CUDA_RUNNER_GPU_FILE:-/dev/nvidiactl}
proc=${CUDA_RUNNER_PROC:-/proc}

opens() { { true <"$file"; } 2>/dev/null; }
present() { [ ! -e "$dir/gpu" ] || opens; }
mark() { { printf '{"mark":"gpu-lost","when":"%s"}\n' "$1" >>/dev/termination-log; } 2>/dev/null; }

# The process of this name.
find_process() {
  for comm in "$proc"/[0-9]*/comm; do
    if read -r name <"$comm" && [ "$name" = "$1" ]; then
      pid=${comm%/comm}
      echo "${pid##*/}"
      return
    fi
  done 2>/dev/null
  return 1
}

case $1 in
  remember)
    if opens; then true >"$dir/gpu"; fi
    ;;
  idle)
    if present; then
      [ ! -e "$dir/gpu-missed" ] || rm -f "$dir/gpu-missed"
      exit 0
    fi
    if find_process Runner.Worker >/dev/null; then
      true >"$dir/gpu-missed"
      exit 1
    fi
    if [ ! -e "$dir/gpu-missed" ]; then
      true >"$dir/gpu-missed"
      exit 0
    fi
    if [ ! -e "$dir/gpu-lost" ]; then
      true >"$dir/gpu-lost"
      mark idle
    fi
    # Interrupted, the listener closes its session and ends: GitHub gives it no job any more.
    if listener=$(find_process Runner.Listener); then kill -INT "$listener"; else kill -TERM 1; fi
    ;;
  started)
    present || { sleep 1 && present; } || {
      mark started
      echo "::error::The GPU has vanished from this runner's container: $file cannot be opened any more. Run the job again; the runner is replaced."
      exit 1
    }
    ;;
  completed)
    if ! present; then
      true >"$dir/gpu-missed"
      true >"$dir/gpu-lost"
      mark completed
    fi
    ;;
esac 2>/dev/null
exit 0
