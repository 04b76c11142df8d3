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
