//! Which size of block serves a wish.

/// The smallest block: a page.
pub(crate) const SMALLEST: usize = 4 << 10;
/// Up to here sizes are powers of two, so that few sizes serve all wishes.
const LARGEST_POWER: usize = 64 << 20;
/// Above it, doubling would waste too much: multiples of a huge page.
const LARGE_STEP: usize = 2 << 20;

/// The size of the block that serves `len_bytes`; `None` where no address space has it.
pub(crate) fn size_class(len_bytes: usize) -> Option<usize> {
    if len_bytes <= LARGEST_POWER {
        return Some(len_bytes.next_power_of_two().max(SMALLEST));
    }
    len_bytes.checked_next_multiple_of(LARGE_STEP)
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn few_sizes_serve_all_wishes() {
        let mib = 1 << 20;
        for (wanted, class) in [
            (0, 4096),
            (1, 4096),
            (4096, 4096),
            (4097, 8192),
            (33 * mib, 64 * mib),
            (64 * mib, 64 * mib),
            (64 * mib + 1, 66 * mib),
            (100 * mib, 100 * mib),
        ] {
            assert_eq!(size_class(wanted), Some(class), "{wanted}");
        }
        assert_eq!(size_class(usize::MAX), None);
    }
}
