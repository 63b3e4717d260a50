#!/bin/sh
# Run by the agent before a job. Leaves a mark in the container's termination message, so that "exit 0" and
# "ran a job" can be told apart, and a file by which the pod's readiness probe knows that the runner is busy.
# A persistent runner's earlier jobs are forgotten: the message has room for a few lines only.
# A job is not to suffer from book-keeping, and the agent runs this with `-e`: it fails only where gpu.sh finds the GPU
# gone, or with the team's own hook, which comes last.
dir=${CUDA_RUNNER_DIR:-/run/cuda-runner}
{ true >"$dir/busy"; } 2>/dev/null || :

# A value as the inside of a JSON string: names of jobs and workflows are not ours.
json() { printf %s "$1" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g'; }
{ printf '{"mark":"started","job":"%s","run":"%s","attempt":"%s","at":"%s","workflow":"%s","repository":"%s"}\n' \
  "$(json "$GITHUB_JOB")" "$(json "$GITHUB_RUN_ID")" "$(json "$GITHUB_RUN_ATTEMPT")" "$(date +%s)" \
  "$(json "$GITHUB_WORKFLOW")" "$(json "$GITHUB_REPOSITORY")" >/dev/termination-log; } 2>/dev/null || :
[ ! -e "$dir/gpu.sh" ] || /bin/sh "$dir/gpu.sh" started || exit 1
[ -z "$CUDA_RUNNER_HOOK_JOB_STARTED" ] || exec /bin/sh "$dir/team-hook.sh" "$CUDA_RUNNER_HOOK_JOB_STARTED"
exit 0
