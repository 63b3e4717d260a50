#!/bin/sh
# buildah with a store of its own, whose registry is a folder: PLACE has both, BUILDAH is the program.
set -eu
policy="--signature-policy=$PLACE/policy.json"
case "$1 $2" in
"bud "*)
  shift
  set -- bud "$policy" "$@"
  ;;
"manifest push")
  shift 2
  set -- manifest push "$policy" "$@"
  ;;
esac
for word; do
  shift
  case $word in
  docker://*) word="oci:$PLACE/registry" ;;
  esac
  set -- "$@" "$word"
done
exec unshare --mount -- "$BUILDAH" --root "$PLACE/storage" --runroot "$PLACE/storage-run" --storage-driver vfs "$@"
