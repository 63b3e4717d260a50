//! Finds the driver's library. cudarc panics where there is none, so it is probed first.

use std::error::Error as _;
use std::fs;

use cudarc::driver::sys;
use gate_report::{Finding, Step};
use libloading::Library;

use super::functions::Functions;
use crate::protocol::{Event, Place, Stop, send};

/// Loads the library and looks its functions up.
pub(super) fn load() -> Result<Functions, Box<Stop>> {
    let place = Place {
        step: Step::Load,
        call: None,
        device: None,
    };
    send(&Event::Calling(place.clone()));
    let stop = |finding, detail| Box::new(Stop::found(place.clone(), finding, detail));
    probe().map_err(|(finding, detail)| stop(finding, detail))?;
    // SAFETY: the probe has just loaded one of the very names that cudarc tries, so it finds a library, and loading
    // the driver's library runs its own initialisers, which is what it is for.
    let library: &'static Library = unsafe { sys::culib() };
    let functions = Functions::load(library).map_err(|name| {
        let path = path_of_mapping(None).unwrap_or_else(|| "the driver's library".into());
        stop(
            Finding::MissingSymbol,
            format!("{path} has no function {name}"),
        )
    })?;
    send(&Event::Library {
        path: path_of_mapping(Some(functions.cuInit as usize)),
    });
    Ok(functions)
}

/// Tries the names that cudarc will try, in its order, and keeps the first that loads.
fn probe() -> Result<(), (Finding, String)> {
    let mut missing = None;
    for name in ["cuda", "nvcuda"]
        .into_iter()
        .flat_map(cudarc::get_lib_name_candidates)
    {
        // SAFETY: see `load`.
        match unsafe { Library::new(&name) } {
            Ok(library) => {
                // Stays loaded: unloading and loading again would run the initialisers twice.
                std::mem::forget(library);
                return Ok(());
            }
            Err(error) => {
                let text = error
                    .source()
                    .map_or_else(|| error.to_string(), ToString::to_string);
                // A library that is there and cannot be loaded says more than one that is not.
                if !is_absent(&name, &text) {
                    return Err((Finding::BrokenDriver, text));
                }
                missing.get_or_insert(text);
            }
        }
    }
    Err((
        Finding::NoDriver,
        "no libcuda.so or libcuda.so.1 on the loader's path".into(),
    ))
}

/// Whether the loader's words say that the file itself is not there (and not one that it depends on).
fn is_absent(name: &str, text: &str) -> bool {
    text.starts_with(&format!("{name}: ")) && text.contains("No such file or directory")
}

/// The file that is mapped at `address`, or else any that is named like the driver's library.
fn path_of_mapping(address: Option<usize>) -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let path = rest.find('/').map(|start| &rest[start..])?;
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let matches = match address {
            Some(address) => range.contains(&address),
            None => path.contains("/libcuda.so"),
        };
        matches.then(|| path.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_dependency_is_not_a_missing_driver() {
        let absent = "libcuda.so.1: cannot open shared object file: No such file or directory";
        let dependency =
            "libnvidia-gpucomp.so: cannot open shared object file: No such file or directory";
        let short = "/usr/lib/libcuda.so.1: file too short";
        assert!(is_absent("libcuda.so.1", absent));
        assert!(!is_absent("libcuda.so.1", dependency));
        assert!(!is_absent("libcuda.so.1", short));
    }

    #[test]
    fn a_function_is_found_in_the_file_that_holds_it() {
        let path = path_of_mapping(Some(
            a_missing_dependency_is_not_a_missing_driver as *const () as usize,
        ))
        .unwrap();
        assert_eq!(path, std::env::current_exe().unwrap().to_str().unwrap());
    }
}
