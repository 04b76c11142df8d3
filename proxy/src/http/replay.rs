//! Keeps a request body for another try.
use super::Body;

/// A request body that may be sent more than once.
pub struct Replay(());

impl Replay {
    pub fn new(_body: Body, _limit_bytes: usize) -> Self {
        unimplemented!()
    }
    pub fn body(&mut self) -> Option<Body> {
        unimplemented!()
    }
    pub fn is_replayable(&self) -> bool {
        unimplemented!()
    }
    pub fn untouched(&self) -> bool {
        unimplemented!()
    }
}
