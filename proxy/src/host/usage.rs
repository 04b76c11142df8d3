//! What the kernel says this process uses, and may use: memory and descriptors.
//!
//! Asked ten times a second by `sidecar/watch_overload.rs`, so it reads only files of /proc and of the cgroup that cost microseconds.
//! Reading them is here; what they say is told from their text by plain functions.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the kernel keeps the memory account of this process's cgroup.
#[derive(Debug)]
pub struct MemoryAccount {
    /// The process's own folder first, then those around it: the least limit counts.
    folders: Vec<PathBuf>,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl MemoryAccount {
    /// Finds the account; `None` outside of cgroups, or where they are not mounted.
    pub fn find() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let (mount, below, version) = locate(&mounts, &groups)?;
        let own = mount.join(below);
        let folders = own.ancestors().take_while(|folder| folder.starts_with(&mount)).map(Path::to_owned).collect();
        Some(Self { folders, version })
    }

    /// The least limit of the cgroup and of those around it, in bytes; `None`: there is none.
    pub fn limit(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let limits = self.folders.iter().filter_map(|folder| fs::read_to_string(folder.join(file)).ok());
        limits.filter_map(|text| limit(&text)).min()
    }

    /// What the cgroup uses without what the kernel would give back by itself; `None` when others live in it too, whose memory is not ours
    /// to save.
    pub fn used_alone(&self) -> Option<u64> {
        let own = self.folders.first()?;
        let members = fs::read_to_string(own.join("cgroup.procs")).ok()?;
        if !is_alone(&members, std::process::id()) {
            return None;
        }
        let file = match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        let used: u64 = fs::read_to_string(own.join(file)).ok()?.trim().parse().ok()?;
        Some(used.saturating_sub(file_cache(&fs::read_to_string(own.join("memory.stat")).ok()?)))
    }
}

/// Memory of this process that belongs to no file, in bytes; `None` where there is no /proc.
pub fn anonymous_bytes() -> Option<u64> {
    anonymous(&fs::read_to_string("/proc/self/statm").ok()?, rustix::param::page_size() as u64)
}

/// Open files of this process; `None` where there is no /proc.
pub fn descriptors() -> Option<u64> {
    // Since Linux 6.2 the size of the folder is their number; before that it is 0 and they have to be counted.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64),
        count => Some(count),
    }
}

/// Mount point, path below it and version of the hierarchy that has the memory controller.
///
/// proc_pid_mountinfo(5): fields 4 and 5 are root and mount point, after " - " come type, source and options. cgroups(7): lines of
/// /proc/pid/cgroup are "id:controllers:path", with 0 and no controllers for version 2.
fn locate(mounts: &str, groups: &str) -> Option<(PathBuf, PathBuf, Version)> {
    let group = |wanted: &dyn Fn(&str, &str) -> bool| {
        groups.lines().find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(id, controllers).then_some(path)
        })
    };
    let version1 = group(&|_, controllers| controllers.split(',').any(|one| one == "memory"));
    let (path, version) = match version1 {
        Some(path) => (path, Version::V1),
        None => (group(&|id, controllers| id == "0" && controllers.is_empty())?, Version::V2),
    };
    let (root, point) = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let is_it = match (version, kind.next()?, kind.nth(1)?) {
            (Version::V1, "cgroup", options) => options.split(',').any(|option| option == "memory"),
            (Version::V2, "cgroup2", _) => true,
            _ => false,
        };
        let mut fields = mount.split(' ').skip(3);
        is_it.then_some((fields.next()?, fields.next()?))
    })?;
    // A container that sees only its own part of the hierarchy has that as the root of the mount.
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    Some((PathBuf::from(point), below.to_owned(), version))
}

/// "max", or a number of bytes; version 1 writes a number near 2^63 for "none".
fn limit(text: &str) -> Option<u64> {
    const NONE: u64 = 1 << 60;
    text.trim().parse().ok().filter(|bytes| *bytes < NONE)
}

fn is_alone(members: &str, own: u32) -> bool {
    members.lines().all(|line| line.parse() == Ok(own)) && !members.is_empty()
}

/// Pages of files, which the kernel drops when somebody needs them; both versions use these words, version 1 with the cgroups below
/// under "total_".
fn file_cache(stat: &str) -> u64 {
    let words = stat.lines().filter_map(|line| line.split_once(' '));
    let cache = words.filter(|(name, _)| matches!(*name, "active_file" | "inactive_file"));
    cache.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// proc_pid_statm(5): pages: size, resident, shared (of files and shared memory), ..
fn anonymous(statm: &str, page_bytes: u64) -> Option<u64> {
    let mut fields = statm.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared).saturating_mul(page_bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const V1: &str = "30 22 0:26 / /sys rw - sysfs sysfs rw\n\
        33 32 0:29 /docker/abc /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        36 32 0:31 /docker/abc /sys/fs/cgroup/memory rw,relatime master:5 - cgroup cgroup rw,memory\n\
        40 32 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "24 23 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_account_is_found_in_both_versions() {
        // Looked for in the wrong place, a limit is not seen and the process is killed at it.
        for (mounts, groups, expected) in [
            (V1, "5:memory:/docker/abc\n0::/\n", Some(("/sys/fs/cgroup/memory", "", Version::V1))),
            (V1, "5:cpu,memory:/docker/abc/child\n0::/\n", Some(("/sys/fs/cgroup/memory", "child", Version::V1))),
            (V1, "5:memory:/elsewhere\n0::/x\n", Some(("/sys/fs/cgroup/memory", "", Version::V1))),
            (V1, "5:cpu:/docker/abc\n0::/x\n", Some(("/sys/fs/cgroup/unified", "x", Version::V2))),
            (V2, "0::/kubepods/pod1/c1\n", Some(("/sys/fs/cgroup", "kubepods/pod1/c1", Version::V2))),
            (V2, "0::/\n", Some(("/sys/fs/cgroup", "", Version::V2))),
            (V2, "", None),
            ("", "0::/\n", None),
            ("nonsense - \n - - -\n", "0::/\n:::\nx\n", None),
        ] {
            let expected = expected.map(|(point, below, version)| (point.into(), below.into(), version));
            assert_eq!(locate(mounts, groups), expected, "{groups:?}");
        }
    }

    #[test]
    fn the_least_limit_around_the_process_counts() {
        // A pod's limit kills as well as a container's.
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("pod/container");
        fs::create_dir_all(&own).unwrap();
        let folders = own.ancestors().take(3).map(Path::to_owned).collect();
        let account = MemoryAccount { folders, version: Version::V2 };
        assert_eq!(account.limit(), None);
        fs::write(own.join("memory.max"), "max\n").unwrap();
        assert_eq!(account.limit(), None);
        fs::write(folder.path().join("pod/memory.max"), "1000000\n").unwrap();
        assert_eq!(account.limit(), Some(1_000_000));
        fs::write(own.join("memory.max"), "2000000\n").unwrap();
        assert_eq!(account.limit(), Some(1_000_000));
        fs::write(own.join("memory.max"), "500000\n").unwrap();
        assert_eq!(account.limit(), Some(500_000));

        assert_eq!(account.used_alone(), None);
        fs::write(own.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        fs::write(own.join("memory.current"), "400000\n").unwrap();
        fs::write(own.join("memory.stat"), "anon 5\nfile 9\ninactive_file 100000\nactive_file 50000\n").unwrap();
        assert_eq!(account.used_alone(), Some(250_000));
        fs::write(own.join("cgroup.procs"), format!("1\n{}\n", std::process::id())).unwrap();
        assert_eq!(account.used_alone(), None);
    }

    #[test]
    fn files_of_the_kernel_are_read_as_documented() {
        // A wrong field makes a proxy refuse everything, or nothing.
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("33554432\n"), Some(33_554_432));
        assert_eq!(anonymous("5000 1200 200 9 0 300 0\n", 4096), Some(1000 * 4096));
        assert_eq!(anonymous("5000 x\n", 4096), None);
        assert_eq!(anonymous("", 4096), None);
        assert_eq!(anonymous("1 1 2 3", 4096), Some(0));
        assert!(!is_alone("", 7) && is_alone("7\n", 7) && !is_alone("7\n8\n", 7) && !is_alone("x\n", 7));
    }

    #[test]
    fn this_process_uses_something() {
        // On a kernel that says it otherwise nothing would ever be shed.
        assert!(anonymous_bytes().unwrap() > 100 * 1024);
        let before = descriptors().unwrap();
        let held: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/statm").unwrap()).collect();
        assert!(descriptors().unwrap() >= before.min(3) + 50);
        drop(held);
    }
}
