//! The origin's side of HTTP/2: reads what our proxies write, strictly, and answers.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::origin::Origin;
use crate::{
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
        WINDOW_UPDATE,
    },
    strict::{self, Unsafe, hpack},
};

pub struct Http2<'a> {
    origin: &'a Origin,
    io: &'a mut TcpStream,
    table: hpack::Table,
    streams: BTreeMap<u32, Stream>,
    /// A header block that is not whole, with the flags of its first frame.
    block: (u8, Vec<u8>),
}

#[derive(Default)]
struct Stream {
    head: Option<Vec<hpack::Line>>,
    content: Vec<u8>,
    trailers: Option<Vec<hpack::Line>>,
}

impl<'a> Http2<'a> {
    pub fn new(origin: &'a Origin, io: &'a mut TcpStream) -> Self {
        Self { origin, io, table: hpack::Table::default(), streams: BTreeMap::new(), block: (0, Vec::new()) }
    }

    pub fn serve(&mut self, first: Vec<u8>) -> Result<(), Unsafe> {
        let mut frames = Frames::default();
        frames.received.extend_from_slice(&first[PREFACE.len()..]);
        self.say(SETTINGS, 0, 0, &[]);
        let mut bytes = [0; 16 * 1024];
        loop {
            while let Some((kind, flags, stream, payload)) = frames.next() {
                self.take(kind, flags, stream, &payload)?;
            }
            match self.io.read(&mut bytes) {
                Ok(read @ 1..) => frames.received.extend_from_slice(&bytes[..read]),
                _ => return Ok(()),
            }
        }
    }

    fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut said = Vec::new();
        frames::frame(&mut said, kind, flags, stream, payload);
        // Who does not listen any more hears nothing.
        let _ = self.io.write_all(&said);
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Unsafe> {
        match kind {
            SETTINGS if flags & 1 == 0 => self.say(SETTINGS, 1, 0, &[]),
            PING if flags & 1 == 0 => self.say(PING, 1, 0, payload),
            RST_STREAM => drop(self.streams.remove(&stream)),
            DATA => {
                if !payload.is_empty() {
                    let more = u32::try_from(payload.len()).unwrap().to_be_bytes();
                    self.say(WINDOW_UPDATE, 0, 0, &more);
                    self.say(WINDOW_UPDATE, 0, stream, &more);
                }
                let data = frames::unpadded(flags, payload, false);
                self.streams.entry(stream).or_default().content.extend_from_slice(data);
                return self.ended(flags, stream);
            }
            HEADERS | CONTINUATION => {
                if kind == HEADERS {
                    self.block = (flags, frames::unpadded(flags, payload, true).to_vec());
                } else {
                    self.block.1.extend_from_slice(payload);
                }
                if flags & END_HEADERS != 0 {
                    let (flags, block) = std::mem::take(&mut self.block);
                    let lines = self.table.read(&block)?;
                    let known = self.streams.entry(stream).or_default();
                    match known.head {
                        None => known.head = Some(lines),
                        Some(_) => known.trailers = Some(lines),
                    }
                    return self.ended(flags, stream);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A whole request stands here when its stream has ended.
    fn ended(&mut self, flags: u8, stream: u32) -> Result<(), Unsafe> {
        if flags & END_STREAM == 0 {
            return Ok(());
        }
        let Some(ended) = self.streams.remove(&stream) else { return Ok(()) };
        let head = ended.head.unwrap_or_default();
        let request = strict::http2::request(&head, ended.content, ended.trailers.as_deref()).map_err(|why| {
            Unsafe(format!(
                "{why} in {:?}",
                head.iter()
                    .map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii()))
                    .collect::<Vec<_>>()
            ))
        })?;
        let is_head = request.method == "HEAD";
        let number = self.origin.stands(request);
        let mut block = Vec::new();
        frames::literal(&mut block, b":status", b"200");
        frames::literal(&mut block, b"x-number", number.to_string().as_bytes());
        self.say(HEADERS, END_HEADERS | if is_head { END_STREAM } else { 0 }, stream, &block);
        if !is_head {
            self.say(DATA, END_STREAM, stream, b"answer");
        }
        Ok(())
    }
}
