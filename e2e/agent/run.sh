#!/bin/bash
# Starts the listener and turns its exit code into what a service should do, as the real agent's script does: a code
# that no further try would change becomes 0.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
listener=${SIMULATED_AGENT:-$root/bin/Runner.Listener}

if [ "$(id -u)" -eq 0 ] && [ -z "$RUNNER_ALLOW_RUNASROOT" ]; then
  echo "Must not run interactively with sudo"
  exit 1
fi

# With RUNNER_MANUALLY_TRAP_SIG a signal to this script becomes an interrupt of the listener, and the script ends with
# 143 once the listener has ended, however well it did.
trapped=
start() {
  if [ -z "$RUNNER_MANUALLY_TRAP_SIG" ]; then
    "$listener" --root "$root" run "$@"
    return
  fi
  "$listener" --root "$root" run "$@" &
  child=$!
  trap 'trapped=1; kill -INT "$child" 2>/dev/null' INT TERM
  wait "$child"
  code=$?
  # A trapped signal ends `wait` early.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  trap - INT TERM
  return "$code"
}

while :; do
  start "$@"
  code=$?
  [ -n "$trapped" ] && exit 143
  case $code in
    0) echo "Runner listener exit with 0 return code, stop the service, no retry needed."; exit 0 ;;
    1) echo "Runner listener exit with terminated error, stop the service, no retry needed."; exit 0 ;;
    2) echo "Runner listener exit with retryable error, re-launch runner in 5 seconds."; sleep 5 ;;
    5) echo "Runner listener exit with Session Conflict error, stop the service, no retry needed."; exit 0 ;;
    7)
      echo "Runner listener exit with deprecated version exit code: 7."
      [ "$ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE" = 1 ] && exit 7
      exit 0
      ;;
    *) echo "Exiting with unknown error code: $code"; exit 0 ;;
  esac
done
