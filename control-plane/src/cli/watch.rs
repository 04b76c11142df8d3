//! Notices that files changed, by looking at them.
//!
//! Used by `up` and static mode. Looking every so often works on every file system and mount, also where a
//! ConfigMap is swapped by renaming a link; what counts is name, time, size and inode of every file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::files;

/// Pause between two looks.
pub const INTERVAL: Duration = Duration::from_millis(500);

type Mark = (PathBuf, i64, i64, u64, u64);

/// What the files looked like when we last acted on them.
#[derive(Debug, Default)]
pub struct Watch {
    paths: Vec<PathBuf>,
    acted: Vec<Mark>,
    seen: Vec<Mark>,
}

impl Watch {
    /// Watches files and directories from how they look now. Standard input does not change.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().filter(|path| path.as_os_str() != "-").collect();
        let now = look(&paths);
        Self { paths, acted: now.clone(), seen: now }
    }

    /// Looks once. True when something changed and has looked the same twice, so that half-written files are left alone.
    pub fn changed(&mut self) -> bool {
        let now = look(&self.paths);
        let settled = now == self.seen;
        self.seen = now;
        if settled && self.seen != self.acted {
            self.acted = self.seen.clone();
            return true;
        }
        false
    }
}

fn look(paths: &[PathBuf]) -> Vec<Mark> {
    let mark = |path: &Path| {
        let about = fs::metadata(path).ok()?;
        Some((path.to_owned(), about.mtime(), about.mtime_nsec(), about.size(), about.ino()))
    };
    let files = paths.iter().flat_map(|path| files::list(path).unwrap_or_else(|_| vec![path.clone()]));
    files.filter_map(|path| mark(&path)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_only_after_it_settled() {
        // Reading a file in the middle of an editor's write would apply half of it.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, "one").unwrap();
        let mut watch = Watch::new([folder.path().to_owned()]);
        assert!(!watch.changed());
        fs::write(&file, "two, longer").unwrap();
        assert!(!watch.changed(), "not settled yet");
        assert!(watch.changed());
        assert!(!watch.changed(), "told once");
        fs::write(folder.path().join("b.yml"), "new").unwrap();
        assert!(!watch.changed());
        assert!(watch.changed());
        fs::remove_file(&file).unwrap();
        assert!(!watch.changed());
        assert!(watch.changed());
        fs::write(folder.path().join("notes.txt"), "no document").unwrap();
        assert!(!watch.changed() && !watch.changed());
    }
}
