//! Compiles the .proto files with protox: no installed protoc, no network.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: &[&str] = &[
    "xds/discovery.proto",
    "istio/ca.proto",
    "admin/v1/admin.proto",
    "resource/v1/node.proto",
    "resource/v1/registration.proto",
    "resource/v1/route.proto",
    "resource/v1/service.proto",
    "resource/v1/policy.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for folder in ["xds", "istio", "admin", "resource", "google"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    let descriptors = protox::compile(&files, ["."])?;
    // For those who show messages of any kind to people: dumps of what a proxy holds.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), protox::prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().btree_map(".").bytes(".").include_file("modules.rs").compile_fds(descriptors)?;
    Ok(())
}
