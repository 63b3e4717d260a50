#!/bin/bash
# Registers this runner, or takes the registration back: `config.sh [options]`, `config.sh remove [options]`.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
listener=${SIMULATED_AGENT:-$root/bin/Runner.Listener}

if [ "$(id -u)" -eq 0 ] && [ -z "$RUNNER_ALLOW_RUNASROOT" ]; then
  echo "Must not run with sudo"
  exit 1
fi
if [ "$1" = remove ]; then
  shift
  exec "$listener" --root "$root" remove "$@"
fi
exec "$listener" --root "$root" configure "$@"
