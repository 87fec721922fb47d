//! A whole engine in a closed loop: with graphs or launch by launch, ahead of the tokens or behind them.

use anyhow::{Context as _, ensure};
use foveal_checkpoint::ModelFolder;
use foveal_device::{DeviceKind, Times};
use foveal_runtime::{Model, ModelOptions, ThroughputOptions, throughput};
use foveal_types::{Delta, SamplingParams, TokenId};

use super::context::{Context, Machine};
use super::equal::Equal;
use super::table::{Idea, Measured, Table};

pub(super) const GRAPHS: Idea = Idea { name: "CUDA graphs", with: "graphs", without: "launch by launch" };
pub(super) const OVERLAP: Idea = Idea { name: "running ahead", with: "ahead", without: "each step waits" };

/// What is sent, and how often.
#[derive(Clone, Copy)]
struct Load {
    /// Requests at once.
    concurrency: [usize; 2],
    /// Text tokens of a prompt, which has a picture besides, and tokens of its answer.
    input_len: usize,
    output_len: usize,
    /// Sides of the picture.
    side: u32,
    /// The fewest requests of a loop.
    num_prompts: usize,
    /// Loops, whose medians a row's medians are of.
    rounds: usize,
    /// Tokens of the request that answers are compared by.
    compared: usize,
}

const LOAD: Load =
    Load { concurrency: [1, 32], input_len: 512, output_len: 96, side: 512, num_prompts: 2, rounds: 3, compared: 64 };
/// Tokens of a step. What a prompt of many at once waits for depends on it.
const MAX_NUM_BATCHED_TOKENS: usize = 2048;
/// Share of the GPU's memory: the cache needs little.
const MEMORY_SHARE: f64 = 0.5;
/// A prompt token that is text in any of these models.
const TEXT_ID: u32 = 300;

/// A way to run an engine.
#[derive(Clone, Copy)]
struct Way {
    enforce_eager: bool,
    run_ahead: bool,
}

const ALL_ON: Way = Way { enforce_eager: false, run_ahead: true };

/// How an engine ran.
struct Figures {
    /// Of one request alone.
    answer: Vec<TokenId>,
    /// By requests at once: between two tokens, and until the first one.
    loops: Vec<[Times; 2]>,
}

/// Measures each idea of `ideas`; the engine that has all of them runs once.
pub(super) fn closed_loops(context: &Context<'_>, ideas: &[Idea], table: &mut Table) -> anyhow::Result<()> {
    if let Machine::Cpu(_) = context.machine {
        let reason = "a CPU computes a step as it is sent off; there is nothing to record and nobody to be ahead of";
        ideas.iter().for_each(|&idea| table.left_out(idea, "a token, the first token", reason));
        return Ok(());
    }
    if ideas.is_empty() {
        return Ok(());
    }
    let all = figures(context, DeviceKind::Cuda(0), ALL_ON, LOAD)?;
    for &idea in ideas {
        let way = match idea == GRAPHS {
            true => Way { enforce_eager: true, ..ALL_ON },
            false => Way { run_ahead: false, ..ALL_ON },
        };
        // One that fails doesn't take the other with it.
        let without = figures(context, DeviceKind::Cuda(0), way, LOAD);
        let result = without.and_then(|without| report(idea, &all, &without, table));
        table.keep(idea, idea.without, result);
        table.save()?;
    }
    Ok(())
}

fn report(idea: Idea, with: &Figures, without: &Figures, table: &mut Table) -> anyhow::Result<()> {
    let differ = with.answer.iter().zip(&without.answer).position(|(a, b)| a != b);
    ensure!(differ.is_none() && with.answer.len() == without.answer.len(), "answers differ from token {differ:?} on");
    for (concurrency, (with, without)) in LOAD.concurrency.into_iter().zip(with.loops.iter().zip(&without.loops)) {
        for (what, times) in ["a token", "the first token"].into_iter().zip(with.iter().zip(without)) {
            let times = [*times.0, *times.1];
            let note =
                format!("medians of {} loops; {} tokens of one request are compared", LOAD.rounds, LOAD.compared);
            let case = format!("{what}, {concurrency} at once");
            table.measured(idea, case, Measured { times, equal: Equal::SameTokens, note });
        }
    }
    Ok(())
}

/// Starts an engine, has it answer, and ends it.
fn figures(context: &Context<'_>, device: DeviceKind, way: Way, load: Load) -> anyhow::Result<Figures> {
    let form = context.options.form;
    let most = load.concurrency.into_iter().max().unwrap_or(1);
    let options = ModelOptions {
        device,
        load_format: context.options.load_format,
        quantization: form.quantization,
        kv_cache_dtype: form.kv_cache_dtype,
        max_model_len: Some(context.max_model_len()),
        max_num_seqs: Some(most),
        max_num_batched_tokens: Some(MAX_NUM_BATCHED_TOKENS),
        max_waiting: Some(most),
        gpu_memory_utilization: Some(MEMORY_SHARE),
        enforce_eager: way.enforce_eager,
        run_ahead: way.run_ahead,
        no_prefix_caching: true,
        ..ModelOptions::default()
    };
    let model = Model::load(&ModelFolder::open(&context.options.model)?, &options, |_, _| {})?;
    let answer = answer(&model, load.compared)?;
    let loops = load.concurrency.into_iter().map(|concurrency| closed_loop(&model, load, concurrency));
    let loops = loops.collect::<anyhow::Result<_>>()?;
    model.engine().shutdown();
    Ok(Figures { answer, loops })
}

/// The tokens of an answer that nothing runs beside.
fn answer(model: &Model, num_tokens: usize) -> anyhow::Result<Vec<TokenId>> {
    let sampling = SamplingParams { max_tokens: Some(num_tokens), ignore_eos: true, ..SamplingParams::default() };
    let prompt = (0..64).map(|i| TokenId(TEXT_ID + i * 7)).collect();
    let request = model.processor().prepare_tokens(prompt, sampling)?;
    let mut tokens = Vec::with_capacity(num_tokens);
    for delta in model.engine().generate(request).blocking() {
        if let Delta::Token(token) = delta? {
            tokens.push(token.token_id);
        }
    }
    ensure!(tokens.len() == num_tokens, "{} tokens instead of {num_tokens}", tokens.len());
    Ok(tokens)
}

fn closed_loop(model: &Model, load: Load, concurrency: usize) -> anyhow::Result<[Times; 2]> {
    let mut medians = [Vec::new(), Vec::new()];
    for round in 0..load.rounds {
        let options = ThroughputOptions {
            num_prompts: load.num_prompts.max(concurrency),
            concurrency,
            input_len: load.input_len,
            output_len: load.output_len,
            num_images: 1,
            image_size: [load.side; 2],
            // No two loops have a picture in common.
            seed: (concurrency * load.rounds + round) as u64,
        };
        let report = throughput(model, &options, |_| {}).with_context(|| format!("{concurrency} requests at once"))?;
        for (medians, ms) in medians.iter_mut().zip([report.itl_ms.p50, report.ttft_ms.p50]) {
            medians.push((ms * 1e3) as f32);
        }
    }
    Ok(medians.map(Times::of))
}

#[cfg(test)]
mod tests {
    use foveal_runtime::LoadFormat;
    use foveal_testkit::fixtures_dir;

    use super::*;
    use crate::gpu::ModelForm;
    use crate::ideas::{Header, Options, Outcome, Scale};

    /// The loop itself runs anywhere; that its ways differ, a GPU alone shows.
    #[test]
    fn engines_are_compared_by_their_answers() {
        let options = Options {
            model: fixtures_dir().join("tiny"),
            load_format: LoadFormat::Auto,
            form: ModelForm::default(),
            scale: Scale::Smallest,
        };
        let context = Context::new(Machine::cpu(2).unwrap(), &options).unwrap();
        let load =
            Load { concurrency: [1, 2], input_len: 6, output_len: 3, side: 64, num_prompts: 2, rounds: 2, compared: 9 };
        let run = |way| figures(&context, DeviceKind::Cpu, way, load).unwrap();
        let with = run(ALL_ON);
        let mut without = run(Way { enforce_eager: true, run_ahead: false });
        assert!(with.loops.iter().flatten().all(|times| times.p20_us > 0.0 && times.p20_us <= times.p80_us));
        let mut table = Table::new(Header::default(), None);
        report(GRAPHS, &with, &without, &mut table).unwrap();
        assert_eq!(table.lines().len(), 4);
        assert!(table.lines().iter().all(|line| matches!(line.outcome, Outcome::Measured { .. })));
        without.answer[4].0 += 1;
        let error = report(GRAPHS, &with, &without, &mut table).unwrap_err();
        assert_eq!(error.to_string(), "answers differ from token Some(4) on");
    }
}
