//! Finds the driver's library.
//!
//! The loader looks first, as it does for every program. An image without a cache of the loader's, as ours is, finds
//! nothing outside of its own folders, so those where drivers are put are looked through as well.

use std::collections::BTreeSet;
use std::env;
use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use gate_report::{Finding, Step};
use libloading::Library;

use super::functions::Functions;
use crate::protocol::{Event, Place, Stop, send};

/// The driver's library.
const NAME: &str = "libcuda.so.1";
/// The name for linking. A toolkit has a stub under it, so it comes last.
const LINK_NAME: &str = "libcuda.so";
/// Where a library is looked for first.
const PATH: &str = "LD_LIBRARY_PATH";
/// Where drivers are: of GKE's device plugin and of the GPU operator, of distributions, of WSL2.
pub(crate) const FOLDERS: [&str; 4] = [
    "/usr/local/nvidia/lib64",
    if cfg!(target_arch = "aarch64") {
        "/usr/lib/aarch64-linux-gnu"
    } else {
        "/usr/lib/x86_64-linux-gnu"
    },
    "/usr/lib64",
    "/usr/lib/wsl/lib",
];
/// Where a toolkit has libraries that are no driver, or not this node's.
const TOOLKIT: [&str; 2] = ["/usr/local/cuda/compat", "/usr/local/cuda/lib64/stubs"];
/// Most libraries that are named and not used.
const MOST_OTHERS: usize = 8;

/// Loads the library and looks its functions up. `root` stands before the folders that are looked through.
pub(super) fn load(root: &Path) -> Result<Functions, Box<Stop>> {
    let place = Place {
        step: Step::Load,
        call: None,
        device: None,
    };
    send(&Event::Calling(place.clone()));
    let stop = |finding, detail| Box::new(Stop::found(place.clone(), finding, detail));
    let library = find(root).map_err(|(finding, detail)| stop(finding, detail))?;
    // Stays loaded: the functions do.
    let functions = Functions::load(Box::leak(Box::new(library))).map_err(|name| {
        let path = path_of_mapping(None).unwrap_or_else(|| "the driver's library".into());
        stop(
            Finding::MissingSymbol,
            format!("{path} has no function {name}"),
        )
    })?;
    let path = path_of_mapping(Some(functions.cuInit as usize));
    send(&Event::Library {
        others: others(root, path.as_deref()),
        path,
    });
    Ok(functions)
}

/// The driver's library by its name on the loader's path, then in the folders of drivers, then by its other name.
fn find(root: &Path) -> Result<Library, (Finding, String)> {
    let by_name = |name: &str| {
        open(Path::new(name)).map_err(|text| (Finding::BrokenDriver, with_others(text, root)))
    };
    if let Some(library) = by_name(NAME)? {
        return Ok(library);
    }
    if let Some(folder) = outside(root) {
        return Err(start_again(&folder));
    }
    if let Some(library) = by_name(LINK_NAME)? {
        return Ok(library);
    }
    let text = format!("no {NAME} on the loader's path or where drivers are");
    Err((Finding::NoDriver, with_others(text, root)))
}

/// Loads a library by its name, or from a file; `None` where the loader finds none. One that is there and cannot be loaded
/// says more.
pub(crate) fn open(name: &Path) -> Result<Option<Library>, String> {
    // SAFETY: loading a library of the driver's runs its own initialisers, which is what it is for.
    match unsafe { Library::new(name) } {
        Ok(library) => Ok(Some(library)),
        Err(error) => {
            let text = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            if is_absent(&name.to_string_lossy(), &text) {
                return Ok(None);
            }
            Err(text)
        }
    }
}

/// The first folder of drivers that has the library and is not on the loader's path yet.
fn outside(root: &Path) -> Option<PathBuf> {
    let path = env::var_os(PATH).unwrap_or_default();
    let known: Vec<_> = env::split_paths(&path).collect();
    FOLDERS
        .iter()
        .map(|folder| under(root, folder))
        .find(|folder| folder.join(NAME).exists() && !known.contains(folder))
}

/// Starts this program anew with the folder at the end of the loader's path: the driver loads more libraries by their
/// names, and the loader reads its path only once. Returns only if that fails.
fn start_again(folder: &Path) -> (Finding, String) {
    let mut path = env::var_os(PATH).filter(|path| !path.is_empty());
    if let Some(path) = &mut path {
        path.push(":");
    }
    let mut path: OsString = path.unwrap_or_default();
    path.push(folder);
    let error = match env::current_exe() {
        Ok(program) => Command::new(program)
            .args(env::args_os().skip(1))
            .env(PATH, path)
            .exec(),
        Err(error) => error,
    };
    let text = format!("the test process could not be started anew: {error}");
    (Finding::Internal, text)
}

/// A folder of the container, below another root in tests.
pub(crate) fn under(root: &Path, folder: &str) -> PathBuf {
    root.join(folder.trim_start_matches('/'))
}

/// The driver's libraries that are there, other than the one that was loaded.
fn others(root: &Path, loaded: Option<&str>) -> Vec<String> {
    let path = env::var_os(PATH).unwrap_or_default();
    let listed = FOLDERS.iter().chain(&TOOLKIT);
    let folders = env::split_paths(&path).chain(listed.map(|folder| under(root, folder)));
    let files = folders.flat_map(|folder| [folder.join(NAME), folder.join(LINK_NAME)]);
    // Several names may lead to one file.
    let files: BTreeSet<_> = files
        .filter_map(|file| fs::canonicalize(file).ok())
        .collect();
    files
        .iter()
        .filter(|file| loaded.is_none_or(|loaded| file.as_path() != Path::new(loaded)))
        .map(|file| file.display().to_string())
        .take(MOST_OTHERS)
        .collect()
}

fn with_others(text: String, root: &Path) -> String {
    match others(root, None).join(", ").as_str() {
        "" => text,
        others => format!("{text}; there, and not used: {others}"),
    }
}

/// Whether the loader's words say that the file itself is not there (and not one that it depends on).
fn is_absent(name: &str, text: &str) -> bool {
    text.starts_with(&format!("{name}: ")) && text.contains("No such file or directory")
}

/// The file that is mapped at `address`, or else any that is named like the driver's library.
pub(crate) fn path_of_mapping(address: Option<usize>) -> Option<String> {
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
        assert_eq!(path, env::current_exe().unwrap().to_str().unwrap());
    }
}
