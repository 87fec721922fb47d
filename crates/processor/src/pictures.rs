//! Pictures and videos to patches in lent memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foveal_mrope::{GridThw, TemporalRule};
use foveal_types::{Exhausted, PixelLender, PreparedImage};
use rayon::prelude::*;

use crate::config::VisionConfig;
use crate::decode::{ImageInput, RgbPicture, decode, probe};
use crate::error::{PictureError, ProcessorError};
use crate::hash::content_hash;
use crate::limits::Limits;
use crate::message::{ImagePixels, PictureRef, PictureSource, VideoFrames};
use crate::patchify::PatchLayout;
use crate::prompt::Expansion;
use crate::resize::for_each_row;
use crate::smart_resize::{PixelBudget, smart_resize, smart_resize_video};

/// How a model takes pictures and videos.
#[derive(Debug)]
pub(crate) struct PicturePipeline {
    pub(crate) image: VisionConfig,
    pub(crate) video: VisionConfig,
    pub(crate) temporal: TemporalRule,
    pub(crate) limits: Limits,
    /// Pictures decoded so far: what shows that text alone touches no picture code.
    pub(crate) num_decoded: AtomicU64,
}

/// What the headers already tell about a picture.
#[derive(Clone, Debug)]
pub(crate) struct PicturePlan<'a> {
    picture: PictureRef<'a>,
    index: usize,
    /// Upright height and width of the source.
    source: (u32, u32),
    grid: GridThw,
    pub(crate) expansion: Expansion,
    decoded_bytes: u64,
}

/// What can go wrong with one picture: itself, the lent memory, or that nobody wants it any more.
enum Failure {
    Picture(PictureError),
    Exhausted(Exhausted),
    Cancelled,
}

/// Whether nobody wants the request any more; asked between the steps of a picture, by several threads.
pub(crate) type IsCancelled<'a> = &'a (dyn Fn() -> bool + Sync);

/// Ends a picture's preparation here if nobody wants it any more.
fn go_on(is_cancelled: IsCancelled<'_>) -> Result<(), Failure> {
    if is_cancelled() { Err(Failure::Cancelled) } else { Ok(()) }
}

impl From<PictureError> for Failure {
    fn from(error: PictureError) -> Self {
        Self::Picture(error)
    }
}

impl Failure {
    fn of(self, plan_index: usize, picture: &PictureRef<'_>) -> ProcessorError {
        match self {
            Self::Picture(source) => ProcessorError::Picture { index: plan_index, param: picture.param(), source },
            Self::Exhausted(exhausted) => exhausted.into(),
            Self::Cancelled => ProcessorError::Cancelled,
        }
    }
}

impl PicturePipeline {
    /// Reads the headers, checks every limit and finds every size, before anything is decoded.
    pub(crate) fn plan<'a>(
        &self,
        pictures: Vec<PictureRef<'a>>,
        pixels: ImagePixels,
    ) -> Result<Vec<PicturePlan<'a>>, ProcessorError> {
        let budget = narrowed(self.image.budget, pixels)?;
        let max_pictures = self.limits.max_images_per_request;
        if pictures.len() > max_pictures {
            return Err(ProcessorError::TooManyPictures { pictures: pictures.len(), max_pictures });
        }
        let frames = |p: &PictureRef<'_>| match p.source {
            PictureSource::Image(_) => 0,
            PictureSource::Video(video) => video.frames.len(),
        };
        let (frames, max_frames) = (pictures.iter().map(frames).sum(), self.limits.max_frames_per_request);
        if frames > max_frames {
            return Err(ProcessorError::TooManyFrames { frames, max_frames });
        }
        let mut plans = Vec::with_capacity(pictures.len());
        let mut decoded_bytes = 0_u64;
        for (index, picture) in pictures.into_iter().enumerate() {
            let plan = match picture.source {
                PictureSource::Image(image) => self.plan_image(index, picture, image, budget),
                PictureSource::Video(video) => self.plan_video(index, picture, video),
            };
            let plan = plan.map_err(|source| ProcessorError::Picture { index, param: picture.param(), source })?;
            decoded_bytes = decoded_bytes.saturating_add(plan.decoded_bytes);
            self.limits.check_decoded(decoded_bytes)?;
            plans.push(plan);
        }
        Ok(plans)
    }

    fn plan_image<'a>(
        &self,
        index: usize,
        picture: PictureRef<'a>,
        image: &ImageInput,
        budget: PixelBudget,
    ) -> Result<PicturePlan<'a>, PictureError> {
        let (width, height) = probe(image, &self.limits)?;
        let config = &self.image;
        let (h, w) = smart_resize(height, width, config.factor(), budget)?;
        let grid = GridThw { t: 1, h: h / config.patch_size, w: w / config.patch_size };
        let decoded_bytes = u64::from(width) * u64::from(height) * 3;
        let expansion = Expansion::Image { grid };
        Ok(PicturePlan { picture, index, source: (height, width), grid, expansion, decoded_bytes })
    }

    fn plan_video<'a>(
        &self,
        index: usize,
        picture: PictureRef<'a>,
        video: &VideoFrames,
    ) -> Result<PicturePlan<'a>, PictureError> {
        let config = &self.video;
        let num_frames = video.frames.len();
        let Some(first) = video.frames.first() else {
            return Err(PictureError::TooFewFrames { frames: 0, min_frames: 1 });
        };
        if video.meta.frame_indices.len() != num_frames {
            return Err(PictureError::VideoMeta { reason: "there must be one frame index for each frame" });
        }
        let (width, height) = probe(first, &self.limits)?;
        for (frame, input) in video.frames.iter().enumerate().skip(1) {
            let (got_width, got_height) = probe(input, &self.limits)?;
            if (got_width, got_height) != (width, height) {
                return Err(PictureError::FrameSize { frame, got_width, got_height, width, height });
            }
        }
        let frames_u32 = u32::try_from(num_frames).unwrap_or(u32::MAX);
        let temporal = config.temporal_patch_size;
        let (h, w) = match self.temporal {
            TemporalRule::FramesBetweenTimestamps => {
                smart_resize_video(frames_u32, height, width, temporal, config.factor(), config.budget)?
            }
            _ => smart_resize(height, width, config.factor(), config.budget)?,
        };
        let t = frames_u32.div_ceil(temporal);
        let grid = GridThw { t, h: h / config.patch_size, w: w / config.patch_size };
        let wrong_meta = |_| PictureError::VideoMeta {
            reason: "the frame rate must be above 0, and the source's frame count must be known",
        };
        let expansion = match self.temporal {
            TemporalRule::FramesBetweenTimestamps => {
                let seconds = video.meta.timestamps(temporal as usize).map_err(wrong_meta)?;
                Expansion::VideoFrames { grid, seconds }
            }
            TemporalRule::Seconds { .. } => {
                let second_per_grid = video.meta.second_per_grid(temporal as usize).map_err(wrong_meta)?;
                Expansion::VideoRun { grid, second_per_grid }
            }
            TemporalRule::FrameIndex => Expansion::VideoRun { grid, second_per_grid: 1.0 },
        };
        let decoded_bytes = u64::from(width) * u64::from(height) * 3 * num_frames as u64;
        Ok(PicturePlan { picture, index, source: (height, width), grid, expansion, decoded_bytes })
    }

    /// Decodes, resizes and cuts all pictures, several at once. `starts` are their first placeholder rows. Once `is_cancelled`, no
    /// further picture or frame is begun, and what has been decoded isn't resized.
    pub(crate) fn prepare(
        &self,
        plans: &[PicturePlan<'_>],
        starts: &[usize],
        lender: &dyn PixelLender,
        is_cancelled: IsCancelled<'_>,
    ) -> Result<Vec<PreparedImage>, ProcessorError> {
        let one = |(plan, &start): (&PicturePlan<'_>, &usize)| {
            self.prepare_one(plan, start, lender, is_cancelled).map_err(|failure| failure.of(plan.index, &plan.picture))
        };
        // One picture is prepared by the calling thread: no other has to wake for it.
        match plans {
            [_] => plans.iter().zip(starts).map(one).collect(),
            _ => plans.par_iter().zip(starts).map(one).collect(),
        }
    }

    fn prepare_one(
        &self,
        plan: &PicturePlan<'_>,
        placeholder_start: usize,
        lender: &dyn PixelLender,
        is_cancelled: IsCancelled<'_>,
    ) -> Result<PreparedImage, Failure> {
        let (config, inputs, slices) = match plan.picture.source {
            PictureSource::Image(image) => (&self.image, std::slice::from_ref(image), 1),
            PictureSource::Video(video) => (&self.video, video.frames.as_slice(), self.video.temporal_patch_size),
        };
        let decode = |input| {
            go_on(is_cancelled)?;
            self.num_decoded.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Failure>(decode(input, &self.limits)?)
        };
        let frames: Vec<RgbPicture<'_>> = match inputs {
            [input] => vec![decode(input)?],
            _ => inputs.par_iter().map(decode).collect::<Result<_, _>>()?,
        };
        go_on(is_cancelled)?;
        for (frame, picture) in frames.iter().enumerate() {
            let (got_width, got_height, (height, width)) = (picture.width, picture.height, plan.source);
            if (got_height, got_width) != (height, width) {
                return Err(PictureError::FrameSize { frame, got_width, got_height, width, height }.into());
            }
        }
        let grid_thw = [plan.grid.t, plan.grid.h, plan.grid.w];
        let hash = content_hash(&frames, grid_thw, slices, config);
        let layout = PatchLayout {
            grid_h: plan.grid.h as usize,
            grid_w: plan.grid.w as usize,
            patch: config.patch_size as usize,
            merge: config.merge_size as usize,
            slices: slices as usize,
        };
        let pixels = write_patches(&frames, plan, &layout, config.patch_size, lender)?;
        Ok(PreparedImage { grid_thw, pixels, temporal_slices: slices, hash, placeholder_start })
    }
}

/// The model's pixel limits with a chat's own in their place. Those may only be narrower: what the engine set memory aside
/// for is the model's.
fn narrowed(own: PixelBudget, asked: ImagePixels) -> Result<PixelBudget, ProcessorError> {
    let most = asked.max.unwrap_or(own.max_pixels);
    // The largest first: it bounds the smallest.
    let limits = [("max_pixels", asked.max, own.max_pixels), ("min_pixels", asked.min, most)];
    for (name, got, most) in limits {
        if let Some(got) = got
            && !(own.min_pixels..=most).contains(&got)
        {
            return Err(ProcessorError::ImagePixels { name, got, min: own.min_pixels, max: most });
        }
    }
    Ok(PixelBudget { min_pixels: asked.min.unwrap_or(own.min_pixels), max_pixels: most })
}

/// Resizes the frames straight into patch order in lent memory.
fn write_patches(
    frames: &[RgbPicture<'_>],
    plan: &PicturePlan<'_>,
    layout: &PatchLayout,
    patch_size: u32,
    lender: &dyn PixelLender,
) -> Result<Arc<dyn foveal_types::Pixels>, Failure> {
    let frame_bytes = layout.frame_bytes();
    let len_bytes = frame_bytes * plan.grid.t as usize;
    let mut block = lender.lend(len_bytes).map_err(Failure::Exhausted)?;
    let lent = block.bytes_mut().len();
    if lent != len_bytes {
        let message = format!("{lent} bytes of pixel memory were lent; {len_bytes} were asked for");
        return Err(Failure::Exhausted(Exhausted::new(message)));
    }
    let target = (plan.grid.h * patch_size, plan.grid.w * patch_size);
    let write = |(t, out): (usize, &mut [u8])| {
        for slice in 0..layout.slices {
            // A last temporal patch that lacks frames repeats the last one.
            let frame = frames.get(t * layout.slices + slice).or(frames.last());
            if let Some(frame) = frame {
                for_each_row(&frame.pixels, plan.source, target, |y, row| layout.write_row(out, slice, y, row));
            }
        }
    };
    match block.bytes_mut() {
        bytes if plan.grid.t == 1 => write((0, bytes)),
        bytes => bytes.par_chunks_exact_mut(frame_bytes.max(1)).enumerate().for_each(write),
    }
    Ok(block.finish())
}
