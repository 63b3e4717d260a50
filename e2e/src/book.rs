//! The documentation as a book: every page of the repository, in the order of `docs/SUMMARY.md`, with no warning of
//! mdBook's and no link that leads nowhere.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

use crate::{paths, process, report::Story, tools};

/// What the pages are, and what they link to. The layout stays, and so the links stay right.
const PARTS: [&str; 8] = [
    "README.md",
    "CONTRIBUTING.md",
    "STYLE.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs",
    "charts",
];
/// In the repository the table of contents is beside the pages; mdBook wants it above them.
const SUMMARY: &str = "docs/SUMMARY.md";

/// Builds the book and gives its folder.
pub fn build(story: &Story) -> Result<PathBuf> {
    let mdbook = tools::mdbook(story)?;
    let repository = paths::repository();
    let book = repository.join("target/book");
    let (source, html) = (book.join("src"), book.join("html"));
    gather(&repository, &source)?;
    let done = Command::new(mdbook)
        .arg("build")
        .current_dir(&repository)
        .output()
        .context("cannot start mdBook")?;
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success() && !said.contains("WARN") && !said.contains("ERROR"),
        "mdBook is not content with the pages:\n{said}"
    );
    let broken = broken_links(&html)?;
    ensure!(
        broken.is_empty(),
        "links of the documentation lead nowhere:\n{}",
        broken.join("\n")
    );
    Ok(html)
}

/// Copies the pages, and fails where one has no place in the book.
fn gather(repository: &Path, source: &Path) -> Result<()> {
    process::remove_dir(source)?;
    fs::create_dir_all(source)?;
    for part in PARTS {
        process::output(
            Command::new("cp")
                .arg("-r")
                .arg(repository.join(part))
                .arg(source.join(part)),
        )?;
    }
    let summary = fs::read_to_string(source.join(SUMMARY))?;
    fs::remove_file(source.join(SUMMARY))?;
    let summary = summary.replace("](", "](docs/").replace("](docs/../", "](");
    fs::write(source.join("SUMMARY.md"), summary)?;
    // To a browser the page of a folder is its index.
    let readme = Regex::new(r"(\]\([^)]*)README\.md")?;
    for page in files(source, "md")? {
        let text = fs::read_to_string(&page)?;
        fs::remove_file(&page)?;
        let page = match page.parent() {
            Some(folder) if page.ends_with("README.md") => folder.join("index.md"),
            _ => page,
        };
        fs::write(page, &*readme.replace_all(&text, "${1}index.md"))?;
    }
    let summary = fs::read_to_string(source.join("SUMMARY.md"))?;
    let missing: Vec<_> = files(source, "md")?
        .iter()
        .filter_map(|page| Some(page.strip_prefix(source).ok()?.display().to_string()))
        .filter(|page| page != "SUMMARY.md" && !summary.contains(&format!("]({page})")))
        .collect();
    ensure!(missing.is_empty(), "{SUMMARY} lacks {}", missing.join(", "));
    Ok(())
}

/// Links to a file or an anchor that is not there, as "page: link".
fn broken_links(html: &Path) -> Result<Vec<String>> {
    let link = Regex::new(r#"(?:href|src)="([^"]*)""#)?;
    let elsewhere = Regex::new("^[a-z]+:|^$")?;
    let mut broken = BTreeSet::new();
    for page in files(html, "html")? {
        let text = fs::read_to_string(&page)?;
        for target in link.captures_iter(&text).map(|found| found[1].to_owned()) {
            if !elsewhere.is_match(&target) && !leads_somewhere(&page, &target)? {
                let page = page.strip_prefix(html).unwrap_or(&page).display();
                broken.insert(format!("{page}: {target}"));
            }
        }
    }
    Ok(broken.into_iter().collect())
}

fn leads_somewhere(page: &Path, target: &str) -> Result<bool> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match (path, page.parent()) {
        ("", _) | (_, None) => page.to_path_buf(),
        (path, Some(folder)) => plain(&folder.join(path)),
    };
    if !file.is_file() {
        return Ok(false);
    }
    Ok(anchor.is_empty() || fs::read_to_string(file)?.contains(&format!("id=\"{anchor}\"")))
}

/// The path without `..`: a folder that is left again need not exist.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
        plain
    })
}

/// The pages, as they are in the repository.
pub fn pages() -> Result<Vec<PathBuf>> {
    let repository = paths::repository();
    let mut pages = Vec::new();
    for part in PARTS.map(|part| repository.join(part)) {
        if part.is_dir() {
            pages.extend(files(&part, "md")?);
        } else if part.extension().is_some_and(|e| e == "md") {
            pages.push(part);
        }
    }
    Ok(pages)
}

/// All files below a folder with this ending.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_a_file_and_an_anchor() {
        let dir = std::env::temp_dir().join(format!("e2e-book-{}", std::process::id()));
        process::remove_dir(&dir).unwrap();
        fs::create_dir_all(dir.join("a")).unwrap();
        let page = r##"<h1 id="here"></h1><a href="../b.html#there"> <a href="#here"> <a href="https://x.org/y">"##;
        fs::write(dir.join("a/page.html"), page).unwrap();
        fs::write(dir.join("b.html"), r#"<h1 id="there">"#).unwrap();
        assert!(broken_links(&dir).unwrap().is_empty());

        let page = r##"<a href="c.html"> <a href="../b.html#nowhere"> <a href="#nowhere">"##;
        fs::write(dir.join("a/page.html"), page).unwrap();
        assert_eq!(
            broken_links(&dir).unwrap(),
            [
                "a/page.html: #nowhere",
                "a/page.html: ../b.html#nowhere",
                "a/page.html: c.html",
            ]
        );
        process::remove_dir(&dir).unwrap();
    }
}
