//! What a step of text alone is spared: the tower, the pictures' rows, and the deepstack rows that the first layers add.

use anyhow::Context as _;
use foveal_device::{Tensor, Times, View};
use foveal_llm::ImageRows;
use foveal_mrope::GridThw;
use foveal_vision::{Normalisation, Patches, VisionInput, VisionTower, Workspace};

use super::context::{Context, Machine};
use super::equal::{compare_logits, logits};
use super::rope::{Features, noise};
use super::table::{Idea, Measured, Table};
use super::turns::{in_turns, settled};
use crate::gpu::{Session, Step};

/// The same rows of text.
pub(super) const TEXT_STEP: Idea =
    Idea { name: "a step of text", with: "no picture rows", without: "picture rows that no row takes" };
/// As many rows, of which some are a picture's.
const PICTURE_STEP: Idea =
    Idea { name: "a step of text", with: "text alone", without: "with a picture, encoded first" };

/// Sequences of a decode step, and the tokens that each has.
const NUM_SEQS: [usize; 2] = [1, 32];
const CONTEXT: usize = 512;
/// Rows of a prompt, of which the picture's begin here.
const PROMPT: usize = 320;
const PICTURE_START: usize = 100;
/// Patches along the picture's sides: 256x256 pixels for patches of 16.
const SIDE: u32 = 16;

/// What the rows of a step read, and where the pictures' lie.
struct Rows {
    tower: VisionTower,
    workspace: Workspace,
    grid: GridThw,
    pixels: Vec<u8>,
    features: Features,
}

impl Rows {
    fn new(context: &Context<'_>) -> anyhow::Result<Self> {
        let vision = &context.config.vision;
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
        let tower = VisionTower::load(vision, normalisation, &context.dummy_weights()?, context.device())?;
        let grid = GridThw { t: 1, h: SIDE, w: SIDE };
        Ok(Self {
            workspace: tower.new_workspace(grid.num_patches())?,
            pixels: noise(grid.num_patches() * vision.patch_len() / vision.temporal_patch_size),
            features: Features::new(context, &tower, &[grid])?,
            tower,
            grid,
        })
    }

    fn encode(&mut self, context: &Context<'_>) -> anyhow::Result<()> {
        let Self { tower, workspace, grid, pixels, features } = self;
        let inputs = [VisionInput { grid: *grid, patches: Patches::Still(pixels) }];
        Ok(tower.encode(context.device().stream(), &inputs, workspace, features.output()?)?)
    }

    fn num_tokens(&self) -> usize {
        self.tower.num_tokens(self.grid)
    }

    /// The embeddings, and the levels.
    fn views(&self) -> anyhow::Result<(View<'_>, Vec<View<'_>>)> {
        let (embeds, levels) = self.features.tensors.split_first().context("a tower gives embeddings")?;
        Ok((embeds.view(), levels.iter().map(Tensor::view).collect()))
    }
}

/// Decode steps, then a prompt.
pub(super) fn steps(context: &Context<'_>, table: &mut Table) -> anyhow::Result<()> {
    let tokens = context.size(CONTEXT, 8);
    let most = NUM_SEQS.into_iter().max().unwrap_or(1);
    // Each sequence has room for a prompt, the first one uses it.
    let len = PROMPT.max(tokens + 1);
    let mut session = Session::open(context.device(), &context.config, context.options.form, (most, len), PROMPT)?;
    session.fill(most, tokens)?;
    let mut rows = Rows::new(context)?;
    rows.encode(context)?;
    for num_seqs in NUM_SEQS {
        let result = decode(context, (num_seqs, tokens), &mut session, &rows, table);
        table.keep(TEXT_STEP, format!("{num_seqs} of {tokens} tokens"), result);
    }
    prompt(context, &mut session, &mut rows, table)
}

/// The same rows, with tables that they have to look into, and without.
fn decode(
    context: &Context<'_>,
    (num_seqs, tokens): (usize, usize),
    session: &mut Session,
    rows: &Rows,
    table: &mut Table,
) -> anyhow::Result<()> {
    let step = session.step(0..num_seqs, tokens..tokens + 1);
    let index = vec![-1; num_seqs];
    let (embeds, deepstack) = rows.views()?;
    let image = ImageRows { embeds, deepstack: &deepstack, index: &index };
    let device = context.device();
    let alone = logits(device, session.logits(&step, None)?)?;
    let looked = logits(device, session.logits(&step, Some(image))?)?;
    let equal = compare_logits(device, &alone, &looked)?;
    let times = both(context, session, &step, image)?;
    let how = if device.is_cuda() { "recorded, sampling apart" } else { "sampling apart" };
    let case = format!("{num_seqs} of {tokens} tokens");
    table.measured(TEXT_STEP, case, Measured { times, equal, note: how.to_owned() });
    Ok(())
}

fn both(context: &Context<'_>, session: &mut Session, step: &Step, image: ImageRows<'_>) -> anyhow::Result<[Times; 2]> {
    let mut run = |image: Option<ImageRows<'_>>| session.logits(step, image).map(|_| ());
    match &context.machine {
        Machine::Gpu(bench) => Ok([bench.time_graph(|| run(None))?, bench.time_graph(|| run(Some(image)))?]),
        Machine::Cpu(_) => {
            let run = std::cell::RefCell::new(run);
            in_turns(context.effort, || (run.borrow_mut())(None), || (run.borrow_mut())(Some(image)), settled)
        }
    }
}

/// A prompt of text, and one of as many rows with a small picture; from the host's first call to the device's end.
fn prompt(context: &Context<'_>, session: &mut Session, rows: &mut Rows, table: &mut Table) -> anyhow::Result<()> {
    let end = PICTURE_START + rows.num_tokens();
    let index: Vec<i32> = (0..PROMPT)
        .map(|row| if (PICTURE_START..end).contains(&row) { (row - PICTURE_START) as i32 } else { -1 })
        .collect();
    // A row before the picture sees nothing of it.
    let step = session.step(0..1, 0..PROMPT).with_logits_of(PICTURE_START - 1);
    let device = context.device();
    let alone = logits(device, session.logits(&step, None)?)?;
    let before_it = logits(device, with_picture(session, &step, rows, &index)?)?;
    let equal = compare_logits(device, &alone, &before_it)?;
    let sides = std::cell::RefCell::new((session, rows));
    let times = in_turns(
        context.effort,
        || {
            sides.borrow_mut().0.logits(&step, None)?;
            Ok(device.stream().synchronize()?)
        },
        || {
            let (session, rows) = &mut *sides.borrow_mut();
            rows.encode(context)?;
            with_picture(session, &step, rows, &index)?;
            Ok(device.stream().synchronize()?)
        },
        settled,
    )?;
    let how = if device.is_cuda() { ", launch by launch" } else { "" };
    let note = format!("{} rows of a picture{how}; the text before it is compared", end - PICTURE_START);
    table.measured(PICTURE_STEP, format!("a prompt of {PROMPT} rows"), Measured { times, equal, note });
    Ok(())
}

fn with_picture<'s>(session: &'s mut Session, step: &Step, rows: &Rows, index: &[i32]) -> anyhow::Result<View<'s>> {
    let (embeds, deepstack) = rows.views()?;
    session.logits(step, Some(ImageRows { embeds, deepstack: &deepstack, index }))
}
