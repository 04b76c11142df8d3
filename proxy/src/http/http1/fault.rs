//! Which rule of HTTP/1 a message broke, and how a connection ended.

use std::io;

use http::StatusCode;

use crate::failure::Reason;

/// A rule that a message broke. The text is shown to the client; a response that breaks one becomes 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a line ends with a line feed alone")]
    BareLineFeed,
    #[error("the request line is not method, target and version with single spaces between")]
    RequestLine,
    #[error("the status line is not version, status and reason")]
    StatusLine,
    #[error("the method is not a token")]
    Method,
    #[error("the request target holds a byte that must be escaped, or is malformed")]
    Target,
    #[error("the request target is too long")]
    TargetTooLong,
    #[error("the version of HTTP is neither 1.1 nor 1.0")]
    Version,
    #[error("a field continues on the next line")]
    FoldedField,
    #[error("a field name is not a token directly followed by a colon")]
    FieldName,
    #[error("a field value holds a control character")]
    FieldValue,
    #[error("the head is too long")]
    HeadTooLong,
    #[error("there are too many fields")]
    TooManyFields,
    #[error("transfer-encoding is not exactly chunked")]
    TransferEncoding,
    #[error("content-length is not one plain number")]
    ContentLength,
    #[error("content-length and transfer-encoding are both given")]
    FramingConflict,
    #[error("a message that can have no content announces some")]
    UnexpectedContent,
    #[error("a chunk has no valid size")]
    ChunkSize,
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
    #[error("there are too many bytes of chunk extensions")]
    ChunkExtensions,
    #[error("trailers are too large")]
    TrailersTooLarge,
    #[error("the protocol was switched without being asked to")]
    UnaskedSwitch,
    #[error("there are too many interim responses")]
    TooManyInterim,
    /// HTTP/2 only: the stream was reset (RFC 9113 §8.1.1).
    #[error("the request is malformed")]
    Malformed,
}

impl Fault {
    /// What a client is told; for requests only.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong | Self::TooManyFields | Self::TrailersTooLarge => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The reason under which metrics and logs count it.
    pub const fn reason(self) -> Reason {
        match self {
            Self::TargetTooLong | Self::HeadTooLong | Self::TooManyFields | Self::TrailersTooLarge => {
                Reason::HeadTooLarge
            }
            _ => Reason::BadRequest,
        }
    }
}

/// Why a connection or a message on it ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The far side broke a rule.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The stream broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The far side ended in the middle of a message.
    #[error("the connection ended in the middle of a message")]
    Incomplete(#[source] io::Error),
    /// We gave it up: what was sent cannot be finished.
    #[error("the body of the message that was being sent broke off")]
    BodyBroke,
}

impl Broken {
    /// An end in the middle.
    pub fn incomplete() -> Self {
        Self::Incomplete(io::ErrorKind::UnexpectedEof.into())
    }
}
