//! Section layouts against a transcription of the reference's own recomposition.

use foveal_mrope::{MropeError, MropeSections, SectionLayout};
use proptest::prelude::*;

/// `m[i % 3] for i, m in enumerate(freq.split(mrope_section))`: which of the three rows each column comes from.
fn reference_blocked(mrope_section: [usize; 3]) -> Vec<u8> {
    let mut columns = Vec::new();
    for (i, &width) in mrope_section.iter().enumerate() {
        for _ in 0..width {
            columns.push((i % 3) as u8);
        }
    }
    columns
}

/// `freqs_thw = freq[0]`, then `freqs_thw[..., slice(offset, mrope_section[dim] * 3, 3)] = freq[dim, ..., same]`.
fn reference_interleaved(mrope_section: [usize; 3], num_pairs: usize) -> Vec<u8> {
    let mut columns = vec![0; num_pairs];
    for (dim, offset) in [(1, 1), (2, 2)] {
        let length = mrope_section[dim] * 3;
        let mut index = offset;
        while index < length.min(num_pairs) {
            columns[index] = dim as u8;
            index += 3;
        }
    }
    columns
}

#[test]
fn published_configs() {
    use SectionLayout::{Blocked, Interleaved};
    let configs = [
        ([16, 24, 24], Blocked, 128, 1.0, 128),     // Qwen2-VL, Qwen2.5-VL
        ([24, 20, 20], Interleaved, 128, 1.0, 128), // Qwen3-VL
        ([11, 11, 10], Interleaved, 256, 0.25, 64), // Qwen3.5
        ([8, 12, 12], Blocked, 64, 1.0, 64),        // a small Qwen2-VL
    ];
    for (mrope_section, layout, head_dim, factor, rotary_dim) in configs {
        let sections = MropeSections::new(mrope_section, layout, head_dim, factor).unwrap();
        let expected = match layout {
            Blocked => reference_blocked(mrope_section),
            Interleaved => reference_interleaved(mrope_section, rotary_dim / 2),
        };
        assert_eq!(sections.axis_of_pair(), expected, "{mrope_section:?}");
        assert_eq!((sections.rotary_dim(), sections.num_pairs()), (rotary_dim, rotary_dim / 2));
        assert_eq!(
            (sections.mrope_section(), sections.layout(), sections.head_dim()),
            (mrope_section, layout, head_dim)
        );
        for (axis, pairs) in (0_u8..).zip(mrope_section) {
            assert_eq!(sections.axis_of_pair().iter().filter(|&&a| a == axis).count(), pairs);
        }
    }
    assert_eq!(SectionLayout::from_mrope_interleaved(true), Interleaved);
    assert_eq!(SectionLayout::from_mrope_interleaved(false), Blocked);
}

proptest! {
    #[test]
    fn any_sections(t in 0_usize..30, h in 0_usize..30, w in 0_usize..30) {
        let num_pairs = t + h + w;
        prop_assume!(num_pairs > 0);
        let mrope_section = [t, h, w];
        let blocked = MropeSections::new(mrope_section, SectionLayout::Blocked, 2 * num_pairs, 1.0).unwrap();
        prop_assert_eq!(blocked.axis_of_pair(), reference_blocked(mrope_section));
        let expected = reference_interleaved(mrope_section, num_pairs);
        let count = |axis| expected.iter().filter(|&&a| a == axis).count();
        let fits = [count(0), count(1), count(2)] == mrope_section;
        match MropeSections::new(mrope_section, SectionLayout::Interleaved, 2 * num_pairs, 1.0) {
            Ok(interleaved) => {
                prop_assert!(fits);
                prop_assert_eq!(interleaved.axis_of_pair(), expected);
            }
            // Refused exactly where the reference would clip a section.
            Err(error) => {
                prop_assert!(!fits);
                let clipped = matches!(error, MropeError::SectionNotInterleavable { .. });
                prop_assert!(clipped);
            }
        }
    }
}

#[test]
fn bad_layouts_are_refused() {
    let blocked =
        |section, head_dim, factor| MropeSections::new(section, SectionLayout::Blocked, head_dim, factor).unwrap_err();
    let sum = MropeError::SectionSum { mrope_section: [16, 24, 24], sum: 64, num_pairs: 32 };
    assert_eq!(blocked([16, 24, 24], 64, 1.0), sum);
    assert_eq!(blocked([16, 24, 24], 256, 0.25), sum);
    let huge = [usize::MAX, 1, 0];
    assert_eq!(blocked(huge, 128, 1.0), MropeError::SectionSum { mrope_section: huge, sum: usize::MAX, num_pairs: 64 });
    for (head_dim, factor, rotary_dim) in [(0, 1.0, 0), (10, 0.1, 1), (6, 0.5, 3), (128, 1e-6, 0)] {
        let expected = MropeError::InvalidRotaryDim { rotary_dim, head_dim };
        assert_eq!(blocked([1, 0, 0], head_dim, factor), expected);
    }
    for partial_rotary_factor in [0.0, -0.25, 1.5, f32::INFINITY] {
        let expected = MropeError::InvalidPartialRotaryFactor { partial_rotary_factor };
        assert_eq!(blocked([1, 0, 0], 64, partial_rotary_factor), expected);
    }
    assert!(matches!(blocked([1, 0, 0], 64, f32::NAN), MropeError::InvalidPartialRotaryFactor { .. }));
}

/// `int(head_dim * factor)` in Python's doubles, where widening an f32 factor would fall just short.
#[test]
fn partial_dimensions_round_as_in_python() {
    for (head_dim, factor, rotary_dim) in [(20, 0.7, 14), (80, 0.4, 32), (100, 0.3, 30), (256, 0.5, 128)] {
        let section = [rotary_dim / 2, 0, 0];
        let sections = MropeSections::new(section, SectionLayout::Blocked, head_dim, factor).unwrap();
        assert_eq!(sections.rotary_dim(), rotary_dim);
    }
}
