//! What steps are padded to on a GPU, so that few recordings serve all of them.

use foveal_graphs::Buckets;
use foveal_llm::{Batch, StepShape};

use super::step_memory::Part;

/// The share of a step's rows that padding may be. Finer buckets cost start-up time and memory for each recording.
const MAX_WASTE: f64 = 0.2;
/// From so many rows on, of which each costs the same, buckets are this far apart: a tile of matrix products.
const FINE_FROM: usize = 1024;
const FINE_STEP: usize = 256;
/// The fewest rows of a step that isn't decode rows alone: fewer cost what these do.
const MIN_MIXED_ROWS: usize = 16;

/// The sizes that there are.
#[derive(Debug)]
pub(crate) struct Shapes {
    /// Rows of steps of which each sequence has one, and rows whose logits are wanted.
    decode: Buckets,
    /// Rows of all others.
    mixed: Buckets,
    max_seqs: usize,
    /// Whether the last layer adds picture rows.
    has_last_level: bool,
}

impl Shapes {
    pub(crate) fn new(max_tokens: usize, max_seqs: usize, has_last_level: bool) -> Self {
        let fine = Buckets::new((FINE_FROM..max_tokens).step_by(FINE_STEP));
        Self {
            decode: Buckets::with_waste(1, max_seqs, MAX_WASTE),
            mixed: Buckets::with_waste(MIN_MIXED_ROWS.min(max_tokens), max_tokens, MAX_WASTE).and(fine),
            max_seqs,
            has_last_level,
        }
    }

    /// What a batch within the limits is padded to.
    pub(crate) fn of(&self, batch: &Batch<'_>) -> StepShape {
        let (rows, seqs, has_images) = (batch.num_tokens(), batch.num_seqs(), batch.image.is_some());
        match self.decode.of(rows).filter(|_| rows == seqs && !has_images) {
            Some(bucket) => decode_shape(bucket),
            None => match self.mixed.of(rows.max(seqs + 1)) {
                Some(bucket) => self.mixed_shape(bucket, has_images),
                None => StepShape { rows, seqs, has_images },
            },
        }
    }

    /// With more rows than sequences: the kernel for chunks is launched for those.
    fn mixed_shape(&self, rows: usize, has_images: bool) -> StepShape {
        StepShape { rows, seqs: self.max_seqs.min(rows.saturating_sub(1).max(1)), has_images }
    }

    /// What the second part of a step runs, for some rows whose logits are wanted.
    pub(crate) fn logits(&self, num_rows: usize, has_images: bool) -> Part {
        let rows = self.decode.of(num_rows).unwrap_or(num_rows);
        Part::Logits { rows, has_images: has_images && self.has_last_level }
    }

    /// All parts that steps can have, the largest first.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let with_images = [false, true];
        let mixed = self.mixed.sizes().iter().rev();
        let mixed = mixed.flat_map(|&rows| with_images.map(move |images| self.mixed_shape(rows, images)));
        let decode = self.decode.sizes().iter().rev().map(|&rows| decode_shape(rows));
        let sizes = self.decode.sizes().iter().rev();
        let mut logits: Vec<Part> =
            sizes.flat_map(|&rows| with_images.map(move |images| self.logits(rows, images))).collect();
        logits.dedup();
        mixed.chain(decode).map(Part::Rows).chain(logits).collect()
    }
}

fn decode_shape(rows: usize) -> StepShape {
    StepShape { rows, seqs: rows, has_images: false }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A batch of sequences with these rows each.
    fn shape_of(shapes: &Shapes, rows: &[usize]) -> StepShape {
        let n = rows.iter().sum();
        let (ids, seqs) = (vec![0; n], vec![1; rows.len()]);
        shapes.of(&Batch {
            input_ids: &ids,
            positions: &[],
            slot_mapping: &[],
            cu_seqlens: &[],
            context_lens: &seqs,
            block_tables: &[],
            max_blocks: 0,
            logit_rows: &[],
            image: None,
        })
    }

    #[test]
    fn every_step_has_a_recording() {
        let shapes = Shapes::new(512, 40, true);
        let parts: HashSet<Part> = shapes.parts().into_iter().collect();
        assert_eq!(parts.len(), shapes.parts().len());
        for seqs in 1..=40 {
            let shape = shape_of(&shapes, &vec![1; seqs]);
            assert!(shape.rows >= seqs && shape.seqs == shape.rows && parts.contains(&Part::Rows(shape)));
            let shape = shape_of(&shapes, &[&vec![1; seqs - 1][..], &[400]].concat());
            assert!(shape.seqs >= seqs && shape.rows > shape.seqs && parts.contains(&Part::Rows(shape)));
            for has_images in [false, true] {
                let part = shapes.logits(seqs, has_images);
                assert!(matches!(part, Part::Logits { rows, .. } if rows >= seqs) && parts.contains(&part));
            }
        }
        for rows in 2..=512 {
            let shape = shape_of(&shapes, &[rows]);
            assert!(shape.rows >= rows && parts.contains(&Part::Rows(shape)), "{rows}: {shape:?}");
        }
    }

    #[test]
    fn no_level_behind_the_last_layer_takes_no_recording() {
        let shapes = Shapes::new(8192, 256, false);
        let parts = shapes.parts();
        assert!(!parts.iter().any(|part| matches!(part, Part::Logits { has_images: true, .. })));
        assert!(parts.len() < 200, "{}", parts.len());
    }

    #[test]
    fn a_single_token_at_a_time_works_too() {
        let shapes = Shapes::new(1, 1, false);
        assert_eq!(shape_of(&shapes, &[1]), StepShape { rows: 1, seqs: 1, has_images: false });
    }
}
