//! Why a stream or a connection ends before its end.

use std::{fmt, io, sync::Arc};

use super::{budget::Deed, hpack::HpackFault};
use crate::http::http1::Fault;

/// An error code as it stands in RST_STREAM and GOAWAY (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    pub const NO_ERROR: Self = Self(0);
    pub const PROTOCOL_ERROR: Self = Self(1);
    pub const INTERNAL_ERROR: Self = Self(2);
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    pub const STREAM_CLOSED: Self = Self(5);
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    pub const REFUSED_STREAM: Self = Self(7);
    pub const CANCEL: Self = Self(8);
    pub const COMPRESSION_ERROR: Self = Self(9);
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {}", self.0),
        }
    }
}

/// A rule that the far side broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offence {
    pub code: Code,
    pub what: &'static str,
}

impl Offence {
    /// Most of them.
    pub const fn protocol(what: &'static str) -> Self {
        Self { code: Code::PROTOCOL_ERROR, what }
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.code)
    }
}

/// How a connection ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ended {
    /// Regularly: both sides were finished.
    #[error("the connection was closed")]
    Closed,
    #[error("the far side broke HTTP/2: {0}")]
    Offence(Offence),
    #[error("{0}")]
    Hpack(HpackFault),
    /// It only kept us busy.
    #[error("more than {limit} control frames, resets or broken streams without a finished request (the last: {})", .deed.word())]
    Flood { limit: u32, deed: Deed },
    #[error("the far side did not answer a ping in time")]
    Silent,
    #[error("the far side read nothing of what waited for it")]
    Stalled,
    #[error("the far side ended the connection with {0}")]
    Goodbye(Code),
    #[error(transparent)]
    Io(Arc<io::Error>),
}

impl Ended {
    /// What the far side is told.
    pub const fn code(&self) -> Code {
        match self {
            Self::Closed | Self::Goodbye(_) | Self::Io(_) | Self::Silent | Self::Stalled => Code::NO_ERROR,
            Self::Offence(offence) => offence.code,
            Self::Hpack(_) => Code::COMPRESSION_ERROR,
            Self::Flood { .. } => Code::ENHANCE_YOUR_CALM,
        }
    }
}

impl From<Offence> for Ended {
    fn from(offence: Offence) -> Self {
        Self::Offence(offence)
    }
}

impl From<HpackFault> for Ended {
    fn from(fault: HpackFault) -> Self {
        Self::Hpack(fault)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why a stream ended before its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Lost {
    /// The far side gave it up.
    #[error("the far side reset the stream: {0}")]
    Reset(Code),
    /// The far side broke a rule on it.
    #[error("the far side broke HTTP/2: {0}")]
    Offence(Offence),
    /// The far side said goodbye and did not look at it (RFC 9113 §6.8).
    #[error("the far side said goodbye before the stream")]
    NotSeen,
    /// We gave it up.
    #[error("the stream was given up")]
    Dropped,
    #[error(transparent)]
    Connection(#[from] Ended),
}

/// A request that could not be made out of a header block, and what metrics count it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RFC 9113 §8.1.1: the stream is reset.
    Malformed(&'static str),
    /// It is answered.
    Answer(Fault),
}
