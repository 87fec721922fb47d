//! A model by its id: `cargo run -p foveal-hub --example fetch -- Qwen/Qwen3-VL-2B-Instruct`.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use foveal_hub::{FileProgress, Files, Hub, ModelId, Progress, TotalProgress};

/// Prints a line for every percent.
#[derive(Default)]
struct Lines {
    percent: AtomicU64,
}

impl Progress for Lines {
    fn planned(&self, files: &[FileProgress<'_>]) {
        files.iter().for_each(|file| println!("{:>14} bytes  {}", file.len_bytes, file.name));
    }

    fn advanced(&self, _: FileProgress<'_>, total: TotalProgress) {
        let percent = total.done_bytes * 100 / total.len_bytes.max(1);
        if self.percent.fetch_max(percent, Ordering::Relaxed) < percent {
            println!("{percent:>3} %");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let hub = Hub::from_env()?;
    let Some(id) = std::env::args().nth(1) else {
        println!("Give an id, as Qwen/Qwen3-VL-2B-Instruct: its files come to {}.", hub.cache().display());
        println!("HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_ENDPOINT mean what they mean elsewhere.");
        return Ok(());
    };
    let id: ModelId = id.parse()?;
    let snapshot = hub.snapshot(&id, Files::All, &Lines::default())?;
    println!("{id} at commit {} is in {}", snapshot.commit(), snapshot.folder().display());
    Ok(())
}
