//! A row's logits depend on its own sequence alone: however prompts are cut into chunks, mixed into batches and spread
//! over pages, each row's logits are bitwise those of the whole prompt alone.

mod support;

use std::cell::RefCell;

use foveal_device::DType;
use foveal_testkit::assert_bitwise_equal;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use support::{Chunk, Model, OwnedBatch, PAGE, Pictures, Prompt, Sizes};

const NUM_BLOCKS: usize = 24;
const NUM_PICTURE_ROWS: usize = 11;

/// One token: its id, its position's distance from the one before, and whether it stands for a picture.
type Token = (i32, [u8; 3], Option<u8>);

fn prompt() -> impl Strategy<Value = Prompt> {
    let row = prop_oneof![3 => Just(None), 1 => (0..NUM_PICTURE_ROWS as u8).prop_map(Some)];
    let token = (0..1024_i32, [0..3_u8, 0..3_u8, 0..3_u8], row);
    prop::collection::vec(token, 1..=2 * PAGE + 9).prop_map(|tokens: Vec<Token>| {
        let mut prompt = Prompt::default();
        let mut position = [0; 3];
        for (id, step, row) in tokens {
            prompt.input_ids.push(id);
            prompt.positions.push(position);
            prompt.image_index.push(row.map_or(-1, i32::from));
            position = std::array::from_fn(|axis| position[axis] + i32::from(step[axis]));
        }
        prompt
    })
}

/// What a run is made of: prompts, where each is cut, in which steps its chunks run, and who gets which page.
#[derive(Clone, Debug)]
struct Plan {
    prompts: Vec<Prompt>,
    cuts: Vec<Vec<Index>>,
    /// Which sequences take part in each step; when all are used up, everyone takes part.
    steps: Vec<Vec<bool>>,
    pages: Vec<i32>,
    logit_order: Vec<Index>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let prompts = prop::collection::vec(prompt(), 1..=4);
    let cuts = prop::collection::vec(prop::collection::vec(any::<Index>(), 0..5), 4);
    let steps = prop::collection::vec(prop::collection::vec(any::<bool>(), 4), 0..8);
    let pages = Just((0..NUM_BLOCKS as i32).collect::<Vec<_>>()).prop_shuffle();
    let logit_order = prop::collection::vec(any::<Index>(), 3);
    (prompts, cuts, steps, pages, logit_order).prop_map(|(prompts, cuts, steps, pages, logit_order)| Plan {
        prompts,
        cuts,
        steps,
        pages,
        logit_order,
    })
}

/// A sequence on its way: the ends of its chunks, its pages, its logits so far.
struct Sequence<'a> {
    prompt: &'a Prompt,
    ends: std::vec::IntoIter<usize>,
    done: usize,
    blocks: Vec<i32>,
}

impl Plan {
    fn sequences(&self) -> Vec<Sequence<'_>> {
        let mut pages = self.pages.iter().copied();
        let mut sequence = |(prompt, cuts): (&'_ Prompt, &Vec<Index>)| {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| 1 + cut.index(prompt.len())).collect();
            ends.push(prompt.len());
            ends.sort_unstable();
            ends.dedup();
            (ends.into_iter(), pages.by_ref().take(prompt.len().div_ceil(PAGE)).collect())
        };
        let pairs = self.prompts.iter().zip(&self.cuts);
        let made = pairs.map(|pair| (pair.0, sequence(pair)));
        made.map(|(prompt, (ends, blocks))| Sequence { prompt, ends, done: 0, blocks }).collect()
    }
}

/// Logits of every row of a prompt that runs alone and whole.
fn whole(model: &mut Model, pictures: &Pictures, prompt: &Prompt) -> Vec<f32> {
    let blocks: Vec<i32> = (0..prompt.len().div_ceil(PAGE) as i32).collect();
    let batch = OwnedBatch::new(&[Chunk { prompt, rows: 0..prompt.len(), blocks: &blocks }]);
    pictures.views(|embeds, levels| model.logits(&batch.with_images(embeds, levels)).unwrap())
}

/// Runs a plan and checks each row that comes out.
fn check(model: &mut Model, pictures: &Pictures, plan: &Plan) {
    let vocab = model.config.text.vocab_size;
    let expected: Vec<Vec<f32>> = plan.prompts.iter().map(|prompt| whole(model, pictures, prompt)).collect();
    let mut sequences = plan.sequences();
    let everyone = vec![true; sequences.len()];
    let mut steps = plan.steps.iter();
    while sequences.iter().any(|sequence| sequence.done < sequence.prompt.len()) {
        let takes_part = steps.next().unwrap_or(&everyone);
        let mut owners = Vec::new();
        let mut chunks = Vec::new();
        for (i, sequence) in sequences.iter_mut().enumerate().filter(|(i, _)| takes_part[*i]) {
            let Some(end) = sequence.ends.next() else { continue };
            let rows = sequence.done..end;
            sequence.done = end;
            owners.extend(rows.clone().map(|row| (i, row)));
            chunks.push((sequence.prompt, rows, sequence.blocks.clone()));
        }
        let chunks: Vec<_> =
            chunks.iter().map(|(prompt, rows, blocks)| Chunk { prompt, rows: rows.clone(), blocks }).collect();
        let mut batch = OwnedBatch::new(&chunks);
        if let (Some(pick), false) = (plan.logit_order.first(), owners.is_empty()) {
            // Some rows only, in another order: what is asked for changes nothing either.
            let n = owners.len();
            batch.logit_rows.rotate_left(pick.index(n));
            batch.logit_rows.truncate(1 + plan.logit_order[1].index(n));
        }
        let has_pictures = batch.image_index.iter().any(|&row| row >= 0);
        let got = match has_pictures {
            true => pictures.views(|embeds, levels| model.logits(&batch.with_images(embeds, levels)).unwrap()),
            false => model.logits(&batch.text()).unwrap(),
        };
        for (&row, got) in batch.logit_rows.iter().zip(got.chunks_exact(vocab)) {
            let (i, row) = owners[row as usize];
            assert_bitwise_equal(got, &expected[i][row * vocab..(row + 1) * vocab]);
        }
    }
}

fn tiny(kv_dtype: DType) -> Model {
    Model::tiny(Sizes { num_blocks: NUM_BLOCKS, kv_dtype, ..Sizes::default() })
}

/// Runs random plans over one model with deepstack of any number of levels.
fn check_plans(kv_dtype: DType) {
    let model = RefCell::new(tiny(kv_dtype));
    let config = ProptestConfig { cases: 24, max_shrink_iters: 64, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&(plan(), 0..=4_usize), |(plan, num_levels)| {
        let model = &mut *model.borrow_mut();
        let pictures = Pictures::new(NUM_PICTURE_ROWS, model.config.text.hidden_size, num_levels);
        check(model, &pictures, &plan);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn chunks_batches_and_pages_change_no_bit() {
    check_plans(DType::F32);
}

#[test]
fn nor_with_a_cache_of_bf16() {
    check_plans(DType::BF16);
}

/// Rows whose logits nobody wants leave the same keys and values behind.
#[test]
fn chunks_without_logits_fill_the_cache_alike() {
    let model = &mut tiny(DType::F32);
    let pictures = Pictures::new(NUM_PICTURE_ROWS, model.config.text.hidden_size, 3);
    let prompt = Prompt::text((0..70).map(|i| (i * 37) % 1000).collect());
    let expected = whole(model, &pictures, &prompt);
    let blocks = [9, 3, 17];
    for rows in [0..40, 40..69] {
        let mut batch = OwnedBatch::new(&[Chunk { prompt: &prompt, rows, blocks: &blocks }]);
        batch.logit_rows.clear();
        assert!(model.logits(&batch.text()).unwrap().is_empty());
    }
    let batch = OwnedBatch::new(&[Chunk { prompt: &prompt, rows: 69..70, blocks: &blocks }]);
    let got = model.logits(&batch.text()).unwrap();
    assert_bitwise_equal(&got, &expected[69 * 1024..]);
}
