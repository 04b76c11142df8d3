//! A request as HTTP/2 carries it (RFC 9113 §8), by the same measure as one of HTTP/1.

use super::{Field, Request, Unsafe, host, hpack::Line, is_token, no, text, values};

/// The request that these lines are, with content that came and trailers.
pub fn request(lines: &[Line], content: Vec<u8>, trailers: Option<&[Line]>) -> Result<Request, Unsafe> {
    let (mut method, mut scheme, mut authority, mut path, mut protocol) = (None, None, None, None, None);
    let mut fields: Vec<Field> = Vec::new();
    for (name, value) in lines {
        let place = match name.as_slice() {
            b":method" => &mut method,
            b":scheme" => &mut scheme,
            b":authority" => &mut authority,
            b":path" => &mut path,
            b":protocol" => &mut protocol,
            _ => {
                fields.push(field(name, value)?);
                continue;
            }
        };
        if !fields.is_empty() {
            return no(format!("{} behind a field", String::from_utf8_lossy(name)));
        }
        if place.replace(text(value)?).is_some() {
            return no(format!("{} twice", String::from_utf8_lossy(name)));
        }
    }
    let Some(method) = method.filter(|method| is_token(method.as_bytes())) else { return no("no method") };
    let Some(authority) = authority else { return no("no authority") };
    if host::parse(authority.as_bytes()).is_none() {
        return no(format!("authority is {authority:?}"));
    }
    match values(&fields, "host")[..] {
        [] => {}
        [host] if host == authority.as_bytes() => {}
        _ => return no("Host and authority differ"),
    }
    let target = match (method.as_str(), scheme.as_deref(), path, &protocol) {
        ("CONNECT", None, None, None) => authority,
        ("OPTIONS", Some("http" | "https"), Some(path), None) if path == "*" => path,
        (_, Some("http" | "https"), Some(path), _) if path.starts_with('/') => path,
        (_, scheme, path, _) => return no(format!("{method} with scheme {scheme:?} and path {path:?}")),
    };
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) || target.contains('#') {
        return no(format!("target {target:?} holds a byte that must not stand there"));
    }
    match values(&fields, "content-length")[..] {
        [] => {}
        [digits] if digits == content.len().to_string().as_bytes() => {}
        _ => return no(format!("content-length and {} bytes of content", content.len())),
    }
    let trailers = trailers.unwrap_or_default().iter().map(|(name, value)| field(name, value));
    let trailers = trailers.collect::<Result<Vec<_>, _>>()?;
    if let Some((name, _)) = trailers.iter().find(|(name, _)| super::content::is_forbidden(name)) {
        return no(format!("{name} as a trailer"));
    }
    Ok(Request { method, target, fields, content, trailers, length: 0 })
}

fn field(name: &[u8], value: &[u8]) -> Result<Field, Unsafe> {
    if !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
        return no(format!("field name {:?}", String::from_utf8_lossy(name)));
    }
    if value.iter().any(|byte| *byte != b'\t' && (*byte < b' ' || *byte == 0x7f)) || value.trim_ascii() != value {
        return no(format!("value {:?}", String::from_utf8_lossy(value)));
    }
    let name = text(name)?;
    match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "http2-settings" => {
            no(format!("{name} in HTTP/2"))
        }
        "te" if value != b"trailers" => no("te names more than trailers"),
        _ => Ok((name, value.to_vec())),
    }
}
