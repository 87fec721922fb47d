//! What the parts give, in float32 on the host, and how it compares with the reference's.

use foveal_device::{DType, Readback, Tensor, View};
use foveal_engine::Engine;
use foveal_mrope::GridThw;
use foveal_testkit::{Golden, GoldenCase, max_abs_relative_to_max};
use foveal_types::PreparedRequest;
use foveal_vision::{Patches, VisionInput};
use half::bf16;

use crate::pipeline::{Features, Pipeline};

/// A float tensor's elements, from whichever device has them.
pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::BF16 => tensor.to_vec::<bf16>().unwrap().iter().map(|x| x.to_f32()).collect(),
        _ => tensor.to_vec::<f32>().unwrap(),
    }
}

/// The prompt is the reference's: tokens, grids and positions.
pub(crate) fn check_prompt(case: &GoldenCase, request: &PreparedRequest) {
    let ids: Vec<u32> = request.input_ids.iter().map(|id| id.0).collect();
    assert_eq!(ids, case.prompt_ids, "{}", case.name);
    let grids: Vec<[usize; 3]> = request.images.iter().map(|image| image.grid_thw.map(|x| x as usize)).collect();
    assert_eq!(grids, case.image_grid_thw, "{}", case.name);
    let expected: Vec<i64> = case.mrope_positions.concat();
    let positions: Vec<i64> = request.positions.iter().copied().map(i64::from).collect();
    assert_eq!(positions, expected, "{}", case.name);
    assert_eq!(i64::from(request.rope_delta), case.mrope_delta, "{}", case.name);
}

impl Features {
    pub(crate) fn levels(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.embeds).chain(&self.deepstack)
    }

    /// How far each level is from the reference's, relative to the reference's largest value: that of `<prefix>.<embeds>`,
    /// and of `<prefix>.deepstack.<i>` for the others. The reference keeps every `step`-th row.
    pub(crate) fn errors(&self, golden: &Golden, prefix: &str, embeds: &str, step: usize) -> Vec<(String, f64)> {
        let is_level = |name: &&String| name.starts_with(&format!("{prefix}.deepstack."));
        assert_eq!(golden.array_names().iter().filter(is_level).count(), self.deepstack.len(), "{prefix}");
        let levels = (0..self.deepstack.len()).map(|i| format!("{prefix}.deepstack.{i}"));
        let names = std::iter::once(format!("{prefix}.{embeds}")).chain(levels);
        let errors = names.zip(self.levels()).map(|(name, tensor)| {
            let expected = golden.array(&name);
            let values = floats(tensor);
            let rows = values.chunks_exact(tensor.shape().row_len());
            let kept: Vec<f32> = rows.step_by(step).flatten().copied().collect();
            (name, max_abs_relative_to_max(&kept, &expected.values))
        });
        errors.collect()
    }

    /// Of a case's pictures.
    pub(crate) fn case_errors(&self, golden: &Golden, case: &GoldenCase) -> Vec<(String, f64)> {
        self.errors(golden, &case.name, "image_embeds", 3)
    }
}

impl Pipeline {
    /// The whole program, in chunks that cut through pictures.
    pub(crate) fn engine(&self) -> Engine {
        self.reference.engine().max_num_batched_tokens(48).build().unwrap()
    }

    /// The reference's video, which it has as normalised rows, against the reference's features of it.
    pub(crate) fn reference_video_errors(&self) -> Vec<(String, f64)> {
        let golden = &self.reference.golden;
        let rows = golden.array("video.pixel_values").values;
        let grid = GridThw { t: 2, h: 4, w: 6 };
        let features = self.encode_inputs(&[VisionInput { grid, patches: Patches::Rows(&rows) }]);
        features.errors(golden, "video", "embeds", 1)
    }

    /// Logits after the prompt, which is fed in chunks of `chunk` tokens, and after each of the forced tokens.
    pub(crate) fn logits(
        &self,
        request: &PreparedRequest,
        features: Option<&Features>,
        forced: &[u32],
        chunk: usize,
    ) -> Vec<Vec<f32>> {
        let n = request.input_ids.len();
        let mut run = self.run(n + forced.len(), chunk.min(n));
        let device = &self.reference.device;
        let vocab_size = self.reference.config.text.vocab_size;
        let mut readback = Readback::new(device, vocab_size * size_of::<f32>()).unwrap();
        let mut read = |logits: View<'_>| -> Vec<f32> {
            readback.read(device.stream(), &[logits]).unwrap().slice::<f32>(0).unwrap().to_vec()
        };
        let mut logits = vec![read(run.prefill(request, features, chunk))];
        for (i, &token) in forced.iter().enumerate() {
            logits.push(read(run.decode(request, i, token)));
        }
        logits
    }
}
