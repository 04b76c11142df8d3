//! A peer of the mesh that says anything: bytes on a local port go out over mutual TLS, under an identity of the mesh's own authority.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use outrigger_control_plane::authority::{Authority, Identity};
use outrigger_proxy::{
    identity::Material,
    tls::{Expected, Offer, TlsConfigs, client},
};
use rcgen::KeyPair;
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

/// Where to speak HTTP/2 to the inbound side at `inbound`.
pub fn wrap(authority: &Path, inbound: SocketAddr) -> SocketAddr {
    const TRUST_DOMAIN: &str = "cluster.local";
    let authority = Authority::load_or_create(authority, TRUST_DOMAIN).unwrap();
    let key = KeyPair::generate().unwrap();
    let identity = Identity::new(TRUST_DOMAIN, "shop", "rogue").unwrap();
    let lifetime = Duration::from_secs(3600);
    let leaf = authority.sign_leaf(&key, &identity, &[], lifetime, SystemTime::now()).unwrap();
    let mut chain = vec![leaf.der().clone()];
    chain.extend(authority.chain().iter().cloned());
    let material = Material {
        chain,
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        roots: vec![authority.root().clone()],
        trust_domain: TRUST_DOMAIN.into(),
    };
    let configs = TlsConfigs::new(&material).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let configs = std::rc::Rc::new(configs);
            let local = tokio::task::LocalSet::new();
            local
                .run_until(async move {
                    while let Ok((mut near, _)) = listener.accept().await {
                        let configs = std::rc::Rc::clone(&configs);
                        tokio::task::spawn_local(async move {
                            let Ok(far) = TcpStream::connect(inbound).await else { return };
                            let expected = Expected::TrustDomain;
                            let handshake =
                                client::connect(far, &configs, Offer::Http2, &expected, Duration::from_secs(10));
                            if let Ok((mut far, _)) = handshake.await {
                                let _ = near.set_nodelay(true);
                                let _ = copy_bidirectional(&mut near, &mut far).await;
                            }
                        });
                    }
                })
                .await;
        });
    });
    told.recv().unwrap()
}
