//! A strict reader of HTTP/1 (RFC 9112): the judge of what our proxies write.
//!
//! It shares no code with the proxy and is written to be read rather than to be fast. [`request`] says which request stands at the
//! front of some bytes, or why a lenient reader could find another one there than a strict reader does. What it lets
//! pass is what a careful proxy writes, which is less than what the standard allows: origin-form, one Host, one length or `chunked`, no
//! extensions, no fields of another hop. [`response`] is the same for what a client hears.
//! Used by the tests of this crate, by the fuzz targets and by the control plane's tests over real processes.

#![allow(dead_code, reason = "every test that includes this file uses another part of it")]

use std::fmt;

mod content;
mod host;
pub mod hpack;
pub mod http2;

#[cfg(test)]
mod tests;

/// Why some bytes are not safe to have been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsafe(pub String);

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn no<T>(why: impl Into<String>) -> Result<T, Unsafe> {
    Err(Unsafe(why.into()))
}

/// Name in lower case, and value.
pub type Field = (String, Vec<u8>);

/// One whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub fields: Vec<Field>,
    pub content: Vec<u8>,
    pub trailers: Vec<Field>,
    /// How many bytes it takes.
    pub length: usize,
}

/// One whole response; interim ones too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<Field>,
    pub content: Vec<u8>,
    pub trailers: Vec<Field>,
    pub length: usize,
}

/// The values of a field, one for each line.
pub fn values<'a>(fields: &'a [Field], name: &str) -> Vec<&'a [u8]> {
    fields.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_slice()).collect()
}

/// The request at the front; `None`: it is not whole, and so far there is nothing wrong with it.
pub fn request(bytes: &[u8]) -> Result<Option<Request>, Unsafe> {
    let mut lines = Lines { bytes, at: 0 };
    let Some(line) = lines.next()? else { return Ok(None) };
    let (method, target) = request_line(line)?;
    let Some(fields) = fields(&mut lines)? else { return Ok(None) };
    host::check(&fields)?;
    hops(&fields)?;
    let length = content::declared(&fields)?;
    if method == "CONNECT" && length != content::Length::None {
        return no("content on CONNECT");
    }
    if method == "TRACE" && !matches!(length, content::Length::None | content::Length::Known(0)) {
        return no("content on TRACE");
    }
    let Some((content, trailers, end)) = content::read(bytes, lines.at, length)? else { return Ok(None) };
    Ok(Some(Request { method, target, fields, content, trailers, length: end }))
}

/// Every whole request, and how many bytes are behind the last one: part of a request that was broken off.
pub fn requests(mut bytes: &[u8]) -> Result<(Vec<Request>, usize), Unsafe> {
    let mut found = Vec::new();
    while let Some(request) = request(bytes)? {
        bytes = &bytes[request.length..];
        found.push(request);
        if found.last().is_some_and(|request| request.method == "CONNECT") {
            break;
        }
    }
    Ok((found, bytes.len()))
}

/// The response at the front to a request with this method. `ended`: nothing more will come.
pub fn response(bytes: &[u8], asked: &str, ended: bool) -> Result<Option<Response>, Unsafe> {
    let mut lines = Lines { bytes, at: 0 };
    let Some(line) = lines.next()? else { return Ok(None) };
    let status = status_line(line)?;
    let Some(fields) = fields(&mut lines)? else { return Ok(None) };
    let declared = content::declared(&fields)?;
    let bodiless = (100..200).contains(&status) || matches!(status, 204 | 304) || asked == "HEAD";
    if (bodiless && (status < 200 || status == 204)) && declared != content::Length::None {
        return no(format!("a response with status {status} declares content"));
    }
    let tunnel = asked == "CONNECT" && (200..300).contains(&status);
    let at = lines.at;
    let read = match declared {
        _ if bodiless || tunnel => Some((Vec::new(), Vec::new(), at)),
        content::Length::None => ended.then(|| (bytes[at..].to_vec(), Vec::new(), bytes.len())),
        declared => content::read(bytes, at, declared)?,
    };
    Ok(read.map(|(content, trailers, length)| Response { status, fields, content, trailers, length }))
}

/// Lines that end with CRLF and hold no other control character than the tab.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    /// The next line without its end; `None`: it has not all come.
    fn next(&mut self) -> Result<Option<&'a [u8]>, Unsafe> {
        let rest = &self.bytes[self.at..];
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'\r' => match rest.get(at + 1) {
                    Some(b'\n') => {
                        self.at += at + 2;
                        return Ok(Some(&rest[..at]));
                    }
                    Some(_) => return no("carriage return without a line feed"),
                    None => return Ok(None),
                },
                b'\n' => return no("line feed without a carriage return"),
                0 => return no("NUL in a head"),
                b'\t' => {}
                0x01..0x20 | 0x7f => return no(format!("control character {byte:#04x} in a head")),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn text(bytes: &[u8]) -> Result<String, Unsafe> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => Ok(text.to_owned()),
        _ => no("bytes outside of ASCII where only ASCII may stand"),
    }
}

fn request_line(line: &[u8]) -> Result<(String, String), Unsafe> {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { return no("request line is not three words") };
    if !is_token(method) {
        return no("method is not a token");
    }
    if version != b"HTTP/1.1" {
        return no("version is not HTTP/1.1");
    }
    let (method, target) = (text(method)?, text(target)?);
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) || target.contains('#') {
        return no(format!("target {target:?} holds a byte that must not stand there"));
    }
    match (method.as_str(), target.as_str()) {
        ("CONNECT", authority) => match host::parse(authority.as_bytes()) {
            Some(Some(_)) => {}
            _ => return no(format!("CONNECT to {authority:?}, which is not host:port")),
        },
        ("OPTIONS", "*") => {}
        (_, path) if path.starts_with('/') => {}
        _ => return no(format!("target {target:?} is not a path")),
    }
    Ok((method, target))
}

fn status_line(line: &[u8]) -> Result<u16, Unsafe> {
    let digits = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', a, b, c, b' ', ..] => [*a, *b, *c],
        _ => return no("status line is not version, status, reason"),
    };
    match digits.map(char::from).iter().collect::<String>().parse() {
        Ok(status @ 100..=599) => Ok(status),
        _ => no("status is not a number from 100 to 599"),
    }
}

/// Field lines up to the empty one; `None`: they have not all come.
fn fields(lines: &mut Lines<'_>) -> Result<Option<Vec<Field>>, Unsafe> {
    let mut fields = Vec::new();
    loop {
        let Some(line) = lines.next()? else { return Ok(None) };
        if line.is_empty() {
            return Ok(Some(fields));
        }
        if matches!(line[0], b' ' | b'\t') {
            return no("folded field");
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return no("field without a colon") };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if !is_token(name) {
            return no(format!("field name {:?} is not a token", String::from_utf8_lossy(name)));
        }
        fields.push((text(name)?.to_ascii_lowercase(), value.trim_ascii().to_vec()));
    }
}

/// Fields that concern one connection: only what the writer of this message may say himself.
fn hops(fields: &[Field]) -> Result<(), Unsafe> {
    let lower = |value: &&[u8]| String::from_utf8_lossy(value).to_ascii_lowercase();
    let connection: Vec<String> = values(fields, "connection").iter().map(lower).collect();
    if connection.len() > 1
        || connection.iter().any(|value| !matches!(value.as_str(), "close" | "keep-alive" | "upgrade"))
    {
        return no(format!("connection says {connection:?}"));
    }
    let upgrades = connection.iter().any(|value| value == "upgrade");
    if upgrades == values(fields, "upgrade").is_empty() {
        return no("connection and upgrade do not say the same");
    }
    if values(fields, "upgrade").iter().any(|value| lower(value).contains("h2c")) {
        return no("upgrade to h2c");
    }
    if values(fields, "te").iter().any(|value| lower(value) != "trailers") {
        return no("te names more than trailers");
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings", "proxy-authorization"] {
        if !values(fields, name).is_empty() {
            return no(format!("{name} of another hop"));
        }
    }
    Ok(())
}
