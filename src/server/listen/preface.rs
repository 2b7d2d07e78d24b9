//! The version of HTTP that a client speaks, told by the first bytes of its connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What each connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose first bytes can be read ahead.
pub struct Rewind<IO> {
    io: IO,
    /// Bytes read ahead, of which this many have been given out.
    ahead: Vec<u8>,
    given: usize,
}

impl<IO> Rewind<IO> {
    /// Wraps a stream of which nothing has been read.
    pub fn new(io: IO) -> Self {
        Self {
            io,
            ahead: Vec::new(),
            given: 0,
        }
    }
}

impl<IO: AsyncRead + Unpin> Rewind<IO> {
    /// Reads ahead until it is clear whether the client speaks HTTP/2. If the future is dropped, it
    /// can be asked again, and the stream still begins with the first byte.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
        while PREFACE.starts_with(&self.ahead) {
            let left = PREFACE.len() - self.ahead.len();
            if left == 0 {
                return Ok(true);
            }
            let mut bytes = [0; PREFACE.len()];
            match self.io.read(&mut bytes[..left]).await? {
                0 => return Ok(false),
                read => self.ahead.extend(&bytes[..read]),
            }
        }
        Ok(false)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewind<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ahead = &this.ahead[this.given..];
        if ahead.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let taken = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..taken]);
        this.given += taken;
        // What has arrived together is read together: a head is judged as a whole.
        if buf.remaining() > 0
            && let Poll::Ready(Err(error)) = Pin::new(&mut this.io).poll_read(cx, buf)
        {
            tracing::debug!(%error, "a connection broke off after its first bytes");
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewind<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    /// Whether these bytes, written one by one, begin HTTP/2; the stream must still hold them all.
    async fn begins_http2(bytes: &[u8]) -> bool {
        let (mut client, server) = tokio::io::duplex(1);
        let sent = bytes.to_vec();
        let writing = tokio::spawn(async move { client.write_all(&sent).await });
        let mut rewind = Rewind::new(server);
        let found = rewind.speaks_http2().await.unwrap();
        let mut read = Vec::new();
        rewind.read_to_end(&mut read).await.unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(read, bytes);
        found
    }

    #[tokio::test]
    async fn the_preface_tells_http2_and_nothing_is_lost() {
        assert!(begins_http2(PREFACE).await);
        assert!(begins_http2(&[PREFACE, b"\0\0\0\x04"].concat()).await);
        for text in [
            "",
            "P",
            "PRI * HTTP/2.0\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "PRI * HTTP/1.1",
        ] {
            assert!(!begins_http2(text.as_bytes()).await, "{text:?}");
        }
    }
}
