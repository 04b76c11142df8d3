//! Sockets, raw bytes, and a reader of HTTP/1 that knows no mercy.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Longest wait for anything that must come; far above what any of it takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Accepts for as long as the test runs; `serve` gets the connection's number, from 1, and has a thread for each.
pub fn listen(serve: impl Fn(usize, TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (number, io) in listener.incoming().map_while(Result::ok).enumerate() {
            let serve = serve.clone();
            io.set_read_timeout(Some(PATIENCE)).unwrap();
            io.set_nodelay(true).unwrap();
            thread::spawn(move || serve(number + 1, io));
        }
    });
    address
}

/// Connects, as soon as somebody listens.
pub fn connect(address: SocketAddr) -> TcpStream {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(io) => {
                io.set_read_timeout(Some(PATIENCE)).unwrap();
                io.set_nodelay(true).unwrap();
                return io;
            }
            Err(_) if began.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{address} never listened: {error}"),
        }
    }
}

/// Reads up to and including the empty line; `None`: the connection ended before.
pub fn read_head(io: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match io.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
        assert!(head.len() < 1 << 20, "a head without end");
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Everything until the other side ends; the second says whether it ended in order.
pub fn read_to_end(io: &mut impl Read) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let ended = io.read_to_end(&mut all);
    if let Err(error) = &ended {
        assert!(!matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "left hanging");
    }
    (all, ended.is_ok())
}

/// A message as it stands on the wire.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub start: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Message {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads one message; `None`: the connection ended where one could begin.
///
/// # Panics
/// When what comes is not exactly what RFC 9112 says, which is what no test may see from a sidecar.
pub fn read_message(io: &mut impl Read, bodiless: bool) -> Option<Message> {
    try_read_message(io, bodiless).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// The same; the error says what is wrong or that the message broke off.
pub fn try_read_message(io: &mut impl Read, bodiless: bool) -> Result<Option<Message>, String> {
    let Some(head) = read_head(io) else { return Ok(None) };
    let mut message = Message::default();
    let head = head.strip_suffix("\r\n\r\n").unwrap();
    for (number, line) in head.split("\r\n").enumerate() {
        if line.chars().any(|letter| letter.is_control() && letter != '\t') {
            return Err(format!("control characters in {line:?}"));
        }
        if number == 0 {
            line.clone_into(&mut message.start);
            continue;
        }
        message.fields.push(field(line)?);
    }
    let count = |name: &str| message.fields.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name)).count();
    let is_request = !message.start.starts_with("HTTP/");
    if is_request && count("host") != 1 {
        return Err(format!("{} host fields in {message:?}", count("host")));
    }
    if count("content-length") + count("transfer-encoding") > 1 {
        return Err(format!("several lengths in {message:?}"));
    }
    let status = message.status();
    if bodiless || !is_request && (status < 200 || matches!(status, 204 | 304)) {
        return Ok(Some(message));
    }
    if let Some(length) = message.field("content-length") {
        if length.is_empty() || !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(format!("content-length {length:?}"));
        }
        message.body = vec![0; length.parse().map_err(|_| "a length too large".to_owned())?];
        io.read_exact(&mut message.body).map_err(|error| format!("broke off in the body: {error}"))?;
    } else if let Some(coding) = message.field("transfer-encoding") {
        if coding != "chunked" {
            return Err(format!("transfer-encoding {coding:?}"));
        }
        loop {
            let size = line(io)?;
            let size = usize::from_str_radix(&size, 16).map_err(|_| format!("chunk size {size:?}"))?;
            if size == 0 {
                break;
            }
            let begun = message.body.len();
            message.body.resize(begun + size, 0);
            io.read_exact(&mut message.body[begun..]).map_err(|error| format!("broke off in a chunk: {error}"))?;
            if !line(io)?.is_empty() {
                return Err("no line end behind a chunk".to_owned());
            }
        }
        loop {
            let text = line(io)?;
            if text.is_empty() {
                break;
            }
            message.trailers.push(field(&text)?);
        }
    } else if !is_request {
        io.read_to_end(&mut message.body).map_err(|error| format!("broke off: {error}"))?;
    }
    Ok(Some(message))
}

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("field name {name:?}"));
    }
    Ok((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
}

fn line(io: &mut impl Read) -> Result<String, String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n") {
        io.read_exact(&mut byte).map_err(|error| format!("broke off: {error}"))?;
        text.push(byte[0]);
        if text.len() > 16 * 1024 {
            return Err("a line without end".to_owned());
        }
    }
    text.truncate(text.len() - 2);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// One GET with `Connection: close`; `None`: nobody is there.
pub fn try_get(address: SocketAddr, host: &str, path: &str) -> Option<String> {
    let mut io = TcpStream::connect(address).ok()?;
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    io.write_all(head.as_bytes()).ok()?;
    let mut answer = Vec::new();
    let _ = io.read_to_end(&mut answer);
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// A request on a connection of its own; the final answer, or `None` when the connection ended without one.
pub fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Option<Message> {
    let mut io = connect(address);
    let _ = io.write_all(request.as_ref());
    final_answer(&mut io, request.as_ref().starts_with(b"HEAD "))
}

/// The next answer that is no interim one.
pub fn final_answer(io: &mut impl Read, bodiless: bool) -> Option<Message> {
    loop {
        let message = try_read_message(io, bodiless).unwrap_or_else(|wrong| panic!("{wrong}"))?;
        if message.status() >= 200 {
            return Some(message);
        }
    }
}

/// What an application has been asked: connection number and request.
pub type Heard = Arc<Mutex<Vec<(usize, Message)>>>;

/// An HTTP/1 application that answers each request with what `answer` gives for its number, from 1; `None` ends the connection.
pub fn application(
    answer: impl Fn(usize, &Message) -> Option<Vec<u8>> + Clone + Send + 'static,
) -> (SocketAddr, Heard) {
    let heard = Heard::default();
    let state = Arc::clone(&heard);
    let address = listen(move |connection, mut io| {
        while let Ok(Some(request)) = try_read_message(&mut io, false) {
            let number = {
                let mut heard = state.lock();
                heard.push((connection, request.clone()));
                heard.len()
            };
            let Some(bytes) = answer(number, &request) else { break };
            if io.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = io.shutdown(Shutdown::Write);
    });
    (address, heard)
}

/// An application that answers everything with the words it is known by.
pub fn says(words: &'static str) -> (SocketAddr, Heard) {
    application(move |_, _| Some(ok(words)))
}

/// A whole good answer.
pub fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()).into_bytes()
}
