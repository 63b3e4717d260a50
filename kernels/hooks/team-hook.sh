#!/bin/sh
# Runs the team's own job hook as the agent would, and ends with its exit code. The agent knows one hook for each event,
# and that is ours.
if [ ! -f "$1" ]; then
  echo "::error::The job hook $1 of the runner's template is not there in its container. Mount it, or correct the path in spec.template."
  exit 1
fi
case $1 in *.ps1) exec pwsh -command ". '$1'" ;; esac
if command -v bash >/dev/null; then
  exec bash --noprofile --norc -e -o pipefail "$1"
fi
exec sh -e "$1"
