//! What a hostile picture costs. Alone in its process: the peak of its memory is what is measured.

#[cfg(target_os = "linux")]
mod linux {
    use std::path::Path;

    use foveal_runtime::{Model, ModelOptions, Picture, built_in_model};

    /// The most that a picture that is refused may cost over the idle program.
    const MAX_GROWTH_BYTES: u64 = 50 << 20;

    /// A PNG of 60000 x 60000 pixels by its header, with valid checksums, in 83 bytes.
    const BOMB: &[u8] = include_bytes!("bomb_60000x60000.png");

    fn peak_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    #[test]
    fn a_bomb_costs_next_to_nothing() {
        let _model = Model::load(&built_in_model().unwrap(), &ModelOptions::default(), |_, _| ()).unwrap();
        let idle = peak_bytes();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.png");
        std::fs::write(&path, BOMB).unwrap();
        for _ in 0..100 {
            let error = Picture::read(Path::new(&path)).unwrap_err().to_string();
            assert!(error.contains("3600000000 pixels") && error.contains("bomb.png"), "{error}");
        }
        let grown = peak_bytes() - idle;
        assert!(grown < MAX_GROWTH_BYTES, "{grown} bytes");
        // The measure measures: what is allowed at most, and used, is seen.
        let used = std::hint::black_box(vec![1_u8; MAX_GROWTH_BYTES as usize + (8 << 20)]);
        assert!(peak_bytes() - idle > MAX_GROWTH_BYTES, "{} bytes were used", used.len());
    }
}
