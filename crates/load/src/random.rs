//! Noise that is the same on every machine.

/// Random numbers for synthetic requests: xorshift64*, quick and the same on every machine. For nothing that must be secret.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed and a number. Seeds and numbers that are neighbours begin far apart (splitmix64 of both).
    #[must_use]
    pub fn new(seed: u64, number: u64) -> Self {
        let mix = |mut z: u64| {
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        // From 0 nothing follows.
        Self(mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_add(number)).max(1))
    }

    /// The next 61 bits; the lowest three of xorshift64*, which are the weakest, are left out.
    pub fn next_bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 3
    }

    /// A number from 0 to below `end`; 0 where `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next_bits() % (end.max(1) as u64)) as usize
    }

    /// A number from 0 to below 1, all 53 bits of it.
    pub(crate) fn uniform(&mut self) -> f64 {
        const BITS: u32 = 53;
        (self.next_bits() >> (61 - BITS)) as f64 / (1_u64 << BITS) as f64
    }

    /// Of the normal distribution, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Of the gamma distribution with scale 1, by Marsaglia and Tsang ("A Simple Method for Generating Gamma Variables", 2000).
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let larger = self.gamma(shape + 1.0);
            return larger * (1.0 - self.uniform()).powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and variance of a gamma distribution of scale 1 are both its shape.
    #[test]
    fn gamma_has_its_moments() {
        for shape in [0.3, 1.0, 4.0, 50.0] {
            let mut random = Random::new(1, 2);
            let n = 200_000.0;
            let (mut sum, mut squares) = (0.0, 0.0);
            for _ in 0..n as usize {
                let x = random.gamma(shape);
                assert!(x >= 0.0);
                sum += x;
                squares += x * x;
            }
            let mean = sum / n;
            let variance = squares / n - mean * mean;
            assert!((mean / shape - 1.0).abs() < 0.03, "shape {shape}: mean {mean}");
            assert!((variance / shape - 1.0).abs() < 0.06, "shape {shape}: variance {variance}");
        }
    }

    #[test]
    fn neighbours_have_nothing_in_common() {
        let first = |seed, number| Random::new(seed, number).next_bits();
        let all = [first(0, 0), first(0, 1), first(1, 0), first(1, 1), first(u64::MAX, u64::MAX)];
        for (at, one) in all.iter().enumerate() {
            assert!(all.iter().skip(at + 1).all(|other| other != one));
        }
        assert_eq!(first(5, 6), first(5, 6));
    }
}
