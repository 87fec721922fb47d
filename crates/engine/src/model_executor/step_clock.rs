//! When a GPU began and ended its steps, by the GPU's own clock.

use std::collections::VecDeque;
use std::time::Duration;

use foveal_device::{CudaStream, DeviceError, Event};

/// Marks in the stream before and behind each step. Reading them waits for nothing: a step is looked at when its end has been
/// reached.
pub(crate) struct StepClock {
    /// Steps that have been marked and not been looked at, the oldest first.
    marked: VecDeque<Marks>,
    /// The step that was looked at last, until the engine rests.
    last: Option<Marks>,
    unused: Vec<Marks>,
    times: GpuTimes,
}

/// Tells the program's metrics recorder how long a step took (histogram `foveal_step_seconds`).
pub(crate) fn record_step(time: Duration) {
    metrics::histogram!("foveal_step_seconds").record(time.as_secs_f64());
}

/// Around one step.
struct Marks {
    start: Event,
    end: Event,
}

/// How long a GPU was at work, as far as steps have been looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct GpuTimes {
    /// Milliseconds inside of steps.
    pub(crate) busy_ms: f64,
    /// Milliseconds between a step and the next one while there was work.
    pub(crate) idle_ms: f64,
}

impl StepClock {
    pub(crate) fn new() -> Self {
        Self { marked: VecDeque::new(), last: None, unused: Vec::new(), times: GpuTimes::default() }
    }

    /// Before a step's first launch or copy.
    pub(crate) fn start(&mut self, stream: &CudaStream) -> Result<(), DeviceError> {
        let mut marks = match self.unused.pop() {
            Some(marks) => marks,
            None => Marks { start: Event::with_timing(stream.device())?, end: Event::with_timing(stream.device())? },
        };
        stream.record(&mut marks.start)?;
        self.marked.push_back(marks);
        Ok(())
    }

    /// Behind the last launch or copy of the step that was started last.
    pub(crate) fn end(&mut self, stream: &CudaStream) -> Result<(), DeviceError> {
        self.marked.back_mut().map_or(Ok(()), |marks| stream.record(&mut marks.end))
    }

    /// Looks at the steps that have ended.
    pub(crate) fn look(&mut self) -> Result<(), DeviceError> {
        while self.marked.front().is_some_and(|marks| marks.end.is_done() == Ok(true)) {
            let Some(marks) = self.marked.pop_front() else { break };
            let step_ms = f64::from(marks.end.milliseconds_since(&marks.start)?);
            self.times.busy_ms += step_ms;
            record_step(Duration::from_secs_f64(step_ms / 1e3));
            if let Some(last) = self.last.take() {
                self.times.idle_ms += f64::from(marks.start.milliseconds_since(&last.end)?.max(0.0));
                self.unused.push(last);
            }
            self.last = Some(marks);
        }
        Ok(())
    }

    /// There is nothing to do: what passes until the next step is nobody's idleness.
    pub(crate) fn rest(&mut self) -> Result<(), DeviceError> {
        self.look()?;
        // One whose end the GPU is just reaching is left out.
        self.unused.extend(self.marked.drain(..));
        self.unused.extend(self.last.take());
        Ok(())
    }

    pub(crate) fn times(&self) -> GpuTimes {
        self.times
    }
}
