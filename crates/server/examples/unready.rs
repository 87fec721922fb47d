//! A server without a model: it listens and tells whoever asks that it isn't ready. `cargo run --example unready` and
//! `curl http://127.0.0.1:PORT/health`.
#![forbid(unsafe_code)]

use std::time::Duration;

use foveal_server::{Server, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::bind("127.0.0.1:0", ServerConfig::default()).await?;
    let address = server.local_addr()?;
    println!("listening on http://{address}");
    let client = async move {
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        println!("{answer}");
        std::io::Result::Ok(())
    };
    // It serves until the one client has its answer, or for a minute.
    server.run(async { drop(tokio::time::timeout(Duration::from_secs(60), client).await) }).await;
    Ok(())
}
