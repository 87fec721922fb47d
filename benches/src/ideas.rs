//! What each of the engine's ideas brings, one switched off at a time: the program `ideas`.
//!
//! A row of the [`Table`] has the engine's way beside the same work without the idea. Both run first and have to give equal
//! results; only then are they timed, in turns where the host's clock is taken. A section that can't be measured says why, and
//! the others are measured all the same.

mod closed_loop;
mod context;
mod equal;
mod fused;
mod pinned;
mod prepare;
mod rope;
mod step;
mod table;
mod turns;

pub use context::{Machine, Options, Scale};
pub use table::{Header, Idea, Line, Outcome, Spread, Table};

use clap::ValueEnum;
use context::Context;

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// What the tower derives from a picture's size: found in its cache, or derived anew.
    Rope,
    /// Copies to a GPU: from page-locked memory, or from pageable one.
    Pinned,
    /// Operators that round to FP8 as they go, or launches of their own for it.
    Fused,
    /// Text alone by its short way, or by the one of pictures.
    Text,
    /// Steps as CUDA graphs, or launch by launch.
    Graphs,
    /// Steps sent off before the last one's tokens are known, or after.
    Overlap,
}

impl Section {
    /// All of them; the quickest to measure first.
    pub const ALL: [Self; 6] = [Self::Rope, Self::Pinned, Self::Fused, Self::Text, Self::Graphs, Self::Overlap];

    /// What is measured apart, and may fail apart; engines in closed loops are another matter.
    const fn parts(self) -> &'static [Part] {
        match self {
            Self::Rope => &[(rope::GEOMETRY, rope::rope)],
            Self::Pinned => &[(pinned::PINNED, pinned::pinned)],
            Self::Fused => &[(fused::FUSED, fused::fused)],
            Self::Text => &[(prepare::PREPARE, prepare::prepare), (step::TEXT_STEP, step::steps)],
            Self::Graphs | Self::Overlap => &[],
        }
    }
}

/// Measures some rows; an error is of all of them.
type Part = (Idea, fn(&Context<'_>, &mut Table) -> anyhow::Result<()>);

/// Measures `sections` on `machine` into `table`, which is saved as it grows.
///
/// # Errors
/// When the model's configuration can't be read, or the table can't be saved. What fails of a section is a line of the table.
pub fn run(machine: Machine, options: &Options, sections: &[Section], table: &mut Table) -> anyhow::Result<()> {
    let context = Context::new(machine, options)?;
    table.on(context.machine.name());
    for (idea, measure) in sections.iter().flat_map(|section| section.parts()) {
        let result = measure(&context, table);
        table.keep(*idea, "all sizes", result);
        table.save()?;
    }
    // Last, as they take longest, and together: each idea is switched off of the same engine.
    let loops = [(Section::Graphs, closed_loop::GRAPHS), (Section::Overlap, closed_loop::OVERLAP)];
    let loops: Vec<Idea> =
        loops.into_iter().filter(|(section, _)| sections.contains(section)).map(|(_, idea)| idea).collect();
    if let Err(error) = closed_loop::closed_loops(&context, &loops, table) {
        let reason = format!("{error:#}");
        loops.iter().for_each(|&idea| table.keep(idea, "with all ideas", Err(anyhow::anyhow!(reason.clone()))));
    }
    table.save()
}
