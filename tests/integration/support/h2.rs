//! A client of HTTP/2 that a test controls to the frame: no window, half a body, many streams.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const MAX_FRAME: usize = 16_384;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame that the server sent.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub struct Client<IO> {
    io: IO,
    next: u32,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Client<IO> {
    /// Begins a connection. The server may send `window` bytes of each response unasked.
    pub async fn begin(mut io: IO, window: u32) -> Self {
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut client = Self { io, next: 1 };
        let initial_window = [&[0, 4][..], &window.to_be_bytes()].concat();
        client.send(SETTINGS, 0, 0, &initial_window).await;
        client
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.io.write_all(&[&head, payload].concat()).await.unwrap();
    }

    /// Sends a request, whose body is JSON, and returns its stream.
    pub async fn request(&mut self, method: &str, path: &str, body: &str) -> u32 {
        let stream = self
            .head(method, path, &[("content-type", "application/json")])
            .await;
        self.send(DATA, END_STREAM, stream, body.as_bytes()).await;
        stream
    }

    /// Sends the head of a request.
    pub async fn head(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let mut block = Vec::new();
        let pseudo = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
        ];
        for (name, value) in pseudo.iter().chain(headers) {
            // A literal without indexing.
            block.push(0);
            for text in [name, value] {
                match text.len() {
                    length @ ..127 => block.push(length as u8),
                    // 127, and 7 bits of the rest.
                    length @ 127..255 => block.extend([127, (length - 127) as u8]),
                    length => panic!("{length} bytes"),
                }
                block.extend(text.as_bytes());
            }
        }
        match block.split_at_checked(MAX_FRAME) {
            None => self.send(HEADERS, END_HEADERS, stream, &block).await,
            Some((first, rest)) => {
                self.send(HEADERS, 0, stream, first).await;
                self.send(CONTINUATION, END_HEADERS, stream, rest).await;
            }
        }
        stream
    }

    /// The next frame that is not about the connection alone; `None` at its end.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.io.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.io.read_exact(&mut payload).await.ok()?;
            let frame = Frame {
                kind: head[3],
                flags: head[4],
                stream: u32::from_be_bytes(head[5..].try_into().unwrap()),
                payload,
            };
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                PING if frame.flags & ACK == 0 => self.send(PING, ACK, 0, &frame.payload).await,
                SETTINGS | PING => {}
                _ if frame.stream == 0 && frame.kind != GOAWAY => {}
                _ => return Some(frame),
            }
        }
    }

    /// The status and the body of the response on `stream`; frames of other streams are dropped.
    pub async fn response(&mut self, stream: u32) -> (u16, String) {
        let (mut status, mut body) = (0, Vec::new());
        let reading = async {
            while let Some(frame) = self.frame().await {
                if frame.stream != stream {
                    continue;
                }
                match frame.kind {
                    HEADERS if status == 0 => status = status_of(&frame.payload),
                    DATA => body.extend(&frame.payload),
                    _ => panic!("{frame:?}"),
                }
                if frame.flags & END_STREAM != 0 {
                    return;
                }
            }
            panic!("the connection ended: {}", String::from_utf8_lossy(&body));
        };
        let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
        read.expect("a response");
        (status, String::from_utf8(body).unwrap())
    }
}

/// The status that begins a block of headers, if it has an index of its own; else 1.
fn status_of(block: &[u8]) -> u16 {
    match block[0] {
        0x88 => 200,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        _ => 1,
    }
}
