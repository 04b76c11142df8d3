//! What the access logs of both sidecars tell of one request.

use std::time::Instant;

use serde_json::Value;

use crate::{
    mesh::{LOOK_AGAIN, PATIENCE, http::get, sidecar_name},
    world,
};

#[test]
fn one_request_can_be_followed_through_both_sidecars() {
    // At night somebody has one failing request and two logs; without a common id and real addresses they stay two.
    let Some(world) = world() else { return };
    let address = world.service("api-v1.shop", 80);
    assert_eq!(world.on_web(get(address, "api-v1", "/follow-me")).status(), 200);
    let [out, inside] = ["web", "api-1"].map(|host| {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = world.mesh.log(&sidecar_name(host));
            if let Some(line) = log.lines().find(|line| line.contains("/follow-me")) {
                return serde_json::from_str::<Value>(line).unwrap();
            }
            assert!(Instant::now() < end, "{host} logs nothing");
            std::thread::sleep(LOOK_AGAIN);
        }
    });
    assert!(out["request_id"].as_str().is_some_and(|id| id.len() == 36), "{out}");
    assert_eq!(out["request_id"], inside["request_id"]);
    let (web, api) = (world.mesh.host("web").address.to_string(), world.mesh.host("api-1").at(8080).to_string());
    for line in [&out, &inside] {
        assert_eq!((&line["upstream_host"], &line["response_code"]), (&api.as_str().into(), &200.into()), "{line}");
        let remote = line["downstream_remote_address"].as_str().unwrap();
        assert!(remote.starts_with(&format!("{web}:")), "{line}");
    }
}
