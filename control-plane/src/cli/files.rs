//! What `-f` names, as texts: files, directories, standard input.
//!
//! Directories are read recursively, in the order of names, so that the same folder always gives the same answer.
//! Nothing is parsed here.

use std::{
    fs,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use outrigger_proto::admin::Document;
use outrigger_proxy::arguments::plain_io;

use super::outcome::Failure;

/// Largest text of one file. Larger ones are not configuration written by people.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Most files in one run; a wrong directory (`-f /`) ends here instead of reading the disk.
const FILES_MAX: usize = 10_000;
/// Deepest directory below the one that was named.
const DEPTH_MAX: usize = 32;

/// Reads everything that was named.
///
/// Errors (exit 65): the first path that is missing, unreadable, too large or not text, and a directory without documents.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            documents.push(read_stdin()?);
            continue;
        }
        for file in list(path)? {
            documents.push(Document { text: read_file(&file)?, file: file.display().to_string() });
        }
    }
    Ok(documents)
}

/// The files behind one path: itself, or every document below it.
///
/// Errors: as for [`read`].
pub fn list(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let about = fs::metadata(path).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::NotFound { nearby(path) } else { String::new() };
        Failure::bad_input(format_args!("cannot read {}: {}{hint}", path.display(), plain_io(&error)))
    })?;
    if !about.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    walk(path, 0, &mut found)?;
    if found.is_empty() {
        return Err(Failure::bad_input(format_args!(
            "directory {} holds no .yaml, .yml or .json file",
            path.display()
        )));
    }
    Ok(found)
}

fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let failed = |path: &Path, error: &std::io::Error| {
        Failure::bad_input(format_args!("cannot read {}: {}", path.display(), plain_io(error)))
    };
    if depth > DEPTH_MAX {
        return Err(Failure::bad_input(format_args!(
            "directory {} lies more than {DEPTH_MAX} levels deep (hint: a link may lead in a circle)",
            directory.display()
        )));
    }
    let mut entries = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>())
        .map_err(|error| failed(directory, &error))?;
    entries.sort();
    for path in entries {
        // Editors keep drafts under hidden names; a mounted ConfigMap keeps its data there twice.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        let about = match fs::metadata(&path) {
            Ok(about) => about,
            // Removed while we looked: as if it had never been there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path, &error)),
        };
        if about.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if is_document(&path) {
            if found.len() == FILES_MAX {
                return Err(Failure::bad_input(format_args!(
                    "more than {FILES_MAX} files below {} (hint: name a smaller directory)",
                    directory.display()
                )));
            }
            found.push(path);
        }
    }
    Ok(())
}

fn is_document(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("yaml" | "yml" | "json"))
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let about = fs::metadata(path)
        .map_err(|error| Failure::bad_input(format_args!("cannot read {shown}: {}", plain_io(&error))))?;
    if about.len() > FILE_BYTES_MAX {
        return Err(Failure::bad_input(format_args!(
            "{shown} has {} bytes, more than the {FILE_BYTES_MAX} allowed (hint: split it)",
            about.len()
        )));
    }
    let bytes = fs::read(path)
        .map_err(|error| Failure::bad_input(format_args!("cannot read {shown}: {}", plain_io(&error))))?;
    text(bytes, &shown.to_string())
}

fn read_stdin() -> Result<Document, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        super::output::note("reading documents from the terminal; end with Ctrl-D");
    }
    let mut bytes = Vec::new();
    input
        .lock()
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::bad_input(format_args!("cannot read standard input: {}", plain_io(&error))))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::bad_input(format_args!(
            "standard input has more than the {FILE_BYTES_MAX} bytes allowed"
        )));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Failure::bad_input("standard input is empty"));
    }
    Ok(Document { text: text(bytes, "standard input")?, file: "-".to_owned() })
}

fn text(bytes: Vec<u8>, from: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        Failure::bad_input(format_args!("{from} is not UTF-8 text: wrong byte in line {line} (hint: save it as UTF-8)"))
    })
}

/// The file in the same directory whose name is nearest to one that is missing.
fn nearby(path: &Path) -> String {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return String::new() };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(entries) = fs::read_dir(parent) else {
        return format!(" (directory {} does not exist either)", parent.display());
    };
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .map(|other| (outrigger_proxy::settings::overlay::distance(&other, &name), other))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, other)| format!(" (did you mean {}?)", path.with_file_name(other).display()))
        .unwrap_or_default()
}
