//! The place in a row's order of values where a given mass is reached, without sorting: three passes over the row, each
//! narrowing the place down by the next bits of the values.

/// The bits of a value that each pass looks at, from the highest down.
const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];

/// Buckets of the widest digit.
const BUCKETS: usize = 1 << 11;

/// A number whose order is the value's; -0 and 0 are equal.
#[inline]
pub(super) fn order(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Where the mass is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    /// [`order`] of the value there.
    pub(super) order: u32,
    /// The mass of all better values.
    pub(super) mass_above: f64,
}

/// The value at which the mass of the values, summed from the best down, reaches `target`. `mass` gives an element's
/// mass by its order and value. `None` when no element has any.
pub(super) fn cut_at(values: &[f32], target: f64, mass: impl Fn(u32, f32) -> f64) -> Option<Cut> {
    let (mut found, mut known_bits, mut mass_above) = (0_u32, 0_u32, 0.0_f64);
    for (shift, width) in DIGITS {
        let mut buckets = [0.0_f64; BUCKETS];
        let digit_mask = (1_u32 << width) - 1;
        for &value in values {
            let order = order(value);
            if order & known_bits == found {
                // The mask keeps the digit below BUCKETS.
                buckets[(order >> shift & digit_mask) as usize] += mass(order, value);
            }
        }
        let digit = reach(&buckets, target, &mut mass_above)?;
        found |= digit << shift;
        known_bits |= digit_mask << shift;
    }
    Some(Cut { order: found, mass_above })
}

/// The bucket, from the highest down, in which `target` is reached, or the last that has any mass when rounding leaves
/// the sum below it. `mass_above` grows by the buckets above it.
fn reach(buckets: &[f64; BUCKETS], target: f64, mass_above: &mut f64) -> Option<u32> {
    let mut reached = None;
    let mut sum = *mass_above;
    for (digit, &mass) in buckets.iter().enumerate().rev() {
        if mass > 0.0 {
            *mass_above = sum;
            reached = Some(digit as u32);
            sum += mass;
            if sum >= target {
                break;
            }
        }
    }
    reached
}
