//! `cuda-smoke`. Its parts are in the library beside it, so that the trials on real hardware are one file.

use std::process::ExitCode;

fn main() -> ExitCode {
    cuda_smoke::smoke()
}
