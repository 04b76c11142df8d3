//! The protocol names that mesh connections are recognised by, shared with Istio. Pure.
//!
//! `istio/istio pilot/pkg/networking/core/listener.go`: sidecars offer `istio-h2`, `istio-http/1.1`, `istio-http/1.0`,
//! `istio` and, for opaque TCP, `istio-peer-exchange` before `istio`. RFC 7301 is the extension.

/// What a mesh connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// `istio-h2`: HTTP/2.
    MeshHttp2,
    /// `istio-http/1.1`: HTTP/1.1.
    MeshHttp1,
    /// `istio`: bytes of the application, not interpreted; HTTP is possible, the client did not say.
    MeshOpaque,
}

/// What a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offer {
    /// HTTP, preferably as HTTP/2: `istio-h2`, `istio-http/1.1`.
    Http2,
    /// HTTP/1.1 only, for upgrades: `istio-http/1.1`.
    Http1,
    /// Opaque bytes: `istio`.
    Opaque,
}

impl Alpn {
    /// Every protocol, in the order a server prefers them.
    pub const ALL: [Self; 3] = [Self::MeshHttp2, Self::MeshHttp1, Self::MeshOpaque];

    /// The token on the wire.
    pub const fn token(self) -> &'static [u8] {
        match self {
            Self::MeshHttp2 => b"istio-h2",
            Self::MeshHttp1 => b"istio-http/1.1",
            Self::MeshOpaque => b"istio",
        }
    }

    /// The protocol a token stands for; `None` for one that is not ours.
    pub fn from_token(token: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.token() == token)
    }

    /// Whether a client that offers these tokens wants to speak to a sidecar: one of ours is among them.
    ///
    /// When not, the TLS inside is the application's own and must not be ended here. Unknown tokens beside ours
    /// (`istio-peer-exchange`, plain `h2`) do not matter.
    pub fn any_offered<T: AsRef<[u8]>>(tokens: &[T]) -> bool {
        tokens.iter().any(|token| Self::from_token(token.as_ref()).is_some())
    }
}

impl Offer {
    /// Every offer.
    pub const ALL: [Self; 3] = [Self::Http2, Self::Http1, Self::Opaque];

    /// What it offers, preferred first.
    pub const fn protocols(self) -> &'static [Alpn] {
        match self {
            Self::Http2 => &[Alpn::MeshHttp2, Alpn::MeshHttp1],
            Self::Http1 => &[Alpn::MeshHttp1],
            Self::Opaque => &[Alpn::MeshOpaque],
        }
    }
}

/// Tokens in rustls' form.
pub(super) fn tokens(protocols: &[Alpn]) -> Vec<Vec<u8>> {
    protocols.iter().map(|alpn| alpn.token().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_of_the_mesh_count() {
        // An application's own TLS would be ended by the sidecar, or an Istio peer not recognised.
        for alpn in Alpn::ALL {
            assert_eq!(Alpn::from_token(alpn.token()), Some(alpn));
        }
        for (offered, ours) in [
            (vec!["h2", "http/1.1"], false),
            (vec![], false),
            (vec!["istio-peer-exchange"], false),
            (vec!["istio-peer-exchange", "istio"], true),
            (vec!["istio-http/1.1", "istio", "http/1.1"], true),
            (vec!["ISTIO"], false),
        ] {
            assert_eq!(Alpn::any_offered(&offered), ours, "{offered:?}");
        }
    }
}
