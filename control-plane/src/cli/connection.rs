//! The admin client: where the control plane is, how it is trusted, and what went wrong in words.
//!
//! Used by every command that asks a running control plane. HTTP/2 over TLS 1.3 on hyper's connection API; the root and
//! the token come from the control plane's own folder, or from files that the flags name.

use std::{
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use clap::Args;
use http::{HeaderValue, Uri, header::AUTHORIZATION};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_proto::admin::admin_client::AdminClient;
use outrigger_proxy::arguments::{host_and_port, plain_io, read_text};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tonic::{Code, Status, codegen::Service};

use super::outcome::Failure;

/// How to find and trust the control plane.
#[derive(Args, Clone, Debug, Default)]
pub struct ConnectionArgs {
    /// Admin address of the control plane [default: what its folder says, else 127.0.0.1:15010]
    #[arg(long, value_name = "HOST:PORT", env = "OUTRIGGER_SERVER", value_parser = server_address, help_heading = "Connection")]
    pub server: Option<String>,
    /// Folder of the control plane: its address, token and root are read there
    #[arg(long, value_name = "DIR", env = "OUTRIGGER_DATA_DIR", help_heading = "Connection")]
    pub data_dir: Option<PathBuf>,
    /// File with the admin token [default: admin.token in the folder]
    #[arg(long, value_name = "FILE", env = "OUTRIGGER_TOKEN_FILE", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the root to trust [default: ca.crt in the folder]
    #[arg(long, value_name = "FILE", env = "OUTRIGGER_CA_FILE", help_heading = "Connection")]
    pub ca_file: Option<PathBuf>,
}

/// Port of the admin API unless said otherwise.
pub const ADMIN_PORT: u16 = 15010;
/// File in the data directory that says where the admin API listens.
pub const ADDRESS_FILE: &str = "admin.address";
const TOKEN_FILE: &str = "admin.token";
const CA_FILE: &str = "ca.crt";

/// Longest wait for the connection and its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer: a listing of a large mesh.
const ANSWER_BYTES_MAX: usize = 256 << 20;

fn server_address(text: &str) -> Result<String, String> {
    host_and_port(text, ADMIN_PORT)
}

/// Where a control plane keeps its things unless told: the system's place for root, the user's for others.
pub fn default_data_dir() -> PathBuf {
    let from_env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(state) = from_env("XDG_STATE_HOME") {
        return state.join("outrigger");
    }
    match from_env("HOME") {
        Some(home) if home != Path::new("/root") && home != Path::new("/") => home.join(".local/state/outrigger"),
        _ => PathBuf::from("/var/lib/outrigger"),
    }
}

/// A connected client.
pub type Client = AdminClient<Channel>;

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// Nobody answers there; a control plane may not be running.
    Unreachable(String),
    /// Token, root or address is wrong.
    Setup(Failure),
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unreachable(message) => Self::failed(message),
            ConnectError::Setup(failure) => failure,
        }
    }
}

impl ConnectionArgs {
    /// The folder that is looked into.
    pub fn folder(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(default_data_dir)
    }

    /// The admin address.
    ///
    /// Errors (exit 65): the folder's address file holds no address.
    pub fn address(&self) -> Result<String, Failure> {
        if let Some(server) = &self.server {
            return Ok(server.clone());
        }
        let path = self.folder().join(ADDRESS_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => host_and_port(text.trim(), ADMIN_PORT)
                .map_err(|error| Failure::bad_input(format_args!("{}: {error}", path.display()))),
            Err(_) => Ok(format!("127.0.0.1:{ADMIN_PORT}")),
        }
    }

    /// Connects and proves that the control plane is ours; the token is only looked at by the first call.
    ///
    /// Errors: nobody there, or token, root or certificate wrong, each with what to do.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        // Files that were named explicitly are the user's words: wrong ones are reported whether or not anyone listens.
        if let Some(path) = &self.token_file {
            self.token(path).map_err(ConnectError::Setup)?;
        }
        if let Some(path) = &self.ca_file {
            roots(path).map_err(ConnectError::Setup)?;
        }
        if let Some(folder) = &self.data_dir
            && !folder.is_dir()
            && self.server.is_none()
        {
            return Err(ConnectError::Unreachable(format!(
                "folder {} does not exist, so no control plane keeps its things there (hint: start one with `outrigger \
                 serve --data-dir {}`)",
                folder.display(),
                folder.display()
            )));
        }
        let address = self.address().map_err(ConnectError::Setup)?;
        let unreachable = |reason: &dyn fmt::Display| {
            ConnectError::Unreachable(format!(
                "cannot reach the control plane at {address}: {reason} (hint: start one with `outrigger serve`)"
            ))
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(&plain_io(&error))),
            Err(_) => return Err(unreachable(&format_args!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
        };
        // Head and body of a call are two writes: held back for the acknowledgement of the first, each call takes 40 ms more.
        let _ = stream.set_nodelay(true);
        let folder = self.folder();
        let token_path = self.token_file.clone().unwrap_or_else(|| folder.join(TOKEN_FILE));
        let ca_path = self.ca_file.clone().unwrap_or_else(|| folder.join(CA_FILE));
        let token = self.token(&token_path).map_err(ConnectError::Setup)?;
        let roots = roots(&ca_path).map_err(ConnectError::Setup)?;
        let stream = self.handshake(stream, roots, &address, &ca_path).await?;

        let refused = |error: hyper::Error| {
            ConnectError::Unreachable(format!("the control plane at {address} does not speak HTTP/2: {error}"))
        };
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(refused)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
        let authorization = HeaderValue::from_str(&format!("Bearer {token}"))
            .map(|mut value| {
                value.set_sensitive(true);
                value
            })
            .map_err(|_| ConnectError::Setup(no_token(&token_path)))?;
        let origin: Uri = format!("https://{address}").parse().map_err(|error| {
            ConnectError::Setup(Failure::usage(format_args!("\"{address}\" is not HOST:PORT: {error}")))
        })?;
        let channel = Channel { sender, authorization };
        Ok(AdminClient::with_origin(channel, origin).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        roots: RootCertStore,
        address: &str,
        ca_path: &Path,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
        let setup = |text: String| ConnectError::Setup(Failure::failed(text));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| setup(format!("cannot set up TLS: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            setup(format!("\"{host}\" cannot stand in a certificate (hint: give a host name or address)"))
        })?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        match tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(setup(explain_handshake(&error, address, host, ca_path))),
            Err(_) => Err(ConnectError::Unreachable(format!(
                "the control plane at {address} accepted the connection and then said nothing for {} s (hint: is \
                 something else listening there?)",
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    fn token(&self, path: &Path) -> Result<String, Failure> {
        let text = read_text(path, "admin token").map_err(|problem| {
            Failure::bad_input(format_args!("{problem} (hint: name the control plane's folder with --data-dir)"))
        })?;
        let token = text.trim();
        if token.is_empty() || token.chars().any(|c| !c.is_ascii_graphic()) {
            return Err(no_token(path));
        }
        Ok(token.to_owned())
    }
}

fn no_token(path: &Path) -> Failure {
    Failure::bad_input(format_args!(
        "admin token {} does not hold a token: a token is one word (hint: name the control plane's folder with \
         --data-dir)",
        path.display()
    ))
}

fn roots(path: &Path) -> Result<RootCertStore, Failure> {
    let text = read_text(path, "root certificate").map_err(|problem| {
        Failure::bad_input(format_args!("{problem} (hint: name the control plane's folder with --data-dir)"))
    })?;
    let wrong =
        |reason: &dyn fmt::Display| Failure::bad_input(format_args!("root certificate {}: {reason}", path.display()));
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| wrong(&format_args!("broken PEM: {error}")))?;
        store.add(certificate).map_err(|error| wrong(&format_args!("not a certificate: {error}")))?;
    }
    if store.is_empty() {
        return Err(wrong(&"it holds no PEM certificate"));
    }
    Ok(store)
}

fn explain_handshake(error: &io::Error, address: &str, host: &str, ca_path: &Path) -> String {
    use rustls::{CertificateError, Error as TlsError};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls {
        Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            format!(
                "the control plane at {address} has a certificate of another authority than {} (hint: give the folder of \
             this control plane with --data-dir, or its root with --ca-file)",
                ca_path.display()
            )
        }
        Some(TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => format!(
            "the certificate of the control plane at {address} is not for \"{host}\" (hint: start it with `outrigger \
             serve --host-name {host}`)"
        ),
        Some(TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            format!("the certificate of the control plane at {address} has expired (hint: compare the two clocks)")
        }
        Some(TlsError::InvalidMessage(_)) => format!(
            "what listens at {address} does not speak TLS (hint: the admin port of a control plane is {ADMIN_PORT} \
             unless it was moved)"
        ),
        Some(other) => format!("cannot agree on TLS with the control plane at {address}: {other}"),
        None => format!("the control plane at {address} broke off the TLS handshake: {}", plain_io(error)),
    }
}

/// One HTTP/2 connection that adds the token to every call.
#[derive(Clone, Debug)]
pub struct Channel {
    sender: http2::SendRequest<tonic::body::Body>,
    authorization: HeaderValue,
}

impl Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        Box::pin(self.sender.send_request(request))
    }
}

/// Waits for one answer, at most `CALL_TIMEOUT`.
///
/// Errors: what the control plane said, in words and with the right exit code.
pub async fn call<T>(answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(explain(&status)),
        Err(_) => {
            Err(Failure::failed(format_args!("the control plane gave no answer within {} s", CALL_TIMEOUT.as_secs())))
        }
    }
}

/// A refusal of the control plane, in words and with the right exit code.
pub fn explain(status: &Status) -> Failure {
    let message = status.message();
    match status.code() {
        Code::Unauthenticated => Failure::bad_input(
            "the control plane refused the admin token (hint: the token is in admin.token in its folder; name the \
             folder with --data-dir)",
        ),
        Code::PermissionDenied => Failure::failed(format_args!("the control plane does not allow it: {message}")),
        Code::InvalidArgument | Code::OutOfRange => Failure::bad_input(message),
        Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => Failure::failed(message),
        Code::ResourceExhausted => Failure::failed(format_args!("the control plane is at a limit: {message}")),
        Code::Unimplemented => Failure::failed(
            "the control plane does not know this command (hint: it is older than this `outrigger`; see `outrigger \
             version`)",
        ),
        Code::DeadlineExceeded => Failure::failed("the control plane took too long to answer"),
        Code::Unavailable | Code::Cancelled | Code::Unknown => {
            Failure::failed(format_args!("the connection to the control plane broke: {message}"))
        }
        code => Failure::failed(format_args!("the control plane failed ({code:?}): {message}")),
    }
}

/// Runs a command's asynchronous part on a runtime of its own.
///
/// Errors: the command's own, or that no runtime could be made.
pub fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("cannot start: {}", plain_io(&error))))?
        .block_on(work)
}
