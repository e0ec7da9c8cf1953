//! gRPC as it is on the wire: HTTP/2 whose messages have a head of five bytes and whose status is in trailers.

use std::io;
use std::net::TcpStream;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::server::Conn;
use super::talk::DEADLINE;

/// Answers each call with its own messages, one by one as they come, and then says that all went well.
pub fn serve(conn: &mut Conn) -> io::Result<()> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let stream = conn.stream.try_clone()?;
        stream.set_nonblocking(true)?;
        let mut http = server::handshake(tokio::net::TcpStream::from_std(stream)?).await.map_err(broken)?;
        while let Some(call) = http.accept().await {
            let (request, mut respond) = call.map_err(broken)?;
            let head = Response::builder().header("content-type", "application/grpc").body(());
            let Ok(answer) = respond.send_response(head.map_err(io::Error::other)?, false) else { continue };
            tokio::spawn(echo(request.into_body(), answer));
        }
        Ok(())
    })
}

async fn echo(mut asked: RecvStream, mut answer: SendStream<Bytes>) -> Result<(), h2::Error> {
    while let Some(data) = asked.data().await {
        let data = data?;
        asked.flow_control().release_capacity(data.len())?;
        answer.send_data(data, false)?;
    }
    let ok = (HeaderName::from_static(GRPC_STATUS), HeaderValue::from_static("0"));
    answer.send_trailers(HeaderMap::from_iter([ok]))
}

/// One connection, for calls side by side.
pub struct Client {
    runtime: Runtime,
    http: client::SendRequest<Bytes>,
}

/// A call that goes on.
pub struct Call<'a> {
    on: &'a Client,
    asking: SendStream<Bytes>,
    answer: Option<client::ResponseFuture>,
    heard: Option<RecvStream>,
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// HTTP's.
    pub status: u16,
    pub message: Vec<u8>,
    /// gRPC's, in the head where there is no body, else in the trailers.
    pub in_head: Option<String>,
    pub in_trailers: Option<String>,
}

impl Client {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        let runtime = runtime()?;
        let http = runtime.block_on(within(async {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let (http, connection) = client::handshake(stream).await.map_err(broken)?;
            tokio::spawn(connection);
            Ok(http)
        }))?;
        Ok(Self { runtime, http })
    }

    /// A method, with headers beside those of gRPC.
    pub fn call(&self, method: &str, headers: &[(&str, &str)]) -> io::Result<Call<'_>> {
        let mut request = Request::post(format!("http://server{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).map_err(io::Error::other)?;
        let http = self.http.clone();
        let (answer, asking) = self.runtime.block_on(within(async {
            http.ready().await.map_err(broken)?.send_request(request, false).map_err(broken)
        }))?;
        Ok(Call { on: self, asking, answer: Some(answer), heard: None })
    }

    /// Asks and hears all of the answer.
    pub fn unary(&self, method: &str, headers: &[(&str, &str)], message: &[u8]) -> io::Result<Told> {
        let mut call = self.call(method, headers)?;
        // Who is refused may hear so before all is said.
        let _ = call.say(message);
        call.end()
    }
}

impl Call<'_> {
    pub fn say(&mut self, message: &[u8]) -> io::Result<()> {
        let len = u32::try_from(message.len()).map_err(io::Error::other)?;
        let framed = [&[0][..], &len.to_be_bytes(), message].concat();
        self.asking.send_data(framed.into(), false).map_err(broken)
    }

    /// The next message of the answer, while ours are not over.
    pub fn hear(&mut self) -> io::Result<Vec<u8>> {
        let Self { on, answer, heard, .. } = self;
        on.runtime.block_on(within(async {
            if let Some(answer) = answer.take() {
                *heard = Some(answer.await.map_err(broken)?.into_body());
            }
            let heard = heard.as_mut().ok_or_else(|| io::Error::other("the answer is over"))?;
            let data = heard.data().await.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(broken)?;
            heard.flow_control().release_capacity(data.len()).map_err(broken)?;
            Ok(data.get(5..).unwrap_or_default().to_vec())
        }))
    }

    /// Says no more, and hears the rest.
    pub fn end(mut self) -> io::Result<Told> {
        let _ = self.asking.send_data(Bytes::new(), true);
        let Self { on, answer, heard, .. } = &mut self;
        on.runtime.block_on(within(async {
            let mut told = Told { status: 200, message: vec![], in_head: None, in_trailers: None };
            if let Some(answer) = answer.take() {
                let answer = answer.await.map_err(broken)?;
                told.status = answer.status().as_u16();
                told.in_head = status_of(answer.headers());
                *heard = Some(answer.into_body());
            }
            let heard = heard.as_mut().ok_or_else(|| io::Error::other("the answer is over"))?;
            while let Some(data) = heard.data().await {
                let data = data.map_err(broken)?;
                heard.flow_control().release_capacity(data.len()).map_err(broken)?;
                told.message.extend_from_slice(&data);
            }
            // Without the head of the one message.
            told.message.drain(..told.message.len().min(5));
            let trailers = heard.trailers().await.map_err(broken)?;
            told.in_trailers = trailers.as_ref().and_then(status_of);
            Ok(told)
        }))
    }
}

fn status_of(headers: &HeaderMap) -> Option<String> {
    headers.get(GRPC_STATUS).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn within<T>(done: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(DEADLINE, done).await?
}

fn broken(e: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, e)
}

const GRPC_STATUS: &str = "grpc-status";
