//! A counter-based random generator: the same key and counter always give the same number, so a draw depends on nothing
//! but its request.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// High and low half of a product.
fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

pub(super) fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut counter, mut key) = (counter, key);
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = counter;
        let (high0, low0) = wide_product(MULTIPLIERS[0], c0);
        let (high1, low1) = wide_product(MULTIPLIERS[1], c2);
        counter = [high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

/// Number `draw` of the stream `seed`, uniform in [0, 1) with 53 bits.
pub(super) fn uniform(seed: u64, draw: u64) -> f64 {
    let [a, b, ..] = philox4x32([draw as u32, (draw >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 * (1.0 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::{philox4x32, uniform};

    /// The known answers of the authors' Random123 1.14, `tests/kat_vectors`.
    #[test]
    fn the_authors_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniforms_fill_the_unit_interval_evenly() {
        const BINS: usize = 64;
        const DRAWS: u64 = 64 * 1000;
        for by_seed in [false, true] {
            let mut counts = [0.0_f64; BINS];
            for i in 0..DRAWS {
                let u = if by_seed { uniform(i, 7) } else { uniform(7, i) };
                assert!((0.0..1.0).contains(&u));
                counts[(u * BINS as f64) as usize] += 1.0;
            }
            let expected = DRAWS as f64 / BINS as f64;
            let chi_square: f64 = counts.iter().map(|n| (n - expected).powi(2) / expected).sum();
            // 63 degrees of freedom: 103.4 is exceeded once in a thousand seeds, 23.6 (0.9999995 of them) is too even.
            assert!((23.6..103.4).contains(&chi_square), "{chi_square}");
        }
    }
}
