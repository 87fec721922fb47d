//! A closed loop against a small server within this program: `cargo run -p foveal-load --example load`. With an address, against
//! that server: `cargo run -p foveal-load --example load http://127.0.0.1:8000`.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use foveal_load::{Api, ImageFormat, LoadGenerator, LoadOptions, RequestShape, Target};

fn main() -> Result<(), Box<dyn Error>> {
    let base_url = match std::env::args().nth(1) {
        Some(url) => url,
        None => start_server()?,
    };
    let target = Target { base_url, endpoint: None, api: Api::Chat, api_key: None };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
    let generator = LoadGenerator::new(target, None, Some(&folder))?;
    let shape = RequestShape {
        input_len: 50,
        output_len: 16,
        num_images: 1,
        image_size: [128, 128],
        image_format: ImageFormat::Jpeg,
    };
    let options = LoadOptions {
        shape,
        num_prompts: 24,
        num_warmups: 2,
        max_concurrency: Some(8),
        request_rate: f64::INFINITY,
        burstiness: 1.0,
        seed: 0,
    };
    println!("{}", generator.run(&options, |_, _, _| ())?);
    Ok(())
}

/// A server that answers everything with sixteen tokens, one every two milliseconds.
fn start_server() -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(&stream));
        }
    });
    Ok(url)
}

/// One request a connection.
fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut path, mut len) = (String::new(), 0);
    reader.read_line(&mut path)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            len = value.parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; len])?;
    if path.starts_with("GET") {
        let body = r#"{"data":[{"id":"example"}]}"#;
        return write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
    for _ in 0..16 {
        thread::sleep(Duration::from_millis(2));
        write!(stream, "data: {{\"choices\":[{{\"delta\":{{\"content\":\"word \"}}}}]}}\n\n")?;
    }
    write!(
        stream,
        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":70,\"completion_tokens\":16}}}}\n\ndata: [DONE]\n\n"
    )
}
