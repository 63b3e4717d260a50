#!/bin/sh
# Called by the agent for a job with a container of its own: it takes scripts only. The program beside this file does it all.
exec "${0%/*}/bin/runner-init" container-hook
