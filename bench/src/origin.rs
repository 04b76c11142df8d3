//! The server behind every chain: one fixed response to each HTTP/1.1 request, as cheaply as it can be done.
//!
//! It shares a core with the load generator, so what it saves is left to make load with. Bodies of requests are not read:
//! scenarios that upload need another one.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const HEAD_END: &[u8] = b"\r\n\r\n";
const BUFFER_BYTES: usize = 16 * 1024;

/// Answers until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn run(listen: SocketAddr, response_bytes: usize) -> Result<()> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {response_bytes}\r\n\r\n").into_bytes();
    response.resize(response.len() + response_bytes, b'x');
    let response: &'static [u8] = response.leak();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(answer(stream, response));
        }
    })
}

async fn answer(mut stream: TcpStream, response: &'static [u8]) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]).await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => filled += bytes,
        }
        // Answers in one write what came in one read.
        while let Some(end) = buffer[..filled].windows(HEAD_END.len()).position(|window| window == HEAD_END) {
            buffer.copy_within(end + HEAD_END.len()..filled, 0);
            filled -= end + HEAD_END.len();
            if stream.write_all(response).await.is_err() {
                return;
            }
        }
    }
}
