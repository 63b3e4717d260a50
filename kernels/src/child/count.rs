//! Whether the driver shows as many devices as the pod was given.

use gate_report::Finding;

use super::calls::{Called, Driver};
use crate::args::TestArgs;
use crate::host;

/// Counts the devices, and compares with the request and with the device files.
pub(super) fn check(driver: Driver, args: &TestArgs) -> Called<u32> {
    let shown = driver.device_count()?;
    let files = host::device_files(&args.dev_dir).len();
    let mut count = Count {
        shown,
        expected: args.expected_devices,
        files: u32::try_from(files).unwrap_or(u32::MAX),
        is_hidden: host::hides_devices(),
        is_slice: false,
    };
    if count.verdict().is_some() && shown > 0 {
        count.is_slice = driver.device_name(driver.device(0)?)?.contains(" MIG ");
    }
    match count.verdict() {
        None => Ok(shown),
        Some(finding) => Err(driver.stop(finding, count.text()).into()),
    }
}

/// What there is, and what there should be.
struct Count {
    /// Devices that the driver shows.
    shown: u32,
    /// Devices that were requested, where a number was given.
    expected: Option<u32>,
    /// Device files in the container; none in WSL2.
    files: u32,
    /// `CUDA_VISIBLE_DEVICES` is set.
    is_hidden: bool,
    /// The first device is a MIG slice, and slices do not show beside each other.
    is_slice: bool,
}

impl Count {
    fn verdict(&self) -> Option<Finding> {
        let are_hidden_by_design = self.is_slice || self.files > 0 && self.shown >= self.files;
        match self.expected {
            Some(expected) if self.shown > expected => Some(Finding::TooManyDevices),
            Some(expected) if self.shown == expected && expected > 0 => None,
            None if self.shown > 0
                && (self.shown >= self.files || self.is_slice || self.is_hidden) =>
            {
                None
            }
            _ if self.is_hidden => Some(Finding::HiddenDevices),
            Some(_) if are_hidden_by_design && self.shown > 0 => Some(Finding::SliceHidden),
            _ => Some(Finding::TooFewDevices),
        }
    }

    fn text(&self) -> String {
        let wanted = match self.expected {
            Some(expected) if self.shown > expected => format!("and only {expected} requested"),
            Some(expected) => format!("and {expected} were requested"),
            None if self.shown == 0 => "so there is nothing to test".to_owned(),
            None => "and no number was requested".to_owned(),
        };
        let files = match self.files {
            0 => String::new(),
            files => format!("; the container has {files} device files"),
        };
        format!("the driver shows {} devices, {wanted}{files}", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_devices_is_judged_by_the_request_and_the_device_files() {
        use Finding::{HiddenDevices, SliceHidden, TooFewDevices, TooManyDevices};
        // Shown, requested, device files, CUDA_VISIBLE_DEVICES, slice.
        for (shown, expected, files, is_hidden, is_slice, verdict) in [
            (1, Some(1), 1, false, false, None),
            (2, Some(2), 8, false, false, None),
            (1, Some(1), 0, false, false, None),
            (3, Some(2), 3, false, false, Some(TooManyDevices)),
            // One of two is lost.
            (1, Some(2), 2, false, false, Some(TooFewDevices)),
            (1, Some(2), 0, false, false, Some(TooFewDevices)),
            (0, Some(2), 2, false, false, Some(TooFewDevices)),
            // Two shares, or two slices, of one GPU, and slices of two.
            (1, Some(2), 1, false, false, Some(SliceHidden)),
            (1, Some(2), 1, false, true, Some(SliceHidden)),
            (1, Some(2), 2, false, true, Some(SliceHidden)),
            (1, Some(2), 2, true, false, Some(HiddenDevices)),
            // A claim.
            (2, None, 2, false, false, None),
            (1, None, 0, false, false, None),
            (1, None, 2, false, false, Some(TooFewDevices)),
            (1, None, 2, false, true, None),
            (1, None, 2, true, false, None),
            (0, None, 2, false, false, Some(TooFewDevices)),
            (0, None, 0, true, false, Some(HiddenDevices)),
        ] {
            let count = Count {
                shown,
                expected,
                files,
                is_hidden,
                is_slice,
            };
            let found = count.verdict();
            assert_eq!(found, verdict, "{}, hidden: {is_hidden}", count.text());
        }
    }
}
