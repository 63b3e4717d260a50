# Runs in the runner's image before the gate, and notes what the image holds: one fact a line, tabs between the words.
# It judges nothing and needs a POSIX shell only; the disk is asked with df, where there is one.
set -f
tab=$(printf '\t')
exec 3>"${CUDA_RUNNER_DIR:-/run/cuda-runner}/preflight"
say() {
  printf '%s\n' "$1"
  printf '%s\n' "$1" >&3
}

# The number that a line begins with.
number() { printf %s "${1%%[!0-9.]*}"; }

# The version in what nvcc prints: "Cuda compilation tools, release 12.4, V12.4.131".
of_nvcc() {
  "$1" --version 2>/dev/null </dev/null | while read -r line; do
    case $line in *"release "[0-9]*) number "${line#*release }" && break ;; esac
  done
}

# The version of the entry "cuda" in a toolkit's version.json.
of_json() {
  entry=
  while read -r line || [ -n "$line" ]; do
    case $line in *'"cuda"'*) entry=1 line=${line#*'"cuda"'} ;; esac
    case $entry$line in
      1*'"version"'*)
        line=${line#*'"version"'}
        number "${line#*'"'}"
        return
        ;;
    esac
  done <"$1"
}

# The version in the version.txt of older toolkits: "CUDA Version 10.2.89".
of_text() {
  read -r line <"$1"
  case $line in *"Version "[0-9]*) number "${line#*Version }" ;; esac
}

toolkit() {
  if command -v nvcc >/dev/null; then
    version=$(of_nvcc nvcc)
    [ -n "$version" ] && say "toolkit$tab$version${tab}nvcc" && return
  fi
  for root in "$CUDA_HOME" "$CUDA_PATH" /usr/local/cuda; do
    [ -n "$root" ] || continue
    version=
    if [ -r "$root/version.json" ]; then
      place=$root/version.json version=$(of_json "$root/version.json")
    elif [ -r "$root/version.txt" ]; then
      place=$root/version.txt version=$(of_text "$root/version.txt")
    elif [ -x "$root/bin/nvcc" ]; then
      place=$root/bin/nvcc version=$(of_nvcc "$root/bin/nvcc")
    fi
    [ -n "$version" ] && say "toolkit$tab$version$tab$place" && return
  done
}

# Toolchains are folders named NAME or NAME-HOST; rustup itself may be installed elsewhere.
has_toolchain() {
  set +f
  for folder in "${RUSTUP_HOME:-$HOME/.rustup}/toolchains/$1" "${RUSTUP_HOME:-$HOME/.rustup}/toolchains/$1"-*; do
    [ -d "$folder" ] && return
  done
  set -f
  rustup toolchain list 2>/dev/null </dev/null | {
    while read -r name rest; do
      case $name in "$1" | "$1"-*) exit 0 ;; esac
    done
    exit 1
  }
}

# The folder may come into being with the first job: then its nearest parent counts.
disk() {
  folder=$1
  while [ -n "$folder" ] && [ ! -d "$folder" ]; do folder=${folder%/*}; done
  folder=${folder:-/}
  df -P -k "$folder" 2>/dev/null | {
    read -r line
    read -r device blocks used free rest && say "disk$tab$free$tab$folder"
  }
}

for name in $CUDA_RUNNER_COMMANDS; do
  command -v "$name" >/dev/null 2>&1 && say "command$tab$name"
done
[ -n "$CUDA_RUNNER_TOOLKIT" ] && toolkit
[ -n "$CUDA_RUNNER_TOOLCHAIN" ] && has_toolchain "$CUDA_RUNNER_TOOLCHAIN" && say toolchain
disk "$CUDA_RUNNER_WORK"
say end
exit 0
