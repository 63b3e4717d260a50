//! Calls into NVML, each on a thread of its own and under a deadline.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use std::{ffi::c_uint, process};

use libloading::Library;

use super::Told;
use crate::child::{FOLDERS, open, path_of_mapping, under};
use crate::deadline::Deadline;

/// The library.
const NAME: &str = "libnvidia-ml.so.1";
/// A call takes milliseconds. What takes so long, and then once more so long without waiting for a CPU, hangs.
const CALL: Duration = Duration::from_millis(500);
/// So many functions may hang before nothing more is asked.
const MOST_HUNG: usize = 2;

type Init = unsafe extern "C" fn() -> c_uint;

/// NVML, loaded and initialised.
pub(super) struct Nvml {
    library: &'static Library,
    /// Functions that did not come back.
    hung: Vec<&'static str>,
    tell: Tell,
}

/// Who hears what is called, and what is not there.
pub(super) type Tell = fn(&Told);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum No {
    /// NVML's code.
    Code(c_uint),
    /// The library has no such function.
    Function,
    /// It did not come back, now or before.
    Answer,
}

/// Loads and initialises. `None` where there is nothing to ask; why is told.
pub(super) fn load(root: &Path, tell: Tell) -> Option<Nvml> {
    let unknown = |why| {
        tell(&Told::Unknown { why });
        None
    };
    let library = match find(root) {
        Ok(Some(library)) => library,
        Ok(None) => {
            tell(&Told::Absent);
            return None;
        }
        Err(why) => return unknown(why),
    };
    // Stays loaded: a call that hangs is still in it.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the type is that of nvml.h.
    let Ok(init) = (unsafe { library.get::<Init>("nvmlInit_v2") }) else {
        return unknown(format!("{NAME} has no function nvmlInit_v2"));
    };
    tell(&Told::Library {
        path: path_of_mapping(Some(*init as usize)),
    });
    tell(&Told::Calling {
        name: "nvmlInit_v2".into(),
    });
    // As long as the driver's own start-up, which runs beside it; whoever has called us has a deadline.
    // SAFETY: takes nothing.
    match unsafe { init() } {
        0 => Some(Nvml {
            library,
            hung: vec![],
            tell,
        }),
        code => unknown(format!("nvmlInit_v2 returned {code}")),
    }
}

/// By its name on the loader's path, then in the folders of drivers, as the test finds libcuda: so both come from one folder.
fn find(root: &Path) -> Result<Option<Library>, String> {
    let folders = FOLDERS.iter().map(|folder| under(root, folder).join(NAME));
    let names = std::iter::once(PathBuf::from(NAME)).chain(folders.filter(|file| file.exists()));
    for name in names {
        if let Some(library) = open(&name)? {
            return Ok(Some(library));
        }
    }
    Ok(None)
}

impl Nvml {
    /// Calls the first of these functions that the library has; `call` gets it and a place for its answer.
    pub(super) fn call<F, T>(
        &mut self,
        names: &[&'static str],
        call: impl FnOnce(F, &mut T) -> c_uint + Send + 'static,
    ) -> Result<T, No>
    where
        F: Copy + Send + 'static,
        T: Default + Send + 'static,
    {
        let found = names.iter().find_map(|name| {
            // SAFETY: every caller gives the type that nvml.h has for the name.
            let symbol = unsafe { self.library.get::<F>(*name) };
            symbol.ok().map(|function| (*name, *function))
        });
        let (name, function) = found.ok_or(No::Function)?;
        if self.hung.contains(&name) || self.hung.len() >= MOST_HUNG {
            return Err(No::Answer);
        }
        (self.tell)(&Told::Calling { name: name.into() });
        let (code, answer) = within(CALL, move || {
            let mut answer = T::default();
            (call(function, &mut answer), answer)
        })
        .ok_or_else(|| {
            self.hung.push(name);
            (self.tell)(&Told::Unknown {
                why: format!("{name} did not come back"),
            });
            No::Answer
        })?;
        match code {
            0 => Ok(answer),
            code => Err(No::Code(code)),
        }
    }
}

/// What comes of it, unless it hangs. Its thread is left behind then.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let body = move || drop(sender.send(call()));
    thread::Builder::new().spawn(body).ok()?;
    match receiver.recv_timeout(limit) {
        Ok(answer) => return Some(answer),
        Err(RecvTimeoutError::Disconnected) => return None,
        Err(RecvTimeoutError::Timeout) => {}
    }
    let mut deadline = Deadline::new(process::id(), limit, None);
    deadline.next(&receiver).ok()
}
