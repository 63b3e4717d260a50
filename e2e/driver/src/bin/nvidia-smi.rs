//! Stands in for NVIDIA's tool of that name, which a node's toolkit puts into every container with a GPU: a static program,
//! so that it runs in any image. It knows `-L`, and lists the devices of the container in any case.

use std::{fs, process::ExitCode};

use serde_json::Value;

/// What the device plugin says of the container's devices.
const SETTINGS: &str = "/usr/local/nvidia/simcuda.json";

fn main() -> ExitCode {
    let settings = fs::read(SETTINGS).unwrap_or_default();
    let settings: Value = serde_json::from_slice(&settings).unwrap_or_default();
    let Some(devices) = settings["devices"].as_array() else {
        println!("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.");
        return ExitCode::from(9);
    };
    for (number, device) in devices.iter().enumerate() {
        let word = |name: &str| device[name].as_str().unwrap_or("?");
        println!(
            "GPU {number}: Simulated {} (UUID: {})",
            word("profile"),
            word("uuid")
        );
    }
    ExitCode::SUCCESS
}
