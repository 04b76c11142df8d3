//! An origin that records every byte, and answers what a strict reader finds in them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::http2_origin::Http2;
use crate::{frames::PREFACE, strict};

pub struct Origin {
    pub address: SocketAddr,
    state: Mutex<Heard>,
    number: AtomicUsize,
}

#[derive(Default)]
pub struct Heard {
    /// With their numbers.
    pub requests: Vec<(usize, strict::Request)>,
    /// Bytes that are not safe, with the reason.
    pub wrong: Vec<(String, Vec<u8>)>,
}

impl Origin {
    pub fn listen() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let origin = Arc::new(Self { address, state: Mutex::default(), number: AtomicUsize::new(0) });
        let serving = Arc::clone(&origin);
        thread::spawn(move || {
            for io in listener.incoming().map_while(Result::ok) {
                let serving = Arc::clone(&serving);
                thread::spawn(move || serving.serve(io));
            }
        });
        origin
    }

    fn serve(&self, mut io: TcpStream) {
        let _ = io.set_nodelay(true);
        let mut unread: Vec<u8> = Vec::new();
        let mut bytes = [0; 16 * 1024];
        while let Ok(read @ 1..) = io.read(&mut bytes) {
            unread.extend_from_slice(&bytes[..read]);
            if unread.starts_with(PREFACE) {
                if let Err(why) = Http2::new(self, &mut io).serve(unread) {
                    self.state.lock().unwrap().wrong.push((why.to_string(), b"a connection of HTTP/2".to_vec()));
                }
                return;
            }
            if PREFACE.starts_with(&unread) {
                continue;
            }
            loop {
                match strict::request(&unread) {
                    Ok(None) => break,
                    Ok(Some(request)) => {
                        unread.drain(..request.length);
                        let over = request.method == "CONNECT";
                        let method = request.method.clone();
                        let number = self.stands(request);
                        let answer = answer(&method, number);
                        if io.write_all(answer.as_bytes()).is_err() || over {
                            return;
                        }
                    }
                    Err(why) => {
                        self.state.lock().unwrap().wrong.push((why.to_string(), unread));
                        return;
                    }
                }
            }
        }
    }

    /// Notes a request; its number.
    pub fn stands(&self, request: strict::Request) -> usize {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.state.lock().unwrap().requests.push((number, request));
        number
    }

    /// Takes what was heard.
    pub fn take(&self) -> Heard {
        std::mem::take(&mut *self.state.lock().unwrap())
    }
}

fn answer(method: &str, number: usize) -> String {
    if method == "CONNECT" {
        return format!("HTTP/1.1 405 Method Not Allowed\r\nx-number: {number}\r\ncontent-length: 0\r\n\r\n");
    }
    let said = format!("number {number}.");
    let content = if method == "HEAD" { "" } else { said.as_str() };
    format!("HTTP/1.1 200 OK\r\nx-number: {number}\r\ncontent-length: {}\r\n\r\n{content}", said.len())
}
