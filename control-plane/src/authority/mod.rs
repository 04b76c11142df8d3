//! The path of a certificate: who asks, may they, sign.
//!
//! `service` is the gRPC method, `authenticate` says who asks (join token or current certificate), `permit` decides,
//! `sign` writes the certificate, `root` loads or makes the key that everything chains to, `serving` keeps the
//! certificate of our own listeners fresh. The wire form is `istio.v1.auth.IstioCertificateService`, so that another signer
//! can take this place.

pub mod authenticate;
pub mod identity;
pub mod permit;
pub mod root;
pub mod service;
pub mod serving;
pub mod sign;
pub mod token;

pub use identity::Identity;
pub use root::{Authority, AuthorityError};
