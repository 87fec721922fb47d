//! Decode steps.

use std::path::Path;
use std::time::Instant;

use foveal_checkpoint::ModelConfig;
use foveal_device::{Times, counters};
use foveal_llm::{GenerationDefaults, SamplerState, StopCriteria};
use foveal_types::SamplingParams;

use super::Bench;
use super::session::{ModelForm, Session, Step, config, step_cost};
use super::shapes::BF16;

const NUM_SEQS: [usize; 3] = [1, 32, 128];
/// Tokens that a sequence has with the first step that is timed.
const CONTEXT: usize = 1300;
/// Steps that are timed, and those before them.
const STEPS: usize = 64;
const WARM_UP_STEPS: usize = 8;
/// Steps whose launches the driver takes without having the host wait: it does once a thousand are under way.
const QUEUED_STEPS: usize = 2;
/// Memory beside weights and cache: the workspaces, the sampler, cuBLASLt.
const OTHER_BYTES: f64 = 4e9;

/// Decode steps of a model of the configuration in a folder, with dummy weights, for 1, 32 and 128 sequences.
///
/// # Errors
/// Of the device, or of the model.
pub fn decode(bench: &mut Bench, model: &Path, form: ModelForm) -> anyhow::Result<()> {
    let config = config(model)?;
    NUM_SEQS.into_iter().try_for_each(|num_seqs| batch(bench, &config, form, num_seqs))
}

fn batch(bench: &mut Bench, config: &ModelConfig, form: ModelForm, num_seqs: usize) -> anyhow::Result<()> {
    let shape = format!("{num_seqs} x {CONTEXT}{}", form.suffix());
    let ops = ["decode eager", "decode host", "decode graph"];
    if !ops.iter().any(|op| bench.wants(op, &shape)) {
        return Ok(());
    }
    let cost = step_cost(config, form, num_seqs, 1, CONTEXT);
    let embedding = (config.text.vocab_size * config.text.hidden_size * BF16) as f64;
    let needed = cost.bytes + embedding + OTHER_BYTES;
    let (free, _) = bench.cuda()?.device().memory_bytes()?;
    if needed > free as f64 {
        println!("decode {shape} left out: it takes {:.0} GB, {:.0} are free", needed / 1e9, free as f64 / 1e9);
        return Ok(());
    }
    let opened = Instant::now();
    let max_len = CONTEXT + STEPS;
    let mut session = Session::open(&bench.device, config, form, (num_seqs, max_len), num_seqs.max(128))?;
    println!("decode {shape}: opened and tuned in {:.1} s", opened.elapsed().as_secs_f32());
    session.fill(num_seqs, CONTEXT)?;
    let steps: Vec<Step> = (CONTEXT..=max_len).map(|context| session.step(0..num_seqs, context - 1..context)).collect();

    let times = eager(&mut session, &steps, num_seqs)?;
    bench.report(ops[0], &shape, times, cost)?;
    let tokens_per_s = num_seqs as f64 / f64::from(times.median_us) * 1e6;
    bench.report_value(ops[0], &shape, times, (tokens_per_s, "tok/s"))?;

    let times = on_host(bench, &mut session, &steps)?;
    bench.report_value(ops[1], &shape, times, (1e6 / f64::from(times.median_us), "steps/s"))?;

    bench.time_recorded(ops[2], &shape, cost, || session.forward(&steps[0]))
}

/// Whole steps with greedy sampling, each waited for; prints what they had no business doing.
fn eager(session: &mut Session, steps: &[Step], num_seqs: usize) -> anyhow::Result<Times> {
    let stop = StopCriteria::new(&SamplingParams::default(), &GenerationDefaults::default(), 0, 1 << 20);
    let state = |_| SamplerState::new(&SamplingParams::default(), &[], &stop).map_err(|e| anyhow::anyhow!("{e}"));
    let mut states = (0..num_seqs).map(state).collect::<anyhow::Result<Vec<_>>>()?;
    let mut states: Vec<&mut SamplerState> = states.iter_mut().collect();
    for step in &steps[..WARM_UP_STEPS] {
        session.sample(step, &mut states)?;
    }
    let mut times = Vec::with_capacity(STEPS);
    let before = counters();
    for step in &steps[..STEPS] {
        let start = Instant::now();
        session.sample(step, &mut states)?;
        times.push(start.elapsed().as_secs_f32() * 1e6);
    }
    let after = counters();
    println!(
        "  in {STEPS} steps: {} allocations, {} synchronises, {} event waits, {} pageable and {} pinned copies, {} launches",
        after.allocations - before.allocations,
        after.synchronises - before.synchronises,
        after.event_waits - before.event_waits,
        after.pageable_copies - before.pageable_copies,
        after.pinned_copies - before.pinned_copies,
        after.launches - before.launches,
    );
    Ok(Times::of(times))
}

/// How long the host takes to give a step to the GPU, without waiting for it.
fn on_host(bench: &Bench, session: &mut Session, steps: &[Step]) -> anyhow::Result<Times> {
    let stream = bench.device.stream();
    let mut times = Vec::new();
    for steps in steps[..STEPS / 2].chunks(QUEUED_STEPS) {
        stream.synchronize()?;
        let start = Instant::now();
        steps.iter().try_for_each(|step| session.forward(step))?;
        times.push(start.elapsed().as_secs_f32() * 1e6 / steps.len() as f32);
    }
    stream.synchronize()?;
    Ok(Times::of(times))
}
