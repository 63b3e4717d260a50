//! Stands in for node in the agent's `externals`: a static program, so that it runs in any image. It reads the file that it
//! is given, and does what the lines that begin with `//@` say; what else there is in the file does not count.
//!
//! | line | what it does |
//! |---|---|
//! | `print TEXT` | prints it |
//! | `write FILE TEXT` | writes it, making folders |
//! | `append FILE TEXT` | adds it as a line |
//! | `require FILE` | fails where there is no such file |
//! | `exit CODE` | ends |
//!
//! `${NAME}` is a variable of the environment.

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    let Some(file) = env::args().nth(1) else {
        eprintln!("simulated-node: no file");
        return ExitCode::from(9);
    };
    let script = match fs::read_to_string(&file) {
        Ok(script) => script,
        Err(error) => {
            eprintln!("simulated-node: {file}: {error}");
            return ExitCode::FAILURE;
        }
    };
    for line in script.lines().filter_map(|line| line.strip_prefix("//@ ")) {
        match run(&expand(line)) {
            Ok(None) => {}
            Ok(Some(code)) => return ExitCode::from(code),
            Err(error) => {
                eprintln!("simulated-node: {file}: {line}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Does what one line says; a code ends the program.
fn run(line: &str) -> Result<Option<u8>, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (file, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let path = Path::new(file);
    let failed = |error: std::io::Error| error.to_string();
    match word {
        "print" => println!("{rest}"),
        "write" => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(failed)?;
            }
            fs::write(path, format!("{text}\n")).map_err(failed)?;
        }
        "append" => OpenOptions::new()
            .append(true)
            .open(path)
            .and_then(|mut file| writeln!(file, "{text}"))
            .map_err(failed)?,
        "require" if !path.exists() => return Err("no such file".to_owned()),
        "require" => {}
        // Nothing is as good as 0.
        "exit" => {
            return match rest.parse() {
                Ok(0) => Ok(None),
                Ok(code) => Ok(Some(code)),
                Err(_) if rest.is_empty() => Ok(None),
                Err(error) => Err(error.to_string()),
            };
        }
        _ => return Err("not understood".to_owned()),
    }
    Ok(None)
}

/// A line with its variables replaced.
fn expand(line: &str) -> String {
    let mut made = String::new();
    let mut rest = line;
    while let Some((plain, name, behind)) = next(rest) {
        made.push_str(plain);
        made.push_str(&variable(name));
        rest = behind;
    }
    made + rest
}

fn next(text: &str) -> Option<(&str, &str, &str)> {
    let (plain, behind) = text.split_once("${")?;
    let (name, behind) = behind.split_once('}')?;
    Some((plain, name, behind))
}

fn variable(name: &str) -> String {
    if name == "PWD" {
        // The variable may be older than the folder.
        return env::current_dir()
            .map_or_else(|_| String::new(), |folder| folder.display().to_string());
    }
    env::var(name).unwrap_or_default()
}
