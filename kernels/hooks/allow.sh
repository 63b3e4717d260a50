#!/bin/sh
# Called by the agent before a job of a pool that does not take every job: it takes scripts only. The program beside this
# file decides. It is static, and believes no variable that a person can set: nothing may come before it.
exec "${0%/*}/bin/runner-init" allow
