//! What is said to a proxy, and what must become of it.

#![allow(dead_code, reason = "every test that includes this file uses another part of it")]

/// What must become of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// Nothing whole reaches the origin, and no answer is a success.
    Refuse,
    /// So many requests reach the origin, and all are answered from there.
    Forward(usize),
    /// The first so many are forwarded and what comes behind is refused.
    Until(usize),
    /// Both are right, as long as what stands at the origin is safe.
    Either,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub must: Must,
    /// `<H>`: a Host field. `<N>`: the number of the conversation, which every target holds.
    pub bytes: Vec<u8>,
}

impl Case {
    pub fn new(name: impl Into<String>, must: Must, bytes: &[u8]) -> Self {
        Self { name: name.into(), must, bytes: bytes.to_vec() }
    }
}

/// `text` with every `what` replaced.
pub fn replace(text: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(what.len()).position(|window| window == what) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(by);
        rest = &rest[at + what.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}
