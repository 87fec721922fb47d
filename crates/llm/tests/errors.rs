//! What doesn't fit is refused by name before anything runs, and nothing panics.

mod support;

use foveal_checkpoint::{CheckpointError, ModelConfig, ModelFolder, WeightSource};
use foveal_device::{DType, Device, View};
use foveal_llm::{BatchLimits, Decoder, KvCache, LlmError};
use foveal_testkit::fixtures_dir;
use proptest::prelude::*;
use support::{Chunk, Model, OwnedBatch, PAGE, Pictures, Prompt, Sizes};

const LIMITS: BatchLimits = BatchLimits { max_tokens: 64, max_seqs: 2, max_logit_rows: 4 };

fn model() -> Model {
    Model::tiny(Sizes { max_model_len: 50, num_blocks: 3, limits: LIMITS, kv_dtype: DType::F32 })
}

/// Two sequences of 5 and 40 rows.
fn batch() -> OwnedBatch {
    let (short, long) = (Prompt::text((0..5).collect()), Prompt::text((0..40).collect()));
    let mut batch = OwnedBatch::new(&[
        Chunk { prompt: &short, rows: 0..5, blocks: &[2] },
        Chunk { prompt: &long, rows: 0..40, blocks: &[0, 1] },
    ]);
    batch.logit_rows = vec![4, 44];
    batch
}

fn shorten<T>(values: &mut Vec<T>) {
    values.truncate(values.len() - 1);
}

/// The message and the sequence that a spoilt batch gives.
fn refused(model: &mut Model, spoil: impl FnOnce(&mut OwnedBatch)) -> (String, Option<usize>) {
    let mut batch = batch();
    spoil(&mut batch);
    let error = model.logits(&batch.text()).expect_err("the batch is spoilt");
    (error.to_string(), error.sequence())
}

#[test]
fn a_value_that_points_nowhere_names_its_sequence() {
    let mut model = model();
    assert!(model.logits(&batch().text()).is_ok());
    type Spoil = fn(&mut OwnedBatch);
    let cases: [(Spoil, usize, &str); 12] = [
        (|b| b.input_ids[3] = 1024, 0, "row 3: `input_ids` is 1024, expected 0 to 1023"),
        (|b| b.input_ids[6] = -1, 1, "row 6: `input_ids` is -1"),
        (|b| b.positions[7] = 50, 1, "row 7: `positions (t)` is 50, expected 0 to 49"),
        (|b| b.positions[45 + 2] = i32::MAX, 0, "row 2: `positions (h)`"),
        (|b| b.positions[90 + 44] = -1, 1, "row 44: `positions (w)` is -1"),
        (|b| b.slot_mapping[0] = 3 * PAGE as i64, 0, "row 0: `slot_mapping` is 96, expected -1 to 95"),
        (|b| b.slot_mapping[5] = -2, 1, "row 5: `slot_mapping` is -2"),
        (|b| b.context_lens[0] = 4, 0, "`context_lens` is 4, expected 5 (its rows) to 96 (its pages)"),
        (|b| b.context_lens[1] = 97, 1, "`context_lens` is 97"),
        (|b| b.block_tables[0] = 3, 0, "`block_tables` is 3, expected 0 to 2"),
        (|b| b.block_tables[4] = -1, 1, "`block_tables` is -1"),
        (|b| b.cu_seqlens[1] = 0, 0, "`cu_seqlens` is 0, expected more than 0"),
    ];
    for (spoil, sequence, message) in cases {
        let (got, of) = refused(&mut model, spoil);
        assert!(got.contains(message), "{got} instead of {message}");
        assert_eq!(of, Some(sequence), "{got}");
    }
    // A page beyond the context may be anything.
    let mut fine = batch();
    fine.block_tables[1] = 99;
    assert!(model.logits(&fine.text()).is_ok());
}

#[test]
fn a_batch_whose_parts_do_not_fit_is_refused_as_a_whole() {
    let mut model = model();
    type Spoil = fn(&mut OwnedBatch);
    let cases: [(Spoil, &str); 9] = [
        (|b| shorten(&mut b.positions), "`positions` has 134 elements, expected 135"),
        (|b| shorten(&mut b.slot_mapping), "`slot_mapping` has 44 elements"),
        (|b| shorten(&mut b.cu_seqlens), "`cu_seqlens` has 2 elements, expected 3"),
        (|b| shorten(&mut b.block_tables), "`block_tables` has 5 elements, expected 6"),
        (|b| b.max_blocks = usize::MAX, "`block_tables` has 6 elements"),
        (|b| b.cu_seqlens[2] = 44, "`input_ids` has 45 elements, expected 44"),
        (|b| b.logit_rows[1] = 45, "`logit_rows`[1] is 45, the batch has 45 rows"),
        (|b| b.logit_rows[0] = -1, "`logit_rows`[0] is -1"),
        (|b| b.logit_rows = vec![0; 5], "5 rows that want logits, the buffers were made for 4"),
    ];
    for (spoil, message) in cases {
        let (got, of) = refused(&mut model, spoil);
        assert!(got.contains(message), "{got} instead of {message}");
        assert_eq!(of, None);
    }
    let prompt = Prompt::text((0..49).collect());
    let two =
        [Chunk { prompt: &prompt, rows: 0..49, blocks: &[0, 1] }, Chunk { prompt: &prompt, rows: 0..16, blocks: &[2] }];
    let error = model.logits(&OwnedBatch::new(&two).text()).unwrap_err();
    assert!(matches!(error, LlmError::TooMany { what: "rows", got: 65, max: 64 }), "{error}");
    let three = [(); 3].map(|()| Chunk { prompt: &prompt, rows: 0..1, blocks: &[0] });
    let error = model.logits(&OwnedBatch::new(&three).text()).unwrap_err();
    assert!(matches!(error, LlmError::TooMany { what: "sequences", got: 3, max: 2 }), "{error}");
}

#[test]
fn pictures_that_do_not_fit_are_refused() {
    let mut model = model();
    let hidden = model.config.text.hidden_size;
    let mut batch = batch();
    batch.image_index[7] = 2;
    let mut run = |num_rows: usize, width: usize, num_levels: usize| {
        let pictures = Pictures::new(num_rows, width, num_levels);
        pictures.views(|embeds, levels| {
            model.logits(&batch.with_images(embeds, levels)).map_err(|e| (e.to_string(), e.sequence()))
        })
    };
    assert!(run(3, hidden, 4).is_ok());
    let (message, sequence) = run(2, hidden, 0).unwrap_err();
    assert!(message.contains("row 7: `image.index` is 2, expected -1 to 1") && sequence == Some(1), "{message}");
    assert!(run(3, hidden - 1, 0).unwrap_err().0.contains("shaped [3, 256]"));
    assert!(run(3, hidden, 5).unwrap_err().0.contains("5 deepstack levels, the buffers were made for 4"));
    batch.image_index.pop();
    let pictures = Pictures::new(3, hidden, 0);
    let error = pictures.views(|embeds, levels| model.logits(&batch.with_images(embeds, levels)).unwrap_err());
    assert!(matches!(error, LlmError::BatchShape { field: "image.index", got: 44, .. }), "{error}");
}

#[test]
fn memory_of_another_model_is_refused() {
    let mut model = model();
    let mut settings = model.decoder.settings().clone();
    settings.num_key_value_heads = 1;
    model.cache = KvCache::new(&settings, &model.device, 3, DType::F32).unwrap();
    assert!(matches!(model.logits(&batch().text()), Err(LlmError::CacheMismatch { .. })));
    let dtype = KvCache::new(&settings, &model.device, 3, DType::I32).unwrap_err();
    assert!(matches!(dtype, LlmError::CacheDType { dtype: DType::I32 }));
    for num_blocks in [0, usize::MAX] {
        let error = KvCache::new(&settings, &model.device, num_blocks, DType::F32).unwrap_err();
        assert!(matches!(error, LlmError::Limits { limit: "num_blocks", .. }));
    }
    for limits in [
        BatchLimits { max_tokens: 0, ..LIMITS },
        BatchLimits { max_seqs: 65, ..LIMITS },
        BatchLimits { max_logit_rows: 0, ..LIMITS },
    ] {
        assert!(matches!(model.decoder.new_workspace(limits), Err(LlmError::Limits { .. })));
    }
    let config = std::fs::read_to_string(fixtures_dir().join("goldens/qwen2_5_vl/config.json")).unwrap();
    let config = ModelConfig::from_json(config.as_bytes(), "config.json").unwrap();
    let weights = WeightSource::dummy(&config, 1).unwrap();
    let other = Model::new(config, weights, Sizes::default());
    model.workspace = other.workspace;
    assert!(matches!(model.logits(&batch().text()), Err(LlmError::WorkspaceMismatch)));
}

#[test]
fn an_empty_batch_gives_no_logits() {
    let empty = OwnedBatch { cu_seqlens: vec![0], ..OwnedBatch::default() };
    assert!(model().logits(&empty.text()).unwrap().is_empty());
}

#[test]
fn a_model_that_can_not_be_loaded_says_why() {
    let device = Device::cpu(1).unwrap();
    let folder = ModelFolder::open(fixtures_dir().join("tiny")).unwrap();
    let config = ModelConfig::load(&folder).unwrap();
    let weights = WeightSource::open(&folder).unwrap();
    for max_model_len in [0, 8193] {
        let error = Decoder::load(&config, &weights, &device, max_model_len).unwrap_err();
        assert!(error.to_string().contains("1 to 8192"), "{error}");
    }
    let mut wide = config.clone();
    wide.text.intermediate_size += 1;
    match Decoder::load(&wide, &weights, &device, 64) {
        Err(LlmError::Checkpoint(CheckpointError::WrongShape { tensor, .. })) => {
            assert!(tensor.contains("mlp.gate_proj"))
        }
        other => panic!("{other:?}"),
    }
    let mut deep = config.clone();
    deep.text.num_hidden_layers = 5;
    assert!(matches!(
        Decoder::load(&deep, &weights, &device, 64),
        Err(LlmError::Checkpoint(CheckpointError::MissingTensor { .. }))
    ));
    let mut sections = config.clone();
    sections.text.mrope_section = [1, 2, 3];
    assert!(matches!(Decoder::load(&sections, &weights, &device, 64), Err(LlmError::Mrope(_))));
    let mut heads = config;
    heads.text.num_key_value_heads = 3;
    assert!(matches!(
        Decoder::load(&heads, &weights, &device, 64),
        Err(LlmError::Config { field: "num_key_value_heads", .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever stands in a batch, the answer is logits or an error.
    #[test]
    fn nothing_panics(
        ids in prop::collection::vec(-2..1026_i32, 0..9),
        positions in prop::collection::vec(-1..51_i32, 0..27),
        slots in prop::collection::vec(-2..97_i64, 0..9),
        cu_seqlens in prop::collection::vec(-1..9_i32, 0..4),
        context_lens in prop::collection::vec(-1..98_i32, 0..3),
        block_tables in prop::collection::vec(-1..4_i32, 0..6),
        max_blocks in 0..4_usize,
        logit_rows in prop::collection::vec(-1..9_i32, 0..3),
        index in prop::collection::vec(-2..4_i32, 0..9),
    ) {
        let mut model = model();
        let batch = OwnedBatch {
            input_ids: ids,
            positions,
            slot_mapping: slots,
            cu_seqlens,
            context_lens,
            block_tables,
            max_blocks,
            logit_rows,
            image_index: index,
        };
        let rows = vec![0.5; 3 * model.config.text.hidden_size];
        let embeds = View::from_slice(&rows, &[3, rows.len() / 3]).unwrap();
        let _ = model.logits(&batch.text());
        let _ = model.logits(&batch.with_images(embeds, &[embeds]));
    }
}
