//! Two ways timed by the host's clock, in turns, so that whatever else the machine does meets both.

use std::time::{Duration, Instant};

use foveal_device::Times;

use super::Scale;

/// A sample is at least as long: reading the clock is nothing beside it.
const MIN_SAMPLE: Duration = Duration::from_micros(20);
/// The most calls of a sample.
const MAX_CALLS: u32 = 10_000;

/// How often things are run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// The fewest and the most samples of each way.
    pub(super) rounds: [usize; 2],
    /// What all samples of both ways may take, as far as the fewest allow.
    budget: Duration,
}

impl Effort {
    pub(super) fn of(scale: Scale) -> Self {
        match scale {
            Scale::Full => Self { rounds: [5, 101], budget: Duration::from_millis(1500) },
            Scale::Smallest => Self { rounds: [2, 3], budget: Duration::from_millis(20) },
        }
    }

    fn rounds_of(self, round: Duration) -> usize {
        let [fewest, most] = self.rounds;
        let fitting = self.budget.as_secs_f64() / round.as_secs_f64().max(1e-9);
        (fitting as usize).clamp(fewest, most)
    }
}

/// Times both ways, each run before; behind each sample `settle` is called, which doesn't count.
pub(super) fn in_turns(
    effort: Effort,
    mut with: impl FnMut() -> anyhow::Result<()>,
    mut without: impl FnMut() -> anyhow::Result<()>,
    mut settle: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<[Times; 2]> {
    let mut calls = [0; 2];
    let mut round = Duration::ZERO;
    for (calls, way) in calls.iter_mut().zip([&mut with as &mut dyn FnMut() -> anyhow::Result<()>, &mut without]) {
        sample(way, 1)?;
        settle()?;
        let one = sample(way, 1)?;
        settle()?;
        *calls = (MIN_SAMPLE.as_nanos() / one.as_nanos().max(1)).clamp(1, u128::from(MAX_CALLS)) as u32;
        round += one * *calls;
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..effort.rounds_of(round) {
        let [of_with, of_without] = &mut times;
        of_with.push(microseconds(sample(&mut with, calls[0])? / calls[0]));
        settle()?;
        of_without.push(microseconds(sample(&mut without, calls[1])? / calls[1]));
        settle()?;
    }
    Ok(times.map(Times::of))
}

/// Nothing is under way behind a sample.
pub(super) fn settled() -> anyhow::Result<()> {
    Ok(())
}

pub(super) fn microseconds(time: Duration) -> f32 {
    time.as_secs_f32() * 1e6
}

fn sample(way: &mut dyn FnMut() -> anyhow::Result<()>, calls: u32) -> anyhow::Result<Duration> {
    let start = Instant::now();
    for _ in 0..calls {
        way()?;
    }
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn ways_take_turns_and_a_failure_ends_it() {
        let calls = RefCell::new(String::new());
        let call = |name| {
            calls.borrow_mut().push(name);
            std::thread::sleep(MIN_SAMPLE);
            Ok(())
        };
        let effort = Effort { rounds: [3, 3], budget: Duration::ZERO };
        in_turns(effort, || call('+'), || call('-'), || call('.')).unwrap();
        // `settle` sleeps as well, which counts for neither.
        assert_eq!(calls.borrow().as_str(), "+.+.-.-.+.-.+.-.+.-.");
        let failed = in_turns(effort, || Ok(()), || anyhow::bail!("broken"), settled);
        assert_eq!(failed.unwrap_err().to_string(), "broken");
    }

    #[test]
    fn as_many_rounds_as_there_is_time_for() {
        let effort = Effort { rounds: [5, 101], budget: Duration::from_millis(1000) };
        let rounds = [1, 20, 1000].map(|ms| effort.rounds_of(Duration::from_millis(ms)));
        assert_eq!(rounds, [101, 50, 5]);
    }
}
