//! Every reference case of HF transformers through the whole pipeline: processor, vision tower, decoder, engine.

mod support;

use foveal_device::{DType, Tensor};
use foveal_engine::Engine;
use foveal_kernels::KvLayout;
use foveal_llm::{Batch, BatchLimits, Decoder, ImageRows, KvCache, Workspace};
use foveal_mrope::VideoMeta;
use foveal_processor::{ContentPart, ImageInput, VideoFrames};
use foveal_testkit::{Golden, GoldenCase, assert_close, max_abs_relative_to_max};
use foveal_types::{PreparedRequest, TokenId, TokenOutput};
use foveal_vision::{Patches, VisionInput, VisionOutput, VisionTower};
use support::{MAX_MODEL_LEN, Reference, answer};

/// Features may differ by this share of the reference's largest value.
const MAX_FEATURE_ERROR: f64 = 1e-3;
/// Logits may differ by this.
const MAX_LOGIT_ERROR: f32 = 5e-3;
/// A greedy step whose two best are closer than this may fall either way.
const MIN_GAP: f32 = 0.01;
/// Log-probabilities of greedy steps may differ by this; the reference has four decimals of them.
const MAX_LOGPROB_ERROR: f32 = 0.01;

/// One model's parts, put together by hand.
struct Pipeline {
    reference: Reference,
    tower: VisionTower,
    decoder: Decoder,
    engine: Engine,
}

/// What the tower gives for a request, on the host.
struct Features {
    /// `[num_embeds, hidden_size]`
    embeds: Tensor,
    deepstack: Vec<Tensor>,
}

impl Features {
    fn levels(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.embeds).chain(&self.deepstack)
    }
}

impl Pipeline {
    fn open(family: &str) -> Self {
        let reference = Reference::open(family);
        let Reference { config, normalisation, device, .. } = &reference;
        let weights = reference.weights();
        Self {
            tower: VisionTower::load(&config.vision, *normalisation, &weights, device).unwrap(),
            decoder: Decoder::load(config, &weights, device, MAX_MODEL_LEN).unwrap(),
            // Chunks that cut through pictures.
            engine: reference.engine().max_num_batched_tokens(48).build().unwrap(),
            reference,
        }
    }

    /// All pictures of a request in one batch.
    fn encode(&self, request: &PreparedRequest) -> Option<Features> {
        let inputs: Vec<VisionInput<'_>> = request
            .images
            .iter()
            .map(|image| {
                let patches = if image.temporal_slices == 1 { Patches::Still } else { Patches::Video };
                VisionInput { grid: image.grid_thw.into(), patches: patches(image.pixels.bytes()) }
            })
            .collect();
        let rows: usize = inputs.iter().map(|input| self.tower.num_tokens(input.grid)).sum();
        if rows == 0 {
            return None;
        }
        let tensor =
            || Tensor::zeros(&self.reference.device, DType::F32, &[rows, self.tower.out_hidden_size()]).unwrap();
        let (mut embeds, mut deepstack) = (tensor(), Vec::from_iter((0..self.tower.num_deepstack()).map(|_| tensor())));
        let num_patches: usize = inputs.iter().map(|input| input.grid.num_patches()).sum();
        let mut workspace = self.tower.new_workspace(num_patches).unwrap();
        let out = VisionOutput {
            embeds: embeds.view_mut().unwrap(),
            deepstack: deepstack.iter_mut().map(|level| level.view_mut().unwrap()).collect(),
        };
        self.tower.encode(self.reference.device.stream(), &inputs, &mut workspace, out).unwrap();
        Some(Features { embeds, deepstack })
    }

    /// Logits after the whole prompt, and after each of the forced tokens.
    fn logits(&self, request: &PreparedRequest, features: Option<&Features>, forced: &[u32]) -> Vec<Vec<f32>> {
        let n = request.input_ids.len();
        let num_blocks = (n + forced.len()).div_ceil(KvLayout::DEFAULT_PAGE);
        let mut run = Run {
            pipeline: self,
            cache: self.decoder.new_kv_cache(num_blocks, DType::F32).unwrap(),
            workspace: self
                .decoder
                .new_workspace(BatchLimits { max_tokens: n, max_seqs: 1, max_logit_rows: 1 })
                .unwrap(),
            // Pages in reverse, so that a block table that is not looked at is found out.
            block_table: (0..i32::try_from(num_blocks).unwrap()).rev().collect(),
        };
        let ids: Vec<i32> = request.input_ids.iter().map(|id| id.0.cast_signed()).collect();
        let mut logits = vec![run.step(0, &ids, &request.positions, image_index(request).as_deref(), features)];
        for (i, &token) in forced.iter().enumerate() {
            let position = i32::try_from(n + i).unwrap() + request.rope_delta;
            logits.push(run.step(n + i, &[token.cast_signed()], &[position; 3], None, None));
        }
        logits
    }
}

/// Which embedding each row of the prompt takes; none for a prompt of text alone.
fn image_index(request: &PreparedRequest) -> Option<Vec<i32>> {
    let mut index = vec![-1; request.input_ids.len()];
    for (embed, row) in request.image_token_ranges.iter().cloned().flatten().enumerate() {
        index[row] = i32::try_from(embed).unwrap();
    }
    (!request.images.is_empty()).then_some(index)
}

/// One sequence on its way through the decoder.
struct Run<'p> {
    pipeline: &'p Pipeline,
    cache: KvCache,
    workspace: Workspace,
    block_table: Vec<i32>,
}

impl Run<'_> {
    fn step(
        &mut self,
        start: usize,
        ids: &[i32],
        positions: &[i32],
        index: Option<&[i32]>,
        features: Option<&Features>,
    ) -> Vec<f32> {
        let page = KvLayout::DEFAULT_PAGE;
        let end = start + ids.len();
        let slot = |row: usize| i64::from(self.block_table[row / page]) * page as i64 + (row % page) as i64;
        let slots: Vec<i64> = (start..end).map(slot).collect();
        let deepstack: Vec<_> =
            features.iter().flat_map(|features| &features.deepstack).map(|level| level.view()).collect();
        let image = features.zip(index).map(|(features, index)| ImageRows {
            embeds: features.embeds.view(),
            deepstack: &deepstack,
            index,
        });
        let n = i32::try_from(ids.len()).unwrap();
        let batch = Batch {
            input_ids: ids,
            positions,
            slot_mapping: &slots,
            cu_seqlens: &[0, n],
            context_lens: &[i32::try_from(end).unwrap()],
            block_tables: &self.block_table,
            max_blocks: self.block_table.len(),
            logit_rows: &[n - 1],
            image,
        };
        let (decoder, stream) = (&self.pipeline.decoder, self.pipeline.reference.device.stream());
        let logits = decoder.forward(stream, &batch, &mut self.cache, &mut self.workspace).unwrap();
        logits.as_slice::<f32>().unwrap().to_vec()
    }
}

fn check_prompt(case: &GoldenCase, request: &PreparedRequest) {
    let ids: Vec<u32> = request.input_ids.iter().map(|id| id.0).collect();
    assert_eq!(ids, case.prompt_ids, "{}", case.name);
    let grids: Vec<[usize; 3]> = request.images.iter().map(|image| image.grid_thw.map(|x| x as usize)).collect();
    assert_eq!(grids, case.image_grid_thw, "{}", case.name);
    let expected: Vec<i64> = case.mrope_positions.concat();
    let positions: Vec<i64> = request.positions.iter().copied().map(i64::from).collect();
    assert_eq!(positions, expected, "{}", case.name);
    assert_eq!(i64::from(request.rope_delta), case.mrope_delta, "{}", case.name);
}

/// The reference keeps every third row.
fn check_features(golden: &Golden, case: &GoldenCase, features: &Features) {
    let levels = features.deepstack.iter().enumerate().map(|(i, level)| (format!("deepstack.{i}"), level));
    for (name, tensor) in std::iter::once(("image_embeds".to_owned(), &features.embeds)).chain(levels) {
        let expected = golden.array(&format!("{}.{name}", case.name));
        let view = tensor.view();
        let rows = view.as_slice::<f32>().unwrap().chunks_exact(tensor.shape().row_len());
        let every_third: Vec<f32> = rows.step_by(3).flatten().copied().collect();
        let error = max_abs_relative_to_max(&every_third, &expected.values);
        assert!(error <= MAX_FEATURE_ERROR, "{} {name}: {error}", case.name);
    }
}

fn check_greedy(case: &GoldenCase, tokens: &[TokenOutput]) {
    let sure = case.greedy_top2_gaps.iter().position(|gap| *gap < MIN_GAP).unwrap_or(case.greedy_ids.len());
    let ids: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
    assert!(ids.len() >= sure, "{}: {ids:?}", case.name);
    assert_eq!(ids[..sure], case.greedy_ids[..sure], "{}", case.name);
    if sure == case.greedy_ids.len() {
        assert_eq!(ids.len(), sure, "{}: the answer ends where the reference's ends", case.name);
    }
    for (step, token) in tokens.iter().enumerate().take(sure) {
        let expected = case.greedy_top5_logprobs[step][0];
        let got = token.logprob.unwrap();
        assert!((got - expected).abs() <= MAX_LOGPROB_ERROR, "{} step {step}: {got} {expected}", case.name);
        let top = &token.logprobs.as_ref().unwrap().top;
        assert_eq!(top.len(), 5);
        assert_eq!(top[0], (token.token_id, got), "{} step {step}: the best is the chosen one", case.name);
    }
}

fn check_family(family: &str) {
    let pipeline = Pipeline::open(family);
    let Reference { golden, processor, .. } = &pipeline.reference;
    assert_eq!(golden.cases().len(), 14);
    for case in golden.cases() {
        let request = pipeline.reference.prepare(case);
        check_prompt(case, &request);
        let features = pipeline.encode(&request);
        assert_eq!(features.is_some(), !case.images.is_empty());
        if let Some(features) = &features {
            check_features(golden, case, features);
        }
        let logits = pipeline.logits(&request, features.as_ref(), &case.forced_ids);
        let expected = golden.array(&format!("{}.logits", case.name));
        assert_close(&logits[0], &expected.values, MAX_LOGIT_ERROR, 0.0);
        let expected = golden.array(&format!("{}.forced_logits", case.name));
        assert_eq!(expected.shape[0], 12);
        assert_close(&logits[1..].concat(), &expected.values, MAX_LOGIT_ERROR, 0.0);

        let tokens = answer(&pipeline.engine, request);
        check_greedy(case, &tokens);
        if family == "tiny" {
            let ids: Vec<TokenId> = tokens.iter().map(|token| token.token_id).collect();
            assert_eq!(processor.tokenizer().decode(&ids), case.text);
        }
    }
}

/// Edge of the video's frames: a multiple of every tower's merged patches, so that nothing is resized.
const FRAME_EDGE: u32 = 224;
/// Seconds between two temporal patches of the video, cut to whole ones.
const WHOLE_SECONDS: i32 = 3;

/// Two stills, and the video that shows each of them in two frames: a temporal patch is then a still's.
fn stills_and_their_video(reference: &Reference) -> [PreparedRequest; 2] {
    let frame = |factor: usize| {
        let pixels = (0..(FRAME_EDGE * FRAME_EDGE * 3) as usize).map(|i| ((i + 7) * factor % 251) as u8).collect();
        ImageInput::Rgb { width: FRAME_EDGE, height: FRAME_EDGE, pixels }
    };
    let stills = [frame(3), frame(5)];
    let frames = stills.iter().flat_map(|still| [still.clone(), still.clone()]).collect();
    // 4 of 70 frames at 10 a second: 2 frames every 3.5 seconds.
    let meta = VideoMeta { source_fps: 10.0, total_num_frames: 70, frame_indices: vec![0, 17, 35, 52] };
    let question = || ContentPart::Text("What is shown here?".to_owned());
    let video = vec![ContentPart::Video(VideoFrames { frames, meta }), question()];
    let stills = stills.into_iter().map(ContentPart::Image).chain(std::iter::once(question())).collect();
    [stills, video].map(|parts| reference.prepare_parts(parts))
}

/// Positions of a prompt with one video, token by token: text counts on, every temporal patch of a range stands
/// `step` behind the last one. What follows a range counts on from its longer side, however long the video lasts
/// (`get_rope_index` in `modeling_qwen2_5_vl.py`, transformers 5.17).
fn naive_positions(request: &PreparedRequest, step: i32) -> (Vec<i32>, i32) {
    let [_, h, w] = request.images[0].grid_thw.map(|patches| patches as usize / 2);
    let mut columns: Vec<[i32; 3]> = Vec::new();
    let mut next = 0;
    for row in 0..request.input_ids.len() {
        match request.image_token_ranges.iter().find(|range| range.contains(&row)) {
            None => columns.push([next; 3]),
            Some(range) => {
                let at = row - range.start;
                let first = columns[range.start - 1][0] + 1;
                let offset = [at / (h * w), at % (h * w) / w, at % w].map(|x| i32::try_from(x).unwrap());
                columns.push([first + offset[0] * step, first + offset[1], first + offset[2]]);
                next = first + i32::try_from(h.max(w)).unwrap() - 1;
            }
        }
        next += 1;
    }
    let end = columns.iter().flatten().max().unwrap() + 1;
    let positions = (0..3).flat_map(|axis| columns.iter().map(move |column| column[axis])).collect();
    (positions, end - i32::try_from(columns.len()).unwrap())
}

fn log_softmax(logits: &[f32], token: usize) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits[token] - most - logits.iter().map(|logit| (logit - most).exp()).sum::<f32>().ln()
}

/// A video against what it is made of: the features of its frames as stills, positions by a naive loop, and the
/// engine's answer against the parts put together by hand.
fn check_video(family: &str, num_ranges: usize, step: i32) {
    let pipeline = Pipeline::open(family);
    let [stills, video] = stills_and_their_video(&pipeline.reference);
    let [_, h, w] = stills.images[0].grid_thw;
    assert_eq!(video.images[0].grid_thw, [2, h, w]);
    assert_eq!((video.images.len(), video.image_token_ranges.len()), (1, num_ranges));
    assert_eq!((video.positions.clone(), video.rope_delta), naive_positions(&video, step));

    let of_stills = pipeline.encode(&stills).unwrap();
    let features = pipeline.encode(&video).unwrap();
    assert_eq!(features.deepstack.len(), of_stills.deepstack.len());
    for (got, expected) in features.levels().zip(of_stills.levels()) {
        let (got, expected) = (got.view(), expected.view());
        let error = max_abs_relative_to_max(got.as_slice::<f32>().unwrap(), expected.as_slice::<f32>().unwrap());
        assert!(error <= MAX_FEATURE_ERROR, "{family}: {error}");
    }

    let tokens = answer(&pipeline.engine, video.clone());
    let forced: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
    let logits = pipeline.logits(&video, Some(&features), &forced[..forced.len() - 1]);
    assert_eq!(logits.len(), tokens.len());
    for (token, logits) in tokens.iter().zip(&logits) {
        let expected = log_softmax(logits, token.token_id.0 as usize);
        assert!((token.logprob.unwrap() - expected).abs() <= 1e-3, "{family}: {token:?} {expected}");
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(logits[token.token_id.0 as usize] >= best - 1e-3, "{family}: a greedy choice");
    }
}

#[test]
fn a_video_between_timestamps_is_its_frames() {
    check_video("tiny", 2, 1);
}

#[test]
fn a_video_in_seconds_is_its_frames_further_apart() {
    let tokens_per_second = 4;
    check_video("qwen2_5_vl", 1, tokens_per_second * WHOLE_SECONDS);
}

#[test]
fn a_video_by_frame_index_is_its_frames() {
    check_video("qwen2_vl", 1, 1);
}

#[test]
fn tiny_agrees_with_the_reference() {
    check_family("tiny");
}

#[test]
fn qwen3_vl_tied_agrees_with_the_reference() {
    check_family("qwen3_vl_tied");
}

#[test]
fn qwen2_5_vl_agrees_with_the_reference() {
    check_family("qwen2_5_vl");
}

#[test]
fn qwen2_vl_agrees_with_the_reference() {
    check_family("qwen2_vl");
}
