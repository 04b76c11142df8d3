//! Every byte that must not stand somewhere, there.

use super::case::{Case, Must};

fn around(before: &[u8], byte: u8, after: &[u8]) -> Vec<u8> {
    [before, &[byte], after].concat()
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut refuse = |name: String, bytes: Vec<u8>| cases.push(Case { name, must: Must::Refuse, bytes });
    for byte in (0..=0x1f_u8).chain([0x7f]).filter(|byte| *byte != b'\t') {
        refuse(format!("{byte:#04x} in a value"), around(b"GET /<N> HTTP/1.1\r\n<H>X-A: b", byte, b"c\r\n\r\n"));
        refuse(
            format!("{byte:#04x} at the end of a value"),
            around(b"GET /<N> HTTP/1.1\r\n<H>X-A: b", byte, b"\r\n\r\n"),
        );
        refuse(format!("{byte:#04x} in a target"), around(b"GET /<N>", byte, b"x HTTP/1.1\r\n<H>\r\n"));
        refuse(format!("{byte:#04x} in a version"), around(b"GET /<N> HTTP/1.1", byte, b"\r\n<H>\r\n"));
        refuse(
            format!("{byte:#04x} in a chunk size"),
            around(b"POST /<N> HTTP/1.1\r\n<H>Transfer-Encoding: chunked\r\n\r\n1", byte, b"\r\na\r\n0\r\n\r\n"),
        );
        refuse(
            format!("{byte:#04x} in a length"),
            around(b"POST /<N> HTTP/1.1\r\n<H>Content-Length: 1", byte, b"\r\n\r\na"),
        );
        refuse(
            format!("{byte:#04x} in a coding"),
            around(b"POST /<N> HTTP/1.1\r\n<H>Transfer-Encoding: ", byte, b"chunked\r\n\r\n0\r\n\r\n"),
        );
    }
    let separators = b"\"(),/;<=>?@[\\]{} \t".iter().copied();
    for byte in (0..=0x1f_u8).chain([0x7f, 0x80, 0xc3, 0xff]).chain(separators) {
        refuse(format!("{byte:#04x} in a name"), around(b"GET /<N> HTTP/1.1\r\n<H>X", byte, b"A: b\r\n\r\n"));
        refuse(format!("{byte:#04x} before the colon"), around(b"GET /<N> HTTP/1.1\r\n<H>X-A", byte, b": b\r\n\r\n"));
        refuse(
            format!("{byte:#04x} before Content-Length"),
            around(b"POST /<N> HTTP/1.1\r\n<H>X: a\r\n", byte, b"Content-Length: 1\r\n\r\na"),
        );
        refuse(
            format!("{byte:#04x} before Transfer-Encoding"),
            around(b"POST /<N> HTTP/1.1\r\n<H>X: a\r\n", byte, b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        );
    }
    for byte in b"\"(),/;<=>?@[\\]{}:#&'\x00\x7f\x80 \t".iter().copied() {
        let host = around(b"Host: <A>", byte, b"x\r\n");
        // A colon begins a port, which "x" is not.
        refuse(format!("{byte:#04x} in Host"), [b"GET /<N> HTTP/1.1\r\n".as_slice(), &host, b"\r\n"].concat());
    }
    for byte in (0x80..=0xff_u8).step_by(17) {
        refuse(format!("{byte:#04x} in a target"), around(b"GET /<N>", byte, b" HTTP/1.1\r\n<H>\r\n"));
    }
    for byte in (0x80..=0xff_u8).step_by(17) {
        let bytes = around(b"GET /<N> HTTP/1.1\r\n<H>X-A: b", byte, b"c\r\n\r\n");
        cases.push(Case { name: format!("{byte:#04x} in a value"), must: Must::Either, bytes });
    }
    cases
}
