//! Fetches what a policy allows: `cargo run -p foveal-fetch --example fetch_picture -- [URL [DOMAIN...]]`.
//!
//! Without arguments it reads a data URL, which needs no network. `DOMAIN`s are the hosts that may be fetched from.

use std::error::Error;

use foveal_fetch::{Fetcher, MediaDomain, Policy};

/// A GIF of one pixel.
const PIXEL: &str = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| PIXEL.to_owned());
    let allowed_media_domains = arguments.map(|domain| domain.parse()).collect::<Result<Vec<MediaDomain>, _>>()?;
    let fetcher = Fetcher::new(Policy { allowed_media_domains, ..Policy::default() })?;

    match fetcher.fetch(&url, &|| false) {
        Ok(bytes) => println!("{} bytes, starting with {:?}", bytes.len(), bytes.iter().take(8).collect::<Vec<_>>()),
        Err(error) => {
            println!("{}: {error}", error.code());
            if let Some(source) = error.source() {
                println!("for the log: {source}");
            }
        }
    }
    Ok(())
}
