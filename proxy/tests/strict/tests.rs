//! The judge is judged: what it must let pass, and everything it must not.

use super::*;

fn judged(text: &str) -> Result<usize, String> {
    requests(text.as_bytes()).map(|(found, _)| found.len()).map_err(|why| why.0)
}

#[test]
fn the_strict_reader_reads_what_a_careful_proxy_writes() {
    // A judge that refuses good messages would send everybody looking for bugs that are none.
    for (text, count) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", 1),
        ("GET /a?b HTTP/1.1\r\nHost: a.test:80\r\nX: \t v \u{e4}\r\nx:\r\n\r\n", 1),
        ("OPTIONS * HTTP/1.1\r\nhost: [::1]:80\r\n\r\n", 1),
        ("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\nanything", 1),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\r\nhost: a\r\n\r\n", 2),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-a: b\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 1),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nab", 0),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r", 0),
        ("GET / HTTP/1.1\r\nhost: a\r", 0),
        ("", 0),
    ] {
        assert_eq!(judged(text), Ok(count), "{text:?}");
    }
    let whole =
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\nx-a: b\r\n\r\n";
    let read = request(whole.as_bytes()).unwrap().unwrap();
    assert_eq!((read.content.as_slice(), read.trailers.len(), read.length), (&b"abcd"[..], 1, whole.len()));
    for cut in 0..whole.len() {
        assert_eq!(request(&whole.as_bytes()[..cut]), Ok(None), "{cut}");
    }
}

#[test]
fn the_strict_reader_refuses_what_two_readers_read_differently() {
    // Each of these would be a smuggled request at some server in use.
    for head in [
        "GET / HTTP/1.1\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\n",
        "GET / HTTP/1.1\r\nhost: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: \x7f\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: \x0b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx : b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost:\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT /a HTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3 \r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nX-Forwarded-Client-Cert: b\r\n\r\n",
        "TRACE / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\na",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: x-a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nupgrade: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nte: gzip\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nkeep-alive: 5\r\n\r\n",
    ] {
        assert!(judged(head).is_err(), "{head:?}");
    }
}

#[test]
fn the_strict_reader_knows_where_an_answer_ends() {
    // An answer that ends elsewhere gives its rest to the next request.
    let read = |text: &str, asked, ended| {
        response(text.as_bytes(), asked, ended)
            .map(|read| read.map(|read| (read.status, read.content.len(), read.length)))
    };
    assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabc", "GET", false), Ok(Some((200, 2, 40))));
    assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "HEAD", false), Ok(Some((200, 0, 38))));
    assert_eq!(read("HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n", "GET", false), Ok(Some((304, 0, 48))));
    assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nab", "GET", false), Ok(None));
    assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nab", "GET", true), Ok(Some((200, 2, 21))));
    assert!(read("HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n", "GET", false).is_err());
    assert!(read("HTTP/1.1 200 OK\ncontent-length: 2\r\n\r\n", "GET", false).is_err());
    assert!(read("HTTP/1.0 200 OK\r\n\r\n", "GET", false).is_err());
}

#[test]
fn the_strict_reader_knows_the_examples_of_the_standard() {
    // RFC 7541 appendix C.4 and C.6: if these come out, tables and codes are right.
    let mut table = hpack::Table::default();
    let bytes = |hex: &str| -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    };
    let show = |lines: Vec<hpack::Line>| -> Vec<String> {
        let show = |(name, value): &hpack::Line| {
            format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
        };
        lines.iter().map(show).collect()
    };
    let first = table.read(&bytes("828684418cf1e3c2e5f23a6ba0ab90f4ff")).unwrap();
    assert_eq!(show(first), [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"]);
    let second = table.read(&bytes("828684be5886a8eb10649cbf")).unwrap();
    assert_eq!(show(second)[3..], [":authority: www.example.com", "cache-control: no-cache"]);
    let third = table.read(&bytes("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")).unwrap();
    assert_eq!(show(third)[3..], [":authority: www.example.com", "custom-key: custom-value"]);
    for wrong in ["80", "bf", "40", "0085", "ff80808080808080", "008181ffff", "3fffffff7f"] {
        assert!(hpack::Table::default().read(&bytes(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn the_strict_reader_refuses_requests_that_http2_must_not_carry() {
    // A second sidecar would have to repair them, in its own way.
    let judged = |text: &str, content: &[u8], trailers: Option<&str>| {
        let lines = |text: &str| -> Vec<hpack::Line> {
            let line = |line: &str| {
                let (name, value) = line.split_once(' ').unwrap();
                (name.into(), value.into())
            };
            text.split('|').map(line).collect()
        };
        http2::request(&lines(text), content.to_vec(), trailers.map(lines).as_deref()).map(|request| request.target)
    };
    let good = ":method GET|:scheme http|:authority a|:path /x|host a|te trailers|content-length 1";
    assert_eq!(judged(good, b"a", Some("x-t 1")), Ok("/x".to_owned()));
    assert_eq!(judged(":method CONNECT|:authority a:1", b"", None), Ok("a:1".to_owned()));
    assert!(judged(good, b"ab", None).is_err());
    assert!(judged(good, b"a", Some("content-length 1")).is_err());
    assert!(judged(good, b"a", Some(":path /y")).is_err());
    for wrong in [
        ":method GET|:scheme http|:path /x",
        ":method GET|:scheme http|:authority u@a|:path /x",
        ":method GET|:scheme http|:authority a|:path x",
        ":method GET|:scheme http|:authority a|:path /a b",
        ":method GET|:scheme ftp|:authority a|:path /",
        ":method G T|:scheme http|:authority a|:path /",
        ":method GET|:scheme http|:authority a|:path /|:path /",
        ":method GET|:scheme http|:authority a|x-a b|:path /",
        ":method GET|:scheme http|:authority a|:path /|host b",
        ":method GET|:scheme http|:authority a|:path /|X-A b",
        ":method GET|:scheme http|:authority a|:path /|x-a b\r\nc: d",
        ":method GET|:scheme http|:authority a|:path /|connection close",
        ":method GET|:scheme http|:authority a|:path /|te gzip",
        ":method GET|:scheme http|:authority a|:path /|:status 200",
    ] {
        assert!(judged(wrong, b"", None).is_err(), "{wrong}");
    }
}
