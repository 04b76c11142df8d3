//! gRPC over one TLS connection, for those who speak to a control plane: the command line's API, certificates, discovery.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use http::{HeaderValue, Uri, header::AUTHORIZATION};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{body::Body, codegen::Service};

/// A channel for generated clients.
#[derive(Clone)]
pub struct Channel {
    sender: SendRequest<Body>,
    /// Goes with every call.
    bearer: Option<HeaderValue>,
}

impl Channel {
    /// Connects; `config` says whom to trust and what to prove.
    ///
    /// # Errors
    /// When nobody answers there, or not as expected.
    pub async fn connect(address: SocketAddr, config: Arc<ClientConfig>, bearer: Option<&str>) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let (sender, connection) = Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let bearer = bearer.map(|token| HeaderValue::from_str(&format!("Bearer {token}"))).transpose()?;
        Ok(Self { sender, bearer })
    }

    /// What generated clients need beside it.
    ///
    /// # Errors
    /// None that can happen.
    pub fn origin(address: SocketAddr) -> Result<Uri> {
        format!("https://{address}").parse().context("an address is no origin")
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        Box::pin(self.sender.send_request(request))
    }
}
