//! The committed corpora of `proxy/fuzz`, replayed without libFuzzer, and the neighbourhood of each seed.

#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "tests bring their own sockets and clocks")]

mod boundaries;

use std::{fs, panic, path::Path};

/// Longer seeds are replayed as they are: their neighbourhood is for the fuzzer.
const NEIGHBOURHOOD_BYTES: usize = 400;
/// Neighbours of one seed.
const NEIGHBOURS: usize = 60;

/// The seed cut short and with bytes that matter to some parser in its place, evenly over its length.
fn neighbours(seed: &[u8]) -> Vec<Vec<u8>> {
    if seed.len() > NEIGHBOURHOOD_BYTES {
        return Vec::new();
    }
    let step = (3 * seed.len()).div_ceil(NEIGHBOURS).max(1);
    let mut found = Vec::new();
    for at in (0..seed.len()).step_by(step) {
        found.push(seed[..at].to_vec());
        for byte in [b"\r\n\0 :;,%\t\x7f\xff"[at % 11], seed[at] ^ 1 << (at % 8)] {
            let mut changed = seed.to_vec();
            changed[at] = byte;
            found.push(changed);
        }
    }
    found
}

#[test]
fn every_seed_and_its_neighbours_keep_the_promises() {
    // A crash or a smuggled request that was found once would come back unseen.
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in boundaries::TARGETS {
        let mut seeds: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        seeds.sort();
        assert!(seeds.len() >= 3, "{name} has {} seeds", seeds.len());
        for path in seeds {
            let seed = fs::read(&path).unwrap();
            for input in std::iter::once(seed.clone()).chain(neighbours(&seed)) {
                if let Err(panic) = panic::catch_unwind(|| target(&input)) {
                    eprintln!("{} with {:?}", path.display(), String::from_utf8_lossy(&input));
                    panic::resume_unwind(panic);
                }
            }
        }
    }
}

#[test]
fn every_target_has_a_program_for_the_fuzzer() {
    // A boundary would be replayed and never explored.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for (name, _) in boundaries::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in proxy/fuzz/Cargo.toml");
        let program = fs::read_to_string(folder.join(format!("targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("\"{name}\"")), "targets/{name}.rs runs something else");
    }
    assert!(boundaries::TARGETS.len() >= 13);
}
