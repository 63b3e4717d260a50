//! Which devices and which driver a gate saw.

use std::fmt;

use gate_report::Report;

/// The devices and the driver of a runner.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hardware {
    /// The devices, in the order of [`super::runner::Runner::devices`].
    pub devices: Vec<Product>,
    /// Version of the driver's kernel module, such as `580.95.05`.
    pub driver: Option<String>,
    /// Newest CUDA version that the driver supports, such as `12.9`.
    pub cuda: Option<String>,
}

/// What kind of device it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Product {
    /// Such as `NVIDIA A100-SXM4-40GB`.
    pub name: String,
    /// Such as `8.0`.
    pub compute_capability: String,
    /// Its memory, in MiB.
    pub memory_mib: u64,
}

impl Hardware {
    /// What a gate's report says of them.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        let driver = report.driver.as_ref();
        let devices = report.devices.iter().map(|device| Product {
            name: device.name.clone(),
            compute_capability: device.compute_capability.clone(),
            memory_mib: device.memory_bytes >> 20,
        });
        Self {
            devices: devices.collect(),
            driver: driver.and_then(|d| d.kernel_version.clone()),
            cuda: driver.and_then(|d| d.cuda_version.clone()),
        }
    }
}

/// Products and driver: one text for each kind of machine.
impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut products: Vec<&str> = self.devices.iter().map(|d| d.name.as_str()).collect();
        products.sort_unstable();
        products.dedup();
        let version = self.driver.as_ref().or(self.cuda.as_ref());
        write!(
            f,
            "{}, driver {}",
            products.join(" + "),
            version.map_or("unknown", String::as_str)
        )
    }
}
