//! A small HTTP/1.1 client: one connection, responses read piece by piece, so that a test can read
//! slowly, or leave in the middle.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Largest accepted line of a response's head.
const MAX_LINE: usize = 16 << 10;

/// A keep-alive connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// Whether a response was read on it before.
    pub reused: bool,
}

/// How the rest of a body is delimited.
enum Framing {
    /// Bytes that are left.
    Length(u64),
    Chunked,
    End,
}

/// The head of a response, whose body is still to be read.
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    framing: Framing,
}

/// A request's line, headers and body as they are sent.
pub struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    /// A request without a body. `key` is the caller's API key.
    pub fn new(method: &str, path: &str, key: Option<&str>) -> Self {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
        if let Some(key) = key {
            head += &format!("Authorization: Bearer {key}\r\n");
        }
        let body = Vec::new();
        Self { head, body }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head += &format!("{name}: {value}\r\n");
        self
    }

    /// Adds a JSON body.
    pub fn json(self, body: &Value) -> Self {
        let mut request = self.header("Content-Type", "application/json");
        request.body = body.to_string().into_bytes();
        request
    }

    /// Adds the form of an upload.
    pub fn upload(self, name: &str, file: &[u8], replace: bool) -> Self {
        const LINE: &str = "--------tombola";
        let mut request = self.header(
            "Content-Type",
            &format!("multipart/form-data; boundary={LINE}"),
        );
        let field = |name: &str, more: &str| {
            format!("--{LINE}\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n")
        };
        let text = |name: &str, value: &str| field(name, "") + value + "\r\n";
        request.body = [
            text("name", name).as_bytes(),
            text("replace", &replace.to_string()).as_bytes(),
            field("file", "; filename=\"t\"").as_bytes(),
            file,
            format!("\r\n--{LINE}--\r\n").as_bytes(),
        ]
        .concat();
        request
    }

    fn bytes(&self) -> Vec<u8> {
        let length = self.body.len();
        let head = format!("{}Content-Length: {length}\r\n\r\n", self.head);
        [head.as_bytes(), &self.body].concat()
    }
}

impl Connection {
    /// Connects to the server.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(4 << 10, stream),
            reused: false,
        })
    }

    /// Sends a request and reads the head of its response.
    pub async fn request(&mut self, request: &Request) -> anyhow::Result<Response> {
        self.stream.write_all(&request.bytes()).await?;
        self.head().await
    }

    /// Sends the first `share` of a request, from 0 to 1.
    pub async fn send_part(&mut self, request: &Request, share: f64) -> anyhow::Result<()> {
        let bytes = request.bytes();
        let part = (bytes.len() as f64 * share) as usize;
        Ok(self.stream.write_all(&bytes[..part]).await?)
    }

    /// Sends a request and reads its response, status and body.
    pub async fn fetch(&mut self, request: &Request) -> anyhow::Result<(Response, Vec<u8>)> {
        let mut response = self.request(request).await?;
        let body = self.body(&mut response).await?;
        Ok((response, body))
    }

    async fn head(&mut self) -> anyhow::Result<Response> {
        let line = self.line().await?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .with_context(|| format!("a status line, not {line:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').context("a header")?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response {
            status,
            headers,
            framing: Framing::End,
        };
        response.framing = match response.header("content-length") {
            Some(length) => Framing::Length(length.parse().context("a length")?),
            None if response.header("transfer-encoding") == Some("chunked") => Framing::Chunked,
            None => bail!("a response without a length"),
        };
        Ok(response)
    }

    /// The next piece of a body; `None` at its end.
    pub async fn piece(&mut self, response: &mut Response) -> anyhow::Result<Option<Vec<u8>>> {
        let piece = match response.framing {
            Framing::End | Framing::Length(0) => None,
            Framing::Length(left) => {
                let mut piece = vec![0; left.min(8 << 10) as usize];
                let read = self.stream.read(&mut piece).await?;
                ensure!(read > 0, "the body breaks off, {left} bytes before its end");
                piece.truncate(read);
                response.framing = Framing::Length(left - read as u64);
                Some(piece)
            }
            Framing::Chunked => {
                let size = self.line().await?;
                let size = usize::from_str_radix(&size, 16).context("the size of a chunk")?;
                ensure!(size <= 16 << 20, "a chunk of {size} bytes");
                let mut chunk = vec![0; size];
                self.stream.read_exact(&mut chunk).await?;
                ensure!(self.line().await?.is_empty(), "a chunk without its end");
                (size > 0).then_some(chunk)
            }
        };
        if piece.is_none() {
            response.framing = Framing::End;
            self.reused = true;
        }
        Ok(piece)
    }

    /// The rest of a body.
    pub async fn body(&mut self, response: &mut Response) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece(response).await? {
            body.extend(piece);
        }
        Ok(body)
    }

    /// A line without its end.
    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(MAX_LINE as u64);
        bounded.read_until(b'\n', &mut line).await?;
        ensure!(line.ends_with(b"\r\n"), "the connection ended in a head");
        line.truncate(line.len() - 2);
        Ok(String::from_utf8(line)?)
    }
}

impl Response {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether the server closes the connection after this response.
    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}
