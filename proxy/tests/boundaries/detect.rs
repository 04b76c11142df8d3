//! What the first bytes are.

use outrigger_proxy::detect::{
    Detected,
    client_hello::{self, Parse},
    judge,
};

/// An answer stays when more bytes come: the protocol must not depend on how the network cuts them.
pub fn first_bytes_detect(bytes: &[u8]) {
    let mut answer: Option<Detected> = None;
    for end in 0..=bytes.len().min(2048) {
        let now = judge(&bytes[..end]);
        if let Some(before) = &answer {
            assert_eq!(now.as_ref(), Some(before), "after {end} bytes");
        }
        answer = now;
    }
    // Whatever it is, a decision comes before the limit of what is read ahead.
    let mut long = bytes.to_vec();
    long.resize(client_hello::MAX_BYTES.max(bytes.len()), b'x');
    assert!(judge(&long).is_some());
}

/// A name out of a ClientHello is a name, and the same however many bytes follow.
pub fn sni_peek(bytes: &[u8]) {
    let Parse::Complete(hello) = client_hello::parse(bytes) else { return };
    if let Some(name) = &hello.server_name {
        assert!(!name.is_empty() && name.len() <= 255, "{name:?}");
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()), "{name:?}");
    }
    assert!(hello.alpn.len() <= 32);
    let mut longer = bytes.to_vec();
    longer.extend_from_slice(b"more");
    assert_eq!(client_hello::parse(&longer), Parse::Complete(hello));
}
