//! What `--help` says besides commands and options, in the order of a manual page.

/// The order of its sections.
pub(crate) const TEMPLATE: &str = "\
NAME
  {name} - {about}

SYNOPSIS
  cuda-smoke check [--json] [OPTIONS]
  cuda-smoke prepare [OPTIONS]
  cuda-smoke gate [OPTIONS]
  cuda-smoke help [COMMAND]

{before-help}COMMANDS
{subcommands}

OPTIONS
{options}{after-help}
";

/// What it does, and what it needs.
pub(crate) const DESCRIPTION: &str = "\
DESCRIPTION
  Loads kernels on every GPU that the driver shows, runs them, and compares every word of their
  results: a vector addition, a walk through memory, copies, matrix products on the tensor cores,
  and managed memory where the platform has it.

  The test runs in a child process under a deadline, so a driver that crashes or hangs is reported
  as well. It needs NVIDIA's driver, R525 or newer: no CUDA toolkit and no root. It changes nothing.

  check is for people and scripts, on any host. prepare and gate are for a runner's pod: prepare
  exchanges the pod's token for a ticket, and gate runs the same test, brings the report to the
  operator, and waits until the operator changes its container's image to the runner's.";

/// Exit codes, the end of `-h`.
pub(crate) const EXIT_CODES: &str = "\
EXIT CODES
   0               every device passed (prepare: the ticket is there)
   2  internal     the command line was not understood
  10  config       the pod, image or cluster is set up so that this cannot work
  11  transient    it may work in a moment
  12  device       a device is broken
  13  node         the node's driver or service is broken
  14  unsupported  the device is healthy but cannot do what is asked
  15  refused      the registrar said no
  16  transient    the registrar did not answer in time
  17  unknown      the driver gave a code that is not listed; it blames nothing
  70  internal     a fault of cuda-smoke itself";

/// The end of `--help`: exit codes and what follows them.
pub(crate) fn end() -> String {
    format!("{EXIT_CODES}\n\n{ENVIRONMENT}\n\n{FILES}\n\n{EXAMPLES}")
}

const ENVIRONMENT: &str = "\
ENVIRONMENT
  Every option but --json has a variable, CUDA_SMOKE_..., which the help of the
  command names. The command line wins.

  LD_LIBRARY_PATH            where the driver's library is looked for first
  CUDA_VISIBLE_DEVICES       makes the driver hide devices, from the test as from any program
  HTTPS_PROXY, NO_PROXY      gate: for the addresses that a runner must be able to reach
  SSL_CERT_FILE              gate: further authorities for those addresses
  NODE_NAME, POD_NAMESPACE, POD_NAME
                             named in the report";

const FILES: &str = "\
FILES
  libcuda.so.1               the driver's library, on the loader's path
  /dev/nvidia0, ...          the GPUs; in WSL2 /dev/dxg
  /dev/nvidia-uvm            unified memory; the report says where it is missing
  /proc/driver/nvidia/version
                             the version of the kernel module, for the report
  /var/run/secrets/cudarunner.dev/token
                             prepare: the pod's token for the registrar
  /run/cuda-runner           prepare, gate: what the pod's containers share
  /dev/termination-log       prepare, gate: the report in short, at most 4096 bytes";

const EXAMPLES: &str = "\
EXAMPLES
  Test all GPUs of this host:
    cuda-smoke check

  Be content with nothing but two GPUs that are Ampere or newer:
    cuda-smoke check --expected-devices 2 --min-compute-capability 8.0

  Who is to blame, and for what:
    cuda-smoke check --json | jq .failure

  In a container, with NVIDIA's container toolkit:
    docker run --rm --gpus all IMAGE-OF-THE-GATE check";

#[cfg(test)]
mod tests {
    use gate_report::Class;

    use super::*;

    #[test]
    fn every_class_is_listed_with_its_exit_codes() {
        let mut listed = vec![];
        for line in EXIT_CODES.lines().skip(2) {
            let mut words = line.split_whitespace();
            let class = Class::from_exit_code(words.next().unwrap().parse().unwrap());
            assert_eq!(words.next(), class.map(Class::as_str), "{line}");
            listed.extend(class);
        }
        assert!(Class::ALL.iter().all(|class| listed.contains(class)));
    }
}
