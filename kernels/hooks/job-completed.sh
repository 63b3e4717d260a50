#!/bin/sh
# Run by the agent after a job, whatever became of it: the counterpart of job-started.sh. The team's own hook comes
# first: the runner is busy until it has ended, and its exit code is ours.
dir=${CUDA_RUNNER_DIR:-/run/cuda-runner}
code=0
[ -z "$CUDA_RUNNER_HOOK_JOB_COMPLETED" ] || /bin/sh "$dir/team-hook.sh" "$CUDA_RUNNER_HOOK_JOB_COMPLETED" || code=$?
rm -f "$dir/busy" 2>/dev/null || :

json() { printf %s "$1" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g'; }
{ printf '{"mark":"completed","job":"%s","run":"%s","attempt":"%s","at":"%s","workflow":"%s","repository":"%s"}\n' \
  "$(json "$GITHUB_JOB")" "$(json "$GITHUB_RUN_ID")" "$(json "$GITHUB_RUN_ATTEMPT")" "$(date +%s)" \
  "$(json "$GITHUB_WORKFLOW")" "$(json "$GITHUB_REPOSITORY")" >>/dev/termination-log; } 2>/dev/null || :
[ ! -x "$dir/bin/runner-init" ] || "$dir/bin/runner-init" telemetry || :
[ ! -e "$dir/gpu.sh" ] || /bin/sh "$dir/gpu.sh" completed || :
exit "$code"
